"""Limits of this process and of the system: shared memory, open files, locked memory, processor frequency."""

from __future__ import annotations

import re
import resource
import shutil
from pathlib import Path

from system_info.cpu import count_governors
from system_info.devices import list_infiniband_devices
from system_info.files import read_text

from ...config import Config
from .finding import Finding, failed, gib, passed, skipped, warned

# docker gives a container 64 MB, which NCCL can exhaust. Its guide recommends --shm-size=1g.
_MIN_SHARED_BYTES = 2**30
# A rank opens about a hundred files, and a few connections to each other rank.
_MIN_FILES, _FILES_PER_RANK = 256, 64
_CAP_IPC_LOCK = 14  # <linux/capability.h>


def check_limits(config: Config, on_gpu: bool, root: Path = Path("/")) -> list[Finding]:
    """Check shared memory, open files, locked memory and the processors' frequency.

    Args:
        config: configuration of the run.
        on_gpu: the ranks use GPUs.
        root: folder that holds ``proc``, ``sys`` and ``dev``.
    """
    return [
        _check_shared_memory(on_gpu, root),
        _check_open_files(config.parallel.world_size),
        _check_locked_memory(config.parallel.nodes, root),
        _check_frequency(root),
    ]


def _check_shared_memory(on_gpu: bool, root: Path) -> Finding:
    name = "shared memory"
    if not on_gpu:
        return skipped(name, "ranks without GPUs do not use it")
    try:
        free = shutil.disk_usage(root / "dev/shm").free
    except OSError as error:
        fix = "mount a tmpfs there, or start the container with --ipc=host"
        return failed(name, f"/dev/shm: {error.strerror}", fix)
    found = f"{gib(free)} free in /dev/shm"
    if free < _MIN_SHARED_BYTES:
        fix = "remove what lies there, or start the container with --ipc=host or --shm-size=16g"
        return warned(name, f"{found}, expected {gib(_MIN_SHARED_BYTES)} or more", fix)
    return passed(name, found)


def _check_open_files(ranks: int) -> Finding:
    name, (soft, hard) = "open files", resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return passed(name, "unlimited")
    needed = _MIN_FILES + _FILES_PER_RANK * ranks
    found = f"{soft:,} allowed (ulimit -n)"
    fix = f"ulimit -n {max(needed, 65_536) if hard == resource.RLIM_INFINITY else hard}"
    if soft < _MIN_FILES:
        return failed(name, f"{found}, expected {needed:,} or more", fix)
    if soft < needed:
        return warned(name, f"{found}, expected {needed:,} or more for {ranks} ranks", fix)
    return passed(name, found)


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
    name, governors = "processor frequency", count_governors(root)
    if not governors:
        return skipped(name, "the system has no governor of it, or hides it")
    found = ", ".join(f"{governor} on {count}" for governor, count in sorted(governors.items()))
    if set(governors) != {"performance"}:
        return warned(name, f"{found}; expected performance on all", "cpupower frequency-set -g performance, as root")
    return passed(name, found)
