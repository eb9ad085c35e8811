"""Check a dataset on disk: its structure, its checksums and its tokens."""
