"""Iterators over futures: results in order, and a bounded number in flight."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

from data_scripts.in_order import map_in_order, prefetch


def test_items_in_flight_are_bounded_and_keep_their_order() -> None:
    taken = 0

    def source() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    def submit(item: int) -> Future[int]:
        future: Future[int] = Future()
        future.set_result(-item)
        return future

    for count, (item, result) in enumerate(map_in_order(prefetch(source(), 4), submit, 6)):
        assert (item, result) == (count, -count)
        assert taken <= count + 4 + 6 + 1
    assert taken == 1000
