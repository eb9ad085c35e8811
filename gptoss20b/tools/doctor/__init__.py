"""Check whether this node is ready for a long run: ``python -m gptoss20b doctor``.

Every check uses the real thing, has a time limit, and changes nothing. `checks` lists them; the other modules hold one
subject each.
"""
