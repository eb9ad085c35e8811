"""Trace many configurations in processes that share one import of torch and Megatron-Core."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from gptoss20b.proof.result import Trace
from tests.support.configs import BARE
from tests.support.paths import ROOT

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or torch.version.hip is not None,
    reason="the trace needs g++ and a build of torch for CPUs or CUDA",
)


@dataclass(frozen=True)
class Case:
    """A configuration to trace.

    Attributes:
        settings: environment of the run.
        change: Python source to run first, which changes the code.
        layers: number of layers instead of the variant's.
        rank: rank to trace.
        imbalance: rows of the rank's experts over the mean.
    """

    settings: dict[str, str]
    change: str = ""
    layers: int | None = None
    rank: int = 0
    imbalance: float = 1.0


def trace_cases(cases: dict[str, Case]) -> dict[str, Trace | str]:
    """Return the trace of each case, or its error. Two processes run at a time."""
    given = [[case.settings, case.change, case.layers, case.rank, case.imbalance] for case in cases.values()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.traces"],
        input=json.dumps(given), cwd=ROOT, env=BARE, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    return {
        name: Trace.model_validate(result) if isinstance(result, dict) else result
        for name, result in zip(cases, found, strict=True)
    }


def _trace(given: tuple[dict[str, str], str, int | None, int, float]) -> dict[str, Any] | str:
    settings, change, layers, rank, imbalance = given
    try:
        exec(change, {})  # noqa: S102 - of the tests
        from gptoss20b.config import resolve
        from gptoss20b.proof.trace import trace_step

        config = resolve(settings)
        if layers is not None:
            config = config.model_copy(update={"model": config.model.model_copy(update={"num_layers": layers})})
        return trace_step(config, imbalance, rank).model_dump()
    except Exception as error:
        return repr(error)


def main() -> None:
    """Read cases as JSON, and write their traces."""
    import multiprocessing
    import warnings

    warnings.simplefilter("ignore")
    from gptoss20b.megatron_cpu import import_megatron

    import_megatron()
    # Imported here once, for all.

    import gptoss20b.proof.trace  # noqa: F401

    # A child forgets what a trace leaves in caches: fake tensors of another run.
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        print(json.dumps(pool.map(_trace, json.load(sys.stdin), chunksize=1)))


if __name__ == "__main__":
    main()
