"""Disks, network ports, PCI devices and maker of this node, from /sys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .files import read_int, read_line

_SECTOR = 512  # bytes; /sys/block/*/size is in these units for every disk
_ETHERNET = 1  # ARPHRD_ETHER of <linux/if_arp.h>
_VIRTUAL_DISKS = re.compile(r"(vd|xvd|nbd|rbd|zd|fd|sr)", re.ASCII)
# Base class and subclass of PCI: processing accelerator; 3D controller; display controller of another kind.
_ACCELERATORS = ("0x12", "0x0302", "0x0380")
_NO_RATE = "(rate not reported)"
_VGA, _GPU_MAKERS = "0x0300", ("0x10de", "0x1002")  # NVIDIA, AMD


@dataclass(frozen=True)
class Disk:
    """A disk: NVMe SSD, SSD, HDD, virtual disk, or disk if the kind is unknown; its size in bytes."""

    kind: str
    size: int


def read_disks(root: Path = Path("/")) -> list[Disk]:
    """Return the local disks, without removable ones and those of other machines (NVMe over Fabrics)."""
    disks = filter(_is_local_disk, sorted((root / "sys/block").glob("*")))
    return [Disk(_disk_kind(disk), (read_int(disk / "size") or 0) * _SECTOR) for disk in disks]


def read_network_ports(root: Path = Path("/")) -> list[str]:
    """Return the ports of network devices with their rates, such as ``Ethernet 100 Gb/s RDMA``, InfiniBand first.

    Virtual functions and interfaces are left out. The driver reports no rate for a port that is down or virtual.
    """
    ports = []
    for port in sorted((root / "sys/class/infiniband").glob("*/ports/*")):
        if read_line(port / "link_layer") == "InfiniBand" and not (port.parents[1] / "device/physfn").exists():
            ports.append(f"InfiniBand {read_line(port / 'rate') or _NO_RATE}")
    for interface in sorted((root / "sys/class/net").glob("*")):
        device = interface / "device"
        if read_int(interface / "type") != _ETHERNET or not device.exists() or (device / "physfn").exists():
            continue
        megabits = read_int(interface / "speed") or -1
        rate = f"{megabits / 1000:g} Gb/s" if megabits > 0 else _NO_RATE
        ports.append(f"Ethernet {rate}{' RDMA' if (device / 'infiniband').exists() else ''}")
    return ports


def list_infiniband_devices(root: Path = Path("/")) -> list[str]:
    """Return the names of the RDMA devices, such as mlx5_0."""
    return sorted(device.name for device in (root / "sys/class/infiniband").glob("*"))


def has_accelerator(root: Path = Path("/")) -> bool | None:
    """Check for a PCI device that is, or may be, an accelerator. Return None if PCI devices are not listed."""
    devices = (root / "sys/bus/pci/devices").glob("*")
    kinds = [(read_line(device / "class") or "", read_line(device / "vendor")) for device in devices]
    if not kinds:
        return None
    return any(
        kind.startswith(_ACCELERATORS) or (kind.startswith(_VGA) and maker in _GPU_MAKERS) for kind, maker in kinds
    )


def read_machine_model(root: Path = Path("/")) -> str:
    """Return maker and product name of the machine, as its firmware has them; empty if it has none."""
    names = (read_line(root / "sys/class/dmi/id" / name) for name in ("sys_vendor", "product_name"))
    return " ".join(filter(None, names))


def _is_local_disk(disk: Path) -> bool:
    """Exclude memory (loop, ram), empty drives, removable media, network disks and the hidden paths of NVMe."""
    has_medium = (disk / "device").exists() and (read_int(disk / "size") or 0) > 0
    is_remote = read_line(disk / "device/transport") not in (None, "pcie")
    return has_medium and not is_remote and read_int(disk / "removable") != 1 and read_int(disk / "hidden") != 1


def _disk_kind(disk: Path) -> str:
    if disk.name.startswith("nvme"):
        return "NVMe SSD"
    if _VIRTUAL_DISKS.match(disk.name):
        return "virtual disk"  # the hypervisor's `rotational` says nothing about the hardware
    return {0: "SSD", 1: "HDD"}.get(read_int(disk / "queue/rotational") or 0, "disk")
