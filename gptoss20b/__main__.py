"""Entry point of `python -m gptoss20b`."""

from __future__ import annotations

from system_info.entry_point import entry_point


def main() -> None:
    """Run a command."""
    with entry_point("run"):
        from .cli import app

        app(prog_name="python -m gptoss20b")


if __name__ == "__main__":
    main()
