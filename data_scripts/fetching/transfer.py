"""Fetch the missing segments of several files over several streams at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from urllib3.exceptions import HTTPError

from gptoss20b.data.files import printable

from ..errors import CommandError
from .https_client import HttpsClient, root_cause
from .partial_file import PartialFile
from .remote import ContentRange, content_range
from .retry import TransientError

# bytes per read; a TLS record holds 16 KiB at most
_BLOCK = 1 << 18
# seconds between two calls of on_progress
_POLL_INTERVAL = 0.2
# seconds after which the state of a segment under way is saved: what a killed process loses on a slow line
_SAVE_INTERVAL = 5.0


def fetch(client: HttpsClient, parts: Sequence[PartialFile], streams: int, on_progress: Callable[[int], None]) -> None:
    """Fetch everything missing; call `on_progress` a few times a second with the bytes that all parts hold.

    However this ends, every part has saved its state. On failure `client.stop` is set: streams that wait for a server
    then end with the process, or when their part is closed.

    Raises:
        CommandError: a segment cannot be fetched, or the disk is full.
    """
    segments = [(part, segment) for part in parts for segment in part.incomplete_segments()]
    # Taking the next item of a list's iterator is atomic.
    todo = iter(segments)
    # One entry per stream that ended: None, or why it failed.
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def run_stream() -> None:
        try:
            while not client.stop.is_set() and (item := next(todo, None)) is not None:
                _fetch_segment(client, *item)
            ended.put(None)
        except BaseException as error:
            ended.put(error)

    # Daemon threads: a stream that waits for a silent server must not keep the process alive.
    count = min(streams, len(segments))
    threads = [threading.Thread(target=run_stream, name="fetch", daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
        _wait_for_streams(ended, count, lambda: on_progress(sum(part.received for part in parts)))
    except BaseException:
        # Ends all waits at once. What a stream still receives is refused when its part is closed.
        client.stop.set()
        for part in parts:
            # On a disk too full for a new state, the old one stays: it is behind the data, not wrong.
            with suppress(CommandError, OSError):
                part.save_state()
        raise


def _wait_for_streams(ended: SimpleQueue[BaseException | None], streams: int, report: Callable[[], None]) -> None:
    while streams:
        report()
        with suppress(Empty):
            error = ended.get(timeout=_POLL_INTERVAL)
            if error is not None:
                raise error
            streams -= 1
    report()


def _fetch_segment(client: HttpsClient, part: PartialFile, segment: int) -> None:
    client.retry(lambda: _attempt(client, part, segment))
    part.save_state()


def _attempt(client: HttpsClient, part: PartialFile, segment: int) -> None:
    """Receive the rest of a segment. If the server sends ranges, the next attempt resumes after a failure."""
    remote = part.remote
    if not remote.ranges:
        part.reset_segment(segment)
    before = span = part.missing_range(segment)
    if span is None:
        return
    try:
        with client.get(remote.url, span if remote.ranges else None) as response:
            _check_version(part, content_range(response, remote.url), response.headers.get("etag", ""), span[0])
            saved = time.monotonic()
            while span is not None and (data := response.raw.read1(_BLOCK)):
                if time.monotonic() - saved > _SAVE_INTERVAL:
                    part.save_state()
                    saved = time.monotonic()
                part.write(segment, data[: span[1] - span[0] + 1])
                span = part.missing_range(segment)
        reason = "the connection was closed"
    except HTTPError as error:
        reason, span = root_cause(error), part.missing_range(segment)
    if span is not None:
        progress = remote.ranges and span != before
        raise TransientError(
            f"{remote.url}: got a truncated answer ({reason}); expected bytes {span[0]} to {span[1]}", progress=progress
        )


def _check_version(part: PartialFile, got: ContentRange, etag: str, first: int) -> None:
    remote = part.remote
    if got.size != remote.size or etag != remote.etag:
        now, before = (f"{size} bytes, tag {printable(tag) or 'none'}" for size, tag in ((got.size, etag), remote[1:3]))
        raise CommandError(
            f"{remote.url}: got another version ({now}); expected that of the start ({before}). "
            "To fix: run the same command again."
        )
    if got.first != first:
        raise TransientError(f"{remote.url}: got an answer that starts at byte {got.first}; expected byte {first}")
