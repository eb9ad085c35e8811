"""The `estimate` command, from its options to its output. Counts parameters on the meta device; needs no GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from ...config import Config, resolve
from ...config.environment import read_settings
from ...hardware import System
from .assumptions import Assumptions
from .efficiency import Efficiency, assumed_efficiency, efficiency_from_mfu, efficiency_from_s1
from .errors import EstimateError
from .report import as_document, as_tables
from .scaling import ScalingModel, check_supported, make_estimate
from .systems import find_system


@dataclass(frozen=True)
class EstimateRequest:
    """Options of one `estimate` command.

    Attributes:
        settings: settings from the command line, by variable.
        system: name of the system.
        overrides: figures of the system by field, as `systems.find_system` takes them.
        nodes: short option for DGXNNODES.
        mfu, s1_json: source of the efficiency; without either it is assumed.
        assume: NAME=VALUE texts.
    """

    settings: Mapping[str, str | None]
    system: str
    overrides: Mapping[str, float | None]
    nodes: str | None = None
    mfu: float | None = None
    s1_json: Path | None = None
    assume: tuple[str, ...] = ()


def run(request: EstimateRequest, as_json: bool) -> Sequence[Table | str]:
    """Return what the command prints.

    Raises:
        ConfigError: a configuration that `train` rejects too.
        EstimateError: an unknown system, an impossible efficiency or assumption, or an unsupported layout.
    """
    system = find_system(request.system, request.overrides)
    assumptions = Assumptions().with_overrides(request.assume)
    if request.mfu is not None and request.s1_json is not None:
        raise EstimateError("--mfu, --s1-json: got both, expected one. Leave one out.")
    config = resolve(_all_settings(request, system))
    check_supported(config)
    model = ScalingModel(config, _count_parameters(config), system, assumptions)
    efficiency = _choose_efficiency(request, model)
    estimate = make_estimate(model, efficiency.value)
    return [json.dumps(as_document(estimate, efficiency), indent=2)] if as_json else as_tables(estimate, efficiency)


def _all_settings(request: EstimateRequest, system: System) -> dict[str, str | None]:
    """Return the request's settings with --nodes applied and the system's GPUs per node as default."""
    settings = dict(request.settings)
    if request.nodes is not None:
        settings["DGXNNODES"] = request.nodes
    if not settings.get("DGXNGPU") and "DGXNGPU" not in read_settings():
        settings["DGXNGPU"] = str(system.gpus_per_node)
    return settings


def _count_parameters(config: Config) -> dict[str, int]:
    from ...model.size import count_parameters
    from ...process_groups import single_process

    with single_process():
        return count_parameters(config)


def _choose_efficiency(request: EstimateRequest, model: ScalingModel) -> Efficiency:
    if request.s1_json is not None:
        return efficiency_from_s1(request.s1_json, model)
    if request.mfu is not None:
        return efficiency_from_mfu(request.mfu, model)
    return assumed_efficiency(model)
