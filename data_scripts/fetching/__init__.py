"""Getting files from the one host they are published on: requests, segments, resuming."""
