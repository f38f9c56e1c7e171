-- A version that there isn't, for the test of upgrades: what upgrade-2-to-3.sql leads to.
CREATE TABLE store (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    epoch TEXT NOT NULL CHECK (length(epoch) = 16),
    sequence INTEGER NOT NULL CHECK (sequence >= 0)
) STRICT;

CREATE TABLE lists (
    owner TEXT NOT NULL PRIMARY KEY,
    entries TEXT NOT NULL,
    noted TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
