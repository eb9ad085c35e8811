"""Efficiency of the matrix products: from a measured S1 step, from an MFU, or assumed.

The efficiency is the fraction of the dense bf16 peak that matrix products reach while nothing else runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, PositiveInt, ValidationError

from ...hardware import SYSTEMS, System, system_of_device
from ...model.size import flops_per_token
from .assumptions import EstimateError
from .scaling import ScalingModel, work_per_token

# S1 is an EP-8 rank's share of the model. A measurement names its micro batch; an MFU is taken to be of micro batch 2.
_S1_EXPERT_PARALLEL = 8
_S1_MICRO_BATCH = 2
DEFAULT_MFU = 0.40


@dataclass(frozen=True)
class Efficiency:
    """A fraction of the dense bf16 peak, its source, whether it was given, and a limit of its use, if there is one."""

    value: float
    source: str
    given: bool
    warning: str = ""


class _Seconds(BaseModel):
    median: float


class _Measurement(BaseModel):
    """The needed keys of a `bench --out` file. Older files lack those with a default."""

    scenario: str
    system: str
    backend: str
    variant: str = "reference"
    precision: str = "bf16"
    recompute: str = "none"
    sequence_length: int
    micro_batch_size: PositiveInt
    sequences_per_step: int | None = None
    step_without_optimizer_seconds: _Seconds


def assumed_efficiency(model: ScalingModel) -> Efficiency:
    """Return the efficiency at the assumed MFU of S1."""
    source = f"ASSUMED: an S1 MFU of {DEFAULT_MFU:.0%} without the optimizer, measured on nothing"
    return Efficiency(efficiency_from_mfu(DEFAULT_MFU, model).value, source, False)


def efficiency_from_mfu(mfu: float, model: ScalingModel) -> Efficiency:
    """Return the efficiency at an MFU of S1 (forward and backward at micro batch 2, without the optimizer).

    Raises:
        EstimateError: an MFU outside 0 to 1, or one that leaves no time for the gradient traffic.
    """
    if not 0 < mfu <= 1:
        raise EstimateError(f"--mfu: got {mfu}, expected a fraction of the peak: above 0, at most 1.")
    tokens = _S1_MICRO_BATCH * model.config.fixed.sequence_length
    seconds = tokens * flops_per_token(model.config) / (model.system.peak_tflops * 1e12 * mfu)
    value = _efficiency_of_s1(tokens, seconds, model, f"--mfu {mfu}")
    return Efficiency(value, f"--mfu {mfu:g}, of S1 at micro batch {_S1_MICRO_BATCH} without the optimizer", True)


def efficiency_from_s1(path: Path, model: ScalingModel) -> Efficiency:
    """Return the efficiency of the S1 step that `python -m gptoss20b bench --scenario S1 --out FILE` measured.

    Raises:
        EstimateError: no such file, not a measurement of S1, another GPU or other settings, or an impossible time.
    """
    measured, config = _read_measurement(path), model.config
    if measured.scenario != "S1":
        raise EstimateError(f"{path}: got scenario {measured.scenario}, expected S1. Run bench --scenario S1.")
    if not _is_gpu_of(measured.system, model.system):
        raise EstimateError(
            f"{path}: measured on '{measured.system}', but --system is {model.system.name}. Name the system it is from."
        )
    expected = {
        "SEQUENCE_LENGTH": (measured.sequence_length, config.fixed.sequence_length),
        "MODEL_VARIANT": (measured.variant, config.model.variant),
        "PRECISION": (measured.precision, config.execution.precision),
        "RECOMPUTE": (measured.recompute, config.execution.recompute),
    }
    other = [f"{name} {got}, expected {wanted}" for name, (got, wanted) in expected.items() if got != wanted]
    if other:
        raise EstimateError(f"{path}: measured at {'; '.join(other)}. Measure S1 so, or change the setting.")
    micro_batch = measured.micro_batch_size
    passes = (measured.sequences_per_step or micro_batch) // micro_batch
    seconds = measured.step_without_optimizer_seconds.median / passes
    value = _efficiency_of_s1(micro_batch * measured.sequence_length, seconds, model, str(path), passes)
    source = (
        f"measured: S1 of {path.name} ({measured.system}, {measured.backend} back end, micro batch {micro_batch}, "
        f"{seconds:.4f} s without the optimizer)"
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


def _efficiency_of_s1(tokens: int, seconds: float, model: ScalingModel, origin: str, passes: int = 1) -> float:
    """Return the fraction of the peak that the matrix products of one S1 micro batch reach.

    The seconds of the micro batch include gradient traffic and its share of zeroing the gradients, which a step of
    ``passes`` micro batches does once. ``origin`` is the option or file that an error names.
    """
    counts, config = model.counts, model.config
    parameters = counts["experts"] / _S1_EXPERT_PARALLEL + counts["embedding"] + counts["other"]
    traffic = model.gradient_traffic_time(parameters) + model.grad_zero_time(parameters) / passes
    peak = model.system.peak_tflops * 1e12
    shortest = tokens * work_per_token(config) / peak + traffic
    if seconds < shortest:
        raise EstimateError(
            f"{origin}: S1 would take {seconds * 1e3:.1f} ms, but at the peak of {model.system.name} it takes "
            f"{shortest * 1e3:.1f} ms with {traffic * 1e3:.1f} ms of gradient traffic and zeroing. The largest MFU is "
            f"{tokens * flops_per_token(config) / peak / shortest:.3f}."
        )
    return tokens * work_per_token(config) / (peak * (seconds - traffic))


def _read_measurement(path: Path) -> _Measurement:
    try:
        return _Measurement.model_validate_json(path.read_bytes())
    except OSError as error:
        raise EstimateError(f"--s1-json: cannot read {path}: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise EstimateError(
            f"{path}: not a measurement of `python -m gptoss20b bench --out`: {key}: {first['msg']}. Measure S1 again."
        ) from error
