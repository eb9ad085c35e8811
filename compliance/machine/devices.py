"""Disks, network ports, operating system and PCI devices of this node, from /sys and /etc."""

from __future__ import annotations

import re
from pathlib import Path

from .sources import counted, entries, text, whole, word

_SECTOR = 512  # bytes; /sys/block/*/size counts these whatever the disk's own are
_ETHERNET = 1  # ARPHRD_ETHER of <linux/if_arp.h>
_VIRTUAL_DISKS = re.compile(r"(vd|xvd|nbd|rbd|zd|fd|sr)", re.ASCII)
# Base class and subclass of PCI: processing accelerator; 3D controller; display controller of another kind.
_ACCELERATORS = ("0x12", "0x0302", "0x0380")
_VGA, _GPU_MAKERS = "0x0300", ("0x10de", "0x1002")


def storage_fields(root: Path = Path("/")) -> dict[str, str]:
    """host_storage_type and _capacity of the local disks; nothing without any.

    Returns:
        Capacity in decimal GB or TB, as disks are sold. The size of a file system is not used: it may be a network's.
        Removable disks and those of other machines (NVMe over Fabrics) are left out.
    """
    disks = [disk for disk in entries(root / "sys/block") if _is_local_disk(disk)]
    if not disks:
        return {}
    sizes = [f"{_decimal((whole(disk / 'size') or 0) * _SECTOR)} {_kind(disk)}" for disk in disks]
    kinds = dict.fromkeys(_kind(disk) for disk in disks)
    return {"host_storage_type": " + ".join(kinds), "host_storage_capacity": counted(sizes)}


def network_fields(root: Path = Path("/")) -> dict[str, str]:
    """host_networking: the ports of real devices with their rates, InfiniBand first; nothing without any.

    A port whose rate the driver does not report (it is down, or virtual) says so. Virtual functions are left out.
    """
    ports = []
    for port in (port for device in entries(root / "sys/class/infiniband") for port in entries(device / "ports")):
        if word(port / "link_layer") == "InfiniBand" and not (port.parents[1] / "device/physfn").exists():
            ports.append(f"InfiniBand {word(port / 'rate') or '(rate not reported)'}")
    for port in entries(root / "sys/class/net"):
        if whole(port / "type") != _ETHERNET or not (port / "device").exists() or (port / "device/physfn").exists():
            continue
        megabits = whole(port / "speed") or -1
        rate = f"{megabits / 1000:g} Gb/s" if megabits > 0 else "(rate not reported)"
        ports.append(f"Ethernet {rate}{' RDMA' if (port / 'device/infiniband').exists() else ''}")
    return {"host_networking": counted(ports)} if ports else {}


def system_fields(root: Path = Path("/")) -> dict[str, str]:
    """operating_system: the distribution of /etc/os-release, which in a container is the container's, and the kernel.

    Nothing unless both are known.
    """
    release = text(root / "etc/os-release") or text(root / "usr/lib/os-release") or ""
    name = re.search(r"""^PRETTY_NAME=(["']?)([^"'\n]+)\1\s*$""", release, re.MULTILINE)
    kernel = word(root / "proc/sys/kernel/osrelease")
    return {"operating_system": f"{name[2].strip()}, Linux {kernel}"} if name and kernel else {}


def has_accelerator(root: Path = Path("/")) -> bool | None:
    """Whether a PCI device is, or may be, an accelerator; None if PCI devices are not listed."""
    devices = entries(root / "sys/bus/pci/devices")
    if not devices:
        return None
    kinds = [(word(device / "class") or "", word(device / "vendor")) for device in devices]
    return any(
        kind.startswith(_ACCELERATORS) or (kind.startswith(_VGA) and maker in _GPU_MAKERS) for kind, maker in kinds
    )


def _is_local_disk(disk: Path) -> bool:
    """Whether it is a disk of this machine, not a partition of memory, a medium, a path of another, or a network's."""
    is_device = (disk / "device").exists() and (whole(disk / "size") or 0) > 0
    elsewhere = word(disk / "device/transport") not in (None, "pcie")
    return is_device and not elsewhere and whole(disk / "removable") != 1 and whole(disk / "hidden") != 1


def _kind(disk: Path) -> str:
    if disk.name.startswith("nvme"):
        return "NVMe SSD"
    if _VIRTUAL_DISKS.match(disk.name):
        return "virtual disk"  # whether it turns is the hypervisor's word
    return {0: "SSD", 1: "HDD"}.get(whole(disk / "queue/rotational") or 0, "disk")


def _decimal(size: int) -> str:
    """Bytes in GB below 1 TB, else in TB, to three digits or more."""
    return f"{size / 1e12:.4g} TB" if size >= 10**12 else f"{size / 1e9:.4g} GB"
