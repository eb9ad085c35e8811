"""What nvidia-smi, amd-smi or rocm-smi say of the GPUs: the driver, who else is on them, and what is broken.

nvidia-smi is asked for XML: a field that its version does not know is absent, where a list of fields would be refused.
Written from the tools' documented outputs; the tests hold outputs made in their form, and no such GPU was at hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from .tools import Answer, ask

_AMD_ECC = ("total_uncorrectable_count", "total_deferred_count")


@dataclass
class ToolReport:
    """What a vendor's tool says.

    Attributes:
        tool: its name.
        driver: version of the kernel's driver; empty if it is not told.
        gpus: how many it lists; None if it does not say.
        users: processes on the GPUs, e.g. `GPU 3: python (1234)`.
        broken: what ends a run sooner or later, e.g. `GPU 3: 2 uncorrectable memory errors`.
        slowed: what slows one down.
        error: why the tool failed; None if it answered.
    """

    tool: str
    driver: str = ""
    gpus: int | None = None
    users: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    slowed: list[str] = field(default_factory=list)
    error: str | None = None


def ask_vendor_tool() -> ToolReport | None:
    """The first of nvidia-smi, amd-smi and rocm-smi that answers, or the first that failed; None if none is on PATH."""
    failed: ToolReport | None = None
    for asked in (_nvidia_smi, _amd_smi, _rocm_smi):
        report = asked()
        if report is not None and report.error is None:
            return report
        failed = failed or report
    return failed


def _nvidia_smi() -> ToolReport | None:
    answer, report = ask("nvidia-smi", "-q", "-x"), ToolReport("nvidia-smi")
    if answer.missing:
        return None
    if answer.status:
        report.error = answer.complaint
        return report
    try:
        log = ElementTree.fromstring(answer.printed)
    except ElementTree.ParseError as error:
        report.error = f"its XML cannot be read ({error})"
        return report
    gpus = log.findall("gpu")
    report.driver, report.gpus = log.findtext("driver_version") or "", len(gpus)
    for number, gpu in enumerate(gpus):
        report.users += [f"GPU {number}: {user}" for user in _nvidia_users(gpu)]
        report.broken += [f"GPU {number}: {what}" for what in _nvidia_faults(gpu)]
        report.slowed += [f"GPU {number}: {what}" for what in _nvidia_brakes(gpu)]
    return report


def _nvidia_users(gpu: ElementTree.Element) -> Iterator[str]:
    for process in gpu.iterfind("processes/process_info"):
        if "C" in (process.findtext("type") or ""):  # C computes, G draws
            yield f"{process.findtext('process_name') or 'a process'} ({process.findtext('pid') or '?'})"


def _nvidia_faults(gpu: ElementTree.Element) -> Iterator[str]:
    errors = [int(each.text or 0) for each in gpu.iterfind("ecc_errors/volatile/*") if _is_uncorrectable(each)]
    if sum(errors):
        yield f"{sum(errors)} uncorrectable memory errors since the driver was loaded"
    for tag, what in (
        ("remapped_row_pending", "a row is to be remapped"),
        ("remapped_row_failure", "remapping failed"),
    ):
        if gpu.findtext(f"remapped_rows/{tag}") == "Yes":
            yield f"{what} (memory)"
    # The driver's summary of Xid errors, from driver 560 on.
    action = gpu.findtext("gpu_recovery_action") or "None"
    if action not in ("None", "N/A"):
        yield f"the driver asks for: {action}"


def _is_uncorrectable(counter: ElementTree.Element) -> bool:
    return "uncorrectable" in counter.tag and (counter.text or "").strip().isdecimal()


def _nvidia_brakes(gpu: ElementTree.Element) -> Iterator[str]:
    # clocks_throttle_reasons before driver 535
    for reasons in ("clocks_event_reasons", "clocks_throttle_reasons"):
        for reason in gpu.iterfind(f"{reasons}/*"):
            if reason.text == "Active" and re.search("hw_slowdown|thermal|power_brake", reason.tag):
                yield reason.tag.removeprefix("clocks_event_reason_").removeprefix("clocks_throttle_reason_")


def _amd_smi() -> ToolReport | None:
    static, report = ask("amd-smi", "static", "--json"), ToolReport("amd-smi")
    if static.missing:
        return None
    gpus = _rows(static)
    if static.status or not gpus:
        report.error = static.complaint if static.status else "it lists no GPU"
        return report
    report.gpus = len(gpus)
    report.driver = next(filter(None, (_text(gpu, "driver", "version") for gpu in gpus)), "")
    for row in _rows(ask("amd-smi", "metric", "--ecc", "--json")):
        errors = sum(int(count) for name in _AMD_ECC if (count := _text(row, "ecc", name)).isdecimal())
        if errors:
            report.broken.append(f"GPU {_text(row, 'gpu')}: {errors} uncorrectable memory errors")
    for row in _rows(ask("amd-smi", "process", "--json")):
        listed = row.get("process_list")
        processes = [each.get("process_info") for each in listed if isinstance(each, dict)] if listed else []
        # An idle GPU has a sentence in the place of a process.
        for process in (each for each in processes if isinstance(each, dict)):
            report.users.append(f"GPU {_text(row, 'gpu')}: {_text(process, 'name')} ({_text(process, 'pid')})")
    return report


def _rocm_smi() -> ToolReport | None:
    answer, report = ask("rocm-smi", "--showproductname", "--showdriverversion", "--json"), ToolReport("rocm-smi")
    if answer.missing:
        return None
    told = _parsed(answer)
    if answer.status or not isinstance(told, dict):
        report.error = answer.complaint if answer.status else "it printed no JSON object"
        return report
    report.gpus = sum(re.fullmatch(r"card\d+", name, re.ASCII) is not None for name in told)
    report.driver = _text(told, "system", "Driver version")
    return report


def _parsed(answer: Answer) -> Any:
    """A tool's JSON, None if it printed none; old versions warn in a line or two before it."""
    start = re.search(r"^[\[{]", answer.printed, re.MULTILINE)
    try:
        return json.loads(answer.printed[start.start() :]) if start else None
    except (ValueError, RecursionError):
        return None


def _rows(answer: Answer) -> list[dict[str, Any]]:
    """The objects of a list, which since ROCm 7 is the value of `gpu_data`; none if it is something else."""
    told = _parsed(answer)
    rows = told.get("gpu_data") if isinstance(told, dict) else told
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _text(value: Any, *keys: str) -> str:
    """What stands below the keys, as text; empty if there is nothing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return "" if value is None else str(value)
