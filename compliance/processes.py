"""Functions in separate processes: each frees its memory, and one that is killed costs its own result only."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .log_files import InputError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess

Item = TypeVar("Item")
Result = TypeVar("Result")

# Time for an ended process to remove its temporary files.
_GRACE_S = 5.0


class ProcessError(RuntimeError):
    """A process ended without a result. The message says why."""


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_error(error: Exception) -> str:
    """Return type, message and place of an unexpected error on one line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"


def run_apart(
    function: Callable[[Item], Result], items: Sequence[Item], jobs: int
) -> Generator[tuple[int, Result | InputError | ProcessError], None, None]:
    """Call a function once per item, each in a separate process, and at most ``jobs`` at once.

    The processes are forked: they share the imports of this one. Fork before any thread starts. Closing the iterator
    ends the processes.

    Yields:
        Index of an item, and its result, in the order of completion. An error is returned, not raised: the function's
        `InputError`, or a `ProcessError` for any other and for a process that was killed.
    """
    from multiprocessing import get_context
    from multiprocessing.connection import Connection, wait

    context = get_context("fork")
    running: dict[Connection, tuple[int, ForkProcess]] = {}
    waiting = iter(enumerate(items))
    try:
        while True:
            while len(running) < jobs and (following := next(waiting, None)):
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_send_result, args=(sender, function, following[1]))
                process.start()
                sender.close()  # otherwise the end of the process would not end the pipe
                running[receiver] = following[0], process
            if not running:
                return
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                index, process = running[ready]
                outcome = _receive(ready, process)
                del running[ready]
                yield index, outcome
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join(_GRACE_S)
            process.kill()
            process.join()


def _send_result(sender: Connection, function: Callable[[Item], Result], item: Item) -> None:
    # A terminal sends Ctrl-C to every process. The first one handles it, and ends this one by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves `with` blocks, which remove temporary files
    outcome: Result | InputError | ProcessError
    try:
        outcome = function(item)
    except InputError as error:
        outcome = error
    except Exception as error:
        outcome = ProcessError(describe_error(error))
    sender.send(outcome)


def _receive(receiver: Connection, process: ForkProcess) -> Result | InputError | ProcessError:
    with receiver:
        try:
            outcome: Result | InputError | ProcessError = receiver.recv()
        except EOFError:
            process.join()
            status = process.exitcode or 0
            ended = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            return ProcessError(f"the process that judged it {ended}; is there enough memory?")
    process.join()
    return outcome
