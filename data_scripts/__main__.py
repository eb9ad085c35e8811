"""Entry point of `python -m data_scripts`."""

from __future__ import annotations

from system_info.entry_point import entry_point


def main() -> None:
    """Run a command."""
    with entry_point("data"):
        from .cli import app

        app(prog_name="python -m data_scripts")


if __name__ == "__main__":
    main()
