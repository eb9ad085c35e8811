"""Accelerators as amd-smi reports them, or rocm-smi where that is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from .sources import LIMIT_S, clean, named, output, same

_ROCM_SMI = ("--showproductname", "--showmeminfo", "vram", "--showdriverversion", "--showtopotype", "--json")
_NAMES = ("Card Series", "Card series")  # the spelling changed with ROCm 6
_LINK = re.compile(r"\(Topology\) Link type between DRM devices \d+ and \d+", re.ASCII)


def amd_fields(limit_s: float = LIMIT_S) -> dict[str, str]:
    """The fields `accelerator*` that amd-smi or rocm-smi tells, and `driver`; nothing if both are missing or fail.

    Args:
        limit_s: time limit in seconds of each call.

    Returns:
        Memory in GiB as reported and its kind, the highest clock in MHz, PCIe generation and width. What differs
        between accelerators is left out; rocm-smi tells less.
    """
    fields = _amd_smi(limit_s) or _rocm_smi(limit_s)
    return {field: value for field, value in fields.items() if value}


def _amd_smi(limit_s: float) -> dict[str, str | None]:
    devices = _listed(_parsed(output("amd-smi", "static", "--json", limit_s=limit_s)))
    if not devices:
        return {}
    link = same(_text(device, "bus", "max_pcie_width") for device in devices)
    generation = same(_text(device, "bus", "pcie_interface_version") for device in devices)
    driver = same(_text(device, "driver", "version") for device in devices)
    pcie = re.fullmatch(r"Gen (\d)", generation or "", re.ASCII)
    megahertz = same(_highest_clock(device) for device in devices)
    fields = {
        "accelerators_per_node": str(len(devices)),
        "accelerator_model_name": named([_text(device, "asic", "market_name") for device in devices]),
        "accelerator_memory_capacity": same(_memory(device) for device in devices),
        "accelerator_memory_configuration": same(_memory_kind(device) for device in devices),
        "accelerator_host_interconnect": f"PCIe {pcie[1]}.0 x{link}" if pcie and link else None,
        "accelerator_frequency": f"{megahertz} MHz max" if megahertz else None,
        "driver": f"amdgpu driver {driver}" if driver else None,
    }
    if len(devices) > 1:
        rows = _listed(_parsed(output("amd-smi", "topology", "--json", limit_s=limit_s)))
        cells = [each for row in rows for each in _listed(row.get("links"))]
        types = [kind for cell in cells if (kind := _text(cell, "link_type")) != "SELF"]
        fields |= _interconnect(types, len(devices), "amd-smi topology")
    return fields


def _rocm_smi(limit_s: float) -> dict[str, str | None]:
    answer = _parsed(output("rocm-smi", *_ROCM_SMI, limit_s=limit_s))
    if not isinstance(answer, dict):
        return {}
    cards = [card for key, card in answer.items() if re.fullmatch(r"card\d+", key, re.ASCII)]
    cards = [card for card in cards if isinstance(card, dict)]
    if not cards:
        return {}
    memory = same(_text(card, "VRAM Total Memory (B)") for card in cards) or ""
    driver = _text(answer, "system", "Driver version")
    fields = {
        "accelerators_per_node": str(len(cards)),
        "accelerator_model_name": named([next(filter(None, (_text(card, n) for n in _NAMES)), None) for card in cards]),
        "accelerator_memory_capacity": _gib(memory, 1024**3),
        "driver": f"amdgpu driver {driver}" if driver else None,
    }
    if len(cards) > 1:
        system = answer.get("system")
        links = [_text(system, key) for key in system if _LINK.fullmatch(key)] if isinstance(system, dict) else []
        # Each pair once.
        fields |= _interconnect(links * 2, len(cards), "rocm-smi --showtopotype")
    return fields


def _parsed(printed: str | None) -> Any:
    """The tool's JSON, None if it printed none; old versions warn in a line or two before it."""
    start = re.search(r"^[\[{]", printed or "", re.MULTILINE)
    try:
        return json.loads((printed or "")[start.start() :]) if start else None
    except (ValueError, RecursionError):
        return None


def _listed(answer: Any) -> list[dict[str, Any]]:
    """The objects of a list, which since ROCm 7 is the value of `gpu_data`; none unless all are objects."""
    rows = answer.get("gpu_data") if isinstance(answer, dict) else answer
    return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else []


def _text(value: Any, *keys: str) -> str | None:
    """Text or number below the keys, None if it is missing, or `N/A`."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return None
    words = clean(str(value))
    return None if words in ("", "N/A") else words


def _memory(device: dict[str, Any]) -> str | None:
    megabytes = _text(device, "vram", "size", "value")
    return _gib(megabytes or "", 1024) if _text(device, "vram", "size", "unit") == "MB" else None


def _gib(count: str, per_gib: int) -> str | None:
    return f"{int(count) / per_gib:.1f} GiB" if re.fullmatch(r"[1-9]\d{0,17}", count, re.ASCII) else None


def _memory_kind(device: dict[str, Any]) -> str | None:
    kind, width = _text(device, "vram", "type"), _text(device, "vram", "bit_width")
    return f"{kind}, {width} bit wide" if kind and width else kind


def _highest_clock(device: dict[str, Any]) -> str | None:
    """The highest level of the system clock, in MHz."""
    levels = device.get("clock")
    for key in ("sys", "frequency_levels"):
        levels = levels.get(key) if isinstance(levels, dict) else None
    found = re.findall(r"\b(\d{1,5}) MHz", " ".join(map(str, levels.values()))) if isinstance(levels, dict) else []
    return str(max(map(int, found))) if found else None


def _interconnect(links: Sequence[str | None], devices: int, source: str) -> dict[str, str | None]:
    """Fields of the links between all ordered pairs; nothing unless each is told."""
    kinds = {link for link in links if link}
    if not kinds or None in links or len(links) != devices * (devices - 1):
        return {}
    return {
        "accelerator_interconnect": " + ".join(sorted(kinds)),
        "accelerator_interconnect_topology": f"every pair: {' or '.join(sorted(kinds))} ({source})",
    }
