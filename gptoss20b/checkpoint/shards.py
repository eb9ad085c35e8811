"""One rank's files of a checkpoint: planned with all ranks, copied to host memory, written while training goes on.

Megatron-Core plans an asynchronous save together with all ranks and leaves the writing to its caller. Its own callers
fork the training process, or spawn another that takes tensors of the GPU. Neither is used: a fork copies gloo's and
NCCL's threads as locks that nobody will open; pages registered for RDMA are only safe across a fork on some kernels
and libraries (ibv_fork_init); a child answers signals through the parent's pipe, and outlives a parent that is killed.
Here a thread writes. It needs no interpreter lock while it writes a tensor or computes a checksum, it ends with its
process, and it takes part in no collective.
"""

from __future__ import annotations

import inspect
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, TypeVar

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch.distributed.checkpoint.filesystem import SerializationFormat, _StorageWriterTransforms, _write_item

from .files import size_and_crc

T = TypeVar("T")


def in_background(action: Callable[[], T]) -> Future[T]:
    """Run it in a thread of its own, which ends with the process at the latest. It must take part in no collective."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:  # for whoever asks
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future


class Shards:
    """What this rank writes of one checkpoint; planning begins and `finalize` ends it, together with all ranks.

    Args:
        state: sharded state dict, whose tensors may change once this returns.
        part: an empty folder, the same on all ranks.
        copy: whether the state's tensors in host memory are copied too, not only those of a GPU. Those of a run on a
            GPU were gathered for this checkpoint, and nothing else changes them.
    """

    def __init__(self, state: dict[str, Any], part: Path, *, copy: bool) -> None:
        # Megatron-Core's queue between processes would be a process of its own, which a killed rank leaves behind.
        # A new one each time: a failed save must not leave its results to the next.
        self._results: queue.SimpleQueue[dict[int, list[Any]]] = queue.SimpleQueue()
        vars(filesystem_async)["_results_queue"] = self._results
        request: Any = dist_checkpointing.save(state, str(part), async_sharded_save=True, **_own_strategy())
        self._finalizers = request.finalize_fns
        # A rank without anything to write gets no arguments.
        self._buckets = request.async_fn_args[1] if request.async_fn else []
        for i, (path, name, (objects, tensors)) in enumerate(self._buckets):
            # In place: Megatron's writer holds the same list, and with it memory of the GPU.
            self._buckets[i] = path, name, (objects, [(item, each.to("cpu", copy=copy)) for item, each in tensors])
        self._fingerprints = in_background(self._write)

    def written(self, wait_s: float) -> bool:
        """Whether the thread has ended, well or not, by now or within so many seconds."""
        return not wait([self._fingerprints], wait_s).not_done

    def file_checksums(self) -> dict[str, tuple[int, int]]:
        """(bytes, CRC-32) of each file that this rank wrote, by its name, as read back.

        Raises:
            Exception: whatever hindered the thread, an OSError of a full disk for example.
        """
        try:
            return self._fingerprints.result()
        except BaseException as error:
            raise _first(error) from None

    def finalize(self) -> None:
        """Have the first rank write what says where each tensor lies. Communicates; all ranks must have written.

        Raises:
            OSError, CheckpointException: it could not be written.
        """
        for finalizer in self._finalizers:
            finalizer()

    def _write(self) -> dict[str, tuple[int, int]]:
        file_checksums = {}
        results = {}
        for i, (path, name, (objects, tensors)) in enumerate(self._buckets):
            # Not by Megatron's function for this, which turns the garbage collection of the whole process off.
            with Path(path).open("wb") as stream:
                results[i] = [
                    _write_item(_AS_IT_IS, stream, data, item, name, SerializationFormat.TORCH_SAVE)
                    for item, data in (*objects, *tensors)
                ]
                stream.flush()
                os.fsync(stream.fileno())
            self._buckets[i] = path, name, ([], [])  # written, and the memory is free
            file_checksums[name] = size_and_crc(Path(path))
        self._results.put(results)
        return file_checksums


_AS_IT_IS = _StorageWriterTransforms()


def _first(error: BaseException) -> BaseException:
    """The error behind an error: torch closes its writer on a full disk, and then says that the position is wrong."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _own_strategy() -> dict[str, str]:
    """Releases from 0.18 on have a choice, of which the default is a package of NVIDIA's with its own processes."""
    has_choice = "async_strategy" in inspect.signature(dist_checkpointing.save).parameters
    return {"async_strategy": "mcore"} if has_choice else {}
