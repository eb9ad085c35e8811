"""Entry point of ``python -m compliance``."""

from __future__ import annotations

import gc

from system_info.missing_package import explain_missing_package


def main() -> None:
    """Run a command."""
    # A command lives for seconds. Collecting cycles among a million losses would cost 5 % of its time.
    gc.disable()
    with explain_missing_package("compliance"):
        from .cli import main as run_command

        run_command()


if __name__ == "__main__":
    main()
