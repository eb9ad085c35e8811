"""The log of one run: MLPerf's records, in the order of the benchmark's timeline, from rank 0 to stdout and the file.

`RunLog.run_start` is the only maker of a `RunClock`, and opening the data takes one (`dataloader.build_dataloader`): the data cannot
be touched before the clock runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from mlperf_logging.mllog import constants
from mlperf_logging.mllog.mllog import MLLogger

from .config import Config

_PACKAGE_PARENT = Path(__file__).resolve().parent.parent
# The lowest precision in linear layers, attention and communication, in the checker's names, of which MXFP8 has none of
# its own. With 8-bit layers attention is computed, and weights, tokens and their gradients are sent, in bf16.
_LOWEST_PRECISIONS = {
    "bf16": ("bfloat16", "bfloat16", "bfloat16"),
    "fp32": ("fp32", "fp32", "fp32"),
    "fp8": ("fp8", "bfloat16", "bfloat16"),
    "mxfp8": ("fp8", "bfloat16", "bfloat16"),
}


class RunClock:
    """Proof that the run's clock is running. Made by `RunLog.run_start` only."""

    def __init__(self, proof: object) -> None:
        if not (isinstance(proof, RunLog) and proof.started):
            raise TypeError("only RunLog.run_start starts the clock")
        self._started = time.perf_counter()

    def seconds(self) -> float:
        """Seconds since run_start. Never pauses."""
        return time.perf_counter() - self._started


class _Lines(logging.Handler):
    """Hands each line to every writer, and lets a full disk be an error instead of a note on stderr.

    A writer that fails does not keep the line from the others.
    """

    def __init__(self, *writers: Callable[[str], None]) -> None:
        super().__init__()
        self._writers = writers
        self._error: OSError | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno > logging.INFO:
            # mllog turns whatever went wrong, here or in encoding the value, into a line of the log.
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


def print_line(line: str) -> None:
    """One line on stdout, at once."""
    print(line, flush=True)


class RunLog:
    """Writes the records of one run; on every rank but the first, the same calls write nothing.

    Args:
        path: the result file, which must not exist unless the run goes on; None for a rank that does not log.
        echo: shows each line on stdout; a display with a live line has its own way.
        resuming: the file is that of an interrupted run. Nothing is written before `resumed`.

    Raises:
        FileExistsError: the result file exists; results are never overwritten.
        BlockingIOError: another run is writing it.
    """

    def __init__(self, path: Path | None, echo: Callable[[str], None] = print_line, *, resuming: bool = False) -> None:
        self.path = path
        self.resuming = resuming
        self.samples = 0
        self.started = False
        self.stopped = False
        self._lock = threading.Lock()
        self._file: TextIO | None = None
        if path is None:
            return
        self._waits = resuming
        self._file = path.open("a" if resuming else "x", encoding="utf-8")
        _lock(self._file)
        sink = logging.Logger("gptoss20b.mllog")  # unregistered: nobody else's handlers or levels apply
        sink.addHandler(_Lines(self._write, echo))
        # Stack offset 3: records name the line that called this class, past its method and _event. mllog takes the root
        # folder, whose name it cuts off, for a regular expression.
        self._mllog = MLLogger(logger=sink, default_stack_offset=3, root_dir=re.escape(str(_PACKAGE_PARENT)))

    def close(self) -> None:
        """Close the result file."""
        if self._file is not None:
            # What could not be written was an error when it was written; closing tries it again.
            with contextlib.suppress(OSError):
                self._file.close()

    def init_start(self, config: Config) -> None:
        """`cache_clear` as the launcher found it, then `init_start`."""
        self._event(constants.CACHE_CLEAR, config.submission.cache_cleared)
        self._start(constants.INIT_START)

    def caches_not_cleared(self) -> None:
        """`cache_clear` false, after a true one: what the first node found does not hold for all."""
        self._event(constants.CACHE_CLEAR, False)

    def describe(self, config: Config, seed: int) -> None:
        """Everything that the rules want to know of the run, from its configuration."""
        for key, value in hyperparameters(config, seed).items():
            self._event(key, value)

    def code(self, git_commit: str) -> None:
        """The commit of the code that runs, "unknown" where neither git nor the image knows it."""
        self._event("git_commit", git_commit)

    def run_start(self) -> RunClock:
        """`init_stop`, `run_start`: from here on the data may be opened."""
        self._end(constants.INIT_STOP)
        self._start(constants.RUN_START)
        self.started = True
        return RunClock(self)

    def synced_bytes(self) -> int:
        """Length of the log in bytes, all of which is on the disk; 0 on a rank that does not log."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def resumed(self, log_bytes: int, samples: int) -> RunClock:
        """Go on with an interrupted run's log from where it was at a checkpoint. The clock has run on meanwhile.

        What came after the checkpoint will come again; it is kept beside the log, as `cut_<k>_of_<log>`.
        """
        self.samples = samples
        self.started = True
        if self._file is not None and self.path is not None:
            text = self.path.read_bytes()
            if len(text) < log_bytes:
                raise CutLogError(f"{self.path} has {len(text):,} bytes, and had {log_bytes:,} at the checkpoint")
            _keep_cut(self.path, text[log_bytes:])
            self._file.truncate(log_bytes)
            self._waits = False
        self._event("resumed", samples, {constants.SAMPLES_COUNT: samples})
        return RunClock(self)

    def data_opened(self, eval_tokens_sha256: str) -> None:
        """The SHA-256 of the evaluated tokens, which is the same for every seed, batch size, layout and machine."""
        self._event("eval_tokens_sha256", eval_tokens_sha256)

    def block_start(self, samples: int) -> None:
        """Training begins or goes on after an evaluation."""
        self.samples = samples
        self._start(constants.BLOCK_START, {constants.SAMPLES_COUNT: samples})

    def train_loss(self, samples: int, loss: float, learning_rate: float) -> None:
        """The loss of the step that ended with ``samples`` sequences seen, and the learning rate it used."""
        self.samples = samples
        self._event("train_loss", loss, {constants.SAMPLES_COUNT: samples, "lr": learning_rate})

    def block_stop(self, samples: int, samples_per_second: float) -> None:
        """Training pauses for an evaluation."""
        self.samples = samples
        self._event("tracked_stats", {"throughput": samples_per_second}, {"step": samples})
        self._end(constants.BLOCK_STOP, {constants.SAMPLES_COUNT: samples})

    def eval_start(self, samples: int) -> None:
        """An evaluation begins."""
        self._start(constants.EVAL_START, {constants.SAMPLES_COUNT: samples})

    def eval_stop(self, samples: int, loss: float) -> None:
        """The evaluation's loss, and its end."""
        self._event(constants.EVAL_ACCURACY, loss, {constants.SAMPLES_COUNT: samples})
        self._end(constants.EVAL_STOP, {constants.SAMPLES_COUNT: samples})

    def run_stop(self, success: bool, reason: str | None = None) -> None:
        """The end, once; a later call (a signal that arrives during it, say) waits for it and does nothing."""
        with self._lock:
            if self.stopped:
                return
            self.stopped = True
            status = constants.SUCCESS if success else constants.ABORTED
            detail = {} if reason is None else {"reason": reason}
            self._end(constants.RUN_STOP, {constants.SAMPLES_COUNT: self.samples, constants.STATUS: status, **detail})

    def _write(self, line: str) -> None:
        assert self._file is not None
        self._file.write(line + "\n")
        self._file.flush()

    @property
    def _writes(self) -> bool:
        return self._file is not None and not self._waits

    def _event(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        if self._writes:
            self._mllog.event(key=key, value=value, metadata=metadata)

    def _start(self, key: str, metadata: dict[str, Any] | None = None) -> None:
        if self._writes:
            self._mllog.start(key=key, metadata=metadata)

    def _end(self, key: str, metadata: dict[str, Any] | None = None) -> None:
        if self._writes:
            self._mllog.end(key=key, metadata=metadata)


def _lock(file: TextIO) -> None:
    """Two runs that go on with one log would mix; a file system without locks has to do without."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(f"another run is writing {file.name}") from None
    except OSError:
        pass


class CutLogError(RuntimeError):
    """The log of a run that is to go on is shorter than it was."""


def _keep_cut(log: Path, cut: bytes) -> None:
    if cut:
        k = 1
        while (kept := log.with_name(f"cut_{k}_of_{log.name}")).exists():
            k += 1
        kept.write_bytes(cut)


def hyperparameters(config: Config, seed: int) -> dict[str, Any]:
    """The once-only records of ruleset 6.1.0, by key, in log order."""
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
