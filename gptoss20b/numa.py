"""Binding of each GPU rank to the CPUs of its GPU's NUMA node, by torchrun's ``--numa-binding=node``.

Linux allocates memory on the node of the CPU that touches it first, so that a bound rank's memory is local, too.
torchrun starts each rank through ``numactl``, and ends the run if that fails: so everything is tried here before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from system_info.child import ChildCall, ChildError
from system_info.numa import read_device_node, read_node_cpus
from system_info.tools import run_tool

from .config.environment import hides_gpus, read_settings

# Eight GPUs without a persistence daemon take long to answer.
_LIMIT_S = 30.0


@dataclass(frozen=True)
class Binding:
    """The binding of this node's ranks.

    Attributes:
        nodes: NUMA node of each visible GPU, None if it is unknown.
        is_used: ranks are bound.
        reason: what binds them, or why they are not bound.
        fix: what to do so that they are bound; empty if they are, or need not or cannot be.
    """

    nodes: tuple[int | None, ...] = ()
    is_used: bool = False
    reason: str = ""
    fix: str = ""


def torchrun_options() -> list[str]:
    """Return the options of torchrun that bind the ranks. Print one warning where something prevents it."""
    mode = read_settings().get("NUMA_BINDING", "node").lower()
    # BINDCMD is the user's own binding. A machine with one node needs no answer from a driver.
    if mode != "node" or os.environ.get("BINDCMD") or hides_gpus() or len(read_node_cpus()) < 2:
        return []
    try:
        binding = choose_binding(mode, ChildCall(list_gpu_addresses, _LIMIT_S).result())
    except (TimeoutError, ChildError):
        return []  # the ranks will report the driver's error
    if binding.fix:
        print(
            f"warning: NUMA_BINDING: ranks are not bound to their GPUs' NUMA nodes: {binding.reason}. "
            f"To fix: {binding.fix}, or set NUMA_BINDING=none.",
            file=sys.stderr,
        )
    return ["--numa-binding=node"] if binding.is_used else []


def list_gpu_addresses() -> list[str]:
    """Return the PCI addresses of the GPUs that torch sees, in its order, as /sys names them."""
    import torch

    if not torch.cuda.is_available():
        return []
    # Any: torch's types lack the addresses.
    gpus: list[Any] = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0" for gpu in gpus]


def choose_binding(
    mode: str, addresses: Sequence[str], root: Path = Path("/"), allowed: set[int] | None = None
) -> Binding:
    """Decide whether torchrun can bind the ranks of these GPUs, in rank order.

    Args:
        mode: NUMA_BINDING.
        addresses: PCI addresses of the GPUs.
        root: folder in which to look for /sys.
        allowed: CPUs that this process may use; default: as the kernel says.
    """
    nodes = tuple(read_device_node(address, root) for address in addresses)
    cpus = read_node_cpus(root)
    if mode != "node":
        return Binding(nodes, reason=f"NUMA_BINDING={mode}")
    if len(cpus) < 2:
        return Binding(nodes, reason="this machine has one NUMA node")
    if not nodes or None in nodes:
        # torchrun would take node 0 for an unknown one.
        return Binding(nodes, reason="the NUMA node of a GPU is unknown")
    allowed = os.sched_getaffinity(0) if allowed is None else allowed
    for node in sorted({node for node in nodes if node is not None}):
        usable = cpus.get(node, set()) & allowed
        if not usable:
            fix = "give this process or container the CPUs of all nodes (taskset, --cpuset-cpus)"
            return Binding(nodes, reason=f"this process may use no CPU of NUMA node {node}", fix=fix)
        trial = run_tool("numactl", f"--physcpubind={min(usable)}", "true")
        if trial.failure:
            fix = "install numactl" if trial.is_missing else "docker run --cap-add SYS_NICE allows it in a container"
            return Binding(nodes, reason=f"numactl: {trial.failure}", fix=fix)
    return Binding(nodes, is_used=True, reason="torchrun --numa-binding=node")
