"""Rows that travel between ranks arrive in Megatron-Core's order, and so do their sums and gradients."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.ranks import run_ranks


@pytest.mark.parametrize(("skew", "tokens"), [(0.2, [30, 1, 17, 64]), (9.0, [8, 40, 3, 5])])
def test_results_equal_megatrons_dispatcher(skew: float, tokens: list[int], tiny: dict[str, str]) -> None:
    # Two, four and eight experts per rank. With a skew of 9 all tokens choose experts 0 to 3: the last ranks get none.
    variables = [tiny | {"DGXNGPU": "4", "EXPERT_PARALLEL": str(size)} for size in (4, 2, 1)]
    per_rank = run_ranks("dispatch_jobs.compare_dispatchers", 4, variables=variables, tokens=tokens, skew=skew)
    for outcomes in per_rank:
        for outcome in outcomes:
            ours, megatron = outcome["ours"], outcome["megatron"]
            assert ours["counts"] == megatron["counts"]
            for name in ("rows", "probs"):
                assert np.array_equal(ours[name], megatron[name]), name
            for name in ours.keys() - {"rows", "probs", "counts"}:
                assert ours[name] == pytest.approx(megatron[name], rel=1e-6, abs=1e-6), name
    rows = [[sum(outcomes[layout]["ours"]["counts"]) for outcomes in per_rank] for layout in range(3)]
    assert [sum(each) for each in rows] == [4 * sum(tokens)] * 3
    assert rows[2] == [4 * each for each in tokens]
    if skew == 9.0:
        assert rows[0][2:] == [0, 0]
