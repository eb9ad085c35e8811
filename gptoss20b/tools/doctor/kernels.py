"""The self-test of the kernels, as at the start of a run, on the first GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...config import Config
from .finding import Finding, failed, judged, skipped

if TYPE_CHECKING:
    import torch

    from ...model.backend import Backend

NAME = "kernels"


def check_kernels(config: Config, on_gpu: bool) -> Finding:
    """Check each kernel of the run against fp64, and name those that run. All GPUs of a node have the same kernels.

    On a CPU this process is changed for good (`megatron_cpu.enable`).
    """
    wanted = config.execution.self_test
    if wanted is False or not (on_gpu or wanted):
        return skipped(NAME, "SELF_TEST=0" if wanted is False else "they run on GPUs; SELF_TEST=1 checks the CPU's")
    import torch

    from ... import megatron_cpu
    from ...model.backend import BackendError, choose_backend
    from ...stopping import SelfTestError

    megatron_cpu.import_megatron()
    if not on_gpu:
        megatron_cpu.enable()
    try:
        return _run(config, choose_backend(config), torch.device("cuda", 0) if on_gpu else torch.device("cpu"))
    except BackendError:
        return skipped(NAME, "the back end cannot run")
    except SelfTestError as error:
        return failed(NAME, str(error), "change what the message names")


def _run(config: Config, backend: Backend, device: torch.device) -> Finding:
    from ...model.kernels import LOOP, describe_kernels
    from ...selftest.run import compare_attention, run_self_test

    tested = run_self_test(config, backend, device)
    kernels = describe_kernels(tested.config, backend, device)
    facts = [f"{len(tested.outcomes)} right in {tested.seconds:.1f} s", *tested.warnings]
    facts += [f"{name.replace('_', ' ')}: {kernel}" for name, kernel in kernels.items()]
    if backend == "torch" and not config.model.attention_sinks:
        compared = compare_attention(config, device)
        facts += [f"{name}: {outcome.failure or f'error {outcome.worst:.2g}'}" for name, outcome in compared.items()]
    fix = "try another torch or driver: the run is slower than with the usual kernels"
    if LOOP in kernels.values():
        fix = "leave ROCM_ALLOW_GROUP_GEMM_CK unset, or measure both (docs/gpu-node.md)"
    return judged(NAME, "; ".join(facts), fix, warns=bool(tested.warnings) or LOOP in kernels.values())
