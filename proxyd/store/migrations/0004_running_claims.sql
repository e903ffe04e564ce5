-- What a start must look at, and nothing else: a full scan would read a gigabyte of kept answers.
CREATE INDEX idempotency_keys_running ON idempotency_keys (id) WHERE state = 'running';
