"""Which sequences a rank sees, and when: positions, the open data, and synthetic tokens for the warm-up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from .config import Config
from .data.indexed_dataset import IndexedDataset
from .data.samples import (
    TRAIN_PREFIX,
    VALIDATION_PREFIX,
    Batch,
    TrainingSamples,
    ValidationSamples,
    Windows,
    collate,
)
from .mlperf_log import RunClock
from .trainer import DeviceBatch


@dataclass(frozen=True)
class DataShard:
    """A data-parallel rank's part of every global batch.

    Attributes:
        rank, ranks: this rank's data-parallel number, and how many there are.
        micro_batch_size: sequences per forward pass.
    """

    rank: int
    ranks: int
    micro_batch_size: int

    def train_positions(self, step: int, global_batch_size: int) -> list[list[int]]:
        """Positions in the training order, by micro batch, of the 0-based step.

        All ranks together take positions step x GBS to (step + 1) x GBS - 1, whatever their number.

        >>> DataShard(rank=1, ranks=2, micro_batch_size=2).train_positions(step=1, global_batch_size=8)
        [[10, 11], [14, 15]]
        """
        return self._rows(step * global_batch_size, global_batch_size)

    def eval_positions(self, samples: int) -> list[list[int | None]]:
        """Validation sequence numbers by micro batch; None fills the last round up so that all ranks run as many.

        >>> DataShard(rank=1, ranks=2, micro_batch_size=1).eval_positions(samples=3)
        [[1], [None]]
        """
        per_round = self.ranks * self.micro_batch_size
        rounded_up = -(-samples // per_round) * per_round
        return [[n if n < samples else None for n in row] for row in self._rows(0, rounded_up)]

    def _rows(self, start: int, count: int) -> list[list[int]]:
        first = start + self.rank * self.micro_batch_size
        stride = self.ranks * self.micro_batch_size
        return [list(range(n, n + self.micro_batch_size)) for n in range(first, start + count, stride)]


class DataLoader:
    """The open data of one rank. Reads one step ahead in a thread, so that storage is not waited for."""

    def __init__(
        self,
        config: Config,
        shard: DataShard,
        device: torch.device,
        train: TrainingSamples,
        validation: ValidationSamples,
    ) -> None:
        self._config, self._shard, self._device = config, shard, device
        self._train, self._validation = train, validation
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._ahead: tuple[int, Future[list[Batch]]] | None = None

    @property
    def eval_micro_batches(self) -> int:
        """Micro batches of one evaluation on every rank."""
        return len(self._shard.eval_positions(self._validation.samples))

    def eval_tokens_sha256(self) -> str:
        """SHA-256 of the evaluated tokens."""
        return self._validation.sha256()

    def train_batches(self, step: int) -> Iterator[DeviceBatch]:
        """This rank's micro batches of the 0-based step."""
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = (step, self._reader.submit(self._read, step))
        current = self._ahead[1]
        self._ahead = (step + 1, self._reader.submit(self._read, step + 1))
        for host in current.result():
            yield to_device(host, self._device)

    def eval_batches(self) -> Iterator[DeviceBatch]:
        """This rank's micro batches of the validation set; rows that only fill up have an all-zero mask."""
        for numbers in self._shard.eval_positions(self._validation.samples):
            host = self._batch([self._validation.sample(0 if n is None else n) for n in numbers])
            for row, number in enumerate(numbers):
                if number is None:
                    host.loss_mask[row] = 0.0
            yield to_device(host, self._device)

    def close(self) -> None:
        """Stop reading ahead and close the files."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._train.windows.tokens.close()
        self._validation.windows.tokens.close()

    def _read(self, step: int) -> list[Batch]:
        rows = self._shard.train_positions(step, self._config.free.global_batch_size)
        return [self._batch([self._train.sample(position) for position in row]) for row in rows]

    def _batch(self, windows: Sequence[npt.NDArray[np.int64]]) -> Batch:
        return collate(windows, self._config.data.eod_token)


def build_dataloader(clock: RunClock, config: Config, shard: DataShard, device: torch.device, seed: int) -> DataLoader:
    """Open the data. Takes the running clock as proof that the run has started: nothing touches the data before.

    Raises:
        DataError: a file is missing, damaged or too small.
    """
    if not isinstance(clock, RunClock):
        raise TypeError("the data may be opened only after run_start, whose clock this takes")

    def windows(prefix: str) -> Windows:
        tokens = IndexedDataset.open(config.data.directory / prefix)
        return Windows(tokens, config.fixed.sequence_length, config.model.vocab_size)

    return DataLoader(
        config,
        shard,
        device,
        TrainingSamples(windows(TRAIN_PREFIX), seed),
        ValidationSamples(windows(VALIDATION_PREFIX), config.fixed.eval_samples),
    )


def to_device(host: Batch, device: torch.device) -> DeviceBatch:
    """Copy a batch without waiting for the copy."""

    def move(array: npt.NDArray[np.generic]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

    return DeviceBatch(move(host.tokens), move(host.labels), move(host.loss_mask))


def synthetic(config: Config, device: torch.device) -> Callable[[int], Iterator[DeviceBatch]]:
    """Random tokens in the shape of the data, the same at every call: ``synthetic(...)(count)`` micro batches."""
    shape = (config.execution.micro_batch_size, config.fixed.sequence_length)

    def batches(count: int) -> Iterator[DeviceBatch]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(count):
            tokens = torch.randint(config.model.vocab_size, shape, generator=generator).to(device)
            yield DeviceBatch(tokens, tokens.roll(-1, dims=1), torch.ones(shape, device=device))

    return batches
