"""Iterate over the results of futures in order, with a bounded number in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    items: Iterable[Item], submit: Callable[[Item], Future[Result]], max_pending: int
) -> Iterator[tuple[Item, Result]]:
    """Submit items; yield each with its result, in order. At most `max_pending` are pending at a time."""
    pending: deque[tuple[Item, Future[Result]]] = deque()

    def take_first() -> tuple[Item, Result]:
        # A function, so that no variable keeps a result alive while the next ones are computed.
        item, future = pending.popleft()
        return item, future.result()

    for item in items:
        pending.append((item, submit(item)))
        if len(pending) == max_pending:
            yield take_first()
    while pending:
        yield take_first()


def prefetch(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """Yield the same items, read by a thread that is at most `depth` ahead."""
    thread = ThreadPoolExecutor(1)
    try:
        pending = deque(thread.submit(next, items, None) for _ in range(depth))
        while (item := pending.popleft().result()) is not None:
            pending.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
