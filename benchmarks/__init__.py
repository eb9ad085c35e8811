"""Recorded figures of speed, each with a baseline timed in the same run. Never part of the tests."""
