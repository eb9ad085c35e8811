"""Entry point of `python -m gptoss20b`."""

from .cli import app

app(prog_name="python -m gptoss20b")
