"""The hooks of `train.fit` as a base class of no-ops, and the list that calls several callbacks in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

if TYPE_CHECKING:
    from ..trainer import Trainer

P = ParamSpec("P")


class Callback:
    """Observer of training on one rank; every hook does nothing unless a subclass overrides it.

    Hooks run on every rank, between the trainer's calls. ``step`` counts finished optimizer steps from 1; 0 means
    that none is finished. A hook may communicate only if it runs on all ranks, may not wait for the device where no
    loss is read anyway, and must leave model, optimizer, schedule and random states untouched.

    Attributes:
        trainer: the trainer of the run, set before the first hook.
    """

    trainer: Trainer

    def on_block_start(self, step: int) -> None:
        """Training starts, or continues after an evaluation that did not reach the target."""

    def on_step_start(self, step: int) -> None:
        """Step ``step`` is about to run."""

    def on_train_loss(self, step: int, loss: float, learning_rate: float) -> None:
        """Loss of step ``step`` in nats per token, read from the device: at step 1 and every LOG_INTERVAL steps."""

    def on_eval_start(self, step: int) -> None:
        """Training pauses for an evaluation; the device is idle."""

    def on_eval_stop(self, step: int, loss: float, converged: bool) -> None:
        """End an evaluation after ``step``: ``loss`` in nats per token; ``converged`` if it reached the target."""

    def on_step_stop(self, step: int) -> None:
        """Step ``step`` and its evaluation, if any, are over and training continues."""

    def on_train_stop(self, converged: bool) -> None:
        """Training ended: the target is reached, or max_steps are. Not called when an error or a signal ends it."""


def _call_each(hook: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> None:
        for callback in self.callbacks:
            getattr(callback, hook.__name__)(*args, **kwargs)

    return call


class CallbackList(Callback):
    """Callbacks whose hooks are called one after another, in the order given."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = tuple(callbacks)

    def __str__(self) -> str:
        return ", ".join(type(callback).__name__ for callback in self.callbacks)

    def attach(self, trainer: Trainer) -> None:
        """Give every callback the trainer."""
        for callback in self.callbacks:
            callback.trainer = trainer

    on_block_start = _call_each(Callback.on_block_start)
    on_step_start = _call_each(Callback.on_step_start)
    on_train_loss = _call_each(Callback.on_train_loss)
    on_eval_start = _call_each(Callback.on_eval_start)
    on_eval_stop = _call_each(Callback.on_eval_stop)
    on_step_stop = _call_each(Callback.on_step_stop)
    on_train_stop = _call_each(Callback.on_train_stop)
