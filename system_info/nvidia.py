"""NVIDIA GPUs, as NVML reports them or, where NVML is not available, nvidia-smi.

nvidia-smi is asked for XML: a field that its version does not know is absent there, while ``--query-gpu`` rejects the
whole list of fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from .files import one_line, parse_int
from .gpu_report import Gpu, GpuReport, Interconnect
from .library import read_library
from .tools import run_tool

_UNKNOWN = re.compile(r"|\[?(N/A|Not Supported|Unknown Error|Insufficient Permissions)\]?|ERR!", re.IGNORECASE)


def read_gpus(limit_s: float | None = None) -> GpuReport | None:
    """Return the report of NVML or nvidia-smi, or None if this machine has neither."""
    library = read_library("NVIDIA", "NVML", "nvml", limit_s)
    # Where the library does not return, the tool would not either: it calls the library.
    if library is not None and (library.error is None or library.timed_out):
        return library
    return _read_nvidia_smi(limit_s) or library


def read_interconnect(report: GpuReport, limit_s: float | None = None) -> Interconnect:
    """Return NVLinks and topology, each only where nvidia-smi reports it for all GPUs of the report."""
    count = len(report.gpus)
    links, speed = _parse_nvlinks(run_tool("nvidia-smi", "nvlink", "-s", limit_s=limit_s).answer, count)
    pair_types = _parse_topology(run_tool("nvidia-smi", "topo", "-m", limit_s=limit_s).answer, count)
    return Interconnect(pair_types, "nvidia-smi topo -m", links, speed)


def _read_nvidia_smi(limit_s: float | None) -> GpuReport | None:
    output = run_tool("nvidia-smi", "-q", "-x", limit_s=limit_s)
    if output.is_missing:
        return None
    gpus: tuple[Gpu, ...] = ()
    error = output.failure
    if error is None:
        try:
            log = ElementTree.fromstring(output.stdout)
            driver = _text(log, "driver_version")
            gpus = tuple(_parse_gpu(gpu, driver) for gpu in log.iterfind("gpu"))
        except ElementTree.ParseError as parse_error:
            error = f"its XML cannot be read ({parse_error})"
    return GpuReport("NVIDIA", "nvidia-smi", gpus, error, output.timed_out)


def _parse_gpu(gpu: ElementTree.Element, driver: str | None) -> Gpu:
    link = "pci/pci_gpu_link_info"
    errors = [parse_int(each.text) for each in gpu.iterfind("ecc_errors/volatile/*") if "uncorrectable" in each.tag]
    action = _text(gpu, "gpu_recovery_action")
    return Gpu(
        name=_text(gpu, "product_name"),
        driver_version=driver,
        memory_mib=_number(gpu, "fb_memory_usage/total", " MiB"),
        max_clock_mhz=_number(gpu, "max_clocks/sm_clock", " MHz"),
        pcie_generation=_number(gpu, f"{link}/pcie_gen/max_link_gen"),
        pcie_width=_number(gpu, f"{link}/link_widths/max_link_width", "x"),
        uncorrectable_errors=sum(filter(None, errors)),
        row_remap_pending=_text(gpu, "remapped_rows/remapped_row_pending") == "Yes",
        row_remap_failed=_text(gpu, "remapped_rows/remapped_row_failure") == "Yes",
        recovery_action=None if action == "None" else action,
        throttle_reasons=tuple(_throttle_reasons(gpu)),
        processes=tuple(_compute_processes(gpu)),
    )


def _text(element: ElementTree.Element, path: str) -> str | None:
    text = one_line(element.findtext(path))
    return None if _UNKNOWN.fullmatch(text) else text


def _number(element: ElementTree.Element, path: str, unit: str = "") -> int | None:
    return parse_int((_text(element, path) or "").removesuffix(unit))


def _throttle_reasons(gpu: ElementTree.Element) -> Iterator[str]:
    # The element is called clocks_throttle_reasons before driver 535.
    for name in ("clocks_event_reason", "clocks_throttle_reason"):
        for reason in gpu.iterfind(f"{name}s/*"):
            if reason.text == "Active" and re.search("hw_slowdown|thermal|power_brake", reason.tag):
                yield reason.tag.removeprefix(f"{name}_")


def _compute_processes(gpu: ElementTree.Element) -> Iterator[str]:
    for process in gpu.iterfind("processes/process_info"):
        if "C" in (process.findtext("type") or ""):  # C computes, G draws
            yield f"{_text(process, 'process_name') or 'a process'} ({_text(process, 'pid') or '?'})"


def _parse_nvlinks(printed: str, count: int) -> tuple[int, str] | tuple[None, None]:
    """Parse the active links of each GPU and their speed, from ``nvidia-smi nvlink -s``."""
    blocks = re.split(r"^GPU \d+:", printed, flags=re.MULTILINE)[1:]
    links = [re.findall(r"^\s+Link \d+: (\d[\d.]* GB/s)\s*$", block, re.MULTILINE) for block in blocks]
    speeds = {speed for each in links for speed in each}
    if len(links) != count or len(speeds) != 1 or len(set(map(len, links))) != 1:
        return None, None
    return len(links[0]), speeds.pop()


def _parse_topology(printed: str, count: int) -> tuple[str, ...]:
    """Parse the connection types (NV18, PIX, SYS) between all pairs, from the matrix of ``nvidia-smi topo -m``."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", printed)  # the header is underlined
    rows = re.findall(r"^GPU\d+\s+(\S.*)$", plain, re.ASCII | re.MULTILINE)
    cells = [row.split()[:count] for row in rows if len(row.split()) >= count and "X" in row.split()]
    if len(cells) != count or any(row[index] != "X" for index, row in enumerate(cells)):
        return ()
    types = {cell for index, row in enumerate(cells) for column, cell in enumerate(row) if column != index}
    return tuple(sorted(types)) if all(re.fullmatch(r"[A-Z]{2,4}\d*", each, re.ASCII) for each in types) else ()
