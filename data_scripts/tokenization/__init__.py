"""Tokenize shards of text: read and check lines, encode them in many processes, resume."""
