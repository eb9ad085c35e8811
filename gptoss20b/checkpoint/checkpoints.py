"""Writing and reading checkpoints together with all ranks, for any expert- and data-parallel layout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from torch.distributed.checkpoint.api import CheckpointException

from ..config import Config
from ..optimizer import optimizer_parts
from ..trainer import Trainer
from .files import (
    CheckpointError,
    CheckpointMetadata,
    TrainState,
    bytes_on_disk,
    commit,
    file_checksums,
    host_bytes_to_save,
    list_checkpoints,
    prepare,
    prune,
    quarantine,
    read_metadata,
    release_reserved_space,
    verify_files,
)
from .shards import Shards, in_background

T = TypeVar("T")

# Each parameter is stored by itself with its optimizer state, so that every layout can read its part. The state of
# replicas is gathered by one of them, in host memory; by default all would gather it, in each GPU's.
_METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": True,
    "chained_optim_avoid_prefix": True,
}


def run_identity(config: Config) -> dict[str, Any]:
    """What must be the same when a run is gone on with. Layout, speed and places may differ."""
    return {
        **{f"model.{name}": value for name, value in config.model.model_dump(mode="json").items()},
        **{f"fixed.{name}": value for name, value in config.fixed.model_dump(mode="json").items()},
        **{f"free.{name}": value for name, value in config.free.model_dump(mode="json").items()},
        "execution.precision": config.execution.precision,
        "data.eod_token": config.data.eod_token,
    }


@dataclass(frozen=True)
class _InFlight:
    """A checkpoint whose files are being written."""

    train_state: TrainState
    part: Path
    shards: Shards


# While ranks wait for a disk, they meet this often, so that no collective waits for it; and say so this often.
_MEET_EVERY_S = 1.0
_SAY_EVERY_S = 60


class Checkpoints:
    """The checkpoints of one run. Its methods communicate: call them on every rank.

    Args:
        config: the resolved configuration.
        folder: where they lie, as the first rank names it; the other ranks' is not looked at.
        resuming: whether the first rank's log is that of an interrupted run; likewise.
        warn: told of a checkpoint that failed. Nothing else comes of it: the run and earlier checkpoints stay.
    """

    def __init__(self, config: Config, folder: Path | None, resuming: bool, warn: Callable[[str], None]) -> None:
        self.config, self._warn = config, warn
        place, self.resuming = _from_first(lambda: (str((folder or Path()).resolve()), resuming))
        self.folder = Path(place)
        self._last_save = time.monotonic()
        self._in_flight: _InFlight | None = None

    def due(self, step: int) -> bool:
        """Whether a checkpoint follows this step. Minutes are the first rank's, looked at where losses are logged."""
        every = self.config.checkpoints
        if every.minutes is None:
            batch = self.config.free.global_batch_size
            return every.samples > 0 and step * batch // every.samples > (step - 1) * batch // every.samples
        if step % self.config.logging.interval != 0:
            return False
        seconds = 60 * every.minutes
        return _from_first(lambda: time.monotonic() - self._last_save >= seconds)

    def save(self, trainer: Trainer, train_state: TrainState) -> None:
        """Begin a checkpoint of what is now.

        With SAVE_ASYNC it is copied, and written while training goes on; else it is complete when this returns. The one
        before is completed first. If that takes longer than a collective may, its disk has perhaps gone away: there is
        none of this step then.
        """
        if not self.finish(self.config.execution.timeout_seconds):
            self._warn(f"warning: no checkpoint after step {train_state.step}: the one before is still being written")
            return
        self._last_save = time.monotonic()
        trainer.synchronize()
        try:
            parameters = trainer.parameter_counts()["total_parameters"]
            needed, host_needed = (
                bytes_on_disk(self.config, parameters),
                host_bytes_to_save(self.config, parameters),
            )
            part = Path(
                _from_first(
                    lambda: str(prepare(self.folder, train_state.step, needed, host_needed)), _all_in_background
                )
            )
            state, copy = _state(trainer, is_loading=False), trainer.device.type == "cpu"
            self._in_flight = _InFlight(train_state, part, _all(lambda: Shards(state, part, copy=copy)))
        except CheckpointError as error:
            self._failed(train_state, error)
        if not self.config.checkpoints.asynchronous:
            self.finish(None)

    def finish(self, limit_s: float | None) -> bool:
        """Complete the checkpoint that is being written, if there is one.

        Args:
            limit_s: seconds to wait for its files; None for as long as it takes, which is said now and then.

        Returns:
            Whether none is being written any more. However slow the disk, no rank waits for it in a collective.
        """
        if self._in_flight is None:
            return True
        # Counted, not timed: all ranks must give up at the same meeting.
        meetings = 0
        while not all(_gather(self._in_flight.shards.written(_MEET_EVERY_S if limit_s != 0 else 0))):
            meetings += 1
            if limit_s is not None and meetings * _MEET_EVERY_S >= limit_s:
                return False
            if meetings % int(_SAY_EVERY_S / _MEET_EVERY_S) == 0:
                self._warn(
                    f"warning: the checkpoint after step {self._in_flight.train_state.step} is still being written"
                )
        written, self._in_flight = self._in_flight, None
        try:
            self._complete(written)
        except CheckpointError as error:
            self._failed(written.train_state, error)
        return True

    def end(self) -> None:
        """Complete what is being written when the run has ended, unless its disk does not answer."""
        if not self.finish(self.config.execution.timeout_seconds):
            self._warn("warning: the last checkpoint was still being written and is left unfinished")

    def _complete(self, written: _InFlight) -> None:
        prints = _gather(_all(written.shards.file_checksums))
        _from_first(lambda: release_reserved_space(written.part))
        _all(written.shards.finalize)
        files = {name: found for each in prints for name, found in each.items()}
        folder = self.folder / f"step_{written.train_state.step:08d}"

        def publish_it() -> None:
            everything = file_checksums(written.part, files)
            commit(written.part, CheckpointMetadata(folder, written.train_state, run_identity(self.config), everything))

        _from_first(publish_it, _all_in_background)
        try:
            _from_first(lambda: prune(self.folder, self.config.checkpoints.keep), _all_in_background)
        except CheckpointError as error:
            self._warn(f"warning: an old checkpoint could not be removed: {error}")

    def _failed(self, train_state: TrainState, why: CheckpointError) -> None:
        self._warn(f"warning: the checkpoint after step {train_state.step} failed: {why}")

    def newest(self) -> CheckpointMetadata | None:
        """The newest checkpoint that is whole; None if the run begins. Damaged ones are named on stderr.

        Raises:
            CheckpointError: none of them is whole, one cannot be read, or the newest that can is of another run.
        """
        if not self.resuming:
            return None
        damaged: dict[Path, str] = {}
        for folder in _from_first(lambda: list_checkpoints(self.folder)):
            saved, wrong = self._examine(folder)
            if saved is not None and not wrong:
                _from_first(lambda: self._put_aside(damaged))
                return saved
            damaged[folder] = "; ".join(wrong)
        raise CheckpointError(f"no checkpoint in {self.folder} is whole: {'; '.join(damaged.values())}")

    def _examine(self, folder: Path) -> tuple[CheckpointMetadata | None, list[str]]:
        """A complete checkpoint of this run, and what is wrong with it."""
        saved = _from_first(lambda: _read(folder))
        if isinstance(saved, str):
            return None, [saved]
        self._check(saved)
        found = _gather(_all_in_background(lambda: verify_files(saved, dist.get_rank(), dist.get_world_size())))
        return saved, [line for part in found for line in part]

    def load(self, trainer: Trainer, saved: CheckpointMetadata) -> None:
        """Bring weights, optimizer, schedule and random states to where they were.

        Raises:
            CheckpointError: Megatron-Core cannot read it.
        """
        _make_room(trainer.optimizer)
        state = _state(trainer, is_loading=True)
        loaded = _all(lambda: dist_checkpointing.load(state, str(saved.folder)))
        trainer.gpt.load_state_dict(loaded["model"])
        parts = optimizer_parts(trainer.optimizer)
        states = [loaded["optimizer"]] if len(parts) == 1 else [loaded["optimizer"][i] for i in range(len(parts))]
        for part, own in zip(parts, states, strict=True):
            _load_optimizer(part, own)
        # load_state_dict of the scheduler would add to the count instead of setting it.
        trainer.scheduler.num_steps = saved.train_state.step
        trainer.scheduler.step(0)
        torch.set_rng_state(loaded["random"]["cpu"])
        if trainer.device.type == "cuda" and "device" in loaded["random"]:  # the run may have begun on a CPU
            torch.cuda.set_rng_state(loaded["random"]["device"])

    def _put_aside(self, damaged: dict[Path, str]) -> None:
        for folder, why in damaged.items():
            quarantine(folder)
            print(f"warning: {why}; the checkpoint before it is taken", file=sys.stderr, flush=True)

    def _check(self, saved: CheckpointMetadata) -> None:
        now = run_identity(self.config)
        differing = [
            f"{name} was {saved.run_identity.get(name)}, is {now.get(name)}"
            for name in sorted(saved.run_identity.keys() | now.keys())
            if saved.run_identity.get(name) != now.get(name)
        ]
        if self.config.seed not in (None, saved.train_state.seed):
            differing.append(f"seed was {saved.train_state.seed}, is {self.config.seed}")
        if differing:
            what = "; ".join(differing)
            raise CheckpointError(f"{saved.folder} is of another run: {what}. Restore them, or name another SAVE_DIR")


def _state(trainer: Trainer, is_loading: bool) -> dict[str, Any]:
    """Everything that a step changes, as dist_checkpointing wants it."""
    metadata = dict(_METADATA)
    model = trainer.gpt.sharded_state_dict(metadata=metadata)
    random = {"cpu": torch.get_rng_state()}
    if trainer.device.type == "cuda":
        random["device"] = torch.cuda.get_rng_state()
    return {
        "model": model,
        "optimizer": trainer.optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=metadata),
        "random": random,  # the first rank's: no rank draws from it while it trains
    }


def _make_room(optimizer: Any) -> None:
    """Give an optimizer that has made no step the state that a checkpoint is read into."""
    for part in optimizer_parts(optimizer):
        part.init_state_fn(part.optimizer, part.config)
        # Megatron's function leaves out the count that torch keeps for each parameter; others keep it elsewhere.
        if isinstance(part.optimizer, torch.optim.Adam):
            for state in part.optimizer.state.values():
                state["step"] = torch.zeros(())


def _load_optimizer(part: Any, state: dict[str, Any]) -> None:
    """As Megatron-Core's load_state_dict, which without Transformer Engine mistakes torch's step counts for moments.

    It also gives all parameters one count, which every parameter's update would then move.
    """
    of_parameters = state.pop("param_state")
    part.load_state_dict(state)
    steps = {parameter: kept.pop("step") for parameter, kept in part.optimizer.state.items() if "step" in kept}
    part.load_parameter_state_from_fully_reshardable(of_parameters)
    for parameter, step in steps.items():
        part.optimizer.state[parameter]["step"] = step.clone()


def _all(action: Callable[[], T]) -> T:
    """Every rank acts; its own result, or the first error on all of them."""
    result, error = None, None
    try:
        result = action()
    except (Exception, CheckpointException) as caught:  # the latter is no Exception
        error = f"{type(caught).__name__}: {caught}" if not isinstance(caught, CheckpointError) else str(caught)
    errors = [each for each in _gather(error) if each is not None]
    if errors:
        raise CheckpointError(errors[0])
    return cast(T, result)


def _all_in_background(action: Callable[[], T]) -> T:
    """As `_all`, for what waits for a disk: ranks meet every second meanwhile, so that no collective waits for it."""
    doing = in_background(action)
    while not all(_gather(not wait([doing], _MEET_EVERY_S).not_done)):
        pass
    return _all(doing.result)


def _from_first(action: Callable[[], T], how: Callable[[Callable[[], Any]], Any] = _all) -> T:
    """The first rank acts, by ``how`` all would; its result, or its error, on all of them."""
    told = [how(lambda: action() if dist.get_rank() == 0 else None)]
    dist.broadcast_object_list(told, src=0)
    return cast(T, told[0])


def _read(folder: Path) -> CheckpointMetadata | str:
    """What `state.json` says, or what is wrong with it."""
    try:
        return read_metadata(folder)
    except CheckpointError as error:
        return str(error)


def _gather(value: T) -> list[T]:
    gathered = [value] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered
