"""Evaluation counts the same sequences, once each, at any batch size and layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gptoss20b.data.indexed_dataset import IndexedDataset
from gptoss20b.data.samples import VALIDATION_PREFIX
from tests.support.ranks import run_ranks

# GBS, micro batch, ranks. In most, neither of the batch sizes divides the ten sequences.
SHAPES = [(8, 4, 2), (12, 3, 2), (24, 2, 2), (50, 5, 2), (8, 8, 1), (12, 1, 1)]


@pytest.fixture(scope="module")
def outcomes(tiny: dict[str, str]) -> list[tuple[list[tuple[int, ...]], float, str]]:
    found = []
    for world in (2, 1):
        shapes = [(gbs, mbs) for gbs, mbs, ranks in SHAPES if ranks == world]
        variables = [
            tiny | {"GLOBAL_BATCH_SIZE": str(gbs), "MICRO_BATCH_SIZE": str(mbs), "DGXNGPU": str(world)}
            for gbs, mbs in shapes
        ]
        per_rank = run_ranks("evaluate_untrained", world, variables=variables)
        for each in zip(*per_rank, strict=True):
            assert len({outcome["loss"] for outcome in each}) == 1, "every rank knows the same loss"
            seen = [row for outcome in each for row in outcome["seen"]]
            found.append((seen, each[0]["loss"], each[0]["sha256"]))
    return found


def test_every_sequence_is_counted_exactly_once(outcomes: list[tuple[list[Any], float, str]], data: Any) -> None:
    file = IndexedDataset.open(data / VALIDATION_PREFIX)
    expected = sorted(tuple(file.read(number * 64, 64).tolist()) for number in range(10))
    for seen, _, _ in outcomes:
        assert sorted(seen) == expected


def test_the_loss_and_the_hash_of_the_tokens_are_the_same(outcomes: list[tuple[list[Any], float, str]]) -> None:
    _, losses, hashes = zip(*outcomes, strict=True)
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-6)
    assert len(set(hashes)) == 1


def test_the_order_is_independent_of_ranks_and_a_prefix_of_larger_batches(tiny: dict[str, str]) -> None:
    steps = 21
    by_gbs: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for gbs, world in ((8, 1), (8, 2), (8, 4), (16, 2)):
        variables = [tiny | {"GLOBAL_BATCH_SIZE": str(gbs), "DGXNGPU": str(world)}]
        per_rank = [rank[0] for rank in run_ranks("trained_windows", world, variables=variables, steps=steps)]
        flat: list[tuple[int, ...]] = []
        for step in range(steps):
            # Rank r gets every world-th micro batch, of one sequence each.
            for row in zip(*[rank[step] for rank in per_rank], strict=True):
                flat.extend(row)
        by_gbs[gbs, world] = flat
    assert by_gbs[8, 1] == by_gbs[8, 2] == by_gbs[8, 4]
    assert by_gbs[16, 2][: 8 * steps] == by_gbs[8, 1]
    # 168 samples are less than the epoch of 200, so no window repeats.
    assert len(set(by_gbs[8, 1])) == len(by_gbs[8, 1])
    assert by_gbs[8, 1] != sorted(by_gbs[8, 1])
    assert np.unique([len(row) for row in by_gbs[8, 1]]).tolist() == [64]
