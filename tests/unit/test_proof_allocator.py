"""Test the simulated caching allocator against PyTorch's documented rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss20b.proof.allocator import MIB, CachingAllocator, peak_reserved_bytes

Events = list[tuple[int, int]]


@pytest.mark.parametrize(
    ("size", "default", "expandable"),
    [
        (512, 2 * MIB, 2 * MIB),
        (MIB, 2 * MIB, 2 * MIB),
        (MIB + 512, 20 * MIB, 20 * MIB),
        (10 * MIB, 10 * MIB, 20 * MIB),
        (11 * MIB, 12 * MIB, 20 * MIB),
        (41 * MIB, 42 * MIB, 60 * MIB),
    ],
)
def test_a_segment_has_the_size_of_its_pool(size: int, default: int, expandable: int) -> None:
    assert peak_reserved_bytes([(0, size)], expandable_segments=False) == default
    assert peak_reserved_bytes([(0, size)], expandable_segments=True) == expandable


def test_freed_memory_is_used_again() -> None:
    events: Events = [(0, 40 * MIB), (0, -40 * MIB), (1, 40 * MIB)]
    assert peak_reserved_bytes(events, False) == peak_reserved_bytes(events, True) == 40 * MIB


def test_only_expandable_segments_join_neighbours_of_different_segments() -> None:
    """Two freed tensors of 40 MiB have no room for one of 80 MiB, unless they are in one range of addresses."""
    events: Events = [(0, 40 * MIB), (1, 40 * MIB), (0, -40 * MIB), (1, -40 * MIB), (2, 80 * MIB)]
    assert peak_reserved_bytes(events, expandable_segments=False) == 160 * MIB
    assert peak_reserved_bytes(events, expandable_segments=True) == 80 * MIB


def test_the_free_end_of_a_range_grows_by_the_difference() -> None:
    events: Events = [(0, 40 * MIB), (1, 40 * MIB), (1, -40 * MIB), (2, 60 * MIB)]
    assert peak_reserved_bytes(events, expandable_segments=True) == 100 * MIB


def test_the_best_fitting_block_is_split_and_joined_again() -> None:
    allocator = CachingAllocator(expandable_segments=False)
    allocator.allocate(0, 100 * MIB)
    allocator.release(0)
    for key in (1, 2):
        allocator.allocate(key, 50 * MIB)
    assert allocator.reserved_bytes == 100 * MIB
    for key in (1, 2):
        allocator.release(key)
    allocator.allocate(3, 100 * MIB)
    assert (allocator.reserved_bytes, allocator.live_bytes) == (100 * MIB, 100 * MIB)


@given(st.lists(st.tuples(st.integers(1, 200), st.booleans()), max_size=60), st.booleans())
def test_any_sequence_reserves_at_least_what_is_alive(steps: list[tuple[int, bool]], expandable: bool) -> None:
    allocator, live = CachingAllocator(expandable), dict[int, int]()
    for key, (half_mib, release) in enumerate(steps):
        allocator.allocate(key, half_mib * MIB // 2)
        live[key] = half_mib * MIB // 2
        if release:
            oldest = next(iter(live))
            allocator.release(oldest)
            del live[oldest]
        assert sum(live.values()) <= allocator.live_bytes <= allocator.reserved_bytes
    for key in live:
        allocator.release(key)
    assert allocator.live_bytes == 0
