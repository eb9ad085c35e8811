"""The `estimate` command, from its options to its output. Counts parameters on the meta device; needs no GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from ...config import resolve
from ...config.environment import read_settings
from ...model.size import count_parameters
from .assumptions import Assumptions, EstimateError
from .efficiency import assumed_efficiency, efficiency_from_mfu, efficiency_from_s1
from .report import as_document, as_tables
from .scaling import ScalingModel, check_supported, make_estimate
from .systems import find_system


def run(
    given: Mapping[str, str | None],
    system_name: str,
    overrides: Mapping[str, float | None],
    assume: Sequence[str],
    *,
    nodes: str | None,
    mfu: float | None,
    s1_json: Path | None,
    as_json: bool,
) -> Sequence[Table | str]:
    """Return what the command prints. Without ``mfu`` and ``s1_json`` the efficiency is assumed.

    ``given`` are settings by variable, ``overrides`` figures of the system by field, ``assume`` NAME=VALUE texts.

    Raises:
        ConfigError: a configuration that `train` rejects too.
        EstimateError: an unknown system, an impossible efficiency or assumption, or an unsupported layout.
    """
    system = find_system(system_name, overrides)
    assumptions = Assumptions().with_overrides(assume)
    if mfu is not None and s1_json is not None:
        raise EstimateError("--mfu, --s1-json: got both, expected one. Leave one out.")
    settings = dict(given) if nodes is None else {**given, "DGXNNODES": nodes}
    if not settings.get("DGXNGPU") and "DGXNGPU" not in read_settings():
        settings["DGXNGPU"] = str(system.gpus_per_node)
    config = resolve(settings)
    check_supported(config)
    model = ScalingModel(config, count_parameters(config), system, assumptions)
    if s1_json is not None:
        efficiency = efficiency_from_s1(s1_json, model)
    else:
        efficiency = assumed_efficiency(model) if mfu is None else efficiency_from_mfu(mfu, model)
    estimate = make_estimate(model, efficiency.value)
    return [json.dumps(as_document(estimate, efficiency), indent=2)] if as_json else as_tables(estimate, efficiency)
