"""AMD GPUs, as amdsmi reports them or, where amdsmi is not available, amd-smi or rocm-smi."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from .files import one_line, parse_int
from .gpu_report import Gpu, GpuReport, Interconnect
from .library import read_library
from .tools import ToolOutput, run_tool

_ROCM_SMI = ("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showdriverversion", "--json")
_ROCM_SMI_NAMES = ("Card Series", "Card series")  # the spelling changed with ROCm 6
_ROCM_SMI_LINK = re.compile(r"\(Topology\) Link type between DRM devices \d+ and \d+", re.ASCII)
_UNCORRECTABLE = ("total_uncorrectable_count", "total_deferred_count")


def read_gpus(limit_s: float | None = None) -> GpuReport | None:
    """Return the first answer of amdsmi, amd-smi and rocm-smi, or the first failure, or None if none is installed."""
    failed: GpuReport | None = None
    for read in (_read_amdsmi, _read_amd_smi, _read_rocm_smi):
        report = read(limit_s)
        if report is not None and report.error is None:
            return report
        failed = failed or report
    return failed


def read_interconnect(report: GpuReport, limit_s: float | None = None) -> Interconnect:
    """Return the link types, if the tool reports one for every pair of the report's GPUs."""
    count = len(report.gpus)
    if report.source == "rocm-smi":
        answer = _parse_json(run_tool("rocm-smi", "--showtopotype", "--json", limit_s=limit_s))
        system = answer.get("system") if isinstance(answer, dict) else None
        keys = [key for key in system if _ROCM_SMI_LINK.fullmatch(key)] if isinstance(system, dict) else []
        types, pairs = [_text(system, key) for key in keys], count * (count - 1) // 2
        source = "rocm-smi --showtopotype"
    else:
        rows = _rows(run_tool("amd-smi", "topology", "--json", limit_s=limit_s))
        cells = [cell for row in rows for cell in _dicts(row.get("links"))]
        types = [link for cell in cells if (link := _text(cell, "link_type")) != "SELF"]
        source, pairs = "amd-smi topology", count * (count - 1)
    known = [link for link in types if link]
    return Interconnect(tuple(sorted(set(known))), source) if len(types) == len(known) == pairs else Interconnect()


def _read_amdsmi(limit_s: float | None) -> GpuReport | None:
    return read_library("AMD", "amdsmi", "amdsmi_library", limit_s)


def _read_amd_smi(limit_s: float | None) -> GpuReport | None:
    static = run_tool("amd-smi", "static", "--json", limit_s=limit_s)
    if static.is_missing:
        return None
    devices = _rows(static)
    if static.failure is not None or not devices:
        return GpuReport("AMD", "amd-smi", (), static.failure or "it lists no GPU")
    metric = _rows(run_tool("amd-smi", "metric", "--ecc", "--json", limit_s=limit_s))
    process = _rows(run_tool("amd-smi", "process", "--json", limit_s=limit_s))
    for device in devices:
        for row in (*metric, *process):  # they have keys of their own, and number the GPUs as static does
            if _text(row, "gpu") == _text(device, "gpu"):
                device.update(row)
    return GpuReport("AMD", "amd-smi", tuple(map(_parse_device, devices)))


def _parse_device(device: dict[str, Any]) -> Gpu:
    memory_unit = _text(device, "vram", "size", "unit")
    return Gpu(
        name=_text(device, "asic", "market_name"),
        driver_version=_text(device, "driver", "version"),
        memory_mib=_number(device, "vram", "size", "value") if memory_unit == "MB" else None,
        memory_type=_text(device, "vram", "type"),
        memory_bus_width=_number(device, "vram", "bit_width"),
        max_clock_mhz=_highest_clock(device),
        pcie_generation=parse_int((_text(device, "bus", "pcie_interface_version") or "").removeprefix("Gen ")),
        pcie_width=_number(device, "bus", "max_pcie_width"),
        uncorrectable_errors=sum(filter(None, (_number(device, "ecc", name) for name in _UNCORRECTABLE))),
        processes=tuple(_compute_processes(device)),
    )


def _highest_clock(device: dict[str, Any]) -> int | None:
    """Return the highest level of the system clock in MHz."""
    levels = _value(device, "clock", "sys", "frequency_levels")
    texts = " ".join(map(str, levels.values())) if isinstance(levels, dict) else ""
    return max(map(int, re.findall(r"\b(\d{1,5}) MHz", texts, re.ASCII)), default=None)


def _compute_processes(row: dict[str, Any]) -> Iterator[str]:
    for each in _dicts(row.get("process_list")):
        process = each.get("process_info")
        if isinstance(process, dict):  # an idle GPU has a sentence in the place of a process
            yield f"{_text(process, 'name') or 'a process'} ({_text(process, 'pid') or '?'})"


def _read_rocm_smi(limit_s: float | None) -> GpuReport | None:
    output = run_tool(*_ROCM_SMI, limit_s=limit_s)
    if output.is_missing:
        return None
    answer = _parse_json(output)
    if output.failure is not None or not isinstance(answer, dict):
        return GpuReport("AMD", "rocm-smi", (), output.failure or "it printed no JSON object")
    driver = _text(answer, "system", "Driver version")
    cards = (card for key, card in answer.items() if re.fullmatch(r"card\d+", key, re.ASCII))
    return GpuReport("AMD", "rocm-smi", tuple(_parse_card(card, driver) for card in cards))


def _parse_card(card: Any, driver: str | None) -> Gpu:
    memory = _number(card, "VRAM Total Memory (B)")
    return Gpu(
        name=next(filter(None, (_text(card, name) for name in _ROCM_SMI_NAMES)), None),
        driver_version=driver,
        memory_mib=None if memory is None else memory // 2**20,
    )


def _parse_json(output: ToolOutput) -> Any:
    """Return a tool's JSON, or None. Old versions print a warning in the lines before it."""
    start = re.search(r"^[\[{]", output.answer, re.MULTILINE)
    try:
        return json.loads(output.answer[start.start() :]) if start else None
    except (ValueError, RecursionError):
        return None


def _rows(output: ToolOutput) -> list[dict[str, Any]]:
    """Return amd-smi's row for each GPU. Since ROCm 7 the list is the value of ``gpu_data``."""
    answer = _parse_json(output)
    return _dicts(answer.get("gpu_data") if isinstance(answer, dict) else answer)


def _dicts(value: Any) -> list[dict[str, Any]]:
    """Return a list of objects, or an empty list if the value is anything else."""
    return value if isinstance(value, list) and all(isinstance(each, dict) for each in value) else []


def _value(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text(value: Any, *keys: str) -> str | None:
    """Return the text or number below nested keys, or None if it is missing or ``N/A``."""
    value = _value(value, *keys)
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return None
    text = one_line(str(value))
    return None if text in ("", "N/A") else text


def _number(value: Any, *keys: str) -> int | None:
    return parse_int(_text(value, *keys))
