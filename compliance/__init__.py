"""Check finished logs: one run, a set of ten runs, a submission tree.

Parsing, judging and rendering are separate and pure. `compliance.check` is the typed interface, and the command line
renders its results. Nothing here imports torch or Megatron-Core. No text of a log becomes a path or is executed.
"""
