"""Call a vendor's management library in a child process, because calls into a driver that hangs do not return."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from .files import one_line
from .gpu_report import Gpu, GpuReport
from .tools import run_module


def read_library(vendor: str, source: str, module: str, limit_s: float | None) -> GpuReport | None:
    """Call a vendor's library through a module of this package, in a child process.

    Returns:
        None if the library is not installed.
    """
    output = run_module(module, limit_s)
    try:
        answer = json.loads(output.stdout.splitlines()[-1])
        if answer is None:
            return None
        return GpuReport(vendor, source, tuple(map(_parse_gpu, answer.get("gpus", ()))), answer.get("error"))
    except (ValueError, LookupError):
        return GpuReport(vendor, source, error=output.failure or "no answer", timed_out=output.timed_out)


def _parse_gpu(row: dict[str, Any]) -> Gpu:
    return Gpu(**row | {key: tuple(row[key]) for key in ("processes", "throttle_reasons")})


def print_library_report(read: Callable[[], Iterator[Gpu]]) -> None:
    """Print the answer that `read_library` expects of its child process, as one line of JSON.

    Args:
        read: calls the library; raises ImportError if it is not installed.
    """
    answer: dict[str, Any] | None
    try:
        answer = {"gpus": [asdict(gpu) for gpu in read()]}
    except ImportError:
        answer = None
    except Exception as error:  # each library has its own exception class
        answer = {"error": one_line(str(error)) or type(error).__name__}
    print(json.dumps(answer))
