"""Rows that travel between ranks arrive in Megatron-Core's own order, and so do their sums and gradients."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.ranks import run_ranks


@pytest.mark.parametrize(("lean", "tokens"), [(0.2, [30, 1, 17, 64]), (9.0, [8, 40, 3, 5])])
def test_beside_megatrons_dispatcher(lean: float, tokens: list[int], tiny: dict[str, str]) -> None:
    # Two, four and eight experts a rank. With a lean of 9 all tokens choose experts 0 to 3: the last ranks get no row.
    variables = [tiny | {"DGXNGPU": "4", "EXPERT_PARALLEL": str(size)} for size in (4, 2, 1)]
    per_rank = run_ranks("dispatch_jobs.beside_megatrons", 4, variables=variables, tokens=tokens, lean=lean)
    for outcomes in per_rank:
        for found in outcomes:
            ours, theirs = found["ours"], found["theirs"]
            assert ours["counts"] == theirs["counts"]
            for exact in ("rows", "probabilities"):
                assert np.array_equal(ours[exact], theirs[exact]), exact
            for name in ours.keys() - {"rows", "probabilities", "counts"}:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-6), name
    rows = [[sum(outcomes[layout]["ours"]["counts"]) for outcomes in per_rank] for layout in range(3)]
    assert [sum(each) for each in rows] == [4 * sum(tokens)] * 3
    assert rows[2] == [4 * each for each in tokens]
    if lean == 9.0:
        assert rows[0][2:] == [0, 0]
