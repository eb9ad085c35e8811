"""Runs that write checkpoints, are killed where a test says so, and are gone on with."""

from __future__ import annotations

import os
import signal
from typing import Any

from gptoss20b.checkpoint import checkpoints, files
from gptoss20b.config import resolve
from gptoss20b.train import run


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train(variables: dict[str, str], die_before: int = 0, die_in: str = "") -> int:
    """One rank's run; its exit status.

    Args:
        variables: the configuration.
        die_before: this rank is killed, as by kill -9, when this step is about to begin.
        die_in: the first rank is killed in the second save: before it is "writing" its files, before they are
            "published", or before "pruning".
    """
    saves = 0

    def killed_in_second(original: Any) -> Any:
        def replaced(*arguments: Any, **options: Any) -> Any:
            nonlocal saves
            saves += 1
            if saves == 2 and os.environ["RANK"] == "0":
                _die()
            return original(*arguments, **options)

        return replaced

    if die_in == "writing":
        checkpoints._state = killed_in_second(checkpoints._state)
    if die_in == "published":
        checkpoints.publish = killed_in_second(files.publish)  # type: ignore[attr-defined]
    if die_in == "pruning":
        checkpoints.prune = killed_in_second(files.prune)  # type: ignore[attr-defined]

    def before_step(step: int, _: Any) -> None:
        if step == die_before:
            _die()

    return int(run(resolve(variables), before_step))
