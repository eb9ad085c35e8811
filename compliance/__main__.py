"""Entry point of ``python -m compliance``."""

from __future__ import annotations

import gc
import signal
import sys

from system_info.entry_point import entry_point


def main() -> None:
    """Run a command."""
    # Without a handler, the processes of `review` and of the official tools would outlive this one.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda *_: sys.exit(143))  # ExitCode.TERMINATED, before its import
    # A command lives for seconds. Collecting cycles among a million losses would cost 5 % of its time.
    gc.disable()
    with entry_point("compliance"):
        from .cli import main as run_command

        run_command()


if __name__ == "__main__":
    main()
