"""Retries and their waits, without a server; everything else of requests is in the tests of the download."""

import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from data_scripts.errors import CommandError
from data_scripts.fetching.web import PassingError, Patience, StoppedError, Web, seconds_asked
from gptoss20b.data.files import printable


def waits(patience: Patience, *failures: PassingError) -> list[float]:
    """The waits between attempts that fail like this, and then succeed."""
    found: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            found.append(timeout or 0.0)
            return False

    left = list(failures)

    def attempt() -> str:
        if left:
            raise left.pop(0)
        return "got it"

    assert patience.persist(attempt, Stop()) == "got it"
    return found


def test_waits_double_up_to_a_minute_and_differ() -> None:
    found = waits(Patience(20, 1.0, 1.0), *[PassingError("x")] * 20)
    for number, wait in enumerate(found):
        longest = min(2.0**number, 60.0)
        assert longest / 2 <= wait <= longest
    assert waits(Patience(20, 1.0, 1.0), *[PassingError("x")] * 20) != found


def test_a_server_may_ask_for_a_longer_wait_but_not_for_ever() -> None:
    asked = [PassingError("x", asked=seconds) for seconds in (0.0, 30.0, 1e9)]
    found = waits(Patience(5, 0.5, 1.0), *asked)
    assert found[0] <= 0.5
    assert found[1:] == [30.0, 60.0]


def test_retries_are_counted_in_a_row() -> None:
    failing = [PassingError("x"), PassingError("x", progress=True), PassingError("x"), PassingError("x", progress=True)]
    assert len(waits(Patience(2, 0.0, 1.0), *failing)) == 4


@pytest.mark.parametrize(("retries", "words"), [(0, "x, once. To fix: "), (2, "x, 3 times in a row. To fix: ")])
def test_gives_up_after_the_last(retries: int, words: str) -> None:
    tries = 0

    def attempt() -> None:
        nonlocal tries
        tries += 1
        raise PassingError("x")

    with pytest.raises(CommandError, match=words):
        Patience(retries, 0.0, 1.0).persist(attempt, threading.Event())
    assert tries == retries + 1


def test_a_stop_ends_a_wait() -> None:
    stop = threading.Event()

    def attempt() -> None:
        threading.Timer(0.05, stop.set).start()
        raise PassingError("x")

    with pytest.raises(StoppedError):
        Patience(1, 60.0, 1.0).persist(attempt, stop)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7, 7),
        ("9" * 5000, 1e8, 1e9),
        pytest.param(format_datetime(datetime.now(UTC) - timedelta(seconds=100)), -1e9, 0, id="a time past"),
        ("soon", 0, 0),
        ("", 0, 0),
        ("-5", 0, 0),
        ("Mon, 01 Jan 0001 00:00:00 -0000", -1e12, 0),
    ],
)
def test_reads_what_a_server_asks_to_wait(value: str, low: float, high: float) -> None:
    assert low <= seconds_asked(value) <= high


def test_reads_the_date_a_server_asks_to_wait_for() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100))
    assert 50 <= seconds_asked(date) <= 101


@pytest.mark.parametrize(
    "same", ["https://host.example/x", "https://HOST.example/", "https://host.example:443/y?z", "HTTPS://host.example"]
)
def test_one_host_in_other_spellings(same: str) -> None:
    assert Web("https://host.example/a.uri", 1.0).check(same, "x") == same


@pytest.mark.parametrize(
    "other",
    [
        "https://host.example:444/x",
        "https://host.example./x",
        "https://xhost.example/x",
        "https://host.example.evil/x",
        "https://evil/https://host.example/",
        "https://host.example@evil/x",
        "https://evil@host.example/x",
        "https://evil\\@host.example/x",
        "https://host.example\\.evil/x",
        "https://host.example /x",
        "https://host.example/\n",
        "https:/host.example/x",
        "//host.example/x",
        "http://host.example/x",
    ],
)
def test_another_host_is_refused(other: str) -> None:
    with pytest.raises(CommandError, match=r"^x: got the address .*; expected https://host\.example/"):
        Web("https://host.example/a.uri", 1.0).check(other, "x")


def test_foreign_text_is_one_short_line() -> None:
    assert printable("a\n\x1b[31mä" + "x" * 1000) == r"a\n\x1b[31m\xe4" + "x" * 185
