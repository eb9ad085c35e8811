"""Runs the official tools beside our own judging, each in a subprocess with a time limit.

`runner` is the program of the subprocess. Its current directory is a private folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from ..benchmark import OFFICIAL_PACKAGE as PACKAGE
from ..benchmark import OFFICIAL_VERSION as VERSION
from ..benchmark import RULESETS
from ..findings import OfficialResult, OfficialTool
from .messages import shorten

TIMEOUT_S = 120.0
_POLL_S = 0.1
# The folder of `compliance`, for the subprocess's import path.
_SOURCE_ROOT = Path(__file__).resolve().parents[2]


class OfficialToolsError(RuntimeError):
    """The official tools are not installed in the version that defines the verdicts."""


def version() -> str:
    """Return the version of the official tools without importing them.

    Raises:
        OfficialToolsError: mlperf-logging is missing or another version.
    """
    try:
        installed = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        installed = "none"
    if installed != VERSION:
        fix = f"pip install {PACKAGE}=={VERSION}, or leave the official tools out with --no-official"
        raise OfficialToolsError(f"the official tools are {PACKAGE} {VERSION}, found {installed}: {fix}")
    return installed


class OfficialTools:
    """Official verdicts on the inputs of the `check_` methods, which return at once.

    Subprocesses run in the order of the calls. A set takes longest and should come first. Use as a context manager: the
    exit ends running subprocesses with their children.

    Args:
        ruleset: "6.0.0" or "6.1.0".
        timeout_s: time limit in seconds for each log that a tool reads.
        jobs: subprocesses at once; None: one per CPU.

    Raises:
        OfficialToolsError: as `version`.
    """

    def __init__(self, ruleset: str = RULESETS[-1], timeout_s: float = TIMEOUT_S, jobs: int | None = None) -> None:
        version()
        self._ruleset, self._timeout_s, self._jobs = ruleset, timeout_s, jobs or os.cpu_count()
        self._results: list[Future[list[OfficialResult]]] = []
        self._closed = threading.Event()

    def __enter__(self) -> OfficialTools:
        self._folder = Path(tempfile.mkdtemp(prefix="official-"))
        self._threads = ThreadPoolExecutor(self._jobs, thread_name_prefix="official")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._threads.shutdown()
        # Not tempfile.TemporaryDirectory: before Python 3.11.8 it may change the permissions of link targets.
        shutil.rmtree(self._folder, ignore_errors=True)

    def check_files(self, files: Mapping[str, Path]) -> None:
        """Run compliance_checker on each log, plain or .gz, by the user's names, which become the subjects."""
        for name, path in files.items():
            self._start("compliance_checker", {name: path}, (name,))

    def check_set(self, files: Mapping[str, Path], name: str = "") -> None:
        """Run rcp_checker with the pruned and with all RCPs, and seed_checker, on the logs of one set, plain or .gz.

        The subjects are "NAME pruned", "NAME full" and "NAME seeds".
        """
        if files:
            pruned, full, seeds = (f"{name} {part}".strip() for part in ("pruned", "full", "seeds"))
            self._start("rcp_checker", files, (pruned, full))
            self._start("seed_checker", files, (seeds,))

    def check_system(self, name: str, path: Path) -> None:
        """Run system_desc_checker on a system description. The name becomes the subject."""
        self._start("system_desc_checker", {name: path}, (name,))

    def check_tree(self, name: str, root: Path, only: str | None = None) -> None:
        """Run package_checker on a copy of a submission tree. The name becomes the subject.

        The copy lacks any `scaling.json` and `package_checker_params`, and the results except those of the system
        ``only``.
        """
        logs = sum(1 for _ in root.glob("results/*/*/result_*.txt"))
        self._start("package_checker", {name: root}, (name,), logs, only)

    def collect(self) -> tuple[OfficialResult, ...]:
        """Wait for all results and return them in the order of the calls."""
        # In short waits: Python handles a signal only between calls, and one endless wait would never return.
        while wait(self._results, timeout=_POLL_S).not_done:
            pass
        return tuple(result for future in self._results for result in future.result())

    def _start(
        self, tool: OfficialTool, inputs: Mapping[str, Path], subjects: tuple[str, ...], logs: int | None = None,
        only: str | None = None,
    ) -> None:  # fmt: skip
        limit_s = self._timeout_s * max(1, len(inputs) if logs is None else logs)
        request = {
            "tool": tool,
            "ruleset": self._ruleset,
            "paths": [str(path.absolute()) for path in inputs.values()],
            "names": list(inputs),
            "only": only,
        }
        self._results.append(self._threads.submit(self._run, tool, request, subjects, limit_s))

    def _run(
        self, tool: OfficialTool, request: dict[str, Any], subjects: tuple[str, ...], limit_s: float
    ) -> list[OfficialResult]:
        started = time.perf_counter()
        try:
            answers = self._run_subprocess(request, len(subjects), limit_s)
        except subprocess.TimeoutExpired:
            message = f"not finished after {limit_s:g} s"
            answers = [_failure("timeout", message, time.perf_counter() - started)] * len(subjects)
        except OSError as error:
            message = f"the official tool could not be started: {error}"
            answers = [_failure("crashed", message)] * len(subjects)
        # Only the first subject decides: the pruned RCP test, before the full one.
        return [
            OfficialResult(
                tool, subject, answer["verdict"], tuple(answer["messages"]), answer["seconds"], subject == subjects[0]
            )
            for subject, answer in zip(subjects, answers, strict=True)
        ]

    def _run_subprocess(self, request: dict[str, Any], subjects: int, limit_s: float) -> list[dict[str, Any]]:
        """Return the answer of the subprocess for each subject. Raise TimeoutExpired, or OSError if it cannot start."""
        if self._closed.is_set():
            raise OSError("the official tools have been stopped")
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        with (folder / "output.txt").open("wb") as output, _start_process(folder, output.fileno()) as process:
            status = self._wait(process, limit_s)
        if status == 0:
            answers: list[dict[str, Any]] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
        else:
            answers = [_failure("crashed", _crash_message(status, folder / "output.txt"))] * subjects
        shutil.rmtree(folder, ignore_errors=True)
        return answers

    def _wait(self, process: subprocess.Popen[bytes], limit_s: float) -> int:
        """Return the exit status. Kill the process group at the time limit, or when the tools are closed."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                return process.wait(min(_POLL_S, max(0.0, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                if self._closed.is_set() or time.monotonic() >= deadline:
                    # Not reaped yet, so that no other process has its id.
                    os.killpg(process.pid, signal.SIGKILL)
                    raise


def _start_process(folder: Path, output: int) -> subprocess.Popen[bytes]:
    paths = [str(_SOURCE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        # -P keeps the current directory out of the import path. UTF-8 in every locale.
        [sys.executable, "-P", "-X", "utf8", "-m", "compliance.official.runner"],
        cwd=folder,
        # Some official messages list a set, whose order depends on the hash seed.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"},
        # Open while this process lives: `runner` ends when it is closed.
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        process_group=0,
    )


def _failure(verdict: str, message: str, seconds: float = 0.0) -> dict[str, Any]:
    return {"verdict": verdict, "messages": [message], "seconds": seconds}


def _crash_message(status: int, output: Path) -> str:
    lines = [line for line in output.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
    ended = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return f"{ended}: {shorten(lines[-1])}" if lines else ended
