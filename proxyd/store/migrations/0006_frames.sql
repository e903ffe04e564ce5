-- A stream that was begun as protobuf is kept as frames, too: they are numbered as they were made.
ALTER TABLE idempotency_keys ADD COLUMN frames BLOB;
