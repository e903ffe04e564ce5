-- How the answers to a key leave where its requests do not say. NULL: as the route or everybody's default says.
ALTER TABLE api_keys ADD COLUMN max_delay_ms INTEGER;
ALTER TABLE api_keys ADD COLUMN max_bytes INTEGER;
ALTER TABLE api_keys ADD COLUMN compress INTEGER CHECK (compress IN (0, 1));
