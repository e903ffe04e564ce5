-- Keys that `proxyd keys` makes. The key itself is nowhere, only its hash. Times in microseconds since the epoch.
CREATE TABLE api_keys (
    id              INTEGER PRIMARY KEY,
    hash            BLOB NOT NULL UNIQUE CHECK (length(hash) = 32), -- SHA-256 of the whole key
    prefix          TEXT NOT NULL,           -- the key's first characters, for people to tell keys apart
    caller          TEXT NOT NULL,           -- the name in the ledger; two live keys while one replaces the other
    models          TEXT NOT NULL,           -- JSON: names or patterns
    admin           INTEGER NOT NULL CHECK (admin IN (0, 1)),
    rpm             INTEGER,                 -- NULL: not limited
    tpm             INTEGER,
    concurrency     INTEGER,
    budget_amount   INTEGER,                 -- tokens, or 10^-9 of the currency; NULL: no budget
    budget_unit     TEXT,                    -- 'tokens', or a currency
    budget_per      TEXT CHECK (budget_per IN ('day', 'month')),
    budget_warn_at  REAL,                    -- a share of it, 0 to 1
    default_model   TEXT,
    created_at      INTEGER NOT NULL,
    expires_at      INTEGER,
    revoked_at      INTEGER,
    last_used_at    INTEGER                  -- about; written once a minute
) STRICT;

CREATE INDEX api_keys_caller ON api_keys (caller);
