"""Processes that answer one block at a time, and the order of their answers.

Unlike the standard library's pool, they can be ended at any moment, one that was killed is told at once, and none
outlives its parent, however that ended: each waits on a pipe of its own, which breaks with the parent.
"""

import multiprocessing
import queue
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

Answer = TypeVar("Answer")
Item = TypeVar("Item")
_CONTEXT = multiprocessing.get_context("spawn")


class WorkerDiedError(Exception):
    """A process ended without an answer; the message says how."""


class _Worker(NamedTuple):
    process: multiprocessing.process.BaseProcess
    connection: "Connection[Any, Any]"


class Workers(Generic[Answer]):
    """A fixed number of processes with one function.

    Args:
        prepare: is called once in each process, before its first block, and gives the function; must be picklable.
        count: processes.
    """

    def __init__(self, prepare: Callable[[], Callable[[bytes], Answer]], count: int) -> None:
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all: list[_Worker] = []
        # One thread per process waits for it; sending and receiving need no interpreter lock.
        self._threads = ThreadPoolExecutor(count)
        # Python starts this process with the first other one, and in passing lets signals through again.
        resource_tracker.ensure_running()
        # A terminal or a job scheduler signals all processes; these leave it to their parent, from their first moment.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            for _ in range(count):
                self._all.append(_start(prepare))
                self._idle.put(self._all[-1])
        except BaseException:
            self.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def submit(self, block: bytes) -> Future[Answer]:
        """Have a block worked on; the future gives the answer, or raises what the function or `prepare` raised.

        Its `WorkerDiedError` says that the process was killed.
        """
        return self._threads.submit(self._ask, block)

    def close(self) -> None:
        """End all processes at once, whatever they are at; safe to call twice."""
        for worker in self._all:
            worker.process.kill()
        for worker in self._all:
            worker.process.join()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._all:
            worker.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, block: bytes) -> Answer:
        worker = self._idle.get()
        try:
            worker.connection.send_bytes(block)
            answer: Answer | Exception = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            raise WorkerDiedError(_ending(worker.process.exitcode)) from None
        finally:
            # also one that is dead: whoever asks it next is told, too
            self._idle.put(worker)
        if isinstance(answer, Exception):
            raise answer
        return answer


def in_order(
    items: Iterator[Item], submit: Callable[[Item], Future[Answer]], most: int
) -> Iterator[tuple[Item, Answer]]:
    """Each item with its answer, in the order of the items, with at most `most` of them submitted at a time."""
    waiting: deque[tuple[Item, Future[Answer]]] = deque()
    for item in items:
        waiting.append((item, submit(item)))
        if len(waiting) == most:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def read_ahead(items: Iterator[Item], most: int) -> Generator[Item, None, None]:
    """The same items, taken from `items` by a thread that is at most `most` ahead."""
    thread = ThreadPoolExecutor(1)
    try:
        waiting = deque(thread.submit(next, items, None) for _ in range(most))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)


def _start(prepare: Callable[[], Callable[[bytes], Answer]]) -> _Worker:
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_serve, args=(theirs, prepare), daemon=True)
    process.start()
    # so that the pipe breaks when the process ends
    theirs.close()
    return _Worker(process, ours)


def _serve(connection: "Connection[Any, Any]", prepare: Callable[[], Callable[[bytes], Answer]]) -> None:
    answer: Callable[[bytes], Answer] | None = None
    try:
        while True:
            block = connection.recv_bytes()
            try:
                answer = answer or prepare()
                reply: Answer | Exception = answer(block)
            # whatever it is, the parent tells it
            except Exception as error:
                reply = error
            connection.send(reply)
    except (EOFError, OSError):
        # the parent is gone
        return


def _ending(status: int | None) -> str:
    return f"killed by signal {-status}" if status is not None and status < 0 else f"ended with status {status}"
