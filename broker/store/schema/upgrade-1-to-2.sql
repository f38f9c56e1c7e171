-- Entries of lists may have limits; there are accounts, groups, and a ledger of disclosures.
ALTER TABLE permits RENAME TO permits_before;

-- The permit table (fig. 4): the callers that each terminal accepts. An empty list has no row.
CREATE TABLE permits (
    -- The owner: an identifier in its canonical form.
    owner TEXT NOT NULL PRIMARY KEY,
    -- The entries of the list, in order: a JSON array. An entry without limits is a text, one with
    -- limits an array of its text, when it expires (seconds since 1970, or null), and how many
    -- calls it still permits (or null).
    accepted TEXT NOT NULL CHECK (json_valid(accepted) AND accepted LIKE '[%"%]')
) STRICT, WITHOUT ROWID;

INSERT INTO permits SELECT owner, accepted FROM permits_before;
DROP TABLE permits_before;

-- The identifiers that may log in (A19). An account that is removed has no row.
CREATE TABLE accounts (
    -- An identifier in its canonical form.
    identifier TEXT NOT NULL PRIMARY KEY,
    -- The verifier of a password, never the password itself (I20).
    verifier TEXT NOT NULL CHECK (verifier <> ''),
    -- Changes with each password. 16 hexadecimal digits.
    generation TEXT NOT NULL CHECK (length(generation) = 16 AND generation NOT GLOB '*[^0-9a-f]*'),
    -- The account's aliases, in order: a JSON array of texts.
    names TEXT NOT NULL CHECK (json_valid(names) AND names LIKE '[%]')
) STRICT, WITHOUT ROWID;

-- The groups that an entry of a list may name (A18). A group that is deleted has no row.
CREATE TABLE groups (
    -- Its name, with its @.
    name TEXT NOT NULL PRIMARY KEY CHECK (substr(name, 1, 1) = '@' AND name <> '@'),
    -- The identifiers in it, in order: a JSON array of texts, which may be empty.
    members TEXT NOT NULL CHECK (json_valid(members) AND members LIKE '[%]')
) STRICT, WITHOUT ROWID;

-- Each disclosure of an address. Rows are inserted and deleted, never updated.
CREATE TABLE disclosures (
    -- In the order of insertion.
    id INTEGER NOT NULL PRIMARY KEY,
    -- The terminal whose address it is.
    whose TEXT NOT NULL,
    -- The peer that learned it.
    told TEXT NOT NULL,
    -- The IP address.
    host TEXT NOT NULL,
    -- The port that goes with it.
    port INTEGER NOT NULL,
    -- The session that it was disclosed for.
    session TEXT NOT NULL,
    -- The entry of the list that permitted it.
    basis TEXT NOT NULL,
    -- When, in microseconds since 1970 (UTC).
    at INTEGER NOT NULL,
    -- Seconds after which the session ends.
    expires INTEGER NOT NULL
) STRICT;

-- Finds the newest of one terminal.
CREATE INDEX disclosures_of_one ON disclosures (whose, at);

-- Finds those that are too old.
CREATE INDEX disclosures_by_age ON disclosures (at);
