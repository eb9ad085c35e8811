"""Runs the official tools beside our own judging, each in a subprocess of its own, with a time limit.

What happens inside the subprocess, whose current directory is a private folder, is in `runner`.
"""

from __future__ import annotations

import contextlib
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
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from ..benchmark import RULESETS
from ..findings import OfficialResult, OfficialTool
from .messages import shorten

PACKAGE, VERSION = "mlperf-logging", "4.1.68"
TIMEOUT_S = 120.0
_PATIENCE_S = 0.5
# Where `compliance` lies: the subprocess has it on its path whatever its current directory.
_SOURCE_ROOT = Path(__file__).resolve().parents[2]


class OfficialToolsError(RuntimeError):
    """The official tools are not installed, or not in the version that the verdicts are defined by."""


def version() -> str:
    """Version of the official tools, without importing them.

    Raises:
        OfficialToolsError: mlperf-logging is missing or not 4.1.68.
    """
    try:
        found = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        found = "none"
    if found != VERSION:
        fix = f"pip install {PACKAGE}=={VERSION}, or leave the official tools out with --no-official"
        raise OfficialToolsError(f"the official tools are {PACKAGE} {VERSION}, found {found}: {fix}")
    return found


@dataclass(frozen=True, slots=True)
class _Job:
    """One subprocess: a tool, what it reads by the user's names, the subject of each of its answers, its time limit."""

    tool: OfficialTool
    inputs: dict[str, Path]
    subjects: tuple[str, ...]
    limit_s: float


class OfficialTools:
    """The official verdicts on what the `check_` methods are given; they return at once.

    As many subprocesses run at once as there are CPUs, in the order of the calls. A set takes longest, so `check_set`
    before `check_files` is soonest done. Use as a context manager: leaving it ends what still runs, with its children.

        with OfficialTools("6.1.0") as official:
            official.check_set(files)
            official.check_files(files)
            ...  # judge
            results = official.collect()

    Args:
        ruleset: "6.0.0" or "6.1.0".
        timeout_s: time limit in seconds for each log that a tool is to read.

    Raises:
        OfficialToolsError: as `version`.
        ValueError: unknown ruleset.
    """

    def __init__(self, ruleset: str = RULESETS[-1], timeout_s: float = TIMEOUT_S) -> None:
        version()
        if ruleset not in RULESETS:
            raise ValueError(f"ruleset is {ruleset!r}, expected one of {', '.join(RULESETS)}")
        self._ruleset, self._timeout_s = ruleset, timeout_s
        self._results: list[Future[list[OfficialResult]]] = []
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> OfficialTools:
        self._folder = Path(tempfile.mkdtemp(prefix="official-"))
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="official")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            for process in self._running:
                _kill(process)
        self._threads.shutdown()
        # Not tempfile.TemporaryDirectory: before Python 3.11.8 that may change the permissions of what links lead to.
        shutil.rmtree(self._folder, ignore_errors=True)

    def check_files(self, files: Mapping[str, Path]) -> None:
        """compliance_checker on each log, plain or .gz.

        Args:
            files: paths by the user's names, which become the subjects.
        """
        for name, path in files.items():
            self._start("compliance_checker", {name: path}, (name,))

    def check_set(self, files: Mapping[str, Path], name: str = "") -> None:
        """rcp_checker with the pruned and with all RCPs, and seed_checker, on the logs of one set, plain or .gz.

        The official package checker runs these in the closed division only.

        Args:
            files: paths by the user's names.
            name: of the set. The subjects are "NAME pruned", "NAME full" and "NAME seeds", without it just the last
                word.
        """
        if files:
            pruned, full, seeds = (f"{name} {part}".strip() for part in ("pruned", "full", "seeds"))
            self._start("rcp_checker", files, (pruned, full))
            self._start("seed_checker", files, (seeds,))

    def check_system(self, name: str, path: Path) -> None:
        """system_desc_checker on a system description; the name becomes the subject."""
        self._start("system_desc_checker", {name: path}, (name,))

    def check_tree(self, name: str, root: Path) -> None:
        """package_checker on a submission tree, of which it sees a copy; the name becomes the subject.

        The copy lacks any `scaling.json` and `package_checker_params`.
        """
        logs = sum(1 for _ in root.glob("results/*/*/result_*.txt"))
        self._start("package_checker", {name: root}, (name,), logs)

    def collect(self) -> tuple[OfficialResult, ...]:
        """Waits for all results; they are in the order of the calls, and "timeout" if they took too long."""
        # Not for ever in one call: a signal that comes just before it, or to another thread, would not end it.
        while wait(self._results, timeout=_PATIENCE_S).not_done:
            pass
        return tuple(result for future in self._results for result in future.result())

    def _start(
        self, tool: OfficialTool, inputs: Mapping[str, Path], subjects: tuple[str, ...], logs: int | None = None
    ) -> None:
        limit_s = self._timeout_s * max(1, len(inputs) if logs is None else logs)
        job = _Job(tool, {name: path.absolute() for name, path in inputs.items()}, subjects, limit_s)
        self._results.append(self._threads.submit(self._run, job))

    def _run(self, job: _Job) -> list[OfficialResult]:
        started = time.perf_counter()
        try:
            answers = self._ask(job)
        except subprocess.TimeoutExpired:
            messages = [f"not finished after {job.limit_s:g} s"]
            answers = [{"verdict": "timeout", "messages": messages, "seconds": time.perf_counter() - started}]
            answers *= len(job.subjects)
        except OSError as error:
            messages = [f"the official tool could not be started: {error}"]
            answers = [{"verdict": "crashed", "messages": messages, "seconds": 0.0}] * len(job.subjects)
        return [
            OfficialResult(job.tool, subject, answer["verdict"], tuple(answer["messages"]), answer["seconds"])
            for subject, answer in zip(job.subjects, answers, strict=True)
        ]

    def _ask(self, job: _Job) -> list[dict[str, Any]]:
        """The answers of the subprocess, one for each subject.

        Raises:
            subprocess.TimeoutExpired: it took too long, and has been killed.
            OSError: it could not be started.
        """
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        request = {
            "tool": job.tool,
            "ruleset": self._ruleset,
            "paths": [str(path) for path in job.inputs.values()],
            "names": list(job.inputs),
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        with (folder / "output.txt").open("wb") as output:
            process = self._popen(folder, output.fileno())
        try:
            status = process.wait(job.limit_s)
        except subprocess.TimeoutExpired:
            _kill(process)
            process.wait()
            raise
        finally:
            with self._lock:
                self._running.discard(process)
            assert process.stdin is not None
            process.stdin.close()
        if status == 0:
            answers: list[dict[str, Any]] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
        else:
            answers = [_crash(status, folder / "output.txt")] * len(job.subjects)
        shutil.rmtree(folder, ignore_errors=True)
        return answers

    def _popen(self, folder: Path, output: int) -> subprocess.Popen[bytes]:
        paths = [str(_SOURCE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with self._lock:
            if self._closed:
                raise OSError("the official tools have been stopped")
            process = subprocess.Popen(
                # -P: nothing is imported from the current directory. UTF-8 whatever the locale.
                [sys.executable, "-P", "-X", "utf8", "-m", "compliance.official.runner"],
                cwd=folder,
                # Some official messages list a set, whose order hangs on the seed.
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"},
                stdin=subprocess.PIPE,  # stays open for as long as we are there
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            self._running.add(process)
        return process


def _kill(process: subprocess.Popen[bytes]) -> None:
    # Not after it has been waited for: its number may be another's by then.
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _crash(status: int, output: Path) -> dict[str, Any]:
    said = [line for line in output.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
    ended = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return {"verdict": "crashed", "messages": [f"{ended}: {shorten(said[-1])}" if said else ended], "seconds": 0.0}
