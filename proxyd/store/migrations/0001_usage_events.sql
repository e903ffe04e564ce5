-- The ledger: one row for each attempt at one upstream. Times in microseconds since the epoch, money in 10^-9 of `currency`,
-- booleans 0 or 1. NULL is unknown, never 0.
CREATE TABLE usage_events (
    id                  INTEGER PRIMARY KEY,    -- milliseconds since the epoch << 20, and a sequence: sorts by time
    request_id          TEXT NOT NULL,
    attempt             INTEGER NOT NULL,
    state               TEXT NOT NULL,          -- open, then one of: done, failed, cancelled, interrupted
    caller              TEXT NOT NULL,
    conversation_id     TEXT,
    endpoint            TEXT NOT NULL,
    protocol            TEXT NOT NULL,
    model               TEXT NOT NULL,
    upstream            TEXT NOT NULL,
    upstream_model      TEXT NOT NULL,
    upstream_request_id TEXT,
    prompt_tokens       INTEGER,
    completion_tokens   INTEGER,
    total_tokens        INTEGER,
    cached_tokens       INTEGER,
    reasoning_tokens    INTEGER,
    tokens_source       TEXT NOT NULL,          -- upstream, counted, estimated, none
    cost_nano           INTEGER,
    currency            TEXT,
    price_source        TEXT,
    price_version       TEXT,
    status              INTEGER,
    error               TEXT,
    finish_reason       TEXT,
    streamed            INTEGER NOT NULL,
    bytes_in            INTEGER NOT NULL,
    bytes_out           INTEGER NOT NULL,
    ttft_ms             REAL,
    latency_ms          REAL,
    created_at          INTEGER NOT NULL,
    settled_at          INTEGER,
    UNIQUE (request_id, attempt)
) STRICT;

CREATE INDEX usage_events_created_at ON usage_events (created_at);
CREATE INDEX usage_events_caller ON usage_events (caller, created_at);
-- What a start must look at, and nothing else: only running exchanges are in it.
CREATE INDEX usage_events_open ON usage_events (id) WHERE state = 'open';
