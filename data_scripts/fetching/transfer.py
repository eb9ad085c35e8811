"""Fetching the missing segments of several files with several streams at once."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from urllib3.exceptions import HTTPError

from data_scripts.errors import CommandError
from data_scripts.fetching.parts import Part
from data_scripts.fetching.remote import Span, span_of
from data_scripts.fetching.web import PassingError, Patience, Web, cause
from gptoss20b.data.files import printable

# bytes asked for at a time; TLS gives 16 KiB at most
_BLOCK = 1 << 18
# seconds between two looks at how far it is
_TICK = 0.2
# seconds after which a segment under way is noted: what a killed process loses of a slow line
_NOTING = 5.0


def fetch(
    web: Web,
    parts: Sequence[Part],
    streams: int,
    patience: Patience,
    stop: threading.Event,
    watch: Callable[[int], None],
) -> None:
    """Fetch all that is missing; `watch` is called a few times a second with the bytes that all parts hold.

    However it ends, every part has noted what it received. `stop` is set when it ends early; streams that wait for a
    server then go with the process, or when their part is closed.

    Raises:
        CommandError: a segment cannot be fetched, or the disk is full.
        OSError: the disk failed.
    """
    segments = [(part, segment) for part in parts for segment in part.open_segments()]
    # Taking the next item of a list's iterator is atomic.
    todo = iter(segments)
    # one entry per stream that ended: None, or why it failed
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            while not stop.is_set() and (item := next(todo, None)) is not None:
                _fetch_segment(web, *item, patience, stop)
            ended.put(None)
        except BaseException as error:
            ended.put(error)

    # Daemons: a stream that waits for a silent server must not keep the process from ending.
    threads = [threading.Thread(target=work, name="fetch", daemon=True) for _ in range(min(streams, len(segments)))]
    try:
        for thread in threads:
            thread.start()
        _await(ended, len(threads), lambda: watch(sum(part.received for part in parts)))
    except BaseException:
        # Waits end at once; what a stream still receives is refused when the part is closed.
        stop.set()
        for part in parts:
            # a disk too full for the state: the one before stands, and is behind, not wrong
            with suppress(CommandError, OSError):
                part.note()
        raise


def _await(ended: "SimpleQueue[BaseException | None]", streams: int, look: Callable[[], None]) -> None:
    while streams:
        look()
        with suppress(Empty):
            error = ended.get(timeout=_TICK)
            if error is not None:
                raise error
            streams -= 1
    look()


def _fetch_segment(web: Web, part: Part, segment: int, patience: Patience, stop: threading.Event) -> None:
    patience.persist(lambda: _attempt(web, part, segment), stop)
    part.note()


def _attempt(web: Web, part: Part, segment: int) -> None:
    """Receive the rest of a segment; what came before a failure is kept, if the server can go on from there."""
    remote = part.remote
    if not remote.ranges:
        part.restart(segment)
    before = span = part.missing(segment)
    if span is None:
        return
    try:
        with web.get(remote.url, span if remote.ranges else None) as response:
            _check_version(part, span_of(response, remote.url), response.headers.get("etag", ""), span[0])
            noted = time.monotonic()
            while span is not None and (data := response.raw.read1(_BLOCK)):
                if time.monotonic() - noted > _NOTING:
                    part.note()
                    noted = time.monotonic()
                part.write(segment, data[: span[1] - span[0] + 1])
                span = part.missing(segment)
        reason = "the connection was closed"
    except HTTPError as error:
        reason, span = cause(error), part.missing(segment)
    if span is not None:
        progress = remote.ranges and span != before
        raise PassingError(
            f"{remote.url}: got a cut answer ({reason}); expected bytes {span[0]} to {span[1]}", progress=progress
        )


def _check_version(part: Part, got: Span, etag: str, first: int) -> None:
    remote = part.remote
    if got.size != remote.size or etag != remote.etag:
        now, before = (f"{size} bytes, tag {printable(tag) or 'none'}" for size, tag in ((got.size, etag), remote[1:3]))
        raise CommandError(
            f"{remote.url}: got another version ({now}); expected that of the start ({before}). "
            "To fix: start the same command again."
        )
    if got.first != first:
        raise PassingError(f"{remote.url}: got an answer that starts at byte {got.first}; expected byte {first}")
