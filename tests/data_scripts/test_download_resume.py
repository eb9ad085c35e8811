"""Interrupted downloads resume: no segment twice, no mixture of versions, one process at a time."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.support.download_runs import BIG, BIG_PATH, LIMIT, REMOTE_FILES, SEGMENT, Runs, ended
from tests.support.faulty_server import LIST, URI, answer

SIZE = len(REMOTE_FILES[BIG])


def interrupt(runs: Runs, number: int, segment: int = 3, after: int = 1000) -> float:
    """End a download of one stream with a signal in the middle of a segment; return the seconds it took to end."""
    for _ in range(segment):
        runs.server.fault(BIG_PATH, answer)
    with runs.paused("--streams", "1", after=after) as (process, hold):
        # The bytes were sent; the client has received them when its part holds them.
        part = runs.directory / ".download" / f"{BIG}.part"
        until = time.monotonic() + LIMIT
        while part.stat().st_size < segment * SEGMENT + after and time.monotonic() < until:
            time.sleep(0.01)
        spans = [(start * SEGMENT, (start + 1) * SEGMENT - 1) for start in range(segment)]
        assert runs.server.spans(BIG)[:segment] == spans
        started = time.monotonic()
        process.send_signal(number)
        done = ended(process)
        took = time.monotonic() - started
    hold.release.set()
    assert BIG not in runs.held()
    runs.assert_nothing_unverified()
    if number != signal.SIGKILL:
        assert (done.status, done.out, done.err.count("\n")) == (128 + number, "", 1)
        assert done.err.startswith("error: ")
    runs.forget()
    return took


def saved_bytes(state: Path) -> int:
    """Bytes of the first segment in a state file."""
    return int(json.loads(state.read_text())["received"][0]) if state.exists() else 0


def test_the_state_of_a_segment_under_way_is_saved_now_and_then(runs: Runs) -> None:
    runs.save_interval = 0.0
    state = runs.directory / ".download" / f"{BIG}.state"
    with runs.paused("--streams", "1", after=40_000) as (process, hold):
        until = time.monotonic() + LIMIT
        while not saved_bytes(state) and time.monotonic() < until:
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert 0 < saved_bytes(state) <= 40_000
    runs.forget()
    hold.release.set()
    assert runs.call().status == 0
    assert runs.held() == REMOTE_FILES
    assert (0, SEGMENT - 1) not in runs.server.spans(BIG)


def test_after_a_kill_no_finished_segment_is_fetched_again(runs: Runs) -> None:
    interrupt(runs, signal.SIGKILL)
    assert (runs.directory / ".download" / "lock").exists()
    assert runs.call().status == 0
    assert runs.held() == REMOTE_FILES
    assert sorted(runs.server.spans(BIG))[0][0] == 3 * SEGMENT
    assert runs.server.sent[BIG_PATH] == 1 + SIZE - 3 * SEGMENT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_and_keeps_every_byte(runs: Runs, number: int) -> None:
    took = interrupt(runs, number)
    assert took < 5, "the server was silent, with a timeout of a minute"
    done = runs.call("--offline")
    assert f"{BIG}: partial, {3 * SEGMENT + 1000:,} of {SIZE:,} bytes\n" in done.out
    assert runs.call().status == 0
    assert runs.held() == REMOTE_FILES
    assert sorted(runs.server.spans(BIG))[0][0] == 3 * SEGMENT + 1000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_wait_for_the_first_answer(runs: Runs, number: int) -> None:
    with runs.paused(after=3, path=URI) as (process, _):
        process.send_signal(number)
        runs.assert_failed(ended(process), status=128 + number)
    assert not (runs.directory / ".download").exists()


@pytest.mark.parametrize("change", ["content", "tag"])
def test_another_version_is_fetched_from_the_start_with_a_note(runs: Runs, change: str) -> None:
    interrupt(runs, signal.SIGTERM)
    files = REMOTE_FILES
    if change == "content":
        files = {**REMOTE_FILES, BIG: REMOTE_FILES[BIG][::-1]}
        runs.server.publish(files)
    else:
        runs.server.tags[BIG_PATH] = '"another"'
    done = runs.call()
    assert (done.status, runs.held()) == (0, files)
    assert done.err.startswith(f"{BIG}: another version") and done.err.count("\n") == 1
    assert runs.server.sent[BIG_PATH] == 1 + SIZE


def test_a_second_process_is_refused_and_the_first_continues(runs: Runs) -> None:
    with runs.paused() as (first, hold):
        before = len(runs.server.requests)
        second = runs.run()
        assert (second.status, second.out, second.err.count("\n")) == (1, "", 1)
        assert second.err.startswith(f"error: {runs.directory}/.download: got a folder that another process writes to")
        # The first may have requested other files meanwhile.
        assert [ask for ask in runs.server.requests[before:] if ask.path in (URI, LIST)] == []
        hold.release.set()
        assert ended(first).status == 0
    assert runs.held() == REMOTE_FILES
