"""Faults of a server: the download retries, or ends in one line and leaves no corrupt file."""

from __future__ import annotations

import hashlib
import threading

import pytest

from tests.support.download_runs import BIG, BIG_PATH, LIMIT, REMOTE_FILES, SEGMENT, Runs
from tests.support.faulty_server import (
    BASE,
    FOREVER,
    LIST,
    URI,
    Action,
    Handler,
    Hold,
    Reply,
    answer,
    cut,
    flip,
    redirect,
    serving,
    status,
    trickle,
    whole,
    with_headers,
)

# --- faults that a retry overcomes


@pytest.mark.parametrize(
    ("path", "act", "times"),
    [
        (BIG_PATH, cut(None), 2),
        (BIG_PATH, cut(0), 5),
        (BIG_PATH, trickle(20, 0.02), 1),
        (BIG_PATH, whole, 2),
        (BIG_PATH, status(500), 3),
        (BIG_PATH, status(429, Retry_After="0"), 2),
        (BIG_PATH, status(408), 1),
        (URI, status(503), 3),
        (URI, cut(10), 3),
        (LIST, status(503), 3),
        (LIST, cut(None), 3),
        ("probe", status(502), 3),
    ],
)
def test_retries(runs: Runs, path: str, act: Action, times: int) -> None:
    probes = path == "probe"
    runs.server.fault(BIG_PATH if probes else path, act, times, probes)
    done = runs.call("--timeout", "2")
    runs.assert_done(done, REMOTE_FILES)
    assert done.err == ""


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_is_resumed_from_the_byte_received(runs: Runs, reset: bool) -> None:
    runs.server.fault(BIG_PATH, cut(1000, reset))
    runs.assert_done(runs.call("--streams", "1"), REMOTE_FILES)
    spans = runs.server.spans(BIG)
    assert spans[0] == (0, SEGMENT - 1)
    # After a reset the system may have dropped what the client had not read yet.
    assert spans[1] == (1000, SEGMENT - 1) or (reset and spans[1][0] < 1000)


def test_progress_resets_the_count_of_failures(runs: Runs) -> None:
    runs.server.fault(BIG_PATH, cut(5000), times=10)
    runs.assert_done(runs.call("--streams", "1", "--retries", "1"), REMOTE_FILES)


def test_a_silent_server_is_asked_again(runs: Runs) -> None:
    runs.server.fault(BIG_PATH, Hold(1000))
    runs.assert_done(runs.call("--streams", "1", "--timeout", "0.5"), REMOTE_FILES)
    assert runs.server.spans(BIG)[:2] == [(0, SEGMENT - 1), (1000, SEGMENT - 1)]


def test_a_slow_server_is_no_silent_one(runs: Runs) -> None:
    runs.server.fault(BIG_PATH, trickle(8, 0.15))
    runs.assert_done(runs.call("--streams", "1", "--timeout", "0.7", "--retries", "0"), REMOTE_FILES)


def test_without_ranges_a_file_is_one_stream_and_starts_again(runs: Runs) -> None:
    runs.server.ranges = False
    runs.server.fault(BIG_PATH, cut(3 * SEGMENT), times=2)
    runs.assert_done(runs.call(), REMOTE_FILES)
    asked = [ask for ask in runs.server.requests if ask.path == BIG_PATH and not ask.probe]
    assert [(ask.first, ask.last) for ask in asked] == [(None, None)] * 3
    assert runs.server.sent[BIG_PATH] >= 6 * SEGMENT + len(REMOTE_FILES[BIG])


def test_a_redirect_on_the_same_host_is_followed(runs: Runs) -> None:
    runs.server.files["/elsewhere"] = REMOTE_FILES[BIG]
    runs.server.fault(BIG_PATH, redirect("/elsewhere"), times=FOREVER)
    runs.server.fault(BIG_PATH, redirect(runs.server.url("/elsewhere")), times=FOREVER, probes=True)
    runs.assert_done(runs.call(), REMOTE_FILES)
    assert runs.server.sent[BIG_PATH] == 0


# --- faults that end it


def no_length(handler: Handler, reply: Reply) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.abort(reset=False)


def test_a_file_that_is_wrong_is_not_kept(runs: Runs) -> None:
    runs.server.fault(BIG_PATH, flip, times=FOREVER)
    listed = hashlib.md5(REMOTE_FILES[BIG]).hexdigest()
    runs.assert_failed(runs.call(), f"{BIG}: got MD5 ", f"expected {listed}")
    assert runs.held() == {name: data for name, data in REMOTE_FILES.items() if name != BIG}
    runs.forget()
    done = runs.call()
    runs.assert_done(done, REMOTE_FILES)
    assert done.err == "", "nothing of the wrong file was kept"
    assert runs.server.sent[BIG_PATH] == 1 + len(REMOTE_FILES[BIG])


@pytest.mark.parametrize(
    ("path", "act", "probes", "words"),
    [
        (URI, status(404), False, ["404 Not Found", "--source"]),
        (LIST, status(404), False, ["404 Not Found", "--source"]),
        (BIG_PATH, status(404), True, ["404 Not Found"]),
        (BIG_PATH, status(410), False, ["410 Gone"]),
        (BIG_PATH, status(416), False, ["416 Requested Range Not Satisfiable"]),
        (URI, status(401), False, ["401 Unauthorized", "login"]),
        (URI, status(403), False, ["403 Forbidden", "login"]),
        (URI, status(304), False, ["304 Not Modified"]),
        (URI, status(799), False, ["status 799"]),
        (URI, redirect("https://login.example/cdn-cgi"), False, ["https://login.example/cdn-cgi", "login"]),
        (BIG_PATH, redirect("//login.example/x"), True, ["redirect", "https://login.example/x"]),
        (BIG_PATH, redirect("https://127.0.0.1:1/x"), False, ["redirect", "https://127.0.0.1:1/x"]),
        (URI, redirect("https://[::1"), False, ["Invalid IPv6 URL"]),
        (URI, redirect("x\x1b[31m"), False, ["redirect", r"/metadata/x\x1b[31m;"]),
        # the size is unknown, or changes meanwhile
        (BIG_PATH, with_headers(Content_Range="bytes */*"), True, ["'bytes */*'"]),
        (BIG_PATH, no_length, True, ["content-length"]),
        (BIG_PATH, with_headers(Content_Range="bytes 0-65535/360449"), False, ["another version (360449 bytes"]),
        (BIG_PATH, with_headers(ETag='"new"'), False, ['another version (360448 bytes, tag "new")']),
    ],
)
def test_a_final_failure_is_not_retried(runs: Runs, path: str, act: Action, probes: bool, words: list[str]) -> None:
    runs.server.fault(path, act, times=FOREVER, probes=probes)
    done = runs.call("--streams", "1")
    runs.assert_failed(done, runs.server.url(path), *words)
    assert done.err[:-1].isprintable()
    assert len([ask for ask in runs.server.requests if ask.path == path and ask.probe == probes]) == 1


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (status(500), ["500 Internal Server Error"]),
        (cut(0), ["truncated", "expected bytes 0 to 65535"]),
        (cut(None, reset=True), ["no answer ("]),
        (Hold(0), ["truncated", "The read operation timed out"]),
        (whole, ["starts at byte 0"]),
    ],
    ids=["500", "cut", "reset", "silent", "no range"],
)
def test_gives_up_after_the_last_retry_and_keeps_the_rest(runs: Runs, act: Action, words: list[str]) -> None:
    first = 1 if act is whole else 0  # the whole file is a right answer for the first segment
    for _ in range(first):
        runs.server.fault(BIG_PATH, answer)
    runs.server.fault(BIG_PATH, act, times=FOREVER)
    done = runs.call("--streams", "1", "--retries", "3", "--timeout", "0.3")
    runs.assert_failed(done, runs.server.url(BIG_PATH), *words, "4 times in a row")
    assert len(runs.server.spans(BIG)) == first + 4
    runs.forget()
    runs.assert_done(runs.call(), REMOTE_FILES)
    # The two files before it were complete and are kept in their parts.
    assert (runs.server.sent[f"{BASE}/LICENSE.txt"], runs.server.sent[f"{BASE}/NOTICE.txt"]) == (1, 1)


def refuse_after(event: threading.Event) -> Action:
    """Answer 404, but not before an event."""

    def act(handler: Handler, reply: Reply) -> None:
        assert event.wait(LIMIT)
        status(404)(handler, reply)

    return act


def test_one_failure_ends_all_streams_at_once(runs: Runs) -> None:
    holds = [Hold(10) for _ in range(3)]
    for hold in holds:
        runs.server.fault(BIG_PATH, hold)
    gate = threading.Event()
    runs.server.fault(f"{BASE}/LICENSE.txt", refuse_after(gate))
    with runs.started() as process:
        for hold in holds:
            assert hold.reached.wait(LIMIT)
        gate.set()
        # The other streams are silent, and their timeout is a minute.
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err.count("\n")) == (1, "", 1)
    assert "404" in err
    runs.assert_nothing_unverified()


def test_a_failure_ends_the_waits_of_the_other_streams(runs: Runs) -> None:
    waiting = threading.Event()

    def overloaded(handler: Handler, reply: Reply) -> None:
        waiting.set()
        status(503)(handler, reply)

    runs.server.fault(BIG_PATH, overloaded, times=FOREVER)
    runs.server.fault(f"{BASE}/LICENSE.txt", refuse_after(waiting))
    runs.assert_failed(runs.call("--retry-wait", "60"), "404")
    for thread in [thread for thread in threading.enumerate() if thread.name == "fetch"]:
        thread.join(10)
        assert not thread.is_alive()


def test_no_server_at_all(runs: Runs) -> None:
    source = "https://127.0.0.1:1/metadata/x.uri"
    done = runs.call("--source", source, "--retries", "1")
    runs.assert_failed(done, source, "no answer (", "refused", "2 times in a row")


def test_a_certificate_of_an_unknown_authority_is_refused_at_once(runs: Runs) -> None:
    other = runs.server.authority_file.parent / "other"
    other.mkdir()
    with serving(other) as stranger:
        runs.server.authority_file = stranger.authority_file
    done = runs.call("--retry-wait", "60")
    runs.assert_failed(done, runs.server.url(URI), "CERTIFICATE_VERIFY_FAILED", "REQUESTS_CA_BUNDLE")
    assert runs.server.requests == []


# --- addresses and lists


@pytest.mark.parametrize("base", [b"https://127.0.0.1/llama-3-1-8b/c4", b"<html>log in</html>", b"\xff\x1b[31m", b""])
def test_a_base_address_on_another_host_is_refused(runs: Runs, base: bytes) -> None:
    runs.server.files[URI] = base
    runs.assert_failed(runs.call(), f"{runs.server.source}: base address: got ", f"https://{runs.server.authority}/")
    assert [ask.path for ask in runs.server.requests] == [URI]


def test_redirects_without_an_end(runs: Runs) -> None:
    runs.server.fault(URI, redirect(URI), times=FOREVER)
    runs.assert_failed(runs.call(), "more than 3 in a row")
    assert len(runs.server.requests) == 4


@pytest.mark.parametrize(
    ("source", "words"), [("http://127.0.0.1/metadata/x.uri", "https"), ("https://{}/metadata/x.md5", ".uri")]
)
def test_a_source_that_is_none(runs: Runs, source: str, words: str) -> None:
    source = source.format(runs.server.authority)
    runs.assert_failed(runs.call("--source", source), source, words)
    assert runs.server.requests == []


@pytest.mark.parametrize(("path", "size"), [(URI, 4 << 10), (LIST, 1 << 20)])
def test_metadata_that_is_too_long(runs: Runs, path: str, size: int) -> None:
    runs.server.files[path] += b"\n" * (size - len(runs.server.files[path]))
    assert runs.call().status == 0
    runs.server.files[path] += b"\n"
    runs.assert_failed(runs.call(), f"{runs.server.url(path)}: got more than {size} bytes")
