"""Actions on all ranks: an error on one rank is raised on all of them, and no collective waits for a disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from .files import CheckpointError

T = TypeVar("T")

# While a rank waits for storage, the ranks exchange a message this often.
POLL_INTERVAL_S = 1.0


def in_background(action: Callable[[], T]) -> Future[T]:
    """Run an action in a daemon thread, which does not outlive the process. It must not communicate."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:  # raised where the result is read
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future


def gather(value: T) -> list[T]:
    """Return the value of every rank, in rank order."""
    gathered = [value] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def on_all_ranks(action: Callable[[], T]) -> T:
    """Run an action on every rank and return this rank's result.

    Raises:
        CheckpointError: on all ranks, with the error of the first rank that failed.
    """
    result, error = None, None
    try:
        result = action()
    except (Exception, CheckpointException) as caught:  # CheckpointException derives from BaseException
        error = str(caught) if isinstance(caught, CheckpointError) else f"{type(caught).__name__}: {caught}"
    errors = [each for each in gather(error) if each is not None]
    if errors:
        raise CheckpointError(errors[0])
    return cast(T, result)


def on_all_ranks_in_background(action: Callable[[], T]) -> T:
    """Run an action that waits for a disk, as `on_all_ranks` does.

    A collective that waits longer than COLLECTIVE_TIMEOUT aborts the run. Therefore a thread waits for the disk, and
    the ranks poll each other until every thread has ended.
    """
    future = in_background(action)
    while not all(gather(not wait([future], POLL_INTERVAL_S).not_done)):
        pass
    return on_all_ranks(future.result)


def broadcast_from_rank0(action: Callable[[], T], run: Callable[[Callable[[], Any]], Any] = on_all_ranks) -> T:
    """Run an action on rank 0 only. Return its result, or raise its error, on every rank.

    ``run`` is `on_all_ranks_in_background` for an action that waits for a disk.
    """
    results = [run(lambda: action() if dist.get_rank() == 0 else None)]
    dist.broadcast_object_list(results, src=0)
    return cast(T, results[0])
