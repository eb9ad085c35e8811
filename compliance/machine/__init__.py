"""What this machine is, read from /proc, /sys and the vendors' tools, for a system description.

Each reader returns only the fields that it knows, by their names in the description. What is missing stays unknown:
nothing is guessed, and no tool is needed.
"""
