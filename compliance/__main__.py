"""Entry point of ``python -m compliance``."""

from __future__ import annotations

import gc

from system_info.entry_point import entry_point


def main() -> None:
    """Run a command."""
    # A command lives for seconds. Collecting cycles among a million losses would cost 5 % of its time.
    gc.disable()
    with entry_point("compliance"):
        from .cli import main as run_command

        run_command()


if __name__ == "__main__":
    main()
