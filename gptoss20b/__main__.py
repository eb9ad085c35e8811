"""Entry point of `python -m gptoss20b`."""

from __future__ import annotations

from system_info.missing_package import explain_missing_package


def main() -> None:
    """Run a command."""
    with explain_missing_package("run"):
        from .cli import app

        app(prog_name="python -m gptoss20b")


if __name__ == "__main__":
    main()
