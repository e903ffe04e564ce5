-- What else a price may depend on: parts of the prompt and of the answer with rates of their own, and what the answer was served as.
-- With them every row can be priced again.
ALTER TABLE usage_events ADD COLUMN cache_write_tokens INTEGER;
ALTER TABLE usage_events ADD COLUMN audio_input_tokens INTEGER;
ALTER TABLE usage_events ADD COLUMN audio_output_tokens INTEGER;
ALTER TABLE usage_events ADD COLUMN service_tier TEXT;
