"""Retries and their backoff, without a server."""

from __future__ import annotations

import threading

import pytest

from data_scripts.errors import CommandError
from data_scripts.fetching.retry import RetryPolicy, StoppedError, TransientError


def waits(policy: RetryPolicy, *failures: TransientError) -> list[float]:
    """Return the waits between attempts that fail like this, and then succeed."""
    waited: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0.0)
            return False

    remaining = list(failures)

    def attempt() -> str:
        if remaining:
            raise remaining.pop(0)
        return "got it"

    assert policy.call(attempt, Stop()) == "got it"
    return waited


def test_waits_double_up_to_a_minute_and_differ() -> None:
    found = waits(RetryPolicy(20, 1.0, 1.0), *[TransientError("x")] * 20)
    for number, wait in enumerate(found):
        longest = min(2.0**number, 60.0)
        assert longest / 2 <= wait <= longest
    assert waits(RetryPolicy(20, 1.0, 1.0), *[TransientError("x")] * 20) != found


def test_a_server_may_ask_for_a_longer_wait_but_not_for_ever() -> None:
    asked = [TransientError("x", retry_after=seconds) for seconds in (0.0, 30.0, 1e9)]
    found = waits(RetryPolicy(5, 0.5, 1.0), *asked)
    assert found[0] <= 0.5
    assert found[1:] == [30.0, 60.0]


def test_retries_are_counted_in_a_row() -> None:
    failing = [TransientError("x", progress=progress) for progress in (False, True, False, True)]
    assert len(waits(RetryPolicy(2, 0.0, 1.0), *failing)) == 4


@pytest.mark.parametrize(("retries", "words"), [(0, "x, once"), (2, "x, 3 times in a row")])
def test_gives_up_after_the_last(retries: int, words: str) -> None:
    tries = 0

    def attempt() -> None:
        nonlocal tries
        tries += 1
        raise TransientError("x")

    with pytest.raises(CommandError, match=words):
        RetryPolicy(retries, 0.0, 1.0).call(attempt, threading.Event())
    assert tries == retries + 1


def test_a_stop_ends_a_wait() -> None:
    stop = threading.Event()

    def attempt() -> None:
        threading.Timer(0.05, stop.set).start()
        raise TransientError("x")

    with pytest.raises(StoppedError):
        RetryPolicy(1, 60.0, 1.0).call(attempt, stop)
