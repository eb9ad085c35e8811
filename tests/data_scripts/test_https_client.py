"""The pinned host in all spellings, and the Retry-After header; requests are tested by the download."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from data_scripts.errors import CommandError
from data_scripts.fetching.https_client import HttpsClient, parse_retry_after
from data_scripts.fetching.retry import RetryPolicy

CLIENT = HttpsClient("https://host.example/a.uri", RetryPolicy(0, 0.0, 1.0))


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
def test_retry_after(value: str, low: float, high: float) -> None:
    assert low <= parse_retry_after(value) <= high


def test_retry_after_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100))
    assert 50 <= parse_retry_after(date) <= 101


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
