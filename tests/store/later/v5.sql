-- A version that there isn't, for the test of upgrades: what upgrade-4-to-5.sql leads to.
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

CREATE TABLE policies (
    owner TEXT NOT NULL PRIMARY KEY,
    policy TEXT NOT NULL,
    rejected TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE accounts (
    identifier TEXT NOT NULL PRIMARY KEY,
    verifier TEXT NOT NULL,
    generation TEXT NOT NULL,
    names TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE groups (
    name TEXT NOT NULL PRIMARY KEY,
    members TEXT NOT NULL
) STRICT, WITHOUT ROWID;
