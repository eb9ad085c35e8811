"""Tensor parallel: Megatron-Core counts a gradient once per rank only where the weight says that it is split."""

from __future__ import annotations

from tests.support.ranks import run_ranks


def test_weights_that_are_split_say_so(tiny: dict[str, str]) -> None:
    variables = tiny | {"DGXNGPU": "2", "TENSOR_PARALLEL": "2", "BACKEND": "transformer_engine"}
    for rank in run_ranks("split_jobs.marked", 2, variables=variables):
        assert rank == {
            "embedding": ((8, 8), True, 0, 1),
            "column": ((8, 8), True, 0, 1),
            "row": ((8, 8), True, 1, 1),
            "norm": ((8,), False, -1, -1),
        }
