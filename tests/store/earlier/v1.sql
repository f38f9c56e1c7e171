-- Version 1 of the store's schema. The version itself is PRAGMA user_version, and PRAGMA
-- application_id tells a database in use from a backup: broker/store/database.py.

-- What is said of the store as a whole; one row.
CREATE TABLE store (
    -- Always 1, so that there is no second row.
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    -- Told to terminals; another once changes may be lost. 16 hexadecimal digits.
    epoch TEXT NOT NULL CHECK (length(epoch) = 16),
    -- How many transactions there have been: what the mark beside the database is compared with.
    sequence INTEGER NOT NULL CHECK (sequence >= 0)
) STRICT;

-- The permit table (fig. 4): whom each terminal accepts. An empty list has no row.
CREATE TABLE permits (
    -- Whose list it is: an identifier in its canonical form.
    owner TEXT NOT NULL PRIMARY KEY,
    -- The identifiers on the list, in order: a JSON array of texts.
    accepted TEXT NOT NULL CHECK (accepted LIKE '["%"]')
) STRICT, WITHOUT ROWID;
