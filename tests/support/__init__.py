"""Fixtures, builders and fakes that several test modules share."""
