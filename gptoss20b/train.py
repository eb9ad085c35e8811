"""The run, from start to stop. Read top-down: `run` -> `_run_session` -> `fit`."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from .callbacks import Callback, CallbackList
from .callbacks.checkpointing import Checkpointing
from .callbacks.console import ConsoleProgress, NullProgress
from .callbacks.metrics import Metrics
from .callbacks.mlperf import MlperfLogging
from .checkpoint.checkpointer import Checkpointer
from .checkpoint.files import CheckpointError, CheckpointMetadata, should_resume
from .checkpoint.train_state import load_state
from .config import Config, mismatched_settings
from .config.environment import LaunchError
from .data.files import DataError
from .dataloader import DataLoader, DataShard, build_dataloader
from .failure_report import report_failure
from .gpu_allocator import allocator_settings
from .hf.convert import ConversionError
from .mlperf_log import LogWriteError, RunLog, TruncatedLogError
from .model.backend import Backend, BackendError, choose_backend
from .model.kernels import describe_kernels
from .process_groups import Rank, distributed_session, read_rank
from .result import read_result
from .run_metadata import (
    build_metadata,
    checkpoint_directory,
    create_result_directory,
    update_latest_link,
    write_metadata,
)
from .selftest.run import run_self_test
from .stacks import HangWatch, StacksFile
from .stopping import (
    ExitCode,
    NonFiniteLossError,
    RunError,
    die_with_parent,
    exit_code_for,
    exit_on_signal,
    signal_reason,
)
from .trainer import Trainer
from .warmup import warm_up

# Errors whose message is all that a person needs; any other also leaves its traceback in a file.
_EXPLAINED = (CheckpointError, ConversionError, LogWriteError, TruncatedLogError, DataError, LaunchError, RunError)

T = TypeVar("T")


@dataclass
class RunContext:
    """State of one rank's run outside of the trainer. ``directory``: of the result; None on ranks that do not log."""

    config: Config
    rank: Rank
    log: RunLog
    progress: NullProgress
    backend: Backend
    watch: HangWatch
    directory: Path | None = None


def run(config: Config, extra_callbacks: Sequence[Callback] = ()) -> ExitCode:
    """Run one rank from start to stop. An error ends in the log and in the exit code, never only in a traceback.

    ``extra_callbacks`` are called after the run's own.
    """
    try:
        rank = read_rank(config)
        backend = choose_backend(config)
        directory = create_result_directory(config) if rank.is_rank_zero else None
        progress, log = NullProgress(), RunLog(None)
        if directory:
            progress = console = ConsoleProgress(config)
            path = directory / "result_0.txt"
            resuming = should_resume(checkpoint_directory(config, directory), path, config.checkpoints.resume)
            log = RunLog(path, console.echo, resuming=resuming)
            update_latest_link(directory)
    except FileExistsError as error:
        return _refuse(f"LOGDIR: {error.filename} exists, and results are never overwritten. Name another folder.")
    except OSError as error:
        return _refuse(f"LOGDIR: {error}. Name a folder that can be written.")
    except (LaunchError, BackendError, CheckpointError) as error:
        return _refuse(str(error))

    stacks = StacksFile(rank.rank, rank.world_size, directory or config.logging.directory)
    watch = HangWatch(stacks, config.execution.timeout_seconds)
    context = RunContext(config, rank, log, progress, backend, watch, directory)
    with exit_on_signal(lambda name: _abort(context, signal_reason(name))):
        if rank.under_torchrun:  # a run started from a shell may outlive the shell
            die_with_parent()
        try:
            log.init_start(config)
            with watch, distributed_session(config, rank):
                converged = _run_session(context, extra_callbacks)
        except Exception as error:
            if not isinstance(error, _EXPLAINED):
                watch.write_error(error)
            first, *more = str(error).splitlines() or [""]
            # Errors of torch fill pages; ours may list several problems.
            details = "; ".join(line.strip() for line in more) if isinstance(error, ConversionError) else ""
            reason = f"{type(error).__name__}: {first}" + (f" {details}" if details else "")
            _abort(context, reason)
            return exit_code_for("aborted", reason)
        finally:
            progress.close()
            log.close()
    if log.path is not None:
        progress.finish(str(read_result(log.path)))
    return ExitCode.CONVERGED if converged else ExitCode.NOT_CONVERGED


def _run_session(context: RunContext, extra_callbacks: Sequence[Callback]) -> bool:
    """Run between the creation and the end of the process groups; return whether the target was reached."""
    config, rank, log, progress, watch = context.config, context.rank, context.log, context.progress, context.watch
    _check_same_settings(context)
    directory = _broadcast(context.directory)  # without LOGDIR only rank 0 knows it
    watch.file.directory = watch.file.directory or directory
    folder = context.directory and checkpoint_directory(config, context.directory)
    checkpointer = Checkpointer(config, folder, log.resuming, progress.message)
    saved = checkpointer.find_newest()
    seed = saved.train_state.seed if saved else _choose_seed(config)
    log.describe(config, seed)
    if config.init_from is not None:
        log.initialized_from(config.init_from)
    watch.progress("self-test")
    tested = run_self_test(config, context.backend, rank.device)
    for warning in tested.warnings:
        progress.message(f"warning: {warning}")
        log.self_test(warning)
    kernels = describe_kernels(tested.config, context.backend, rank.device)
    _show_start(context, seed, kernels)
    record = build_metadata(config) | {"seed": seed, "backend": context.backend, "kernels": kernels} | tested.record()
    record["gpu_allocator"] = allocator_settings()
    log.code(record["git_commit"])
    watch.progress("setup of the model")
    trainer = Trainer(tested.config, context.backend, rank.device, seed)
    watch.progress("warm-up")
    warm_up(trainer, config.execution.warmup_passes)
    record |= trainer.parameter_counts()
    if context.directory is not None:
        write_metadata(context.directory, record)
    watch.progress("start of training")
    if saved:
        load_state(trainer, saved)
    # The clock starts when the slowest rank is ready, and before any rank opens the data.
    dist.barrier()
    start_step = saved.train_state.step if saved else 0
    clock = (
        log.resumed(saved.train_state.log_bytes, start_step * config.free.global_batch_size)
        if saved
        else log.run_start()
    )
    if config.data.skip_samples:
        log.skipped(config.data.skip_samples)
    dataloader = build_dataloader(clock, config, data_shard(config), rank.device, seed)
    eval_sha256 = ""
    if context.directory is not None:
        eval_sha256 = record["eval_tokens_sha256"] = _check_eval_tokens(dataloader.eval_tokens_sha256(), saved)
        write_metadata(context.directory, record)
        if not saved:
            log.data_opened(eval_sha256)

    # In this order at every hook: the log first, because its clock must not wait for another callback.
    callbacks = CallbackList(
        [
            MlperfLogging(log, config),
            Checkpointing(checkpointer, config, log, seed, eval_sha256),
            Metrics(config, context.directory and context.directory / "metrics.jsonl", start_step, progress.message),
            progress,
            watch,
            *extra_callbacks,
        ]
    )
    progress.detail(f"callbacks, in order: {callbacks}")
    with checkpointer.closed_on_divergence():
        converged = fit(config, trainer, dataloader, callbacks, start_step)
    # Not in a finally: after an error this would wait for a read that storage may never answer.
    dataloader.close()
    return converged


def fit(config: Config, trainer: Trainer, dataloader: DataLoader, callbacks: CallbackList, start_step: int = 0) -> bool:
    """Train until an evaluation reaches the target, or for max_steps. Return whether the target was reached.

    ``start_step`` is the number of steps already completed, above 0 when resuming.

    Raises:
        DivergedError: an evaluation's loss or a gradient is NaN or infinite.
    """
    fixed = config.fixed
    callbacks.attach(trainer)
    converged = False
    callbacks.on_block_start(start_step)
    for step in range(start_step + 1, fixed.max_steps + 1):
        callbacks.on_step_start(step)
        result = trainer.step(dataloader.train_batches(step - 1))
        if config.logging.has_loss(step):
            loss = result.loss()
            trainer.check_finite()
            callbacks.on_train_loss(step, loss, result.learning_rate)
        if step % config.eval_interval_steps == 0:
            trainer.synchronize()
            trainer.check_finite()
            callbacks.on_eval_start(step)
            loss = trainer.evaluate(dataloader.eval_batches(), dataloader.eval_micro_batches)
            if not math.isfinite(loss):  # on every rank, which all have the same loss
                raise NonFiniteLossError(f"evaluation loss at step {step} is {loss}")
            converged = loss <= fixed.target_loss
            callbacks.on_eval_stop(step, loss, converged)
            if converged or step == fixed.max_steps:
                break
            callbacks.on_block_start(step)
        callbacks.on_step_stop(step)
    callbacks.on_train_stop(converged)
    return converged


def _check_same_settings(context: RunContext) -> None:
    """Compare the settings of all ranks: nodes are started one by one, and a difference would train another model."""
    gathered: list[Config] = [context.config] * dist.get_world_size()
    dist.all_gather_object(gathered, context.config)
    differing = mismatched_settings(gathered)
    if differing:
        raise LaunchError("ranks were started with different settings: " + "; ".join(differing))
    cleared = [config.submission.cache_cleared for config in gathered]
    if cleared[0] and not all(cleared):
        context.log.caches_not_cleared()
        rank = cleared.index(False)
        context.progress.message(
            f"warning: the page cache of rank {rank}'s node was not dropped; cache_clear is logged as false"
        )


def _check_eval_tokens(sha256: str, saved: CheckpointMetadata | None) -> str:
    """Return the hash of the evaluated tokens, which must not change when a run resumes."""
    if saved and saved.train_state.eval_tokens_sha256 != sha256:
        raise DataError(
            f"DATADIR: the evaluated tokens have SHA-256 {sha256}, and had {saved.train_state.eval_tokens_sha256} "
            "before the run was interrupted. Restore the data"
        )
    return sha256


def _choose_seed(config: Config) -> int:
    """Return the configured seed, or one that rank 0 draws from the system's randomness for all ranks."""
    if config.seed is not None:
        return config.seed
    return _broadcast(secrets.randbits(31))


def _broadcast(value: T) -> T:
    """Return rank 0's value on all ranks."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def data_shard(config: Config) -> DataShard:
    """Return this rank's part of every batch. The process groups must exist."""
    from megatron.core import parallel_state

    return DataShard(parallel_state.get_data_parallel_rank(), config.parallel.data, config.execution.micro_batch_size)


def _show_start(context: RunContext, seed: int, kernels: dict[str, str]) -> None:
    config, log, batch = context.config, str(context.log.path), context.config.free.global_batch_size
    model, version, interval = config.model.variant, torch.__version__, config.eval_interval_steps * batch
    layout = f"{config.parallel.world_size} ranks ({context.rank.device.type}, EP {config.parallel.expert}, "
    layout += f"{context.backend}, {config.execution.precision})"
    facts = {
        "model": f"{model}, torch {version}",
        "layout": layout,
        "batch": f"{batch} sequences of {config.fixed.sequence_length:,} tokens, seed {seed}",
        "target": f"loss {config.fixed.target_loss:g} in an evaluation, every {interval:,} samples",
        "log": log,
    }
    line = f"{model} on {layout}, GBS {batch}, seed {seed}, torch {version}; log: {log}"
    if kernels:
        facts["kernels"] = "; ".join(f"{name.replace('_', ' ')}: {kernel}" for name, kernel in kernels.items())
        line += f"; kernels: {facts['kernels']}"
    if context.rank.device.type == "cuda" and (allocator := allocator_settings()):
        facts["allocator"] = ", ".join(f"{name}={value}" for name, value in allocator.items())
        line += f"; {facts['allocator']}"
    context.progress.start(facts, line)


def _refuse(reason: str) -> ExitCode:
    report_failure(reason, f"error: {reason}")
    return ExitCode.BAD_CONFIGURATION


def _abort(context: RunContext, reason: str) -> None:
    """Log `run_stop` aborted, if the log can still be written, and print the reason as the last line."""
    rank, code = context.rank, exit_code_for("aborted", reason)
    context.watch.write_if_overdue()  # a rank that hung until a signal
    try:
        context.log.run_stop(success=False, reason=reason)
    except OSError as error:
        if str(error) not in reason:
            reason += f" (and {error})"
    context.progress.close()
    if not rank.is_rank_zero and rank.under_torchrun and code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED):
        return  # rank 0 got the signal, too, and says it
    details = context.watch.describe()
    line = f"rank {rank.rank} aborted: {reason}" + (f" ({details})" if details else "")
    found_by_all = code in (ExitCode.DIVERGED, ExitCode.BAD_CONFIGURATION)  # the same loss, or the same wrong kernel
    report_failure(reason, line if rank.is_rank_zero or not found_by_all else None)
