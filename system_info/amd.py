"""AMD GPUs, as amdsmi reports them or, where amdsmi is not available, amd-smi.

The Python module amdsmi comes with ROCm and not from a package index.
"""

from __future__ import annotations

import json
import re
from importlib import import_module
from typing import Any

from .files import one_line, parse_int
from .gpu_report import Gpu, GpuReport, Interconnect, read_library
from .tools import ToolOutput, run_tool


def read_amdsmi(limit_s: float | None = None) -> GpuReport | None:
    """Return the report of AMD's library, or None if it is not installed."""
    return read_library("amdsmi", _list_amdsmi_gpus, limit_s)


def read_amd_smi(limit_s: float | None = None) -> GpuReport | None:
    """Return the report of amd-smi, or None if it is not installed."""
    static = run_tool("amd-smi", "static", "--json", limit_s=limit_s)
    if static.is_missing:
        return None
    devices = _rows(static)
    if not devices:
        return GpuReport("amd-smi", error=static.failure or "it lists no GPU")
    metric = _rows(run_tool("amd-smi", "metric", "--ecc", "--json", limit_s=limit_s))
    process = _rows(run_tool("amd-smi", "process", "--json", limit_s=limit_s))
    for device in devices:
        for row in (*metric, *process):  # they have keys of their own, and number the GPUs as static does
            if row.get("gpu") == device.get("gpu"):
                device.update(row)
    return GpuReport("amd-smi", tuple(map(_parse_device, devices)))


def read_interconnect(count: int, limit_s: float | None = None) -> Interconnect:
    """Return the link types, if amd-smi reports one for every pair of ``count`` GPUs."""
    rows = _rows(run_tool("amd-smi", "topology", "--json", limit_s=limit_s))
    types = [_text(cell, "link_type") for row in rows for cell in _dicts(row.get("links"))]
    links = [link for link in types if link not in (None, "SELF")]
    if len(links) != count * (count - 1):
        return Interconnect()
    kinds = sorted(set(filter(None, links)))
    return Interconnect(" + ".join(kinds), f"every pair: {' or '.join(kinds)} (amd-smi topology)")


def _list_amdsmi_gpus() -> list[Gpu] | None:
    """Return the GPUs in the library's order."""
    try:
        amdsmi = import_module("amdsmi")
    except Exception:  # OSError or KeyError if the module is there and libamd_smi.so is not
        return None
    amdsmi.amdsmi_init()
    return [_read_amdsmi_gpu(amdsmi, handle) for handle in amdsmi.amdsmi_get_processor_handles()]


def _read_amdsmi_gpu(amdsmi: Any, handle: Any) -> Gpu:
    def query(function: str, *arguments: Any) -> Any:
        """Call a function of the library. Return None where this GPU or version does not support it."""
        try:
            return getattr(amdsmi, f"amdsmi_{function}")(handle, *arguments)
        except (amdsmi.AmdSmiException, AttributeError):
            return None

    memory, errors = query("get_gpu_vram_info"), query("get_gpu_total_ecc_count")
    link = _value(query("get_pcie_info"), "pcie_static")
    clocks = _value(query("get_clk_freq", amdsmi.AmdSmiClkType.SYS), "frequency")  # in Hz
    counts = [_number(errors, key) for key in ("uncorrectable_count", "deferred_count")]
    names = getattr(amdsmi.amdsmi_wrapper, "amdsmi_vram_type_t__enumvalues", {})
    memory_type = names.get(_value(memory, "vram_type"), "").removeprefix("AMDSMI_VRAM_TYPE_")
    return Gpu(
        name=_text(query("get_gpu_asic_info"), "market_name"),
        driver_version=_text(query("get_gpu_driver_info"), "driver_version"),
        memory_mib=_number(memory, "vram_size"),
        memory_type=memory_type if memory_type not in ("", "UNKNOWN") else None,
        memory_bus_width=_number(memory, "vram_bit_width"),
        max_clock_mhz=max(clocks) // 10**6 if clocks else None,
        pcie_generation=_number(link, "pcie_interface_version"),
        pcie_width=_number(link, "max_pcie_width"),
        uncorrectable_errors=sum(filter(None, counts)),
        processes=tuple(f"{each['name']} ({each['pid']})" for each in query("get_gpu_process_list") or ()),
    )


def _parse_device(device: dict[str, Any]) -> Gpu:
    memory_unit = _text(device, "vram", "size", "unit")
    errors = [_number(device, "ecc", f"total_{kind}_count") for kind in ("uncorrectable", "deferred")]
    levels = str(_value(device, "clock", "sys", "frequency_levels"))  # {"Level 0": "143 MHz", ...}
    processes = [each.get("process_info") for each in _dicts(device.get("process_list"))]
    return Gpu(
        name=_text(device, "asic", "market_name"),
        driver_version=_text(device, "driver", "version"),
        memory_mib=_number(device, "vram", "size", "value") if memory_unit == "MB" else None,
        memory_type=_text(device, "vram", "type"),
        memory_bus_width=_number(device, "vram", "bit_width"),
        max_clock_mhz=max(map(int, re.findall(r"\b(\d{1,5}) MHz", levels, re.ASCII)), default=None),
        pcie_generation=parse_int((_text(device, "bus", "pcie_interface_version") or "").removeprefix("Gen ")),
        pcie_width=_number(device, "bus", "max_pcie_width"),
        uncorrectable_errors=sum(filter(None, errors)),
        processes=tuple(
            f"{_text(process, 'name') or 'a process'} ({_text(process, 'pid') or '?'})"
            for process in processes
            if isinstance(process, dict)  # an idle GPU has a sentence in the place of a process
        ),
    )


def _rows(output: ToolOutput) -> list[dict[str, Any]]:
    """Return amd-smi's row for each GPU. Since ROCm 7 the list is the value of ``gpu_data``."""
    # Old versions print a warning in the lines before the JSON.
    start = re.search(r"^[\[{]", output.answer, re.MULTILINE)
    try:
        answer = json.loads(output.answer[start.start() :]) if start else None
    except ValueError:
        return []
    return _dicts(answer.get("gpu_data") if isinstance(answer, dict) else answer)


def _dicts(value: Any) -> list[dict[str, Any]]:
    """Return a list of objects, or an empty list if the value is anything else."""
    return value if isinstance(value, list) and all(isinstance(each, dict) for each in value) else []


def _value(value: Any, *keys: str) -> Any:
    """Return the value below nested keys, or None."""
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
