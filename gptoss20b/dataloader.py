"""Which samples a rank reads, and when: the data-parallel shard, and the open data with read-ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from .batches import DeviceBatch, to_device
from .config import Config
from .data.indexed_dataset import IndexedDataset
from .data.samples import (
    TRAIN_PREFIX,
    VALIDATION_PREFIX,
    Batch,
    ValidationSamples,
    Windows,
    collate,
)
from .mlperf_log import RunClock


@dataclass(frozen=True)
class DataShard:
    """Part of every global batch that data-parallel rank ``rank`` of ``ranks`` reads."""

    rank: int
    ranks: int
    micro_batch_size: int

    def train_positions(self, step: int, global_batch_size: int) -> list[list[int]]:
        """Return positions in the training order, by micro batch, for the 0-based step.

        All ranks together take positions step x GBS to (step + 1) x GBS - 1, whatever the number of ranks.

        >>> DataShard(rank=1, ranks=2, micro_batch_size=2).train_positions(step=1, global_batch_size=8)
        [[10, 11], [14, 15]]
        """
        return self._micro_batches(step * global_batch_size, global_batch_size)

    def eval_positions(self, samples: int) -> list[list[int | None]]:
        """Return validation sample numbers by micro batch. None pads the last round, so that ranks run equally many.

        >>> DataShard(rank=1, ranks=2, micro_batch_size=1).eval_positions(samples=3)
        [[1], [None]]
        """
        per_round = self.ranks * self.micro_batch_size
        padded = -(-samples // per_round) * per_round
        return [[n if n < samples else None for n in row] for row in self._micro_batches(0, padded)]

    def _micro_batches(self, start: int, count: int) -> list[list[int]]:
        first = start + self.rank * self.micro_batch_size
        stride = self.ranks * self.micro_batch_size
        return [list(range(n, n + self.micro_batch_size)) for n in range(first, start + count, stride)]


class DataLoader:
    """Training and validation data of one rank, read one step ahead in a thread so that storage is not waited for."""

    def __init__(
        self,
        config: Config,
        shard: DataShard,
        device: torch.device,
        train: Windows,
        validation: ValidationSamples,
        seed: int,
    ) -> None:
        self._config, self._shard, self._device = config, shard, device
        self._train, self._validation, self._seed = train, validation, seed
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._prefetched: tuple[int, Future[list[Batch]]] | None = None

    @property
    def eval_micro_batches(self) -> int:
        """Micro batches of one evaluation, the same number on every rank."""
        return len(self._shard.eval_positions(self._validation.samples))

    def eval_tokens_sha256(self) -> str:
        """Return the SHA-256 of the evaluated tokens."""
        return self._validation.sha256()

    def train_batches(self, step: int) -> Iterator[DeviceBatch]:
        """Yield this rank's micro batches of the 0-based step, and start reading those of the next step.

        SKIP_SAMPLES moves both back in the data order.
        """
        if self._prefetched is None or self._prefetched[0] != step:
            self._prefetched = (step, self._reader.submit(self._read, step))
        current = self._prefetched[1]
        self._prefetched = (step + 1, self._reader.submit(self._read, step + 1))
        for host in current.result():
            yield to_device(host, self._device)

    def eval_batches(self) -> Iterator[DeviceBatch]:
        """Yield this rank's micro batches of the validation set. Padding rows have an all-zero loss mask."""
        for numbers in self._shard.eval_positions(self._validation.samples):
            host = self._collate([self._validation.windows.window(0 if n is None else n) for n in numbers])
            for row, number in enumerate(numbers):
                if number is None:
                    host.loss_mask[row] = 0.0
            yield to_device(host, self._device)

    def close(self) -> None:
        """Stop reading ahead and close the files."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._train.dataset.close()
        self._validation.windows.dataset.close()

    def _read(self, step: int) -> list[Batch]:
        batch = self._config.free.global_batch_size
        rows = self._shard.train_positions(step + self._config.data.skip_samples // batch, batch)
        return [self._collate([self._train.train_sample(position, self._seed) for position in row]) for row in rows]

    def _collate(self, windows: Sequence[npt.NDArray[np.int64]]) -> Batch:
        return collate(windows, self._config.data.eod_token)


def build_dataloader(clock: RunClock, config: Config, shard: DataShard, device: torch.device, seed: int) -> DataLoader:
    """Open the data and build the loader.

    The rules start the clock before any data is touched, so this takes the running clock as proof.

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
        windows(TRAIN_PREFIX),
        ValidationSamples(windows(VALIDATION_PREFIX), config.fixed.eval_samples),
        seed,
    )
