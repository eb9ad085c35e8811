"""The records of training in the MLPerf log: blocks, losses, throughput, evaluations and the end of the run."""

from __future__ import annotations

import time

from ..config import Config
from ..mlperf_log import RunLog
from ..stopping import target_not_reached_reason
from .base import Callback


class MlperfLogging(Callback):
    """Write the records between run_start and run_stop to a log whose clock runs."""

    def __init__(self, log: RunLog, config: Config) -> None:
        self._log, self._fixed = log, config.fixed
        self._batch_size = config.free.global_batch_size
        # A resumed log holds the block_start of the interrupted run.
        self._in_block = log.resuming
        self._block_start_step, self._block_start_s = 0, 0.0

    def on_block_start(self, step: int) -> None:
        """Log block_start, unless the log of a resumed run has it already, and start timing the block."""
        if not self._in_block:
            self._log.block_start(step * self._batch_size)
        self._in_block = True
        self._block_start_step, self._block_start_s = step, time.perf_counter()

    def on_train_loss(self, step: int, loss: float, learning_rate: float) -> None:
        """Log train_loss."""
        self._log.train_loss(step * self._batch_size, loss, learning_rate)

    def on_eval_start(self, step: int) -> None:
        """Log the block's throughput, block_stop and eval_start."""
        seconds = time.perf_counter() - self._block_start_s
        samples = step * self._batch_size
        self._log.block_stop(samples, (step - self._block_start_step) * self._batch_size / seconds)
        self._in_block = False
        self._log.eval_start(samples)

    def on_eval_stop(self, step: int, loss: float, converged: bool) -> None:
        """Log the evaluation's loss; stop the clock at once if it reached the target, before any other callback."""
        self._log.eval_stop(step * self._batch_size, loss)
        if converged:
            self._log.run_stop(success=True)

    def on_train_stop(self, converged: bool) -> None:
        """Log run_stop of a run that did not reach the target."""
        if not converged:
            self._log.run_stop(
                success=False, reason=target_not_reached_reason(self._fixed.target_loss, self._fixed.max_steps)
            )
