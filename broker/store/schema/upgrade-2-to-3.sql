-- An identifier may refuse others, and may be asked for its consent each time.
-- How the consent of an identifier is had, and whom it refuses. Whose list gives it, and who refuses
-- nobody, has no row.
CREATE TABLE policies (
    -- Whose it is: an identifier in its canonical form.
    owner TEXT NOT NULL PRIMARY KEY,
    -- How consent is had: List, Ask or Password, as in the protocol.
    policy TEXT NOT NULL CHECK (policy IN ('List', 'Ask', 'Password')),
    -- Whom it refuses, whatever else is said: a JSON array of texts, which may be empty.
    rejected TEXT NOT NULL CHECK (json_valid(rejected) AND rejected LIKE '[%]')
) STRICT, WITHOUT ROWID;
