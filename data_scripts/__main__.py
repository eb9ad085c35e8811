"""Entry point of `python -m data_scripts`."""

from __future__ import annotations

import sys

from system_info.missing_package import explain_missing_package


def main() -> None:
    """Run a command."""
    try:
        with explain_missing_package("data"):
            from .cli import app

            app(prog_name="python -m data_scripts")
    except KeyboardInterrupt:
        # Interrupted while importing; a running command reports its own interrupt.
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
