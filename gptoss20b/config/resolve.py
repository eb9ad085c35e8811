"""Resolve command line, environment and preset to one `Config`, and collect every problem before reporting any."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..hf.architecture import read_model
from .checks import Problem, check_config
from .environment import read_settings, settings
from .misspelt import find_misspelt
from .presets import PRESETS
from .tree import Config, ModelConfig


class ConfigError(ValueError):
    """Invalid configuration. `problems` lists everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{count} in the configuration:", *(f"  {problem}" for problem in problems)]))


def resolve(options: Mapping[str, str | None] | None = None, environment: Mapping[str, str] = os.environ) -> Config:
    """Resolve a configuration. Options, by variable name, override the environment, which overrides the preset.

    Raises:
        ConfigError: with every problem.
    """
    # An empty option counts as unset, like an empty variable.
    given = read_settings(environment) | {name: value for name, value in (options or {}).items() if value}
    found = find_misspelt(environment)
    model = None
    if "INIT_FROM" in given:
        model, problems = read_model(Path(given["INIT_FROM"]))
        found += [Problem(("INIT_FROM",), f"{given['INIT_FROM']}: {problem}") for problem in problems]
    variant = given.get("MODEL_VARIANT", model.variant if model else "reference")
    if variant not in PRESETS:
        found.append(
            Problem(("MODEL_VARIANT",), f"got '{variant}', expected one of: {', '.join(PRESETS)}. Choose one.")
        )
        variant = "reference"
    try:
        config = Config.model_validate(_build_tree(variant, given, model))
    except ValidationError as error:
        found += [_to_problem(detail, given) for detail in error.errors()]
        # Replace each invalid value by the preset's, and check the rest further.
        well_typed = {name: value for name, value in given.items() if name not in {p.variables[0] for p in found}}
        config = Config.model_validate(_build_tree(variant, well_typed, model))
    invalid = {problem.variables[0] for problem in found}
    if "MODEL_VARIANT" not in invalid:  # the checks depend on the model
        found += [problem for problem in check_config(config) if not invalid.intersection(problem.variables)]
    if found:
        raise ConfigError(found)
    return config


def _build_tree(variant: str, given: Mapping[str, str], model: ModelConfig | None) -> dict[str, Any]:
    """Return the preset, with the dimensions of ``model``, and the given values on top, as input for `Config`."""
    tree = copy.deepcopy(PRESETS[variant])
    if model is not None:
        tree["model"] = model.model_dump()
    for variable, value in given.items():
        *branches, leaf = settings()[variable].path
        node = tree
        for name in branches:
            node = node.setdefault(name, {})
        node[leaf] = value
    tree["model"]["variant"] = model.variant if model is not None else variant
    # The log requires a platform and the name of a configuration file.
    submission = tree.setdefault("submission", {})
    system = submission.get("system", "unnamed")
    submission.setdefault("platform", system)
    submission.setdefault("config_filename", f"config_{system}.sh")
    return tree


def _to_problem(detail: Any, given: Mapping[str, str]) -> Problem:
    """Convert one error of pydantic."""
    variable = next(name for name, setting in settings().items() if setting.path == tuple(detail["loc"]))
    expected = detail["msg"][0].lower() + detail["msg"][1:]
    return Problem(
        (variable,), f"got '{given.get(variable, detail['input'])}': {expected}. Correct or unset {variable}."
    )
