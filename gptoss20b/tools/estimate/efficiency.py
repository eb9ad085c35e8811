"""Efficiency of the matrix products: from a measured S1 step, from an MFU, or assumed.

The efficiency is the fraction of the dense bf16 peak that matrix products reach while nothing else runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...config import Config
from ...hardware import SYSTEMS, System, system_of_device
from ...model.size import flops_per_token
from .assumptions import Assumptions
from .errors import EstimateError
from .scaling import grad_zero_time, gradient_traffic_time, work_per_token

# S1 is an EP-8 rank's share of the model. A measurement names its micro batch; an MFU is taken to be of micro batch 2.
_S1_EXPERT_PARALLEL = 8
_S1_MICRO_BATCH = 2
DEFAULT_MFU = 0.40


@dataclass(frozen=True)
class Efficiency:
    """A fraction of the dense bf16 peak.

    Attributes:
        value: the fraction.
        source: its origin.
        given: False if the efficiency is assumed.
        warning: a limit of its use; empty if there is none.
    """

    value: float
    source: str
    given: bool
    warning: str = ""


@dataclass(frozen=True)
class _S1Measurement:
    """The needed part of a `bench --out` file. ``seconds`` are of one micro batch, without the optimizer."""

    scenario: str
    system: str
    backend: str
    micro_batch_size: int
    passes: int
    seconds: float
    settings: dict[str, object]


def assumed_efficiency(
    config: Config, counts: Mapping[str, int], system: System, assumptions: Assumptions
) -> Efficiency:
    """Return the efficiency at the assumed MFU of S1."""
    source = f"ASSUMED: an S1 MFU of {DEFAULT_MFU:.0%} without the optimizer, measured on nothing"
    value = efficiency_from_mfu(DEFAULT_MFU, config, counts, system, assumptions).value
    return Efficiency(value, source, False)


def efficiency_from_mfu(
    mfu: float, config: Config, counts: Mapping[str, int], system: System, assumptions: Assumptions
) -> Efficiency:
    """Return the efficiency at an MFU of S1 (forward and backward at micro batch 2, without the optimizer).

    Raises:
        EstimateError: an MFU outside 0 to 1, or one that leaves no time for the gradient traffic.
    """
    if not 0 < mfu <= 1:
        raise EstimateError(f"--mfu: got {mfu}, expected a fraction of the peak: above 0, at most 1.")
    tokens = _S1_MICRO_BATCH * config.fixed.sequence_length
    seconds = tokens * flops_per_token(config) / (system.peak_tflops * 1e12 * mfu)
    value = _efficiency_of_s1(tokens, seconds, config, counts, system, assumptions, f"--mfu {mfu}")
    return Efficiency(value, f"--mfu {mfu:g}, of S1 at micro batch {_S1_MICRO_BATCH} without the optimizer", True)


def efficiency_from_s1(
    path: Path, config: Config, counts: Mapping[str, int], system: System, assumptions: Assumptions
) -> Efficiency:
    """Return the efficiency of the S1 step that `python -m gptoss20b bench --scenario S1 --out FILE` measured.

    Raises:
        EstimateError: no such file, not a measurement of S1, another GPU or other settings, or an impossible time.
    """
    measured = _read_measurement(path)
    if measured.scenario != "S1":
        raise EstimateError(f"{path}: got scenario {measured.scenario}, expected S1. Run bench --scenario S1.")
    if not _is_gpu_of(measured.system, system):
        raise EstimateError(
            f"{path}: measured on '{measured.system}', but --system is {system.name}. Name the system it is from."
        )
    expected = {
        "SEQUENCE_LENGTH": config.fixed.sequence_length,
        "MODEL_VARIANT": config.model.variant,
        "PRECISION": config.execution.precision,
        "RECOMPUTE": config.execution.recompute,
    }
    other = [
        f"{name} {measured.settings[name]}, expected {value}"
        for name, value in expected.items()
        if measured.settings[name] != value
    ]
    if other:
        raise EstimateError(f"{path}: measured at {'; '.join(other)}. Measure S1 so, or change the setting.")
    tokens = measured.micro_batch_size * config.fixed.sequence_length
    value = _efficiency_of_s1(tokens, measured.seconds, config, counts, system, assumptions, str(path), measured.passes)
    source = (
        f"measured: S1 of {path.name} ({measured.system}, {measured.backend} back end, micro batch "
        f"{measured.micro_batch_size}, {measured.seconds:.4f} s without the optimizer)"
    )
    warning = ""
    if measured.backend == "megatron_local":
        warning = f"{path}: measured with megatron_local, which `train` does not offer and which is far slower"
    return Efficiency(value, source, True, warning)


def _is_gpu_of(device: str, system: System) -> bool:
    """Return whether a device of this name, as torch gives it, is the system's GPU."""
    if system.name in SYSTEMS:
        known = system_of_device(device)
        return known is not None and known.name == system.name
    return system.name.upper() in re.split(r"[\s\-_]+", device.upper())


def _efficiency_of_s1(
    tokens: int,
    seconds: float,
    config: Config,
    counts: Mapping[str, int],
    system: System,
    assumptions: Assumptions,
    origin: str,
    passes: int = 1,
) -> float:
    """Return the fraction of the peak that the matrix products of one S1 micro batch reach.

    Args:
        tokens: of the micro batch.
        seconds: of the micro batch, gradient traffic and its share of zeroing gradients included.
        config: sizes of the model.
        counts: parameters by kind.
        system: whose peak and memory count.
        assumptions: of the gradient traffic.
        origin: the option or file that an error names.
        passes: micro batches of the measured step, which zeroes its gradients once.
    """
    parameters = counts["experts"] / _S1_EXPERT_PARALLEL + counts["embedding"] + counts["other"]
    traffic = gradient_traffic_time(parameters, system, assumptions)
    traffic += grad_zero_time(parameters, system, assumptions) / passes
    peak = system.peak_tflops * 1e12
    shortest = tokens * work_per_token(config) / peak + traffic
    if seconds < shortest:
        raise EstimateError(
            f"{origin}: S1 would take {seconds * 1e3:.1f} ms, but at the peak of {system.name} it takes "
            f"{shortest * 1e3:.1f} ms with {traffic * 1e3:.1f} ms of gradient traffic and zeroing. The largest MFU is "
            f"{tokens * flops_per_token(config) / peak / shortest:.3f}."
        )
    return tokens * work_per_token(config) / (peak * (seconds - traffic))


def _read_measurement(path: Path) -> _S1Measurement:
    try:
        document = json.loads(path.read_bytes())
        micro_batch = int(document["micro_batch_size"])
        passes = int(document.get("sequences_per_step", micro_batch)) // micro_batch
        return _S1Measurement(
            scenario=str(document["scenario"]),
            system=str(document["system"]),
            backend=str(document["backend"]),
            micro_batch_size=micro_batch,
            passes=passes,
            seconds=float(document["step_without_optimizer_seconds"]["median"]) / passes,
            settings={
                "SEQUENCE_LENGTH": int(document["sequence_length"]),
                "MODEL_VARIANT": str(document.get("variant", "reference")),
                "PRECISION": str(document.get("precision", "bf16")),
                "RECOMPUTE": str(document.get("recompute", "none")),
            },
        )
    except OSError as error:
        raise EstimateError(f"--s1-json: cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise EstimateError(
            f"{path}: not a measurement of `python -m gptoss20b bench --out` ({error!r}). Measure S1 again."
        ) from error
