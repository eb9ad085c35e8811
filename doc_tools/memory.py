"""Trace the peak memory of all shipped GPU configurations: `python -m doc_tools.memory`, some six minutes on two cores.

It writes traced_memory.json beside this file. `make reference` makes docs/reference/memory.md of it.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from pydantic import BaseModel

from gptoss20b.config import Config, resolve, settings
from gptoss20b.config.sourcing import source
from gptoss20b.hardware import system_of_configuration

ROOT = Path(__file__).resolve().parents[1]
FILE = Path(__file__).with_name("traced_memory.json")
IMBALANCES = (1.0, 1.5, 2.0)
_GIB = 1 << 30


class TracedPeak(BaseModel):
    """Highest bytes of a step at an imbalance: of its tensors, and of the allocator with expandable segments."""

    imbalance: float
    live_bytes: int
    reserved_bytes: int


class TracedMemory(BaseModel):
    """Peaks of each configuration at each of `IMBALANCES`, and the versions that were traced."""

    versions: dict[str, str]
    configurations: dict[str, list[TracedPeak]]


def gpu_configurations() -> dict[str, Config]:
    """Return the shipped configurations for GPUs with the torch back end, by file name."""
    configs = {}
    for path in sorted(ROOT.glob("config_*_?x?.sh")):
        variables = {name: value for name, value in source(path).items() if name in settings()}
        if variables["MODEL_VARIANT"] == "reference":
            configs[path.name] = resolve(variables | {"BACKEND": "torch"})
    return configs


def trace_configurations() -> TracedMemory:
    """Trace all configurations. Those that differ in the name of a vendor's GPU only share their traces."""
    from gptoss20b.proof.command import trace_in_processes
    from gptoss20b.proof.targets import properties_of

    configs = gpu_configurations()
    # The vendor decides which operators run; else the name of the system is all that differs between GPUs.
    kinds = {
        name: config.model_copy(update={"submission": None}).model_dump_json()
        + properties_of(config.submission.system).gcnArchName
        for name, config in configs.items()
    }
    distinct = {kind: configs[name] for name, kind in kinds.items()}
    cases = [(kind, imbalance) for kind in distinct for imbalance in IMBALANCES]
    traces = trace_in_processes([distinct[kind] for kind, _ in cases], [imbalance for _, imbalance in cases])
    peaks: dict[str, list[TracedPeak]] = {kind: [] for kind in distinct}
    for (kind, imbalance), trace in zip(cases, traces, strict=True):
        peaks[kind].append(
            TracedPeak(imbalance=imbalance, live_bytes=trace.peak_live_bytes, reserved_bytes=trace.peak_reserved_bytes)
        )
    return TracedMemory(
        versions={package: importlib.metadata.version(package) for package in ("torch", "megatron-core")},
        configurations={name: peaks[kind] for name, kind in kinds.items()},
    )


def read_traced() -> TracedMemory:
    """Return the committed traces."""
    return TracedMemory.model_validate_json(FILE.read_text(encoding="utf-8"))


def memory_rows(traced: TracedMemory) -> list[list[str]]:
    """Return a row of the page's table for each configuration."""
    configs, rows = gpu_configurations(), []
    for name, peaks in traced.configurations.items():
        config, system = configs[name], system_of_configuration(configs[name].submission.system)
        assert system is not None, f"{name} is named after no GPU of gptoss20b/hardware.py"
        rows.append(
            [
                f"`{name}`",
                str(config.execution.micro_batch_size),
                f"`{config.execution.recompute}`",
                *(f"{peak.reserved_bytes / _GIB:.1f}" for peak in peaks),
                f"{system.memory_bytes / _GIB:.1f}",
            ]
        )
    return rows


if __name__ == "__main__":
    FILE.write_text(trace_configurations().model_dump_json(indent=2) + "\n", encoding="utf-8")
