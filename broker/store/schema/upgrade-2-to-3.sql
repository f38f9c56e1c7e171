-- An identifier may reject callers, and may be asked for its consent to each call.
-- How each identifier decides on callers, and which it rejects. One that has the default policy and
-- rejects no caller has no row.
CREATE TABLE policies (
    -- An identifier in its canonical form.
    owner TEXT NOT NULL PRIMARY KEY,
    -- The policy: List, Ask or Password, as in the protocol.
    policy TEXT NOT NULL CHECK (policy IN ('List', 'Ask', 'Password')),
    -- The callers it rejects under every policy: a JSON array of texts, which may be empty.
    rejected TEXT NOT NULL CHECK (json_valid(rejected) AND rejected LIKE '[%]')
) STRICT, WITHOUT ROWID;
