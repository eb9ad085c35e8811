"""Checkpoints: `checkpointer` saves and finds them with all ranks, `files` is their layout on disk."""
