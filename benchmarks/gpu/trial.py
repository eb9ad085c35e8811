"""One trial of one baseline: `python -m benchmarks.gpu.trial REQUEST OUTCOME NUMBER` (JSON files)."""

from __future__ import annotations

import sys
import traceback
import warnings
from pathlib import Path

import torch

from gptoss20b.model.backend import BackendError
from gptoss20b.process_groups import distributed_session, read_rank
from gptoss20b.stopping import die_with_parent
from gptoss20b.tools.bench.measure import Timing, measure, time_scenario
from gptoss20b.tools.bench.result import BenchResult, Outcome
from gptoss20b.tools.bench.scenarios import configure
from gptoss20b.tools.bench.workload import Workload

from .baselines import BASELINES
from .results import Request, Status, Trial

# Relative differences of the loss, and of gradient norms, between equal steps. Measured in bf16 on a CPU (width 2,880
# with 4 layers, and width 720 with 24 layers and scores of the same size): baselines and fp32 were within 1.4e-4 and
# 6.5e-3 of ours. Without windows, sinks or rotary embeddings, with another activation or with equal routing weights,
# some norm was off by 3.4e-2 or more.
TOLERANCE = {"fp32": (1e-4, 1e-4), "bf16": (1e-3, 2e-2)}
# Parts of out-of-memory messages, in lower case: torch's; cuBLAS's (CUBLAS_STATUS_ALLOC_FAILED); cuDNN's
# (CUDNN_STATUS_ALLOC_FAILED, later ..._ALLOCATION_FAILED) and AMD's; the CUDA runtime's (cudaErrorMemoryAllocation);
# and NCCL's.
_OUT_OF_MEMORY_SIGNS = (
    "out of memory", "status_alloc_failed", "allocation_failed", "errormemoryallocation", "failed to cuda calloc",
    "failed to cuda malloc", "failed to cuda host alloc",
)  # fmt: skip


class GateError(ValueError):
    """A baseline that does not reproduce our first step."""


def gate(outcome: Outcome, expected: Outcome, precision: str) -> None:
    """Check a baseline's first loss and gradient norms, whole and by kind of tensor, against ours.

    Raises:
        GateError: names all numbers that differ. NaN and a gradient that only one side has differ too.
    """
    loss_tolerance, norm_tolerance = TOLERANCE["fp32" if precision == "fp32" else "bf16"]
    missing = float("nan")
    norms = {"gradient norm": (outcome.grad_norm, expected.grad_norm)} | {
        f"gradient norm of {kind}": (outcome.norms.get(kind, missing), expected.norms.get(kind, missing))
        for kind in expected.norms | outcome.norms
    }
    pairs = [("loss", (outcome.loss, expected.loss), loss_tolerance)]
    pairs += [(name, pair, norm_tolerance) for name, pair in norms.items()]
    wrong = [
        f"{name}: got {got:.6g}, ours is {ours:.6g}, and they may differ by {tolerance:g}"
        for name, (got, ours), tolerance in pairs
        if not abs(got - ours) <= tolerance * abs(ours)  # also true for NaN
    ]
    if wrong:
        raise GateError("; ".join(wrong))


def run_baseline(request: Request) -> BenchResult:
    """Run the baseline in this process.

    Raises:
        GateError: the baseline does not reproduce our first step.
        BackendError: its software is missing.
        torch.OutOfMemoryError: it does not fit.
    """
    baseline = BASELINES[request.baseline]
    timing = Timing(request.warmup, request.steps, limit=request.limit)
    shape = (request.micro_batch_size, request.sequences)
    config = configure(
        request.scenario, baseline.variant, baseline.backend or "torch", torch.cuda.is_available(), *shape
    )

    def check_outcome(outcome: Outcome) -> None:
        if request.expected is not None:
            gate(outcome, request.expected, config.execution.precision)

    if baseline.backend is not None:
        return time_scenario(request.scenario, baseline.backend, baseline.variant, timing, *shape, check_outcome)
    try:
        from .hugging_face import HuggingFace
    except ImportError as error:
        raise BackendError(f"transformers cannot be imported: {error}") from error
    rank = read_rank(config)
    with distributed_session(config, rank):
        workload: Workload = HuggingFace(config, rank.device, baseline.compiled)
        return measure(workload, request.scenario, request.baseline, config, rank.device, timing, check_outcome)


def run_trial(request: Request, number: int) -> Trial:
    """Run the baseline and return the outcome, even if it fails."""

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
        return without_result("out of memory" if is_out_of_memory(error) else "failed", reason)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether the error, or one that led to it, means full device memory in any library."""
    while error is not None:
        text = str(error).lower()
        if isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in _OUT_OF_MEMORY_SIGNS):
            return True
        error = error.__cause__ or error.__context__
    return False


def main(request: Path, outcome: Path, number: int) -> None:
    """Read the request, run it, write the outcome."""
    warnings.simplefilter("ignore")  # packages warn about each other
    die_with_parent()
    trial = run_trial(Request.model_validate_json(request.read_text()), number)
    outcome.write_text(trial.model_dump_json(indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
