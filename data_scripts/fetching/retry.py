"""Retry with exponential backoff and jitter."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..errors import CommandError

_MAX_WAIT = 60.0
_T = TypeVar("_T")


class TransientError(Exception):
    """A failure that another attempt may avoid. The message is one line.

    Attributes:
        retry_after: seconds that the server asks to wait.
        progress: the attempt received data that the next one builds on.
    """

    def __init__(self, message: str, retry_after: float = 0.0, progress: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.progress = progress


class StoppedError(Exception):
    """The download was stopped during a wait, and nobody needs the result."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long to retry.

    Attributes:
        retries: consecutive retries without progress before giving up.
        first_wait: seconds before the first retry; doubled each time, up to a minute.
        timeout: seconds without a byte, or without a connection, that end an attempt.
    """

    retries: int
    first_wait: float
    timeout: float

    def call(self, attempt: Callable[[], _T], stop: threading.Event) -> _T:
        """Call `attempt` until it succeeds, and return its result.

        Raises:
            CommandError: the attempt failed for good, or more than `retries` times in a row without progress.
            StoppedError: `stop` was set during a wait.
        """
        failures = 0
        while True:
            try:
                return attempt()
            except TransientError as error:
                failures = 1 if error.progress else failures + 1
                if failures > self.retries:
                    tries = "once" if failures == 1 else f"{failures} times in a row"
                    raise CommandError(
                        f"{error}, {tries}. To fix: run the same command again later; what was fetched is kept."
                    ) from error
                backoff: float = min(self.first_wait * 2 ** min(failures - 1, 30), _MAX_WAIT)
                # Jitter keeps the streams from retrying all at the same moment.
                wait = max(backoff * random.uniform(0.5, 1.0), min(error.retry_after, _MAX_WAIT))
            if stop.wait(wait):
                raise StoppedError
