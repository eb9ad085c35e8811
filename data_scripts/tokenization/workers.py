"""Worker processes that each process one block at a time.

Unlike those of the standard library's process pools, these workers can be ended at any moment, the death of one is
reported at once, and none outlives its parent: each waits on its own pipe, which breaks when the parent ends.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Generic, NamedTuple, TypeVar

from gptoss20b.data.files import Closing

from ..errors import CommandError

Result = TypeVar("Result")
_CONTEXT = multiprocessing.get_context("spawn")


class _Worker(NamedTuple):
    process: multiprocessing.process.BaseProcess
    connection: Connection[Any, Any]


class WorkerPool(Closing, Generic[Result]):
    """A fixed number of processes that apply one function.

    Args:
        prepare: called once in each process, before its first block; returns the function. Must be picklable.
        count: number of processes.
    """

    def __init__(self, prepare: Callable[[], Callable[[bytes], Result]], count: int) -> None:
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all: list[_Worker] = []
        # One thread per process waits for it; sending and receiving release the interpreter lock.
        self._threads = ThreadPoolExecutor(count)
        # multiprocessing starts this process with the first worker, and that start unblocks signals.
        resource_tracker.ensure_running()
        # A terminal or a job scheduler signals all processes. Workers ignore it from their first moment: they inherit
        # the mask, and their parent ends them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            for _ in range(count):
                self._all.append(_start_worker(prepare))
                self._idle.put(self._all[-1])
        except BaseException:
            self.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def submit(self, block: bytes) -> Future[Result]:
        """Process a block; the future gives the result, or raises what the function or `prepare` raised.

        If the worker was killed, the future raises `CommandError`.
        """
        return self._threads.submit(self._process, block)

    def close(self) -> None:
        """Kill all processes at once; safe to call twice."""
        for worker in self._all:
            worker.process.kill()
        for worker in self._all:
            worker.process.join()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._all:
            worker.connection.close()

    def _process(self, block: bytes) -> Result:
        worker = self._idle.get()
        try:
            worker.connection.send_bytes(block)
            result: Result | Exception = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            status = worker.process.exitcode or 0
            reason = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
            raise CommandError(
                f"worker: got {reason}; expected it to live. "
                "To fix: if memory ran out, give fewer --workers; then run the same command again."
            ) from None
        finally:
            # A dead worker, too: the next call on it must also fail.
            self._idle.put(worker)
        if isinstance(result, Exception):
            raise result
        return result


def _start_worker(prepare: Callable[[], Callable[[bytes], Result]]) -> _Worker:
    parent_end, worker_end = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_serve, args=(worker_end, prepare), daemon=True)
    process.start()
    # The pipe breaks when the worker ends only if nobody else holds the worker's end.
    worker_end.close()
    return _Worker(process, parent_end)


def _serve(connection: Connection[Any, Any], prepare: Callable[[], Callable[[bytes], Result]]) -> None:
    function: Callable[[bytes], Result] | None = None
    try:
        while True:
            block = connection.recv_bytes()
            try:
                function = function or prepare()
                reply: Result | Exception = function(block)
            # Any exception is sent to the parent, which raises it.
            except Exception as error:
                reply = error
            connection.send(reply)
    except (EOFError, OSError):
        # The parent is gone.
        return
