"""Accelerators as nvidia-smi reports them."""

from __future__ import annotations

import re

from .sources import LIMIT_S, clean, named, output, same

# The name comes last: it may hold a comma. gen.max and width.max are of the GPU in this machine.
QUERY = ("driver_version", "memory.total", "clocks.max.sm", "pcie.link.gen.max", "pcie.link.width.max", "name")
_UNKNOWN = re.compile(r"\[?(N/A|Not Supported|Unknown Error|Insufficient Permissions)\]?|ERR!", re.IGNORECASE)
# Attached to a Grace processor by NVLink-C2C, whatever PCIe link they report beside it.
_GRACE = re.compile(r"\bG[BH]\d{3}\b", re.ASCII)


def nvidia_fields(limit_s: float = LIMIT_S) -> dict[str, str]:
    """The fields `accelerator*` that nvidia-smi tells, and `driver`; nothing if it is missing, fails or is unclear.

    Args:
        limit_s: time limit in seconds of each call.

    Returns:
        Memory in GiB as reported, the highest SM clock in MHz, PCIe generation and width. What differs between
        accelerators is left out. On-chip memory and the kind of memory are not told.
    """
    printed = output("nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits", limit_s=limit_s)
    devices = _devices(printed or "")
    if not devices:
        return {}
    drivers, memory, clock, generation, width, names = zip(*devices, strict=True)
    mib, link = same(memory), (same(generation), same(width))
    fields = {
        "accelerators_per_node": str(len(devices)),
        "accelerator_model_name": named(names),
        "accelerator_memory_capacity": f"{int(mib) / 1024:.1f} GiB" if mib else None,
        "accelerator_frequency": f"{hertz} MHz max" if (hertz := same(clock)) else None,
        "driver": f"NVIDIA driver {driver}" if (driver := same(drivers)) else None,
    }
    if all(link) and not _GRACE.search(" ".join(map(str, names))):
        fields["accelerator_host_interconnect"] = f"PCIe {link[0]}.0 x{link[1]}"
    if len(devices) > 1:
        status = output("nvidia-smi", "nvlink", "-s", limit_s=limit_s)
        fields["accelerator_interconnect"] = _nvlink(status or "", len(devices))
        matrix = output("nvidia-smi", "topo", "-m", limit_s=limit_s)
        fields["accelerator_interconnect_topology"] = _topology(matrix or "", len(devices))
    return {field: value for field, value in fields.items() if value}


def _devices(printed: str) -> list[tuple[str | None, ...]]:
    """A row for each accelerator, in the order of `QUERY`; none at all if one line is no such row."""
    rows = []
    for line in filter(None, map(clean, printed.splitlines())):
        row = [None if _UNKNOWN.fullmatch(each.strip()) else each.strip() for each in line.split(",", len(QUERY) - 1)]
        numbers = [each for each in row[1:5] if each is not None]
        if len(row) != len(QUERY) or not all(re.fullmatch(r"\d{1,9}", each, re.ASCII) for each in numbers):
            return []
        rows.append(tuple(row))
    return rows


def _nvlink(printed: str, devices: int) -> str | None:
    """Active links of each accelerator and their speed, if all accelerators have the same."""
    blocks = re.split(r"^GPU \d+:", printed, flags=re.MULTILINE)[1:]
    links = [re.findall(r"^\s+Link \d+: (\d[\d.]* GB/s)\s*$", block, re.MULTILINE) for block in blocks]
    speed = same(speed for each in links for speed in each)
    if len(links) != devices or speed is None or len(set(map(len, links))) != 1:
        return None
    return f"NVLink, {len(links[0])} links of {speed} per accelerator (nvidia-smi nvlink -s)"


def _topology(printed: str, devices: int) -> str | None:
    """How each pair of accelerators is connected, in the tool's own abbreviations (NV18, PIX, SYS)."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", printed)
    rows = re.findall(r"^GPU(\d+)\s+(\S.*)$", plain, re.ASCII | re.MULTILINE)
    cells = [row.split()[:devices] for _, row in rows if len(row.split()) >= devices and "X" in row.split()]
    if len(cells) != devices or any(row[own] != "X" for own, row in enumerate(cells)):
        return None
    pairs = {each for own, row in enumerate(cells) for column, each in enumerate(row) if column != own}
    if not all(re.fullmatch(r"[A-Z]{2,4}\d*", each, re.ASCII) for each in pairs):
        return None
    return f"every pair: {' or '.join(sorted(pairs))} (nvidia-smi topo -m)"
