"""Files of one rank in a checkpoint: planned with all ranks, copied to host memory, written in the background.

Megatron-Core plans an asynchronous save on all ranks and leaves the writing to its caller. Its own callers fork the
training process, or spawn one that reads GPU tensors. Neither is used here:

- A fork copies the locks of gloo's and NCCL's threads, which nobody in the child will release.
- Pages registered for RDMA survive a fork only with some kernels and libraries (ibv_fork_init).
- A child answers signals through the parent's pipe, and outlives a killed parent.

A thread writes instead. It releases the interpreter lock while it writes a tensor or computes a checksum, it ends with
its process, and it takes part in no collective.
"""

from __future__ import annotations

import inspect
import logging
import os
import queue
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import validation
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch import Tensor
from torch.distributed.checkpoint.filesystem import SerializationFormat, _StorageWriterTransforms, _write_item

from .coordination import in_background
from .files import CheckpointError, size_and_crc

# Megatron-Core warns that rank 0 alone has gathered the moments, which is meant, in words of damage.
logging.getLogger(validation.__name__).setLevel(logging.ERROR)
_NO_TRANSFORMS = _StorageWriterTransforms()


class Shards:
    """Files of this rank in one checkpoint. The constructor and `finalize` communicate.

    Args:
        state: sharded state dict. Its tensors may change as soon as the constructor returns.
        part: empty folder, the same on all ranks.
        copy: also copy tensors that are in host memory already. Not needed for a run on GPUs, whose tensors in host
            memory were gathered for this checkpoint alone.
    """

    def __init__(self, state: dict[str, Any], part: Path, *, copy: bool) -> None:
        # Megatron-Core passes results through a multiprocessing queue, whose process would outlive a killed rank. Use a
        # new queue for each save: a failed one must not leave its results to the next.
        self._results: queue.SimpleQueue[dict[int, list[Any]]] = queue.SimpleQueue()
        vars(filesystem_async)["_results_queue"] = self._results
        request: Any = dist_checkpointing.save(state, str(part), async_sharded_save=True, **_mcore_strategy())
        self._finalizers = request.finalize_fns
        # A rank without anything to write gets no arguments.
        self._buckets = request.async_fn_args[1] if request.async_fn else []
        for i, (path, name, (objects, tensors)) in enumerate(self._buckets):
            # In place, because Megatron's writer holds the same list and would keep the GPU tensors alive.
            self._buckets[i] = path, name, (objects, [(item, each.to("cpu", copy=copy)) for item, each in tensors])
        self._checksums = in_background(self._write)

    def is_written(self, timeout_s: float) -> bool:
        """Wait up to ``timeout_s`` seconds. Return whether the thread has ended, with or without an error."""
        return not wait([self._checksums], timeout_s).not_done

    def file_checksums(self) -> dict[str, tuple[int, int]]:
        """Return (bytes, CRC-32) of each file of this rank by name, read back from the file.

        Raises:
            Exception: the thread's error, e.g. an OSError for a full disk.
        """
        try:
            return self._checksums.result()
        except BaseException as error:
            raise _root_cause(error) from None

    def finalize(self) -> None:
        """Have rank 0 write the index of tensors. Communicates. All ranks must have written their files.

        Raises:
            OSError, CheckpointException: the index could not be written.
        """
        for finalizer in self._finalizers:
            finalizer()

    def _write(self) -> dict[str, tuple[int, int]]:
        checksums = {}
        results = {}
        for i, (path, name, (objects, tensors)) in enumerate(self._buckets):
            # Megatron's own function for this disables the garbage collection of the whole process.
            for item, tensor in tensors:
                _check_finite(item.index.fqn, tensor)
            with Path(path).open("wb") as stream:
                results[i] = [
                    _write_item(_NO_TRANSFORMS, stream, data, item, name, SerializationFormat.TORCH_SAVE)
                    for item, data in (*objects, *tensors)
                ]
                stream.flush()
                os.fsync(stream.fileno())
            self._buckets[i] = path, name, ([], [])  # free the memory
            checksums[name] = size_and_crc(Path(path))
        self._results.put(results)
        return checksums


def _check_finite(name: str, tensor: Tensor) -> None:
    """Raise CheckpointError if a tensor holds NaN or infinity. Makes no copy of it."""
    if tensor.is_floating_point() and tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise CheckpointError(f"{name} is not finite")


def _root_cause(error: BaseException) -> BaseException:
    """Return the first error of a chain. On a full disk torch closes its writer, and then reports a wrong position."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _mcore_strategy() -> dict[str, str]:
    """Select Megatron-Core's own writer. From 0.18 the default is nvidia-resiliency-ext, which starts processes."""
    has_choice = "async_strategy" in inspect.signature(dist_checkpointing.save).parameters
    return {"async_strategy": "mcore"} if has_choice else {}
