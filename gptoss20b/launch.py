"""torchrun without its own traceback: `python -m gptoss20b.launch` takes the arguments of `torchrun`.

Each rank has explained its own end. Only the end of a rank that could not is reported here. As with torchrun, the exit
status is 1 if a rank fails or a signal ends the run.
"""

from __future__ import annotations

import logging
import sys

from system_info.entry_point import entry_point

with entry_point("run"):
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

from .numa import torchrun_options
from .stopping import ExitCode

_EXPLAINED = (ExitCode.BAD_CONFIGURATION, ExitCode.NOT_CONVERGED, ExitCode.DIVERGED)


def main() -> None:
    """Run torchrun; turn the end of a rank or a signal into at most one line and exit status 1."""
    # Its warnings name each process that it stops, and its errors repeat the exit statuses.
    logging.getLogger("torch.distributed.elastic.agent.server.api").setLevel(logging.ERROR)
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        torchrun([*torchrun_options(), *sys.argv[1:]])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode not in _EXPLAINED:
            how = (
                f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"exited with {failure.exitcode}"
            )
            print(f"error: rank {rank} {how} (process {failure.pid})", file=sys.stderr, flush=True)
        sys.exit(ExitCode.FAILED)
    except SignalException:
        sys.exit(ExitCode.FAILED)


if __name__ == "__main__":
    main()
