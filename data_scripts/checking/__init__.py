"""Check a data set on disk: its structure, its checksums and its tokens."""
