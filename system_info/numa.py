"""NUMA nodes of this machine, their CPUs, and the nodes of PCI devices, from /sys."""

from __future__ import annotations

from pathlib import Path

from .files import read_int, read_line


def read_node_cpus(root: Path = Path("/")) -> dict[int, set[int]]:
    """Return the CPUs of each NUMA node, by its number. The dictionary is empty if the kernel does not list nodes."""
    folders = (root / "sys/devices/system/node").glob("node[0-9]*")
    return {int(folder.name.removeprefix("node")): parse_cpu_list(read_line(folder / "cpulist")) for folder in folders}


def read_device_node(address: str, root: Path = Path("/")) -> int | None:
    """Return the NUMA node of a PCI device such as ``0000:1b:00.0``, or None if it is unknown.

    The kernel writes -1 for unknown, as on machines with one node and in most virtual machines.
    """
    node = read_int(root / "sys/bus/pci/devices" / address / "numa_node")
    return None if node is None or node < 0 else node


def parse_cpu_list(text: str | None) -> set[int]:
    """Return the numbers in a list of the kernel.

    >>> sorted(parse_cpu_list("0-2,8")), parse_cpu_list(None)
    ([0, 1, 2, 8], set())
    """
    ranges = (part.partition("-") for part in (text or "").split(",") if part)
    return {cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)}
