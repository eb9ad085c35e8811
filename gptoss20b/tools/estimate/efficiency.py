"""How fast the matrix products are: from a measured S1 step, from an MFU, from a published step, or assumed.

All end in one number, the fraction of the dense bf16 peak that matrix products reach while nothing else runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config import Config
from ...hardware import SYSTEMS, System, system_of_device
from ...model.size import flops_per_token
from .assumptions import Assumptions
from .errors import EstimateError
from .scaling import clearing_time, traffic_time, work_per_token

# S1 is the EP-8 rank's share of the model, at micro batch 2 where a measurement does not say otherwise.
_S1_EXPERT_PARALLEL = 8
_S1_MICRO_BATCH = 2
DEFAULT_MFU = 0.40


@dataclass(frozen=True)
class Efficiency:
    """A fraction of the dense bf16 peak, where it is from, and whether it was given: it is assumed if not.

    `warning` says why it stands for less than it seems to; empty if it does not.
    """

    value: float
    source: str
    given: bool
    warning: str = ""


def assumed(config: Config, counts: Mapping[str, int], system: System, given: Assumptions) -> Efficiency:
    """The efficiency that goes with the assumed MFU of S1. Arguments and errors as of `from_mfu`."""
    source = f"ASSUMED: an S1 MFU of {DEFAULT_MFU:.0%} without the optimizer, measured on nothing"
    return Efficiency(from_mfu(DEFAULT_MFU, config, counts, system, given).value, source, False)


def from_mfu(mfu: float, config: Config, counts: Mapping[str, int], system: System, given: Assumptions) -> Efficiency:
    """The efficiency that goes with an MFU of S1 (forward and backward at micro batch 2, without the optimizer).

    Raises:
        EstimateError: an MFU outside 0 to 1, or one that leaves no time for the gradient traffic.
    """
    if not 0 < mfu <= 1:
        raise EstimateError(f"--mfu: got {mfu}, expected a fraction of the peak: above 0, at most 1.")
    count = _S1_MICRO_BATCH * config.fixed.sequence_length
    seconds = count * flops_per_token(config) / (system.peak_tflops * 1e12 * mfu)
    value = _efficiency(count, seconds, config, counts, system, given, f"--mfu {mfu}")
    return Efficiency(value, f"--mfu {mfu:g}, of S1 at micro batch {_S1_MICRO_BATCH} without the optimizer", True)


def from_s1(path: Path, config: Config, counts: Mapping[str, int], system: System, given: Assumptions) -> Efficiency:
    """The efficiency of the S1 step that `python -m gptoss20b bench --scenario S1 --out FILE` measured.

    Raises:
        EstimateError: no such file, not a measurement of S1, of another GPU or other settings, or a time that the
            peak forbids.
    """
    measured = _read(path)
    if measured["scenario"] != "S1":
        raise EstimateError(f"{path}: got scenario {measured['scenario']}, expected S1. Run bench --scenario S1.")
    if not _is(measured["system"], system):
        raise EstimateError(
            f"{path}: measured on '{measured['system']}', but --system is {system.name}. Name the system it is from."
        )
    expected = {
        "SEQUENCE_LENGTH": config.fixed.sequence_length,
        "MODEL_VARIANT": config.model.variant,
        "PRECISION": config.execution.precision,
        "RECOMPUTE": config.execution.recompute,
    }
    other = [f"{name} {measured[name]}, expected {mine}" for name, mine in expected.items() if measured[name] != mine]
    if other:
        raise EstimateError(f"{path}: measured at {'; '.join(other)}. Measure S1 so, or change the setting.")
    seconds, micro_batch = measured["seconds"], measured["micro_batch_size"]
    count = micro_batch * measured["SEQUENCE_LENGTH"]
    value = _efficiency(count, seconds, config, counts, system, given, str(path), measured["passes"])
    backend = measured["backend"]
    source = f"measured: S1 of {path.name} ({measured['system']}, {backend} back end, micro batch {micro_batch}, "
    warning = ""
    if backend == "megatron_local":
        warning = f"{path}: measured with megatron_local, which `train` does not offer and which is far slower"
    return Efficiency(value, f"{source}{seconds:.4f} s without the optimizer)", True, warning)


def _is(device: str, system: System) -> bool:
    """Whether a device of this name, as torch gives it, is the system's GPU."""
    if system.name in SYSTEMS:
        known = system_of_device(device)
        return known is not None and known.name == system.name
    return system.name.upper() in re.split(r"[\s\-_]+", device.upper())


def _efficiency(
    count: int,
    seconds: float,
    config: Config,
    counts: Mapping[str, int],
    system: System,
    given: Assumptions,
    said_by: str,
    passes: int = 1,
) -> float:
    """The matrix products' part of an S1 micro batch of so many tokens, as a fraction of the peak.

    Its seconds hold a share of the clearing of gradients, of which there is one for all ``passes`` of a step.
    """
    parameters = counts["experts"] / _S1_EXPERT_PARALLEL + counts["embedding"] + counts["other"]
    traffic = traffic_time(parameters, system, given) + clearing_time(parameters, system, given) / passes
    peak = system.peak_tflops * 1e12
    shortest = count * work_per_token(config) / peak + traffic
    if seconds < shortest:
        raise EstimateError(
            f"{said_by}: S1 would take {seconds * 1e3:.1f} ms, but at the peak of {system.name} it takes "
            f"{shortest * 1e3:.1f} ms with {traffic * 1e3:.1f} ms of gradient traffic and clearing. The largest MFU is "
            f"{count * flops_per_token(config) / peak / shortest:.3f}."
        )
    return count * work_per_token(config) / (peak * (seconds - traffic))


def _read(path: Path) -> dict[str, Any]:
    """The parts of a measurement that are needed, each of its type."""
    try:
        document = json.loads(path.read_bytes())
        micro_batch = int(document["micro_batch_size"])
        passes = int(document.get("sequences_per_step", micro_batch)) // micro_batch
        return {
            "scenario": str(document["scenario"]),
            "system": str(document["system"]),
            "backend": str(document["backend"]),
            "micro_batch_size": micro_batch,
            "SEQUENCE_LENGTH": int(document["sequence_length"]),
            "MODEL_VARIANT": str(document.get("variant", "reference")),
            "PRECISION": str(document.get("precision", "bf16")),
            "RECOMPUTE": str(document.get("recompute", "none")),
            "passes": passes,
            "seconds": float(document["step_without_optimizer_seconds"]["median"]) / passes,
        }
    except OSError as error:
        raise EstimateError(f"--s1-json: cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise EstimateError(
            f"{path}: not a measurement of `python -m gptoss20b bench --out` ({error!r}). Measure S1 again."
        ) from error
