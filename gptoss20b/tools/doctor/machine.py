"""What the node offers beside its GPUs: memory, limits of the process, frequency of the processors."""

from __future__ import annotations

import os
import re
import resource
import shutil
from collections import Counter
from pathlib import Path

from ...config import Config
from .finding import Finding, failed, gib, passed, skipped, warned
from .tools import text

# What a rank on a GPU holds in the node's memory: interpreter, libraries, contexts and staging buffers. An estimate.
HOST_BYTES_PER_GPU_RANK = 8 * 2**30
# docker gives a container 64 MB, which NCCL can exhaust; its guide recommends --shm-size=1g.
_SHARED_BYTES = 2**30
_SWAP_BYTES = 64 * 2**20
# A rank opens about a hundred files; connections come on top, a few for each other rank.
_FILES_NEEDED, _FILES_PER_RANK = 256, 64
_CAP_IPC_LOCK = 14  # <linux/capability.h>


def look_at_host_memory(needed: int, what: str, root: Path = Path("/"), *, saving: int = 0) -> list[Finding]:
    """Check that the node has the memory that its ranks and their checkpoints will take, and does not swap.

    Args:
        needed: bytes of all ranks of the node; an estimate.
        what: what they are for, for people.
        root: folder that holds `proc` and `sys`.
        saving: bytes on top that writing a checkpoint takes.
    """
    sizes = {name: int(kib) * 1024 for name, kib in _meminfo(root).items()}
    available = sizes.get("MemAvailable")
    if available is None:
        return [skipped("host memory", "/proc/meminfo does not tell what is available")]
    limit = _container_room(root)
    free = available if limit is None else min(available, limit)
    where = "" if free == available else " within this container's limit"
    fix = "end what else runs here, raise the container's limit, or use a larger node"
    if saving:
        what += f", and {gib(saving)} for a save: the state gathered here and its copy"
        fix += "; SAVE_INTERVAL=0 writes no checkpoints"
    found = f"{gib(free)} available{where}, about {gib(needed + saving)} needed ({what})"
    findings = [passed("host memory", found) if free >= needed + saving else failed("host memory", found, fix)]
    swapped = sizes.get("SwapTotal", 0) - sizes.get("SwapFree", 0)
    if swapped > _SWAP_BYTES:
        fix = "find what fills the memory (free, top); `swapoff -a` as root once it fits"
        return [*findings, warned("swap", f"{gib(swapped)} in use, expected none", fix)]
    return [*findings, passed("swap", "none in use" if swapped == 0 else f"{gib(swapped)} in use")]


def look_at_limits(config: Config, on_gpu: bool, root: Path = Path("/")) -> list[Finding]:
    """Check shared memory, open files, locked memory and the processors' frequency.

    Args:
        config: of the run.
        on_gpu: whether its ranks use GPUs.
        root: folder that holds `proc`, `sys` and `dev`.
    """
    return [
        _shared_memory(on_gpu, root),
        _open_files(config.parallel.world_size),
        _locked_memory(config.parallel.nodes, root),
        _frequency(root),
    ]


def look_at_processors(config: Config, root: Path = Path("/")) -> Finding:
    """Check that each rank of a run without GPUs has its processors.

    Args:
        config: of the run.
        root: folder that holds `sys`.
    """
    cores = float(len(os.sched_getaffinity(0)))
    quota = re.fullmatch(r"(\d+) (\d+)\s*", text(root / "sys/fs/cgroup/cpu.max"), re.ASCII)
    if quota:
        cores = min(cores, int(quota[1]) / int(quota[2]))
    ranks, threads = config.parallel.gpus_per_node, config.execution.cpu_threads
    found = f"{cores:g} for {ranks} ranks of {threads} threads (no GPU is used)"
    if cores < ranks * threads:
        return warned("processors", found, "set DGXNGPU or CPU_THREADS lower, or give this process more processors")
    return passed("processors", found)


def _meminfo(root: Path) -> dict[str, str]:
    return dict(re.findall(r"^(\w+):\s+(\d{1,15}) kB", text(root / "proc/meminfo"), re.ASCII | re.MULTILINE))


def _container_room(root: Path) -> int | None:
    """What the control group (version 2) of a container leaves, in bytes; None without a limit."""
    group = root / "sys/fs/cgroup"
    limit, used = text(group / "memory.max").strip(), text(group / "memory.current").strip()
    if not limit.isdecimal() or not used.isdecimal():
        return None
    # Pages of files that nobody uses count as used until they are needed.
    unused = re.search(r"^inactive_file (\d+)$", text(group / "memory.stat"), re.ASCII | re.MULTILINE)
    return max(0, int(limit) - int(used) + (int(unused[1]) if unused else 0))


def _shared_memory(on_gpu: bool, root: Path) -> Finding:
    name = "shared memory"
    if not on_gpu:
        return skipped(name, "ranks without GPUs do not use it")
    try:
        free = shutil.disk_usage(root / "dev/shm").free
    except OSError as error:
        return failed(
            name, f"/dev/shm: {error.strerror}", "mount a tmpfs there, or start the container with --ipc=host"
        )
    found = f"{gib(free)} free in /dev/shm"
    if free < _SHARED_BYTES:
        fix = "remove what lies there, or start the container with --ipc=host or --shm-size=16g"
        return warned(name, f"{found}, expected {gib(_SHARED_BYTES)} or more", fix)
    return passed(name, found)


def _open_files(ranks: int) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return passed("open files", "unlimited")
    wanted = _FILES_NEEDED + _FILES_PER_RANK * ranks
    found = f"{soft:,} allowed (ulimit -n)"
    fix = f"ulimit -n {max(wanted, 65_536) if hard == resource.RLIM_INFINITY else hard}"
    if soft < _FILES_NEEDED:
        return failed("open files", f"{found}, expected {wanted:,} or more", fix)
    if soft < wanted:
        return warned("open files", f"{found}, expected {wanted:,} or more for {ranks} ranks", fix)
    return passed("open files", found)


def _locked_memory(nodes: int, root: Path) -> Finding:
    name = "locked memory"
    ports = sorted(path.name for path in (root / "sys/class/infiniband").glob("*"))
    if nodes == 1 or not ports:
        return skipped(name, "one node" if nodes == 1 else "no InfiniBand")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)$", text(root / "proc/self/status"), re.MULTILINE)
    exempt = capabilities is not None and bool(int(capabilities[1], 16) >> _CAP_IPC_LOCK & 1)
    if soft == resource.RLIM_INFINITY or exempt:
        return passed(name, "unlimited" if soft == resource.RLIM_INFINITY else "this user may lock what it likes")
    fix = "ulimit -l unlimited; LimitMEMLOCK=infinity for a service, --ulimit memlock=-1 for a container"
    return failed(name, f"{soft // 1024:,} KiB allowed, expected unlimited for InfiniBand ({', '.join(ports)})", fix)


def _frequency(root: Path) -> Finding:
    name = "processor frequency"
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    governors = Counter(governor for path in files if (governor := text(path).strip()))
    if not governors:
        return skipped(name, "the system has no governor of it, or hides it")
    found = ", ".join(f"{governor} on {count}" for governor, count in sorted(governors.items()))
    if set(governors) != {"performance"}:
        return warned(name, f"{found}; expected performance on all", "cpupower frequency-set -g performance, as root")
    return passed(name, found)
