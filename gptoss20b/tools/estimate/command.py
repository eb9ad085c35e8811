"""From the command's options to what it prints. Counts parameters on the meta device; needs no GPU."""

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
from .efficiency import Efficiency, assumed, from_mfu, from_s1
from .errors import EstimateError
from .report import as_document, as_tables
from .scaling import covered, estimate
from .systems import find_system


@dataclass(frozen=True)
class Question:
    """What the command was asked.

    Attributes:
        given: settings from the command line, by variable.
        system: name of the system.
        by_hand: its figures, by the names of `systems.OVERRIDE_OPTIONS`; None for those not given.
        nodes: DGXNNODES by its short name.
        mfu, s1_json: where the efficiency is from; both None to assume one.
        assume: NAME=VALUE texts.
    """

    given: Mapping[str, str | None]
    system: str
    by_hand: Mapping[str, float | None]
    nodes: str | None = None
    mfu: float | None = None
    s1_json: Path | None = None
    assume: tuple[str, ...] = ()


def answer(question: Question, as_json: bool) -> Sequence[Table | str]:
    """What to print.

    Raises:
        ConfigError: a configuration that `train` refuses too.
        EstimateError: a system, an efficiency, an assumption or a layout that no estimate can be made of.
    """
    system = find_system(question.system, question.by_hand)
    assumptions = Assumptions().with_changes(question.assume)
    if question.mfu is not None and question.s1_json is not None:
        raise EstimateError("--mfu, --s1-json: got both, expected one. Leave one out.")
    config = resolve(_settings(question, system))
    covered(config)
    counts = _counts(config)
    efficiency = _efficiency(question, config, counts, system, assumptions)
    found = estimate(config, counts, system, efficiency.value, assumptions)
    return [json.dumps(as_document(found, efficiency), indent=2)] if as_json else as_tables(found, efficiency)


def _settings(question: Question, system: System) -> dict[str, str | None]:
    """The settings given, with the node count's short name and the system's own GPUs per node."""
    given = dict(question.given)
    if question.nodes is not None:
        given["DGXNNODES"] = question.nodes
    if not given.get("DGXNGPU") and "DGXNGPU" not in read_settings():
        given["DGXNGPU"] = str(system.gpus_per_node)
    return given


def _counts(config: Config) -> dict[str, int]:
    from ...model.size import count_parameters
    from ...process_groups import single_process

    with single_process():
        return count_parameters(config)


def _efficiency(
    question: Question, config: Config, counts: Mapping[str, int], system: System, assumptions: Assumptions
) -> Efficiency:
    if question.s1_json is not None:
        return from_s1(question.s1_json, config, counts, system, assumptions)
    if question.mfu is not None:
        return from_mfu(question.mfu, config, counts, system, assumptions)
    return assumed(config, counts, system, assumptions)
