"""All checks of one node, in the order in which a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ...config import Config, fixed_hyperparameter_overrides
from ...memory import activation_bytes, save_bytes, state_bytes
from .accelerators import Device, judge_devices, judge_memory, judge_tool, visible_devices
from .back_end import look_at_back_end
from .clock import look_at_clock
from .data_set import look_at_data
from .finding import Finding, Verdict, failed, passed, skipped
from .limits import Check, one_line, run_all
from .machine import HOST_BYTES_PER_GPU_RANK, look_at_host_memory, look_at_limits, look_at_processors
from .network import look_at_collectives, look_at_meeting_point
from .place import Place, runs_on_gpus
from .results import look_at_checkpoints, look_at_results
from .software import look_at_caches, look_at_code, look_at_packages
from .vendor_tools import ask_vendor_tool

# Eight GPUs that no persistence daemon keeps awake take long to answer. Together with the ranks' limit: 70 s.
_LIMIT_S, _DRIVER_LIMIT_S, _RANKS_LIMIT_S = 20.0, 30.0, 40.0
# What a rank without a GPU holds beside the model: interpreter, torch and Megatron-Core take 0.4 GiB, as measured.
_RANK_BYTES = 2**30
_STORAGE_FIX = "look at the file system (df, dmesg): a server that does not answer would hang the run"
_SYSTEM_FIX = "run doctor again; if it hangs again, look at the load of the node and at dmesg"
_DRIVER_FIX = "a driver that hangs (try nvidia-smi or amd-smi by hand): restart the node"


def examine(config: Config, place: Place) -> list[Finding]:
    """Look at this node; it takes seconds where all is well, and 70 s at most.

    Args:
        config: of the run that is to start here.
        place: of this node in that run.
    """
    on_gpu = runs_on_gpus(config, place)
    engines = Check("processors", partial(_look_at_cpus, config), _DRIVER_LIMIT_S, _SYSTEM_FIX)
    if on_gpu:
        engines = Check("GPUs", partial(_look_at_gpus, config), _DRIVER_LIMIT_S, _DRIVER_FIX)
    first = [
        engines,
        Check("limits", partial(look_at_limits, config, on_gpu), _LIMIT_S, _SYSTEM_FIX),
        Check("data", partial(look_at_data, config), _LIMIT_S, _STORAGE_FIX),
        Check("LOGDIR", partial(look_at_results, config), _LIMIT_S, _STORAGE_FIX),
        Check("SAVE_DIR", partial(look_at_checkpoints, config), _LIMIT_S, _STORAGE_FIX),
        Check("clock", look_at_clock, _LIMIT_S, _SYSTEM_FIX),
        Check("packages", partial(_look_at_software, config, place, on_gpu), _LIMIT_S, _SYSTEM_FIX),
        Check("meeting point", lambda: [look_at_meeting_point(config, place)], _LIMIT_S, "look at the name server"),
    ]
    # Afterwards: ranks on GPUs would be seen as others that use them.
    ranks, backend = config.parallel.gpus_per_node, "nccl" if on_gpu else "gloo"
    collectives = Check(
        "collectives",
        lambda: [look_at_collectives(ranks, backend, _RANKS_LIMIT_S - 5)],
        _RANKS_LIMIT_S,
        _DRIVER_FIX if on_gpu else _SYSTEM_FIX,
    )
    found = [_configuration(config), *run_all(first)]
    if any(finding.name == "GPUs" and finding.verdict is Verdict.FAIL for finding in found):
        return [*found, skipped("collectives", "each rank needs its GPU first")]
    return [*found, *run_all([collectives])]


def _configuration(config: Config) -> Finding:
    parallel, differing = config.parallel, fixed_hyperparameter_overrides(config)
    layout = f"{config.model.variant} on {parallel.nodes} x {parallel.gpus_per_node}, EP {parallel.expert}"
    rules = f"{config.submission.division} division, {len(differing) or 'none'} of the closed division's values changed"
    return passed("configuration", f"{layout}, GBS {config.free.global_batch_size}; {rules}")


def _look_at_gpus(config: Config) -> Sequence[Finding]:
    tool = ask_vendor_tool()  # before torch, whose contexts would be listed among the processes
    ranks, each = config.parallel.gpus_per_node, HOST_BYTES_PER_GPU_RANK
    devices: list[Device] = []
    try:
        devices = visible_devices()
        seen = judge_devices(config, devices, tool)
    except RuntimeError as error:  # torch's for all that a driver refuses
        seen = failed("GPUs", one_line(str(error)), _DRIVER_FIX)
    return [
        seen,
        *judge_tool(tool),
        _gpu_memory(config, devices),
        look_at_back_end(config),
        *look_at_host_memory(ranks * each, f"{ranks} ranks of {each >> 30} GiB", saving=save_bytes(config)),
    ]


def _gpu_memory(config: Config, devices: Sequence[Device]) -> Finding:
    if not devices:
        return skipped("GPU memory", "torch sees no GPU")
    return judge_memory(devices[: config.parallel.gpus_per_node], state_bytes(config), activation_bytes(config))


def _look_at_cpus(config: Config) -> Sequence[Finding]:
    ranks, each = config.parallel.gpus_per_node, state_bytes(config) + activation_bytes(config) + _RANK_BYTES
    return [
        look_at_processors(config),
        look_at_back_end(config),
        *look_at_host_memory(
            ranks * each, f"{ranks} ranks with their state and activations", saving=save_bytes(config)
        ),
    ]


def _look_at_software(config: Config, place: Place, on_gpu: bool) -> Sequence[Finding]:
    packages = look_at_packages(config, on_gpu)
    return [*packages, look_at_code(config), look_at_caches(place.clear_caches)]
