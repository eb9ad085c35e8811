"""Every rule, declared one by one. `python -m compliance rules` lists them."""

from __future__ import annotations

from typing import Any

from . import clock, description, evaluations, files, packages, resumption, sets, unprovable
from .rule import Rule

RUN_RULES = (*files.RULES, *description.RULES, *evaluations.RULES, *clock.RULES, *resumption.RULES)
SET_RULES = sets.RULES
PACKAGE_RULES = packages.RULES
UNVERIFIABLE = unprovable.RULES
ALONE_RULES = (evaluations.run_not_converged,)
ALL_RULES: tuple[Rule[Any], ...] = (*RUN_RULES, *ALONE_RULES, *SET_RULES, *PACKAGE_RULES, *UNVERIFIABLE)
