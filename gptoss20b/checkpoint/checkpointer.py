"""Save and find checkpoints together with all ranks, for any expert- and data-parallel layout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..config import Config
from ..stopping import DivergedError
from ..trainer import Trainer
from .coordination import (
    POLL_INTERVAL_S,
    broadcast_from_rank0,
    gather,
    on_all_ranks,
    on_all_ranks_in_background,
)
from .files import (
    CheckpointError,
    CheckpointMetadata,
    TrainState,
    bytes_on_disk,
    commit,
    file_checksums,
    host_bytes_to_save,
    list_checkpoints,
    prepare_save,
    prune,
    quarantine,
    read_metadata,
    release_reserved_space,
    verify_files,
)
from .shards import Shards
from .train_state import sharded_state_dict

# How often to log that a checkpoint is still being written.
_LOG_INTERVAL_S = 60


def run_identity(config: Config) -> dict[str, Any]:
    """Return the settings that must not change when a run resumes. Layout, performance and folders may."""
    return {
        **{f"model.{name}": value for name, value in config.model.model_dump(mode="json").items()},
        **{f"fixed.{name}": value for name, value in config.fixed.model_dump(mode="json").items()},
        **{f"free.{name}": value for name, value in config.free.model_dump(mode="json").items()},
        "execution.precision": config.execution.precision,
        "data.eod_token": config.data.eod_token,
    }


@dataclass(frozen=True)
class _PendingSave:
    """Checkpoint whose files are being written."""

    train_state: TrainState
    part: Path
    shards: Shards


class Checkpointer:
    """Checkpoints of one run. All methods communicate: call them on every rank.

    Rank 0's ``folder`` and ``resuming`` apply to every rank. ``warn`` receives a message when a checkpoint fails, which
    ends neither the run nor earlier checkpoints.
    """

    def __init__(self, config: Config, folder: Path | None, resuming: bool, warn: Callable[[str], None]) -> None:
        self.config, self._warn = config, warn
        path, self.resuming = broadcast_from_rank0(lambda: (str((folder or Path()).resolve()), resuming))
        self.folder = Path(path)
        self._last_save_s = time.monotonic()
        self._pending: _PendingSave | None = None

    def is_due(self, step: int) -> bool:
        """Return whether to save after this step. Rank 0's clock decides on minutes, at steps whose loss is logged."""
        interval = self.config.checkpoints
        if interval.minutes is None:
            batch = self.config.free.global_batch_size
            return interval.samples > 0 and step * batch // interval.samples > (step - 1) * batch // interval.samples
        if step % self.config.logging.interval != 0:
            return False
        seconds = 60 * interval.minutes
        return broadcast_from_rank0(lambda: time.monotonic() - self._last_save_s >= seconds)

    def save(self, trainer: Trainer, train_state: TrainState) -> None:
        """Start a checkpoint of the present state.

        With SAVE_ASYNC the state is copied, and its files are written while training continues. Without it, the
        checkpoint is complete at the end of this call. The previous checkpoint is completed first. If that takes longer
        than COLLECTIVE_TIMEOUT, its disk may be gone, and this checkpoint is skipped.
        """
        if not self.complete_pending(self.config.execution.timeout_seconds):
            step = train_state.step
            self._warn(f"warning: no checkpoint after step {step}: the previous one is still being written")
            return
        self._last_save_s = time.monotonic()
        # Weights that the next forward pass would gather must be in the checkpoint.
        trainer.synchronize()
        try:
            parameters = trainer.parameter_counts()["total_parameters"]
            needed = bytes_on_disk(self.config, parameters), host_bytes_to_save(self.config, parameters)
            part = Path(
                broadcast_from_rank0(
                    lambda: str(prepare_save(self.folder, train_state.step, *needed)), on_all_ranks_in_background
                )
            )
            state, copy = sharded_state_dict(trainer, is_loading=False), trainer.device.type == "cpu"
            self._pending = _PendingSave(train_state, part, on_all_ranks(lambda: Shards(state, part, copy=copy)))
        except CheckpointError as error:
            self._warn_of_failure(train_state, error)
        if not self.config.checkpoints.asynchronous:
            self.complete_pending(None)

    def complete_pending(self, timeout_s: float | None) -> bool:
        """Complete the checkpoint that is being written, if there is one. No rank waits for a disk in a collective.

        Return False if its files are still being written after ``timeout_s``; None waits as long as it takes.
        """
        if self._pending is None:
            return True
        # Count polls instead of reading a clock: all ranks must give up at the same poll.
        polls = 0
        while not all(gather(self._pending.shards.is_written(POLL_INTERVAL_S if timeout_s != 0 else 0))):
            polls += 1
            if timeout_s is not None and polls * POLL_INTERVAL_S >= timeout_s:
                return False
            if polls % int(_LOG_INTERVAL_S / POLL_INTERVAL_S) == 0:
                step = self._pending.train_state.step
                self._warn(f"warning: the checkpoint after step {step} is still being written")
        written, self._pending = self._pending, None
        try:
            self._complete(written)
        except CheckpointError as error:
            self._warn_of_failure(written.train_state, error)
        return True

    def close(self) -> None:
        """Complete the last checkpoint after the end of training, unless its disk does not answer."""
        if not self.complete_pending(self.config.execution.timeout_seconds):
            self._warn("warning: the last checkpoint is incomplete: its files were still being written")

    @contextmanager
    def closed_on_divergence(self) -> Iterator[None]:
        """Close if the block raises DivergedError, as all ranks do together: what has been saved before is finite."""
        try:
            yield
        except DivergedError:
            self.close()
            raise

    def _complete(self, written: _PendingSave) -> None:
        per_rank = gather(on_all_ranks(written.shards.file_checksums))
        # For the files that rank 0 writes in `finalize`, inside Megatron's collectives.
        broadcast_from_rank0(lambda: release_reserved_space(written.part))
        on_all_ranks(written.shards.finalize)
        known = {name: checksum for checksums in per_rank for name, checksum in checksums.items()}
        folder = self.folder / f"step_{written.train_state.step:08d}"

        def commit_folder() -> None:
            files = file_checksums(written.part, known)
            commit(written.part, CheckpointMetadata(folder, written.train_state, run_identity(self.config), files))

        broadcast_from_rank0(commit_folder, on_all_ranks_in_background)
        try:
            keep = self.config.checkpoints.keep
            broadcast_from_rank0(lambda: prune(self.folder, keep), on_all_ranks_in_background)
        except CheckpointError as error:
            self._warn(f"warning: an old checkpoint could not be removed: {error}")

    def _warn_of_failure(self, train_state: TrainState, error: CheckpointError) -> None:
        self._warn(f"warning: the checkpoint after step {train_state.step} failed: {error}")

    def find_newest(self) -> CheckpointMetadata | None:
        """Return the newest intact checkpoint, or None if the run does not resume. Quarantine damaged ones.

        Raises:
            CheckpointError: none is intact, one cannot be read, or the newest readable one is from another run.
        """
        if not self.resuming:
            return None
        damaged: dict[Path, str] = {}
        for folder in broadcast_from_rank0(lambda: list_checkpoints(self.folder)):
            checkpoint, errors = self._verify(folder)
            if checkpoint is not None and not errors:
                broadcast_from_rank0(lambda: _quarantine_damaged(damaged))
                return checkpoint
            damaged[folder] = "; ".join(errors)
        raise CheckpointError(f"no checkpoint in {self.folder} is intact: {'; '.join(damaged.values())}")

    def _verify(self, folder: Path) -> tuple[CheckpointMetadata | None, list[str]]:
        """Return a checkpoint of this run, and one message per damaged file. Each rank reads a share of the bytes."""
        checkpoint = broadcast_from_rank0(lambda: _read_metadata_or_error(folder))
        if isinstance(checkpoint, str):
            return None, [checkpoint]
        self._check_run_identity(checkpoint)
        rank, ranks = dist.get_rank(), dist.get_world_size()
        per_rank = gather(on_all_ranks_in_background(lambda: verify_files(checkpoint, rank, ranks)))
        return checkpoint, [message for messages in per_rank for message in messages]

    def _check_run_identity(self, checkpoint: CheckpointMetadata) -> None:
        saved, current = checkpoint.run_identity, run_identity(self.config)
        differences = [
            f"{name} was {saved.get(name)}, is {current.get(name)}"
            for name in sorted(saved.keys() | current.keys())
            if saved.get(name) != current.get(name)
        ]
        if self.config.seed not in (None, checkpoint.train_state.seed):
            differences.append(f"seed was {checkpoint.train_state.seed}, is {self.config.seed}")
        skipped, skip = checkpoint.train_state.skipped_samples, self.config.data.skip_samples
        if skip < skipped:
            differences.append(f"SKIP_SAMPLES was {skipped}, is {skip}, and must not be less")
        if differences:
            raise CheckpointError(
                f"{checkpoint.folder} is from another run: {'; '.join(differences)}. "
                "Restore these settings, or name another SAVE_DIR"
            )


def _quarantine_damaged(damaged: dict[Path, str]) -> None:
    for folder, reason in damaged.items():
        quarantine(folder)
        print(f"warning: {reason}; using the previous checkpoint", file=sys.stderr, flush=True)


def _read_metadata_or_error(folder: Path) -> CheckpointMetadata | str:
    try:
        return read_metadata(folder)
    except CheckpointError as error:
        return str(error)
