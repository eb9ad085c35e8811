"""From command line, environment and preset to one `Config`, with every problem collected before any is reported."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from .checks import Problem, check_config
from .environment import read_settings, settings
from .presets import PRESETS
from .tree import Config


class ConfigError(ValueError):
    """A configuration that cannot run. `problems` holds everything wrong with it."""

    def __init__(self, found: list[Problem]) -> None:
        self.problems = found
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        super().__init__("\n".join([f"{count} in the configuration:", *(f"  {problem}" for problem in found)]))


def resolve(options: Mapping[str, str | None] | None = None) -> Config:
    """The configuration from command-line ``options`` (by variable name) over the environment over the preset.

    Raises:
        ConfigError: with every problem found.
    """
    # An empty option counts as unset, as an empty variable does.
    given = read_settings() | {name: value for name, value in (options or {}).items() if value}
    found: list[Problem] = []
    variant = given.get("MODEL_VARIANT", "reference")
    if variant not in PRESETS:
        found.append(
            Problem(("MODEL_VARIANT",), f"got '{variant}', expected one of: {', '.join(PRESETS)}. Choose one.")
        )
        variant = "reference"
    try:
        config = Config.model_validate(_tree(variant, given))
    except ValidationError as error:
        found += [_type_problem(detail, given) for detail in error.errors()]
        # What is well typed is checked further, with the preset's value in place of each value already found wrong.
        well_typed = {name: value for name, value in given.items() if name not in {p.variables[0] for p in found}}
        config = Config.model_validate(_tree(variant, well_typed))
    wrong = {problem.variables[0] for problem in found}
    if "MODEL_VARIANT" not in wrong:  # without the model, what follows from it cannot be told
        found += [problem for problem in check_config(config) if not wrong.intersection(problem.variables)]
    if found:
        raise ConfigError(found)
    return config


def _tree(variant: str, given: Mapping[str, str]) -> dict[str, Any]:
    """The preset with the given values on top, as `Config` takes it."""
    tree = copy.deepcopy(PRESETS[variant])
    for variable, value in given.items():
        _place(tree, settings()[variable].path, value)
    tree["model"]["variant"] = variant
    # The log wants a platform and a configuration file's name; both default to the system's name.
    submission = tree.setdefault("submission", {})
    system = submission.get("system", "unnamed")
    submission.setdefault("platform", system)
    submission.setdefault("config_filename", f"config_{system}.sh")
    return tree


def _type_problem(detail: Any, given: Mapping[str, str]) -> Problem:
    variable = next(name for name, setting in settings().items() if setting.path == tuple(detail["loc"]))
    expected = detail["msg"][0].lower() + detail["msg"][1:]
    return Problem(
        (variable,), f"got '{given.get(variable, detail['input'])}': {expected}. Correct or unset {variable}."
    )


def _place(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
