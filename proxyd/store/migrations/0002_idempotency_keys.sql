-- Claims: what stands under an Idempotency-Key, and the answer that is sent again.
CREATE TABLE idempotency_keys (
    id INTEGER PRIMARY KEY,
    caller TEXT NOT NULL,
    key TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    streamed INTEGER NOT NULL CHECK (streamed IN (0, 1)),
    fingerprint BLOB NOT NULL,
    request_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'failed', 'broken')),
    begun INTEGER NOT NULL DEFAULT 0 CHECK (begun IN (0, 1)), -- a byte of the answer went out
    status INTEGER,
    headers TEXT, -- JSON: [[name, value], …]
    body BLOB, -- null on a finished claim: it was too large to keep
    created_at INTEGER NOT NULL, -- microseconds since the epoch
    expires_at INTEGER NOT NULL,
    UNIQUE (caller, key)
) STRICT;

CREATE INDEX idempotency_keys_expires ON idempotency_keys (expires_at);
CREATE INDEX idempotency_keys_request ON idempotency_keys (request_id);
