"""Recorded figures of speed, each with a peer timed in the same run. Never part of the tests."""
