"""Memory and processors of the node for its ranks, and the limits of this process and of the system."""

from __future__ import annotations

import os
import re
import resource
import shutil
from pathlib import Path

import psutil

from system_info.cpu import count_governors, read_cpu_quota
from system_info.devices import list_infiniband_devices
from system_info.files import read_text
from system_info.memory import read_cgroup_memory_left

from ...config import Config
from ...memory import peak_memory, save_bytes
from .finding import Finding, failed, gib, judged, passed, skipped

# Estimate of the host memory of a rank on a GPU: interpreter, libraries, contexts and staging buffers.
_GPU_RANK_BYTES = 8 * 2**30
# Memory of a CPU rank besides the model: interpreter, torch and Megatron-Core take 0.4 GiB, as measured.
_CPU_RANK_BYTES = 2**30
_MAX_SWAP_BYTES = 64 * 2**20
# docker gives a container 64 MB, which NCCL can exhaust. Its guide recommends --shm-size=1g.
_MIN_SHARED_BYTES = 2**30
# A rank opens about a hundred files, and a few connections to each other rank.
_MIN_FILES, _FILES_PER_RANK = 256, 64
_CAP_IPC_LOCK = 14  # <linux/capability.h>


def check_host_memory(config: Config, on_gpu: bool, root: Path = Path("/")) -> list[Finding]:
    """Check that the node has the memory that its ranks and their checkpoints will take, and does not swap."""
    per_rank = _GPU_RANK_BYTES if on_gpu else peak_memory(config).live_bytes() + _CPU_RANK_BYTES
    ranks, saving = config.parallel.gpus_per_node, save_bytes(config)
    needed = ranks * per_rank + saving
    available, left = psutil.virtual_memory().available, read_cgroup_memory_left(root)
    free = available if left is None else min(available, left)
    where = "" if free == available else " within this container's limit"
    purpose = f"{ranks} ranks of {gib(per_rank)}"
    fix = "end what else runs here, raise the container's limit, or use a larger node"
    if saving:
        purpose += f", and {gib(saving)} for a save: the state gathered here and its copy"
        fix += "; SAVE_INTERVAL=0 writes no checkpoints"
    found = f"{gib(free)} available{where}, about {gib(needed)} needed ({purpose})"
    swap, swap_fix = psutil.swap_memory().used, "find what fills the memory (free, top); `swapoff -a` once it fits"
    return [
        judged("host memory", found, fix, fails=free < needed),
        judged("swap", f"{gib(swap)} in use, expected none", swap_fix, warns=swap > _MAX_SWAP_BYTES),
    ]


def check_processors(config: Config, root: Path = Path("/")) -> Finding:
    """Check that each rank of a run without GPUs has its processors."""
    cores = min(float(len(os.sched_getaffinity(0))), read_cpu_quota(root) or float("inf"))
    ranks, threads = config.parallel.gpus_per_node, config.execution.cpu_threads
    found = f"{cores:g} for {ranks} ranks of {threads} threads (no GPU is used)"
    fix = "set DGXNGPU or CPU_THREADS lower, or give this process more processors"
    return judged("processors", found, fix, warns=cores < ranks * threads)


def check_limits(config: Config, on_gpu: bool, root: Path = Path("/")) -> list[Finding]:
    """Check shared memory, open files, locked memory and the processors' frequency."""
    return [
        _check_shared_memory(root) if on_gpu else skipped("shared memory", "ranks without GPUs do not use it"),
        _check_open_files(config.parallel.world_size),
        _check_locked_memory(config.parallel.nodes, root),
        _check_frequency(root),
    ]


def _check_shared_memory(root: Path) -> Finding:
    fix = "remove what lies there, or start the container with --ipc=host or --shm-size=16g"
    try:
        free = shutil.disk_usage(root / "dev/shm").free
    except OSError as error:
        return failed("shared memory", f"/dev/shm: {error.strerror}", fix)
    found = f"{gib(free)} free in /dev/shm, expected {gib(_MIN_SHARED_BYTES)} or more"
    return judged("shared memory", found, fix, warns=free < _MIN_SHARED_BYTES)


def _check_open_files(ranks: int) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return passed("open files", "unlimited")
    needed = _MIN_FILES + _FILES_PER_RANK * ranks
    found = f"{soft:,} allowed (ulimit -n), expected {needed:,} or more for {ranks} ranks"
    fix = f"ulimit -n {max(needed, 65_536) if hard == resource.RLIM_INFINITY else hard}"
    return judged("open files", found, fix, fails=soft < _MIN_FILES, warns=soft < needed)


def _check_locked_memory(nodes: int, root: Path) -> Finding:
    name, devices = "locked memory", list_infiniband_devices(root)
    if nodes == 1 or not devices:
        return skipped(name, "one node" if nodes == 1 else "no InfiniBand")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)$", read_text(root / "proc/self/status"), re.MULTILINE)
    if soft == resource.RLIM_INFINITY:
        return passed(name, "unlimited")
    if capabilities is not None and int(capabilities[1], 16) >> _CAP_IPC_LOCK & 1:
        return passed(name, "this user is exempt from the limit (CAP_IPC_LOCK)")
    fix = "ulimit -l unlimited; LimitMEMLOCK=infinity for a service, --ulimit memlock=-1 for a container"
    return failed(name, f"{soft // 1024:,} KiB allowed, expected unlimited for InfiniBand ({', '.join(devices)})", fix)


def _check_frequency(root: Path) -> Finding:
    governors = count_governors(root)
    if not governors:
        return skipped("processor frequency", "the system has no governor of it, or hides it")
    found = ", ".join(f"{governor} on {count}" for governor, count in sorted(governors.items()))
    fix = "cpupower frequency-set -g performance, as root"
    return judged("processor frequency", found, fix, warns=set(governors) != {"performance"})
