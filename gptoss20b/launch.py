"""torchrun without its own traceback: `python -m gptoss20b.launch` takes the arguments of `torchrun`.

Each rank explains its own end. A last line names the rank that failed first, unless its own line is the last one. The
exit status is 2 if a rank refused to start, e.g. to resume: there is no new result. It is 3 or 4 if the training ended
without the target. Otherwise, as with torchrun, it is 1 if a rank fails or a signal ends the run.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from types import FrameType
from typing import Any

import psutil

from system_info.entry_point import entry_point

with entry_point("run"):
    if __name__ == "__main__":
        # The import of torch may swallow a KeyboardInterrupt. There is nothing to end in order yet.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
    from torch.distributed.run import main as torchrun
    from torch.distributed.run import parse_args

from .config.environment import read_settings
from .failure_report import parse_report
from .numa import torchrun_options
from .stopping import GRACE_SECONDS, ExitCode

# Its warnings name each process that it stops, and its errors repeat the exit statuses.
_SILENCED = ("agent.server.api", "multiprocessing.api", "multiprocessing.errors.error_handler")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Statuses of a rank that torchrun has told to end.
_REQUESTED = (ExitCode.TERMINATED, ExitCode.INTERRUPTED, *(-number for number in _SIGNALS))
# Of a rank that NCCL's watchdog ends, with its own lines, because another rank does not answer.
_WATCHDOG = -signal.SIGABRT
_EXPLAINED = (ExitCode.BAD_CONFIGURATION, ExitCode.NOT_CONVERGED, ExitCode.DIVERGED)
_END_SECONDS = GRACE_SECONDS + 2


class Supervision:
    """Add to torchrun what it has no setting for, where Python announces its actions (`sys.addaudithook`).

    - Only the first signal counts. After a second one torchrun would no longer wait for the ranks.
    - A rank that does not end when told to is killed: at once if it is stopped, else after the time that any other
      needs at most. torchrun waits 30 s, and its newest versions' setting does not apply after a failure.

    Attributes:
        stopped, overdue: processes that were killed because they were stopped, or did not end.
    """

    def __init__(self) -> None:
        self.stopped: set[int] = set()
        self.overdue: set[int] = set()
        self._has_signal = self._has_ended = False

    def end(self) -> None:
        """Do nothing from now on: a hook cannot be removed."""
        self._has_ended = True

    def on_audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Handle an event that Python announces. An error here would be one of torchrun."""
        if self._has_ended:
            return
        if event == "subprocess.Popen":  # torchrun starts the first rank, and has just set its own handlers
            if threading.current_thread() is threading.main_thread() and not self._has_signal:
                for number in _SIGNALS:
                    signal.signal(number, self._on_signal)
        elif event in ("os.kill", "os.killpg") and arguments[1] in _SIGNALS:
            with contextlib.suppress(psutil.Error):
                self._expect_end(psutil.Process(arguments[0]))

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if not self._has_signal:
            self._has_signal = True
            raise SignalException(f"received {signal.Signals(number).name}", signal.Signals(number))

    def _expect_end(self, process: psutil.Process) -> None:
        if process.status() == psutil.STATUS_STOPPED:
            self.stopped.add(process.pid)
            process.kill()
        else:
            timer = threading.Timer(_END_SECONDS, self._kill_overdue, (process,))
            timer.daemon = True
            timer.start()

    def _kill_overdue(self, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and not self._has_ended:
                self.overdue.add(process.pid)
                print(f"warning: process {process.pid} did not end within {_END_SECONDS:g} s: killed", file=sys.stderr)
                process.kill()


def describe(failures: dict[int, ProcessFailure], stopped: set[int], overdue: set[int]) -> str | None:
    """Return a line about the rank that failed first; None if that rank has printed it, and no other has printed more.

    Args:
        failures: ends of the ranks that did not end with status 0, by rank.
        stopped: processes that were killed because they were stopped.
        overdue: processes that were killed because they did not end when told to.
    """

    def precedence(rank: int) -> tuple[int, int]:
        failure = failures[rank]
        if failure.pid in stopped:
            return 1, 0
        if report := reports[rank]:
            return 3, report.time_ns
        if failure.pid in overdue or failure.exitcode in _REQUESTED:
            return 5, failure.timestamp
        if failure.exitcode == _WATCHDOG:
            return 4, failure.timestamp
        return (0 if failure.exitcode < 0 else 2), failure.timestamp

    reports = {rank: parse_report(failure.error_file_data) for rank, failure in failures.items()}
    first = min(failures, key=precedence)
    failure, report = failures[first], reports[first]
    process = f"(process {failure.pid})"
    if failure.pid in stopped:
        return f"rank {first} was stopped, e.g. by SIGSTOP, and did not answer {process}"
    if report:
        is_last_line = all(each is None or each.message == report.message for each in reports.values())
        if is_last_line and all(each.exitcode != _WATCHDOG for each in failures.values()):
            return None
        return f"rank {first} failed first: {report.message}"
    if failure.exitcode < 0:
        return f"rank {first} was killed by {failure.signal_name()} {process}"
    return None if failure.exitcode in _EXPLAINED else f"rank {first} exited with {failure.exitcode} {process}"


def exit_status(codes: set[int]) -> ExitCode:
    """Return the exit status of a launcher whose ranks ended with these statuses other than 0.

    3 or 4 if the training ended so, as far as the ranks could finish. A worker node has no log that would say it.
    """
    if ExitCode.BAD_CONFIGURATION in codes:
        return ExitCode.BAD_CONFIGURATION
    ended = codes - set(_REQUESTED)
    return next((code for code in (ExitCode.NOT_CONVERGED, ExitCode.DIVERGED) if ended == {code}), ExitCode.FAILED)


def main() -> None:
    """Run torchrun; turn the end of a rank or a signal into at most one line and the exit status."""
    for name in _SILENCED:
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    supervision = Supervision()
    sys.addaudithook(supervision.on_audit)
    try:
        with sample_gpus(sys.argv[1:]):
            torchrun([*torchrun_options(), *sys.argv[1:]])
    except ChildFailedError as error:
        if line := describe(error.failures, supervision.stopped, supervision.overdue):
            print(f"error: {line}", file=sys.stderr, flush=True)
        sys.exit(exit_status({each.exitcode for each in error.failures.values()}))
    except SignalException:
        sys.exit(ExitCode.FAILED)
    finally:
        supervision.end()


def sample_gpus(arguments: list[str]) -> contextlib.AbstractContextManager[None]:
    """Return the context in which telemetry of this node's GPUs is sampled. Import nothing where it is off."""
    is_option = any(each.startswith("--telemetry") for each in arguments)
    if read_settings().get("TELEMETRY", "0") == "0" and not is_option:
        return contextlib.nullcontext()
    from .telemetry.beside_run import sampling

    given = parse_args(arguments)
    return sampling(given.training_script_args, given.node_rank, given.nproc_per_node)


if __name__ == "__main__":
    main()
