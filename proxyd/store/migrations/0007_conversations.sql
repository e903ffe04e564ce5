-- Chat memory: what was said, by whom it is owned, and what holds for its next turn. Times in microseconds since the epoch.
CREATE TABLE conversations (
    id INTEGER PRIMARY KEY,
    caller TEXT NOT NULL,
    name TEXT NOT NULL, -- base64url of 8 to 16 bytes; clients see it behind `c_`
    model TEXT NOT NULL, -- of its first turn; empty before
    settings TEXT NOT NULL, -- JSON: members of the first turn's request that hold for later ones
    length INTEGER NOT NULL, -- messages
    version INTEGER NOT NULL, -- counts the writes
    request_id TEXT NOT NULL, -- of the last turn
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (caller, name)
) STRICT;

CREATE INDEX conversations_updated_at ON conversations (updated_at);

CREATE TABLE messages (
    conversation INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    position INTEGER NOT NULL, -- counts from 0
    body TEXT NOT NULL, -- JSON, as it is sent to an upstream
    request_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (conversation, position)
) STRICT, WITHOUT ROWID;
