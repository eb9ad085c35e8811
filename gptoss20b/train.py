"""The run, from start to stop. Read top-down: `run` -> `_run_joined` -> `fit`."""

from __future__ import annotations

import math
import secrets
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from .checkpoint.checkpoints import Checkpoints
from .checkpoint.files import CheckpointError, CheckpointMetadata, TrainState, should_resume
from .config import Config, mismatched_settings
from .config.environment import LaunchError
from .data.files import DataError
from .dataloader import DataLoader, DataShard, build_dataloader
from .mlperf_log import CutLogError, RunClock, RunLog
from .model.build import Backend, BackendError, choose_backend
from .process_groups import Rank, distributed_session, read_rank
from .progress import Display, NullProgress, Progress
from .result import read_result
from .run_metadata import make_record, point_latest, result_directory, save_directory, write_record
from .stopping import ExitCode, NonFiniteLossError, die_with_parent, on_signal, signal_reason, target_not_reached
from .trainer import Trainer
from .warmup import warm_up

# Errors whose message is all that a person needs.
_EXPLAINED = (CheckpointError, CutLogError, DataError, LaunchError, NonFiniteLossError)

StepHook = Callable[[int, Trainer], None]
"""Called before each step with its 1-based number; tests use it to inject faults."""


@dataclass
class Run:
    """What one rank carries through a run."""

    config: Config
    rank: Rank
    log: RunLog
    progress: Progress
    backend: Backend
    directory: Path | None = None


def run(config: Config, before_step: StepHook | None = None) -> ExitCode:
    """One rank's whole run. Errors end in the log and in the exit code, never only in a traceback."""
    try:
        rank = read_rank(config)
        backend = choose_backend(config)
        directory = result_directory(config) if rank.is_first else None
        display = Display(config) if rank.is_first else None
        log = RunLog(None)
        if directory and display:
            path = directory / "result_0.txt"
            resumes = should_resume(save_directory(config, directory), path, config.checkpoints.resume)
            log = RunLog(path, display.echo, resuming=resumes)
            point_latest(directory)
    except FileExistsError as error:
        return _refuse(f"LOGDIR: {error.filename} exists, and results are never overwritten. Name another folder.")
    except OSError as error:
        return _refuse(f"LOGDIR: {error}. Name a folder that can be written.")
    except (LaunchError, BackendError, CheckpointError) as error:
        return _refuse(str(error))

    state = Run(config, rank, log, display or NullProgress(), backend, directory)
    with on_signal(lambda name: _abort(state, signal_reason(name))):
        if rank.under_torchrun:  # a run started from a shell may outlive it
            die_with_parent()
        try:
            log.init_start(config)
            with distributed_session(config, rank):
                converged = _run_joined(state, before_step)
        except Exception as error:
            if not isinstance(error, _EXPLAINED):
                traceback.print_exc()
            _abort(state, f"{type(error).__name__}: {error}".splitlines()[0])
            return ExitCode.DIVERGED if isinstance(error, NonFiniteLossError) else ExitCode.FAILED
        finally:
            state.progress.close()
            log.close()
    if directory is not None and log.path is not None:
        print(read_result(log.path), file=sys.stderr, flush=True)
    return ExitCode.CONVERGED if converged else ExitCode.NOT_CONVERGED


def _refuse(why: str) -> ExitCode:
    print(f"error: {why}", file=sys.stderr, flush=True)
    return ExitCode.BAD_CONFIGURATION


def _abort(state: Run, reason: str) -> None:
    """Log `run_stop` aborted as far as the log can still be written, and say why as the last line."""
    try:
        state.log.run_stop(success=False, reason=reason)
    except OSError as error:
        reason += f" (and the log could not be written: {error})"
    state.progress.close()
    print(f"rank {state.rank.number} aborted: {reason}", file=sys.stderr, flush=True)


def _run_joined(state: Run, before_step: StepHook | None) -> bool:
    config, rank, log = state.config, state.rank, state.log
    _agree_on_settings(state)
    folder = state.directory and save_directory(config, state.directory)
    checkpoints = Checkpoints(config, folder, log.resuming, state.progress.message)
    saved = checkpoints.newest()
    seed = saved.train_state.seed if saved else _agree_on_seed(config)
    log.describe(config, seed)
    record = make_record(config) | {"seed": seed, "backend": state.backend}
    log.code(record["git_commit"])
    trainer = Trainer(config, state.backend, rank.device, seed)
    warm_up(trainer, config.execution.warmup_passes)
    record |= trainer.parameter_counts()
    if state.directory is not None:
        write_record(state.directory, record)
    state.progress.message(_opening_line(state, seed))

    if saved:
        checkpoints.load(trainer, saved)
    dist.barrier()
    clock = _resumed(log, saved, config) if saved else log.run_start()
    dataloader = build_dataloader(clock, config, _share(config), rank.device, seed)
    if state.directory is not None:
        record["eval_tokens_sha256"] = _same_evaluation(dataloader.eval_tokens_sha256(), saved)
        write_record(state.directory, record)
        if not saved:
            log.data_opened(record["eval_tokens_sha256"])

    def after_step(step: int) -> None:
        if step % config.logging.interval == 0:  # where ranks wait for the device in any case
            checkpoints.finish(limit_s=0)
        if checkpoints.due(step):
            checkpoints.save(trainer, TrainState(step, seed, log.synced_bytes(), record.get("eval_tokens_sha256", "")))

    done = saved.train_state.step if saved else 0
    converged = fit(state, trainer, dataloader, done, before_step, after_step)
    checkpoints.end()  # after run_stop, which does not wait for a disk
    dataloader.close()  # not after an error: it would wait for a read that storage may never answer
    return converged


def fit(
    state: Run,
    trainer: Trainer,
    dataloader: DataLoader,
    done: int,
    before_step: StepHook | None,
    after_step: Callable[[int], None],
) -> bool:
    """Train until the first evaluation at or below the target; False if max_steps come first.

    ``done`` steps came before, of a run that is gone on with: its block is open, or has just been opened.
    """
    config, log, progress = state.config, state.log, state.progress
    batch_size = config.free.global_batch_size
    if done == 0:
        log.block_start(0)
    block_began, block_started = done, time.perf_counter()
    for step in range(done + 1, config.fixed.max_steps + 1):
        samples = step * batch_size
        if before_step is not None:
            before_step(step, trainer)
        result = trainer.step(dataloader.train_batches(step - 1))
        if step % config.logging.interval == 0 or step == 1:
            loss = _finite(result.loss(), "training", step)
            log.train_loss(samples, loss, result.learning_rate)
            progress.trained(samples, loss)
        if step % config.eval_interval_steps == 0:
            trainer.synchronize()
            seconds = time.perf_counter() - block_started
            log.block_stop(samples, (step - block_began) * batch_size / seconds)
            log.eval_start(samples)
            loss = _finite(
                trainer.evaluate(dataloader.eval_batches(), dataloader.eval_micro_batches), "evaluation", step
            )
            log.eval_stop(samples, loss)
            if loss <= config.fixed.target_loss:
                log.run_stop(success=True)
                progress.evaluated(samples, loss)
                return True
            progress.evaluated(samples, loss)
            if step == config.fixed.max_steps:
                break
            log.block_start(samples)
            block_began, block_started = step, time.perf_counter()
        after_step(step)
    log.run_stop(success=False, reason=target_not_reached(config.fixed.target_loss, config.fixed.max_steps))
    return False


def _finite(loss: float, kind: str, step: int) -> float:
    # The same reduced number on every rank: all leave here together.
    if not math.isfinite(loss):
        raise NonFiniteLossError(f"{kind} loss at step {step} is {loss}")
    return loss


def _agree_on_settings(state: Run) -> None:
    """Nodes are started one by one: settings that differ between them would train a model that nobody asked for."""
    gathered: list[Config] = [state.config] * dist.get_world_size()
    dist.all_gather_object(gathered, state.config)
    differing = mismatched_settings(gathered)
    if differing:
        raise LaunchError("ranks were started with different settings: " + "; ".join(differing))
    cleared = [config.submission.cache_cleared for config in gathered]
    if cleared[0] and not all(cleared):
        state.log.caches_not_cleared()
        rank = cleared.index(False)
        state.progress.message(f"warning: the page cache of rank {rank}'s node was not dropped; cache_clear is false")


def _resumed(log: RunLog, saved: CheckpointMetadata, config: Config) -> RunClock:
    return log.resumed(saved.train_state.log_bytes, saved.train_state.step * config.free.global_batch_size)


def _same_evaluation(sha256: str, saved: CheckpointMetadata | None) -> str:
    """The hash of the evaluated tokens, which a run that is gone on with had before."""
    if saved and saved.train_state.eval_tokens_sha256 != sha256:
        raise DataError(
            f"DATADIR: the evaluated tokens have SHA-256 {sha256}, and had {saved.train_state.eval_tokens_sha256} "
            "before the run was interrupted. Restore the data"
        )
    return sha256


def _agree_on_seed(config: Config) -> int:
    """The configured seed, or one that the first rank draws from the system's randomness for all."""
    if config.seed is not None:
        return config.seed
    drawn = [secrets.randbits(31)]
    dist.broadcast_object_list(drawn, src=0)
    return drawn[0]


def _share(config: Config) -> DataShard:
    from megatron.core import parallel_state

    return DataShard(parallel_state.get_data_parallel_rank(), config.parallel.data, config.execution.micro_batch_size)


def _opening_line(state: Run, seed: int) -> str:
    config = state.config
    return (
        f"{config.model.variant} on {config.parallel.world_size} ranks ({state.rank.device.type}, EP "
        f"{config.parallel.expert}, {state.backend}, {config.execution.precision}), "
        f"GBS {config.free.global_batch_size}, seed {seed}, torch {torch.__version__}; log: {state.log.path}"
    )
