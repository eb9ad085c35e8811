"""Checkpoints: `files` is what lies on disk, `checkpoints` writes and reads it together with all ranks."""
