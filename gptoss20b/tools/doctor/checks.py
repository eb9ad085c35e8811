"""All checks of one node, in the order in which a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from system_info.accelerators import read_gpus
from system_info.files import one_line

from ...config import Config, fixed_hyperparameter_overrides
from ...memory import activation_bytes, save_bytes, state_bytes
from .clock import check_clock
from .dataset import check_dataset
from .finding import Finding, Verdict, failed, passed, skipped
from .gpus import VisibleGpu, check_gpu_count, check_gpu_health, check_gpu_memory, list_visible_gpus
from .host import HOST_BYTES_PER_GPU_RANK, check_host_memory, check_processors
from .limits import check_limits
from .network import check_collectives, check_rendezvous
from .node_context import NodeContext, should_use_gpus
from .runner import Check, run_checks
from .software import check_code, check_packages, check_page_cache
from .storage import check_checkpoints, check_results

# Eight GPUs without a persistence daemon take long to answer. Together with the ranks' limit: 70 s.
_LIMIT_S, _DRIVER_LIMIT_S, _RANKS_LIMIT_S = 20.0, 30.0, 40.0
# Memory of a CPU rank besides the model: interpreter, torch and Megatron-Core take 0.4 GiB, as measured.
_RANK_BYTES = 2**30
_STORAGE_FIX = "look at the file system (df, dmesg): a server that does not answer would hang the run"
_SYSTEM_FIX = "run doctor again; if it hangs again, look at the load of the node and at dmesg"
_DRIVER_FIX = "a driver that hangs (try nvidia-smi or amd-smi yourself): restart the node"


def check_node(config: Config, node: NodeContext) -> list[Finding]:
    """Check this node. It takes seconds on a healthy node, and 70 s at most.

    Args:
        config: configuration of the run that will start here.
        node: this node's place in that run.
    """
    on_gpu = should_use_gpus(config, node)
    compute = Check("processors", partial(_check_cpus, config), _DRIVER_LIMIT_S, _SYSTEM_FIX)
    if on_gpu:
        compute = Check("GPUs", partial(_check_gpus, config), _DRIVER_LIMIT_S, _DRIVER_FIX)
    first = [
        compute,
        Check("limits", partial(check_limits, config, on_gpu), _LIMIT_S, _SYSTEM_FIX),
        Check("data", partial(check_dataset, config), _LIMIT_S, _STORAGE_FIX),
        Check("LOGDIR", partial(check_results, config), _LIMIT_S, _STORAGE_FIX),
        Check("SAVE_DIR", partial(check_checkpoints, config), _LIMIT_S, _STORAGE_FIX),
        Check("clock", check_clock, _LIMIT_S, _SYSTEM_FIX),
        Check("packages", partial(_check_software, config, node, on_gpu), _LIMIT_S, _SYSTEM_FIX),
        Check("rendezvous", lambda: [check_rendezvous(config, node)], _LIMIT_S, "look at the name server"),
    ]
    # Afterwards, because ranks on GPUs would be reported as processes that use them.
    ranks, backend = config.parallel.gpus_per_node, "nccl" if on_gpu else "gloo"
    collectives = Check(
        "collectives",
        lambda: [check_collectives(ranks, backend, _RANKS_LIMIT_S - 5)],
        _RANKS_LIMIT_S,
        _DRIVER_FIX if on_gpu else _SYSTEM_FIX,
    )
    findings = [_describe_configuration(config), *run_checks(first)]
    if any(finding.name == "GPUs" and finding.verdict is Verdict.FAIL for finding in findings):
        return [*findings, skipped("collectives", "each rank needs its GPU first")]
    return [*findings, *run_checks([collectives])]


def _describe_configuration(config: Config) -> Finding:
    parallel, overrides = config.parallel, fixed_hyperparameter_overrides(config)
    layout = f"{config.model.variant} on {parallel.nodes} x {parallel.gpus_per_node}, EP {parallel.expert}"
    rules = f"{config.submission.division} division, {len(overrides) or 'none'} of the closed division's values changed"
    return passed("configuration", f"{layout}, GBS {config.free.global_batch_size}; {rules}")


def _check_gpus(config: Config) -> Sequence[Finding]:
    report = read_gpus()  # before torch, whose contexts would be listed among the processes
    ranks, per_rank = config.parallel.gpus_per_node, HOST_BYTES_PER_GPU_RANK
    gpus: list[VisibleGpu] = []
    try:
        gpus = list_visible_gpus()
        count = check_gpu_count(config, gpus, report)
    except RuntimeError as error:  # torch's for every error of the driver
        count = failed("GPUs", one_line(str(error)), _DRIVER_FIX)
    memory = skipped("GPU memory", "torch sees no GPU")
    if gpus:
        memory = check_gpu_memory(gpus[:ranks], state_bytes(config), activation_bytes(config))
    purpose = f"{ranks} ranks of {per_rank >> 30} GiB"
    return [
        count,
        *check_gpu_health(report),
        memory,
        _check_backend(config),
        *check_host_memory(ranks * per_rank, purpose, save_bytes(config)),
    ]


def _check_cpus(config: Config) -> Sequence[Finding]:
    ranks, per_rank = config.parallel.gpus_per_node, state_bytes(config) + activation_bytes(config) + _RANK_BYTES
    purpose = f"{ranks} ranks with their state and activations"
    return [
        check_processors(config),
        _check_backend(config),
        *check_host_memory(ranks * per_rank, purpose, save_bytes(config)),
    ]


def _check_backend(config: Config) -> Finding:
    """Report the layer back end that the run will choose."""
    from ...model.backend import BackendError, choose_backend

    try:
        return passed("back end", f"{choose_backend(config)} (BACKEND={config.execution.backend})")
    except BackendError as error:
        return failed("back end", str(error), "change what the message names")


def _check_software(config: Config, node: NodeContext, on_gpu: bool) -> Sequence[Finding]:
    return [*check_packages(config, on_gpu), check_code(config), check_page_cache(node.clear_caches)]
