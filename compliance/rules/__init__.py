"""All rules, collected from the modules of this package. `python -m compliance rules` lists them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from . import (
    acceptance,
    clock,
    description,
    evaluations,
    files,
    packages,
    plausibility,
    power,
    resumption,
    sets,
    unprovable,
)
from .rule import Rule


def _rules_of(*modules: ModuleType) -> tuple[Rule[Any], ...]:
    """Return the rules that the modules define, in the order of their definitions."""
    return tuple(value for module in modules for value in vars(module).values() if isinstance(value, Rule))


# A run judged alone has to converge. In a set, one run may fail to.
ALONE_RULES = (evaluations.run_not_converged,)
RUN_RULES = tuple(
    each for each in _rules_of(files, description, evaluations, clock, resumption) if each not in ALONE_RULES
)
SET_RULES = _rules_of(sets, plausibility)
PACKAGE_RULES = _rules_of(packages, power)
UNVERIFIABLE = _rules_of(unprovable)
WAIVER_RULES = _rules_of(acceptance)
ALL_RULES = (*RUN_RULES, *ALONE_RULES, *SET_RULES, *PACKAGE_RULES, *UNVERIFIABLE, *WAIVER_RULES)
