"""One trial of one baseline, in a process of its own: `python -m benchmarks.gpu.trial REQUEST OUTCOME` (JSON files)."""

from __future__ import annotations

import sys
import traceback
import warnings
from pathlib import Path

import torch

from benchmarks.gpu.baselines import BASELINES
from benchmarks.gpu.records import Expected, Request, Status, Trial
from gptoss20b.model.backend import BackendError
from gptoss20b.process_groups import distributed_session, read_rank
from gptoss20b.stopping import die_with_parent
from gptoss20b.tools.bench.measure import Timing, measure, time_scenario
from gptoss20b.tools.bench.result import BenchResult
from gptoss20b.tools.bench.scenarios import configure
from gptoss20b.tools.bench.workload import Outcome

# In lower case: of torch, cuBLAS (CUBLAS_STATUS_ALLOC_FAILED), cuDNN (CUDNN_STATUS_ALLOC_FAILED, later
# ..._ALLOCATION_FAILED) and AMD's, of the CUDA runtime (cudaErrorMemoryAllocation), and of NCCL.
_SIGNS_OF_FULL_MEMORY = (
    "out of memory", "status_alloc_failed", "allocation_failed", "errormemoryallocation", "failed to cuda calloc",
    "failed to cuda malloc", "failed to cuda host alloc",
)  # fmt: skip


class GateError(ValueError):
    """A baseline that does not compute what ours does."""


def gate(outcome: Outcome, expected: Expected) -> None:
    """Refuse a baseline whose first loss or gradient norms, whole and by kind of tensor, are not ours.

    Raises:
        GateError: with all numbers that differ; also where one is not a number, or only one side has a gradient.
    """
    nothing = float("nan")
    pairs = {
        "loss": (outcome.loss, expected.loss, expected.loss_tolerance),
        "gradient norm": (outcome.grad_norm, expected.grad_norm, expected.norm_tolerance),
    } | {
        f"gradient norm of {kind}": (
            outcome.norms.get(kind, nothing), expected.norms.get(kind, nothing), expected.norm_tolerance
        )
        for kind in expected.norms | outcome.norms
    }  # fmt: skip
    wrong = [
        f"{name}: got {got:.6g}, ours is {wanted:.6g}, and they may differ by {tolerance:g}"
        for name, (got, wanted, tolerance) in pairs.items()
        if not abs(got - wanted) <= tolerance * abs(wanted)
    ]
    if wrong:
        raise GateError("; ".join(wrong))


def run_baseline(request: Request) -> BenchResult:
    """Run the baseline in this process.

    Raises:
        GateError, BackendError, torch.OutOfMemoryError: why it has no result.
    """
    baseline = BASELINES[request.baseline]
    timing = Timing(request.warmup, request.steps, limit=request.limit)
    shape = (request.micro_batch_size, request.sequences)

    def check(outcome: Outcome) -> None:
        if request.expected is not None:
            gate(outcome, request.expected)

    if baseline.backend is not None:
        return time_scenario(request.scenario, baseline.backend, baseline.variant, timing, *shape, check)
    try:
        from benchmarks.gpu.hugging_face import HuggingFace, version
    except ImportError as error:
        raise BackendError(f"transformers cannot be imported: {error}") from error
    config = configure(request.scenario, baseline.variant, "torch", torch.cuda.is_available(), *shape)
    rank = read_rank(config)
    with distributed_session(config, rank):
        workload = HuggingFace(config, rank.device, baseline.compiled)
        result = measure(workload, request.scenario, request.baseline, config, rank.device, timing, check)
    return result.model_copy(update={"versions": result.versions | {"transformers": version()}})


def run_trial(request: Request, number: int) -> Trial:
    """Run the baseline and say how it went, whatever happens."""

    def without_result(status: Status, reason: str) -> Trial:
        return Trial(baseline=request.baseline, number=number, status=status, reason=reason)

    try:
        return Trial(baseline=request.baseline, number=number, status="measured", result=run_baseline(request))
    except GateError as error:
        return without_result("refused", str(error))
    except BackendError as error:
        return without_result("not available", str(error))
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        return without_result("out of memory" if out_of_memory(error) else "failed", reason)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether the error, or one that led to it, is that the device's memory is full, whichever library says so."""
    while error is not None:
        text = str(error).lower()
        if isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in _SIGNS_OF_FULL_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def main(request: Path, outcome: Path, number: int) -> None:
    """Read the request, run it, write the outcome."""
    warnings.simplefilter("ignore")  # of packages about each other; errors are told
    die_with_parent()
    trial = run_trial(Request.model_validate_json(request.read_text()), number)
    outcome.write_text(trial.model_dump_json(indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
