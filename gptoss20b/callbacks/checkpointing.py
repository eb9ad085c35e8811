"""When checkpoints are written during training; `checkpoint/` has how."""

from __future__ import annotations

from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.files import TrainState
from ..config import Config
from ..mlperf_log import RunLog
from .base import Callback


class Checkpointing(Callback):
    """Save a checkpoint after each step at which one is due."""

    def __init__(
        self, checkpointer: Checkpointer, config: Config, log: RunLog, seed: int, eval_tokens_sha256: str
    ) -> None:
        self._checkpointer, self._config, self._log = checkpointer, config, log
        self._seed, self._eval_tokens_sha256 = seed, eval_tokens_sha256

    def on_step_stop(self, step: int) -> None:
        """Complete a checkpoint whose files are written, and start the next one if it is due.

        Raises:
            NonFiniteGradientError: the run has diverged. Its earlier checkpoints stay.
        """
        # Ranks exchange messages here, so only where they have just waited for the device to read the loss.
        if step % self._config.logging.interval == 0:
            self._checkpointer.complete_pending(timeout_s=0)
        if self._checkpointer.is_due(step):
            self.trainer.check_finite()
            skipped = self._config.data.skip_samples
            state = TrainState(step, self._seed, self._log.synced_bytes(), self._eval_tokens_sha256, skipped)
            self._checkpointer.save(self.trainer, state)

    def on_train_stop(self, converged: bool) -> None:
        """Complete the last checkpoint. The clock has stopped: a slow disk costs no time of the run."""
        self._checkpointer.close()
