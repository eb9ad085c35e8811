"""The checks of every start: what would end or spoil the run, found in seconds and without touching the data.

`doctor` checks the same and more, and takes up to a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from ...config import Config
from ...config.environment import hides_gpus
from .checks import Check, run_checks
from .dataset import check_data_files
from .finding import Finding, Verdict
from .gpus import check_gpu_count
from .host import check_host_memory
from .node_context import NodeContext, read_node_context, should_use_gpus
from .software import check_commit
from .storage import check_checkpoint_room, check_log_room

# The checks take seconds on a healthy node. A cold file system or driver takes longer, and is no error.
_LIMIT_S = 60.0
_HANG_FIX = "look at dmesg, and try nvidia-smi or amd-smi, and df: a device or file system that hangs"


def check_start(config: Config, environment: Mapping[str, str]) -> list[Finding]:
    """Check GPUs, data, disk and commit of this node. Return failures and warnings only.

    Only the leader of several nodes writes results, so that the workers' disks are not checked.
    """
    # Stricter than `doctor`: only CUDA_VISIBLE_DEVICES=-1 asks for the CPU, as for the ranks.
    on_gpu = should_use_gpus(config, NodeContext(gpus_hidden=hides_gpus()))
    node, trials = read_node_context(environment), environment.get("NEXP", "")
    checks: dict[str, Callable[[], Finding]] = {}
    if on_gpu:
        checks["GPUs"] = lambda: check_gpu_count(config.parallel.gpus_per_node)
    elif config.model.variant != "tiny":
        checks["memory"] = lambda: check_host_memory(config, on_gpu)[0]
    checks["data"] = lambda: check_data_files(config)
    if config.parallel.nodes == 1 or node.node_rank == "0":
        checks["LOGDIR"] = lambda: check_log_room(config)
        checks["SAVE_DIR"] = lambda: check_checkpoint_room(config, int(trials) if trials.isdecimal() else 1)
        checks["code"] = lambda: check_commit(config)
    findings = run_checks([Check(name, partial(_as_list, run), _LIMIT_S, _HANG_FIX) for name, run in checks.items()])
    return [finding for finding in findings if finding.verdict in (Verdict.FAIL, Verdict.WARN)]


def _as_list(check: Callable[[], Finding]) -> list[Finding]:
    return [check()]
