"""The training order: a bijection, evenly mixed, the same everywhere."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss20b.data.order import windows_at

ANY_INTEGER = st.integers(-(1 << 70), 1 << 70)


def epoch_order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    return windows_at(np.arange(count) + epoch * count, seed, count)


@settings(max_examples=150, deadline=None)
@given(seed=ANY_INTEGER, epoch=st.integers(0, 1 << 40), count=st.integers(1, 3000))
def test_is_a_bijection(seed: int, epoch: int, count: int) -> None:
    shown = epoch_order(seed, epoch, count)
    assert shown.dtype == np.int64
    assert np.array_equal(np.sort(shown), np.arange(count))


# the last is the number of windows of 19.9 billion tokens, about that of the published training set
EDGES = [*range(1, 70), 127, 128, 129, 255, 256, 257, 65_535, 65_536, 65_537, 200_003, 2_429_199]


@pytest.mark.parametrize("count", EDGES)
def test_is_a_bijection_at_the_edges(count: int) -> None:
    assert np.array_equal(np.sort(epoch_order(1, 0, count)), np.arange(count))


@settings(max_examples=100, deadline=None)
@given(seed=ANY_INTEGER, count=st.integers(1, (1 << 63) - 1), data=st.data())
def test_stays_in_range_and_injective_for_any_count(seed: int, count: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20, unique=True))
    shown = windows_at(positions, seed, count)
    assert shown.min() >= 0
    assert shown.max() < count
    assert len(set(shown.tolist())) == len(positions)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=ANY_INTEGER,
    count=st.integers(1, 400),
    start=st.integers(0, 5000),
    sizes=st.lists(st.integers(1, 64), min_size=1, max_size=12),
)
def test_does_not_depend_on_how_positions_are_grouped(seed: int, count: int, start: int, sizes: list[int]) -> None:
    """Any batch sizes, in one call or one by one, on contiguous or strided positions, see the same sequence."""
    total = sum(sizes)
    whole = windows_at(np.arange(start, start + total), seed, count)
    ends = np.cumsum(sizes)
    parts = [
        windows_at(np.arange(start + end - size, start + end), seed, count)
        for end, size in zip(ends, sizes, strict=True)
    ]
    assert np.array_equal(np.concatenate(parts), whole)
    assert [int(windows_at(start + number, seed, count)) for number in range(min(total, 20))] == whole[:20].tolist()
    for rank in range(3):
        assert np.array_equal(windows_at(np.arange(start + rank, start + total, 3), seed, count), whole[rank::3])


def test_large_arrays_equal_small_ones() -> None:
    """Long inputs are computed in blocks; their edges must not show."""
    count = 150_001
    whole = epoch_order(3, 1, count)
    for place in (0, 65_535, 65_536, 131_071, 131_072, 150_000):
        assert windows_at(count + place, 3, count) == whole[place]


def test_shapes_and_types() -> None:
    shown = windows_at(np.arange(24, dtype=np.int32).reshape(2, 3, 4), 1, 7)
    assert shown.shape == (2, 3, 4)
    assert np.array_equal(shown.reshape(-1), windows_at(range(24), 1, 7))
    assert windows_at(3, 1, 7).shape == ()
    assert windows_at([], 1, 7).shape == (0,)
    assert windows_at([5], np.int32(9), 100) == windows_at([5], 9, 100)  # type: ignore[arg-type]


def test_known_order_on_every_machine() -> None:
    """No version of Python, numpy or this file may change the order of a published run."""
    assert windows_at(np.arange(12), 1234, 10).tolist() == [6, 7, 5, 0, 1, 8, 3, 4, 2, 9, 7, 5]
    large = windows_at([0, 1, 2, 2_399_999, 2_400_000, 10**12], 1234, 2_400_000)
    assert large.tolist() == [723139, 1898719, 1266970, 2015976, 1075478, 2226840]


def test_seeds_and_epochs_differ() -> None:
    orders = [epoch_order(seed, epoch, 1000) for seed in (0, 1, 2, -1) for epoch in (0, 1, 2)]
    for number, order in enumerate(orders):
        for other in orders[:number]:
            # two independent permutations agree at one place on average
            assert np.count_nonzero(order == other) < 12
            assert abs(np.corrcoef(order, other)[0, 1]) < 0.15
    assert not np.array_equal(epoch_order(1, 11, 1000), epoch_order(11, 1, 1000))


@pytest.fixture(scope="module")
def thousand_orders() -> npt.NDArray[np.int64]:
    """Compute the orders of 1,000 windows for 2,000 seeds, one per row."""
    return np.array([epoch_order(seed, 0, 1000) for seed in range(2000)])


def chi_square_z(values: npt.NDArray[np.int64], kinds: int) -> float:
    """Return how many standard deviations the chi-square of `values` over `kinds` equal bins is off."""
    expected = values.size / kinds
    chi = float(((np.bincount(values, minlength=kinds) - expected) ** 2 / expected).sum())
    return (chi - (kinds - 1)) / float(np.sqrt(2 * (kinds - 1)))


@pytest.mark.slow
@pytest.mark.parametrize("window", [0, 1, 499, 511, 512, 999])
def test_place_of_a_window_is_uniform(thousand_orders: npt.NDArray[np.int64], window: int) -> None:
    places = np.argmax(thousand_orders == window, axis=1)
    assert abs(chi_square_z(places // 10, 100)) < 4
    assert abs(chi_square_z(thousand_orders[:, window] // 10, 100)) < 4


def test_neighbours_are_not_kept_together(thousand_orders: npt.NDArray[np.int64]) -> None:
    steps = np.diff(thousand_orders, axis=1)
    for distance in (1, 2, 32):
        share = float(np.mean(np.abs(steps) == distance))
        expected = 2 * (1000 - distance) / (1000 * 999)
        # about 4,000 hits are expected, so 6 % is four standard deviations
        assert abs(share / expected - 1) < 0.06
    assert abs(chi_square_z((steps % 1000 - 1).reshape(-1) // 27, 37)) < 4
    assert abs(float(np.mean([np.corrcoef(row[:-1], row[1:])[0, 1] for row in thousand_orders[:200]]))) < 0.01
