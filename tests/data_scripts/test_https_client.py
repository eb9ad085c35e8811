"""The pinned host in all spellings, and the Retry-After header; requests are tested by the download."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from data_scripts.errors import CommandError
from data_scripts.fetching.https_client import HttpsClient, retry_after
from data_scripts.fetching.retry import RetryPolicy
from gptoss20b.data.files import printable

CLIENT = HttpsClient("https://host.example/a.uri", RetryPolicy(0, 0.0, 1.0))
PAST, FUTURE = (format_datetime(datetime.now(UTC) + timedelta(seconds=seconds)) for seconds in (-10_000, 10_000))


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("7", 7, 7), (FUTURE, 1_000, 10_001), (PAST, 0, 0), ("Mon, 01 Jan 0001 00:00:00 -0000", 0, 0), ("9" * 5000, 0, 0)]
    + [(nonsense, 0, 0) for nonsense in ("soon", "", "-5", "Mon, 01 Jan 99999999 00:00:00 -0000")],
    # Dates in names would differ between the processes of a parallel run.
    ids=["number", "future", "past", "year 1", "digits", "word", "empty", "negative", "far year"],
)
def test_retry_after(value: str, low: float, high: float) -> None:
    assert low <= retry_after(value) <= high


def test_printable_is_one_short_line() -> None:
    assert printable("a\n\x1b[31mä" + "x" * 1000) == r"a\n\x1b[31m\xe4" + "x" * 185


@pytest.mark.parametrize(
    "same", ["https://host.example/x", "https://HOST.example/", "https://host.example:443/y?z", "HTTPS://host.example"]
)
def test_one_host_in_other_spellings(same: str) -> None:
    assert CLIENT.check_host(same, "x") == same


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
        "/x",
        "file:///etc",
        "https://[",
        "http://host.example/x",
    ],
)
def test_another_host_is_refused(other: str) -> None:
    with pytest.raises(CommandError, match=r"^x: got .*; expected https://host\.example/"):
        CLIENT.check_host(other, "x")
