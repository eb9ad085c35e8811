"""A plan, as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from ..plan import Plan
from .terminal import Block, Line, Table, draw


def plan_text(plan: Plan, width: int = 100) -> str:
    """Return the plan as lines of at most ``width`` columns, ending in a newline."""
    return draw(_blocks(plan), width)


def _blocks(plan: Plan) -> Iterator[Block]:
    interval = f"every {plan.eval_interval_steps:,} steps = {plan.eval_interval_samples:,} samples"
    yield Line(f"Global batch size {plan.gbs}, ruleset {plan.ruleset}: an evaluation {interval}")
    yield Line()
    yield Line("Layouts on 8-GPU nodes")
    layouts = [(each.micro_batch, each.data_parallel, each.accumulation) for each in plan.accumulation]
    rows = tuple(tuple(map(str, sizes)) for sizes in layouts)
    yield Table((">micro batch", ">data parallel", ">accumulation"), rows)
    yield Line()
    yield Line("Samples to target, by the reference convergence points (RCP)")
    tests = (("pruned", plan.rcp.pruned), ("full", plan.rcp.full))
    bounds = tuple((name, test.kind, _samples(test.mean), _samples(test.min)) for name, test in tests)
    yield Table(("test", "point", ">RCP mean", ">least accepted mean"), bounds)
    yield Line()
    yield Line("Published rates and their sources")
    for each in plan.suggested:
        setting = f"{each.learning_rate:g}, warm-up {each.warmup_steps} steps"
        yield Line(f"GBS {each.gbs}: {setting}; {each.source}", indent=2)
    yield Line()
    risk = "not known" if plan.probability_of_failing is None else f"{100 * plan.probability_of_failing:.3g} %"
    yield Line(f"Chance that ten runs of the reference itself fail the pruned test: {risk}")
    yield Line(plan.bootstrap.note, indent=2)


def _samples(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
