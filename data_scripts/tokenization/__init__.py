"""From shards of text to token ids: reading, checking, many processes, restarting."""
