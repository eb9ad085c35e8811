"""Judging finished logs: one run, a set of ten, a submission tree. Parse, judge and render are separate and pure.

The typed interface is `check_run`, `check_set` and `check_package` in `compliance.check`; the command line renders what
they return. Nothing here imports torch or Megatron-Core, and nothing in a log chooses a path or is executed.
"""

__version__ = "0.1.0"
