"""Fetch files from the host that publishes them: requests, retries, segments, resuming."""
