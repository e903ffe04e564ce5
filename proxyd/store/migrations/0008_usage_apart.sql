-- Each listener of a kept stream is given its usage event or not, as it asked: where in `body` such events stand, as JSON [[from, to], …].
-- NULL: there is none, or it is for everybody.
ALTER TABLE idempotency_keys ADD COLUMN usage_at TEXT;
-- Whether whoever began the stream asked for it: who resumes it without saying gets it so.
ALTER TABLE idempotency_keys ADD COLUMN wants_usage INTEGER NOT NULL DEFAULT 1 CHECK (wants_usage IN (0, 1));
