"""All checks of one node, in the order in which a person reads them. Each has a time limit, and cannot hang doctor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from system_info.child import ChildCall, ChildError

from ...config import Config, fixed_hyperparameter_overrides
from ...stopping import die_with_parent
from .bandwidth import check_bandwidth
from .clock import check_clock
from .dataset import check_dataset
from .finding import Finding, Verdict, failed, passed, skipped
from .gpus import check_gpus
from .host import check_host_memory, check_limits, check_processors
from .kernels import NAME as KERNELS
from .kernels import check_kernels
from .network import check_collectives, check_rendezvous
from .node_context import NodeContext, should_use_gpus
from .software import check_backend, check_code, check_packages, check_page_cache
from .storage import check_checkpoints, check_results

# Eight GPUs without a persistence daemon take long to answer. Together with the ranks' limit: 70 s.
_LIMIT_S, _DRIVER_LIMIT_S, _RANKS_LIMIT_S, _BANDWIDTH_LIMIT_S = 20.0, 30.0, 40.0, 120.0
# The first start on a machine compiles the kernels.
_KERNELS_LIMIT_S = 120.0
_STORAGE_FIX = "look at the file system (df, dmesg): a server that does not answer would hang the run"
_SYSTEM_FIX = "run doctor again; if it hangs again, look at the load of the node and at dmesg"
_DRIVER_FIX = "a driver that hangs (try nvidia-smi or amd-smi yourself): restart the node"
_CRASH_FIX = "this is an error of the check itself: look at what it names, and report it if nothing is wrong there"


@dataclass(frozen=True)
class Check:
    """A check to run. After ``limit_s`` its process and all that it started are killed.

    ``name`` and ``timeout_fix`` are for the finding if the check crashes or does not end.
    """

    name: str
    run: Callable[[], Sequence[Finding]]
    limit_s: float
    timeout_fix: str


def check_node(config: Config, node: NodeContext, bandwidth: bool = False) -> list[Finding]:
    """Check this node for a run. It takes seconds on a healthy node, and at most 190 s, or 270 s with ``bandwidth``."""
    on_gpu = should_use_gpus(config, node)
    devices, device_fix = ("GPUs", _DRIVER_FIX) if on_gpu else ("processors", _SYSTEM_FIX)
    first = [
        Check(devices, partial(_check_compute, config, on_gpu), _DRIVER_LIMIT_S, device_fix),
        Check("limits", partial(check_limits, config, on_gpu), _LIMIT_S, _SYSTEM_FIX),
        Check("data", partial(check_dataset, config), _LIMIT_S, _STORAGE_FIX),
        Check("LOGDIR", partial(check_results, config), _LIMIT_S, _STORAGE_FIX),
        Check("SAVE_DIR", partial(check_checkpoints, config), _LIMIT_S, _STORAGE_FIX),
        Check("clock", check_clock, _LIMIT_S, _SYSTEM_FIX),
        Check("packages", partial(_check_software, config, node, on_gpu), _LIMIT_S, _SYSTEM_FIX),
        Check("rendezvous", lambda: [check_rendezvous(config, node)], _LIMIT_S, "look at the name server"),
    ]
    # Afterwards, because ranks on GPUs would be reported as processes that use them.
    backend, limit_s = "nccl" if on_gpu else "gloo", _BANDWIDTH_LIMIT_S if bandwidth else _RANKS_LIMIT_S
    check_ranks = check_bandwidth if bandwidth else check_collectives
    collectives = Check("collectives", partial(check_ranks, config, backend, limit_s - 5), limit_s, device_fix)
    findings = [_describe_configuration(config), *run_checks(first)]
    if any(finding.name == "GPUs" and finding.verdict is Verdict.FAIL for finding in findings):
        return [*findings, *(skipped(name, "each rank needs its GPU first") for name in ("collectives", KERNELS))]
    # At last, alone: it would slow down what the others measure.
    kernels = Check(KERNELS, lambda: [check_kernels(config, on_gpu)], _KERNELS_LIMIT_S, device_fix)
    return [*findings, *run_checks([collectives]), *run_checks([kernels])]


def run_checks(checks: Sequence[Check]) -> list[Finding]:
    """Run all checks at the same time. Return their findings in the order of the checks."""
    calls: list[ChildCall[Sequence[Finding]]] = []
    try:
        for check in checks:
            calls.append(ChildCall(partial(_run_in_child, check), check.limit_s))
        return [finding for check, call in zip(checks, calls, strict=True) for finding in _wait(check, call)]
    finally:
        for call in calls:
            call.kill()


def _describe_configuration(config: Config) -> Finding:
    parallel, overrides = config.parallel, fixed_hyperparameter_overrides(config)
    layout = f"{config.model.variant} on {parallel.nodes} x {parallel.gpus_per_node}, EP {parallel.expert}"
    rules = f"{config.submission.division} division, {len(overrides) or 'none'} of the closed division's values changed"
    return passed("configuration", f"{layout}, GBS {config.free.global_batch_size}; {rules}")


def _check_compute(config: Config, on_gpu: bool) -> list[Finding]:
    devices = check_gpus(config) if on_gpu else [check_processors(config)]
    return [*devices, check_backend(config), *check_host_memory(config, on_gpu)]


def _check_software(config: Config, node: NodeContext, on_gpu: bool) -> list[Finding]:
    return [*check_packages(config, on_gpu), check_code(config), check_page_cache(node.clear_caches)]


def _run_in_child(check: Check) -> Sequence[Finding]:
    die_with_parent()
    return check.run()


def _wait(check: Check, call: ChildCall[Sequence[Finding]]) -> Sequence[Finding]:
    try:
        return call.result()
    except TimeoutError as error:
        return [failed(check.name, str(error), check.timeout_fix)]
    except ChildError as error:
        return [failed(check.name, str(error), _CRASH_FIX)]
