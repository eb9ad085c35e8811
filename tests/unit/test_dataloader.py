"""Which rank sees which sequence."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptoss20b.batches import shard_for_context_parallel
from gptoss20b.config import resolve
from gptoss20b.dataloader import DataLoader, DataShard, build_dataloader

sizes = st.integers(1, 6)


@given(step=st.integers(0, 50), ranks=sizes, micro=sizes, accumulation=sizes)
def test_all_ranks_together_take_each_position_of_a_step_once(
    step: int, ranks: int, micro: int, accumulation: int
) -> None:
    batch = ranks * micro * accumulation
    shares = [DataShard(rank, ranks, micro).train_positions(step, batch) for rank in range(ranks)]
    assert all(len(share) == accumulation and all(len(row) == micro for row in share) for share in shares)
    taken = sorted(position for share in shares for row in share for position in row)
    assert taken == list(range(step * batch, (step + 1) * batch))


@given(samples=st.integers(1, 70), ranks=sizes, micro=sizes)
def test_an_evaluation_counts_each_sequence_once_in_equally_many_rounds(samples: int, ranks: int, micro: int) -> None:
    shares = [DataShard(rank, ranks, micro).eval_positions(samples) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    counted = sorted(n for share in shares for row in share for n in row if n is not None)
    assert counted == list(range(samples))
    assert len(shares[0]) == -(-samples // (ranks * micro))


def test_skipped_samples_are_left_out_of_the_order() -> None:
    settings = {"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open", "GLOBAL_BATCH_SIZE": "4"}
    length = resolve(settings).fixed.sequence_length
    windows: Any = Mock(train_sample=lambda position, seed: np.full(length + 1, 1000 * seed + position))

    def tokens(step: int, **more: str) -> list[int]:
        loader = DataLoader(resolve(settings | more), DataShard(1, 2, 2), torch.device("cpu"), windows, windows, seed=3)
        return [int(row[0]) for batch in loader.train_batches(step) for row in batch.tokens]

    assert tokens(5) == tokens(2, SKIP_SAMPLES="12") == [3022, 3023]


def test_the_data_cannot_be_opened_without_a_running_clock() -> None:
    with pytest.raises(TypeError, match="run_start"):
        build_dataloader(object(), None, None, None, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_context_parallel_ranks_hold_an_early_and_a_late_chunk_each(ranks: int) -> None:
    sequences = torch.arange(32).reshape(2, 16)
    parts = [shard_for_context_parallel(sequences, rank, ranks) for rank in range(ranks)]
    assert sorted(torch.cat(parts, dim=1)[0].tolist()) == list(range(16))
    if ranks == 2:
        assert parts[0][0].tolist() == [0, 1, 2, 3, 12, 13, 14, 15]
        assert parts[1][1].tolist() == [20, 21, 22, 23, 24, 25, 26, 27]
