"""Memory and processors of the node, for its ranks."""

from __future__ import annotations

import os
from pathlib import Path

from system_info.cpu import read_cpu_quota
from system_info.memory import read_cgroup_memory_left, read_memory

from ...config import Config
from .finding import Finding, failed, gib, passed, skipped, warned

# Estimate of the host memory of a rank on a GPU: interpreter, libraries, contexts and staging buffers.
HOST_BYTES_PER_GPU_RANK = 8 * 2**30
_MAX_SWAP_BYTES = 64 * 2**20


def check_host_memory(needed: int, purpose: str, saving: int, root: Path = Path("/")) -> list[Finding]:
    """Check that the node has the memory that its ranks and their checkpoints will take, and does not swap.

    Args:
        needed: estimated bytes of all ranks of the node.
        purpose: what they are for, for people.
        saving: additional bytes while a checkpoint is written.
        root: folder that holds ``sys``.
    """
    memory = read_memory()
    if memory is None:
        return [skipped("host memory", "/proc/meminfo does not report what is available")]
    left = read_cgroup_memory_left(root)
    free = memory.available if left is None else min(memory.available, left)
    where = "" if free == memory.available else " within this container's limit"
    fix = "end what else runs here, raise the container's limit, or use a larger node"
    if saving:
        purpose += f", and {gib(saving)} for a save: the state gathered here and its copy"
        fix += "; SAVE_INTERVAL=0 writes no checkpoints"
    found = f"{gib(free)} available{where}, about {gib(needed + saving)} needed ({purpose})"
    room = passed("host memory", found) if free >= needed + saving else failed("host memory", found, fix)
    used = gib(memory.swap_used)
    if memory.swap_used > _MAX_SWAP_BYTES:
        fix = "find what fills the memory (free, top); `swapoff -a` as root once it fits"
        return [room, warned("swap", f"{used} in use, expected none", fix)]
    return [room, passed("swap", f"{used} in use" if memory.swap_used else "none in use")]


def check_processors(config: Config, root: Path = Path("/")) -> Finding:
    """Check that each rank of a run without GPUs has its processors.

    Args:
        config: configuration of the run.
        root: folder that holds ``sys``.
    """
    cores = min(float(len(os.sched_getaffinity(0))), read_cpu_quota(root) or float("inf"))
    ranks, threads = config.parallel.gpus_per_node, config.execution.cpu_threads
    found = f"{cores:g} for {ranks} ranks of {threads} threads (no GPU is used)"
    if cores < ranks * threads:
        return warned("processors", found, "set DGXNGPU or CPU_THREADS lower, or give this process more processors")
    return passed("processors", found)
