-- Permits are called lists.
CREATE TABLE lists (
    owner TEXT NOT NULL PRIMARY KEY,
    entries TEXT NOT NULL,
    noted TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
INSERT INTO lists SELECT owner, accepted, noted FROM permits;
DROP TABLE permits;
-- The ledger is kept elsewhere.
DROP TABLE disclosures;
