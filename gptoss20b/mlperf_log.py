"""MLPerf log of one run: rank 0 writes the records to the result file, and echoes them on stdout.

Only `RunLog.run_start` and `RunLog.resumed` create a `RunClock`, and `dataloader.build_dataloader` needs one. So no
code can touch the data before the clock runs.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TextIO

from filelock import FileLock
from mlperf_logging.mllog import constants
from mlperf_logging.mllog.mllog import MLLogger

from .config import Config
from .file_lock import acquire_lock

_PACKAGE_PARENT = Path(__file__).resolve().parent.parent
# Lowest precision in linear layers, attention and communication, in the compliance checker's names. The checker has no
# name for MXFP8. With 8-bit layers, attention and all communication still use bf16.
_LOWEST_PRECISIONS = {
    "bf16": ("bfloat16", "bfloat16", "bfloat16"),
    "fp32": ("fp32", "fp32", "fp32"),
    "fp8": ("fp8", "bfloat16", "bfloat16"),
    "mxfp8": ("fp8", "bfloat16", "bfloat16"),
}


class LogWriteError(OSError):
    """A record cannot be written to the result file: its disk is full, or the file has been removed."""

    def __str__(self) -> str:
        fix = "Free space on its disk, or name another folder" if self.errno == errno.ENOSPC else "Name another folder"
        return f"LOGDIR: cannot write {self.filename}: {self.strerror}. {fix}"


class RunClock:
    """Proof that the run's clock is running. Only `RunLog` creates it."""

    def __init__(self, proof: object) -> None:
        if not (isinstance(proof, RunLog) and proof.started):
            raise TypeError("only a RunLog starts the clock")


class _LineHandler(logging.Handler):
    """Pass each line to every writer, even if one fails. Raise the first error, e.g. of a full disk.

    A plain `logging` handler would print such an error to stderr and continue.
    """

    def __init__(self, *writers: Callable[[str], None]) -> None:
        super().__init__()
        self._writers = writers
        self._error: OSError | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno > logging.INFO:
            # mllog catches errors, of this handler or of encoding the value, and logs them as a line.
            raise self._error or ValueError(record.getMessage().strip())
        line, errors = self.format(record), []
        for write in self._writers:
            try:
                write(line)
            except OSError as error:
                errors.append(error)
        self._error = errors[0] if errors else None
        if self._error is not None:
            raise self._error


print_line = partial(print, flush=True)


class RunLog:
    """Writer of the records of one run. Ranks that do not log get a path of None, and write nothing.

    Args:
        path: the result file. It must exist if ``resuming``, and must not otherwise.
        echo: prints a line on stdout. A display brings its own, which knows whether stdout is a terminal.
        resuming: continue the log of an interrupted run. Nothing is written before `resumed`.

    Raises:
        FileExistsError: the result file exists. Results are never overwritten.
        BlockingIOError: another run is writing the result file.
    """

    def __init__(self, path: Path | None, echo: Callable[[str], None] = print_line, *, resuming: bool = False) -> None:
        self.path = path
        self.resuming = resuming
        self.samples = 0
        self.started = False
        self.stopped = False
        # A signal's thread may call run_stop while the main thread does.
        self._stop_lock = threading.Lock()
        self._file: TextIO | None = None
        if path is None:
            return
        self._awaits_resumed = resuming
        self._file = path.open("a" if resuming else "x", encoding="utf-8")
        self._file_lock = _lock(path)
        sink = logging.Logger("gptoss20b.mllog")  # unregistered: other code's handlers and levels do not apply
        sink.addHandler(_LineHandler(self._write, echo))
        # A stack offset of 3 makes records name the line that called this class, past its method and _record. mllog
        # treats root_dir, which it removes from file names, as a regular expression.
        self._mllog = MLLogger(logger=sink, default_stack_offset=3, root_dir=re.escape(str(_PACKAGE_PARENT)))

    def close(self) -> None:
        """Close the result file and release its lock."""
        if self._file is not None:
            # Closing flushes a line that could not be written; the error was raised at that time.
            with contextlib.suppress(OSError):
                self._file.close()
            if self._file_lock is not None:
                # Remove before release: afterwards the file may be another run's lock.
                with contextlib.suppress(OSError):
                    Path(self._file_lock.lock_file).unlink()
                self._file_lock.release()
                self._file_lock = None

    def init_start(self, config: Config) -> None:
        """Log `cache_clear`, as the launcher reports it, and `init_start`."""
        self._record("event", constants.CACHE_CLEAR, config.submission.cache_cleared)
        self._record("start", constants.INIT_START)

    def caches_not_cleared(self) -> None:
        """Log `cache_clear` false, after a true one: another node's caches were not cleared."""
        self._record("event", constants.CACHE_CLEAR, False)

    def describe(self, config: Config, seed: int) -> None:
        """Log the submission, the hyperparameters and the layout, as the rules require."""
        for key, value in hyperparameters(config, seed).items():
            self._record("event", key, value)

    def code(self, git_commit: str) -> None:
        """Log the commit of the running code; "unknown" if neither git nor the image has it."""
        self._record("event", "git_commit", git_commit)

    def self_test(self, warning: str) -> None:
        """Log a kernel that the self-test found wrong, and the one that runs instead."""
        self._record("event", "self_test", warning)

    def run_start(self) -> RunClock:
        """Log `init_stop` and `run_start`. Afterwards the data may be opened."""
        self._record("end", constants.INIT_STOP)
        self._record("start", constants.RUN_START)
        self.started = True
        return RunClock(self)

    def synced_bytes(self) -> int:
        """Flush the log to disk and return its length in bytes; 0 on a rank that does not log."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def resumed(self, log_bytes: int, samples: int) -> RunClock:
        """Truncate the log of an interrupted run to its length at a checkpoint, and log `resumed`.

        The steps after the checkpoint will run again. Their records are kept beside the log as `cut_<k>_of_<log>`.
        ``samples`` are the training sequences at the checkpoint.

        Raises:
            TruncatedLogError: the log is shorter than it was at the checkpoint.
        """
        self.samples = samples
        self.started = True
        if self._file is not None and self.path is not None:
            text = self.path.read_bytes()
            if len(text) < log_bytes:
                raise TruncatedLogError(f"{self.path} has {len(text):,} bytes, and had {log_bytes:,} at the checkpoint")
            _save_removed_records(self.path, text[log_bytes:])
            self._file.truncate(log_bytes)
            self._awaits_resumed = False
        self._record("event", "resumed", samples, samples_count=samples)
        return RunClock(self)

    def initialized_from(self, folder: Path) -> None:
        """Log the folder of the initial weights, which are not the seed's. Open division."""
        self._record("event", "init_from", str(folder))

    def skipped(self, samples: int) -> None:
        """Log the number of training sequences that are left out of the data order. Open division."""
        self._record("event", "skip_samples", samples, samples_count=self.samples)

    def data_opened(self, eval_tokens_sha256: str) -> None:
        """Log the SHA-256 of the evaluated tokens. It is the same for every seed, batch size, layout and machine."""
        self._record("event", "eval_tokens_sha256", eval_tokens_sha256)

    def block_start(self, samples: int) -> None:
        """Log `block_start`: training starts, or continues after an evaluation."""
        self.samples = samples
        self._record("start", constants.BLOCK_START, samples_count=samples)

    def train_loss(self, samples: int, loss: float, learning_rate: float) -> None:
        """Log the loss and the learning rate of the step that ended at ``samples`` training sequences."""
        self.samples = samples
        self._record("event", "train_loss", loss, samples_count=samples, lr=learning_rate)

    def block_stop(self, samples: int, samples_per_second: float) -> None:
        """Log the throughput since `block_start`, and `block_stop`: training pauses for an evaluation."""
        self.samples = samples
        self._record("event", "tracked_stats", {"throughput": samples_per_second}, step=samples)
        self._record("end", constants.BLOCK_STOP, samples_count=samples)

    def eval_start(self, samples: int) -> None:
        """Log `eval_start`."""
        self._record("start", constants.EVAL_START, samples_count=samples)

    def eval_stop(self, samples: int, loss: float) -> None:
        """Log the evaluation's loss in nats per token, and `eval_stop`."""
        self._record("event", constants.EVAL_ACCURACY, loss, samples_count=samples)
        self._record("end", constants.EVAL_STOP, samples_count=samples)

    def run_stop(self, success: bool, reason: str | None = None) -> None:
        """Log `run_stop` once. A later call, e.g. of a signal, waits for the first and does nothing."""
        with self._stop_lock:
            if self.stopped:
                return
            self.stopped = True
            status = constants.SUCCESS if success else constants.ABORTED
            detail = {} if reason is None else {"reason": reason}
            self._record("end", constants.RUN_STOP, samples_count=self.samples, status=status, **detail)

    def _write(self, line: str) -> None:
        assert self._file is not None
        try:
            self._file.write(line + "\n")
            self._file.flush()
            if os.fstat(self._file.fileno()).st_nlink == 0:  # nobody could read what is written
                raise OSError(errno.ENOENT, "somebody has removed it")
        except OSError as error:
            raise LogWriteError(error.errno, error.strerror, str(self.path)) from error

    def _record(self, kind: Literal["event", "start", "end"], key: str, value: Any = None, **metadata: Any) -> None:
        if self._file is not None and not self._awaits_resumed:
            getattr(self._mllog, kind)(key=key, value=value, metadata=metadata or None)


def _lock(log: Path) -> FileLock | None:
    """Lock a log, so that two runs never resume it together. Return None on a file system without locks.

    The lock is a hidden file: the log itself is what a submitter copies.
    """
    try:
        return acquire_lock(log.with_name(f".{log.name}.lock"))
    except BlockingIOError:
        raise BlockingIOError(f"another run is writing {log}") from None
    except OSError:
        return None


class TruncatedLogError(RuntimeError):
    """The log of a run that resumes is shorter than it was at the checkpoint."""


def _save_removed_records(log: Path, records: bytes) -> None:
    if records:
        k = 1
        while (path := log.with_name(f"cut_{k}_of_{log.name}")).exists():
            k += 1
        path.write_bytes(records)


def hyperparameters(config: Config, seed: int) -> dict[str, Any]:
    """Return the records that ruleset 6.1.0 requires once, by key, in the order of the log."""
    fixed, free, parallel, submission = config.fixed, config.free, config.parallel, config.submission
    linear, attention, communication = _LOWEST_PRECISIONS[config.execution.precision]
    return {
        constants.SUBMISSION_BENCHMARK: "gpt_oss_20b",
        constants.SUBMISSION_DIVISION: submission.division,
        constants.SUBMISSION_ORG: submission.org,
        constants.SUBMISSION_PLATFORM: submission.platform,
        constants.SUBMISSION_STATUS: submission.status,
        constants.SEED: seed,
        constants.GLOBAL_BATCH_SIZE: free.global_batch_size,
        constants.MICRO_BATCH_SIZE: config.execution.micro_batch_size,
        constants.GRADIENT_ACCUMULATION_STEPS: config.accumulation_steps,
        constants.MAX_SEQUENCE_LENGTH: fixed.sequence_length,
        constants.TRAIN_SAMPLES: fixed.max_steps * free.global_batch_size,
        constants.EVAL_SAMPLES: fixed.eval_samples,
        "target_accuracy": fixed.target_loss,
        constants.INIT_CHECKPOINT_STEP: 0,
        constants.OPT_NAME: constants.ADAMW,
        constants.OPT_BASE_LR: free.learning_rate,
        constants.OPT_END_LR: config.end_learning_rate,
        constants.OPT_LR_WARMUP_STEPS: free.warmup_steps,
        constants.OPT_LR_DECAY_STEPS: config.decay_steps,
        constants.OPT_LR_DECAY_SCHEDULE: "cosine with linear warmup",
        constants.OPT_ADAMW_BETA_1: fixed.adam_beta1,
        constants.OPT_ADAMW_BETA_2: fixed.adam_beta2,
        constants.OPT_ADAMW_EPSILON: fixed.adam_epsilon,
        constants.OPT_ADAMW_WEIGHT_DECAY: fixed.weight_decay,
        constants.OPT_GRADIENT_CLIP_NORM: fixed.gradient_clip,
        constants.MAX_STEPS: fixed.max_steps,
        constants.LOWEST_NUMERICAL_PRECISION_IN_LINEAR: linear,
        constants.LOWEST_NUMERICAL_PRECISION_IN_ATTN: attention,
        constants.LOWEST_NUMERICAL_PRECISION_IN_COMM: communication,
        constants.TENSOR_PARALLELISM: parallel.tensor,
        constants.PIPELINE_PARALLELISM: parallel.pipeline,
        constants.CONTEXT_PARALLELISM: parallel.context,
        constants.EXPERT_PARALLELISM: parallel.expert,
        constants.CONFIG_FILENAME: submission.config_filename,
    }
