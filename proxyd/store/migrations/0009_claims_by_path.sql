-- A key is the caller's own on each path: the one used for a chat says nothing of the one used for embeddings.
CREATE TABLE claims_by_path (
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
    frames BLOB, -- the same answer as frames of protobuf, where it was begun so
    usage_at TEXT, -- JSON [[from, to], …]: where in `body` events stand that only those are given who asked for the usage
    wants_usage INTEGER NOT NULL DEFAULT 1 CHECK (wants_usage IN (0, 1)), -- whoever began it asked so
    UNIQUE (caller, key, endpoint)
) STRICT;

INSERT INTO claims_by_path
SELECT
    id, caller, key, endpoint, streamed, fingerprint, request_id, attempt, state, begun, status, headers, body, created_at, expires_at,
    frames, usage_at, wants_usage
FROM idempotency_keys;

DROP TABLE idempotency_keys;
ALTER TABLE claims_by_path RENAME TO idempotency_keys;

CREATE INDEX idempotency_keys_expires ON idempotency_keys (expires_at);
CREATE INDEX idempotency_keys_request ON idempotency_keys (request_id);
CREATE INDEX idempotency_keys_running ON idempotency_keys (id) WHERE state = 'running';
