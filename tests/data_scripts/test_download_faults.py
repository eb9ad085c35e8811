"""Every fault of a server: the download gets over it, or ends in one line and leaves nothing corrupt behind."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.download_runs import BIG, LIMIT, SEGMENT, Runs, small_set
from tests.support.faulty_server import (
    BASE,
    LIST,
    URI,
    Act,
    Handler,
    Hold,
    Reply,
    cut,
    flip,
    redirect,
    serving,
    status,
    trickle,
    whole,
    with_headers,
)
from tests.support.paths import ROOT

FILES = small_set()
BIG_PATH = f"{BASE}/{BIG}"
FOR_EVER = 1_000_000


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    with serving(tmp_path) as server:
        server.publish(FILES)
        yield Runs(server, tmp_path / "c4")


# --- what it gets over


@pytest.mark.parametrize(
    ("act", "times"),
    [
        (cut(1000), 1),
        (cut(1000, reset=True), 1),
        (cut(None), 2),
        (cut(0), 5),
        (flip, 1),
        (status(500), 3),
        (status(429, Retry_After="0"), 2),
        (status(408), 1),
        (trickle(20, 0.02), 1),
        (whole, 2),
    ],
    ids=["cut", "reset", "no answer", "cut at once", "wrong bit", "500 three times", "429", "408", "slow", "no range"],
)
def test_gets_over(runs: Runs, act: Act, times: int) -> None:
    runs.server.fault(BIG_PATH, act, times)
    done = runs.call("--timeout", "2")
    runs.assert_done(done, FILES)
    said = f"{BIG}: got MD5 " if act is flip else ""
    assert done.err.startswith(said)
    assert done.err.count("\n") == bool(said)


@pytest.mark.parametrize("path", [URI, LIST])
@pytest.mark.parametrize("act", [status(503), cut(10), cut(None)], ids=["503", "cut", "no answer"])
def test_gets_over_a_fault_of_the_metadata(runs: Runs, path: str, act: Act) -> None:
    runs.server.fault(path, act, times=3)
    runs.assert_done(runs.call(), FILES)


def test_gets_over_a_fault_of_a_probe(runs: Runs) -> None:
    runs.server.fault(BIG_PATH, status(502), times=3, probes=True)
    runs.assert_done(runs.call(), FILES)


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_goes_on_from_the_byte_received(runs: Runs, reset: bool) -> None:
    runs.server.fault(BIG_PATH, cut(1000, reset))
    runs.assert_done(runs.call("--streams", "1"), FILES)
    spans = runs.server.spans(BIG)
    assert spans[0] == (0, SEGMENT - 1)
    # after a reset the system may have thrown away what the client had not read yet
    assert spans[1] == (1000, SEGMENT - 1) or (reset and spans[1][0] < 1000)


def test_progress_gives_new_patience(runs: Runs) -> None:
    runs.server.fault(BIG_PATH, cut(5000), times=10)
    runs.assert_done(runs.call("--streams", "1", "--retries", "1"), FILES)


def test_a_silent_server_is_asked_again(runs: Runs) -> None:
    hold = Hold(1000)
    runs.server.fault(BIG_PATH, hold)
    runs.assert_done(runs.call("--streams", "1", "--timeout", "0.5"), FILES)
    assert runs.server.spans(BIG)[:2] == [(0, SEGMENT - 1), (1000, SEGMENT - 1)]


def test_a_slow_server_is_no_silent_one(runs: Runs) -> None:
    runs.server.fault(BIG_PATH, trickle(8, 0.15))
    runs.assert_done(runs.call("--streams", "1", "--timeout", "0.7", "--retries", "0"), FILES)


def test_without_ranges_a_file_is_one_stream_and_starts_again(runs: Runs) -> None:
    runs.server.ranges = False
    runs.server.fault(BIG_PATH, cut(3 * SEGMENT), times=2)
    runs.assert_done(runs.call(), FILES)
    asked = [ask for ask in runs.server.asked if ask.path == BIG_PATH and not ask.probe]
    assert [(ask.first, ask.last) for ask in asked] == [(None, None)] * 3
    assert runs.server.sent[BIG_PATH] >= 6 * SEGMENT + len(FILES[BIG])


def test_without_ranges_nothing_of_a_broken_start_is_kept(runs: Runs) -> None:
    runs.server.ranges = False
    runs.server.fault(BIG_PATH, cut(3 * SEGMENT), times=FOR_EVER)
    runs.assert_failed(runs.call("--retries", "2"), BIG, "cut answer", "3 times in a row")
    runs.server.faults.clear()
    runs.assert_done(runs.call(), FILES)


def test_a_redirect_on_the_same_host_is_followed(runs: Runs) -> None:
    runs.server.files["/elsewhere"] = FILES[BIG]
    runs.server.fault(BIG_PATH, redirect("/elsewhere"), times=FOR_EVER)
    runs.server.fault(BIG_PATH, redirect(runs.server.url("/elsewhere")), times=FOR_EVER, probes=True)
    runs.assert_done(runs.call(), FILES)
    assert runs.server.sent[BIG_PATH] == 0


# --- what it does not


def test_a_file_that_is_wrong_twice_is_not_kept(runs: Runs) -> None:
    runs.server.fault(BIG_PATH, flip, times=FOR_EVER)
    done = runs.call()
    listed = hashlib.md5(FILES[BIG]).hexdigest()
    runs.assert_failed(done, f"{BIG}: got MD5 ", f" twice; expected {listed}. To fix: ", notes=1)
    assert runs.held() == {name: data for name, data in FILES.items() if name != BIG}
    runs.server.faults.clear()
    runs.server.sent.clear()
    done = runs.call()
    runs.assert_done(done, FILES)
    assert done.err == "", "nothing of the wrong file was kept"
    assert runs.server.sent[BIG_PATH] == 1 + len(FILES[BIG])


@pytest.mark.parametrize(
    ("path", "act", "probes", "words"),
    [
        (URI, status(404), False, ["404 Not Found; expected 200", "--source"]),
        (LIST, status(404), False, ["404 Not Found; expected 200", "--source"]),
        (BIG_PATH, status(404), True, ["404 Not Found; expected 200"]),
        (BIG_PATH, status(404), False, ["404 Not Found; expected 200"]),
        (BIG_PATH, status(410), False, ["410 Gone; expected 200"]),
        (BIG_PATH, status(416), False, ["416 Requested Range Not Satisfiable"]),
        (URI, status(401), False, ["401 Unauthorized", "needs a login"]),
        (URI, status(403), False, ["403 Forbidden", "needs a login"]),
        (URI, status(304), False, ["304 Not Modified"]),
        (URI, status(799), False, ["status 799; expected 200"]),
        (URI, redirect("https://login.example/cdn-cgi"), False, ["https://login.example/cdn-cgi", "needs a login"]),
        (BIG_PATH, redirect("//login.example/x"), True, ["redirect: got the address https://login.example/x"]),
        (BIG_PATH, redirect("https://127.0.0.1:1/x"), False, ["redirect: got the address https://127.0.0.1:1/x"]),
        (URI, redirect("https://[::1"), False, ["cannot be asked for (Invalid IPv6 URL)"]),
        (URI, redirect("x\x1b[31m"), False, [r"redirect: got the address https://", r"/metadata/x\x1b[31m;"]),
    ],
)
def test_refused_at_the_first_time(runs: Runs, path: str, act: Act, probes: bool, words: list[str]) -> None:
    runs.server.fault(path, act, times=FOR_EVER, probes=probes)
    done = runs.call("--streams", "1")
    runs.assert_failed(done, runs.server.url(path), *words)
    assert done.err[:-1].isprintable()
    asked = [ask for ask in runs.server.asked if ask.path == path and ask.probe == probes]
    assert len(asked) == 1, "not worth another attempt"


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (status(500), ["500 Internal Server Error; expected 200 or 206, 4 times in a row"]),
        (cut(0), ["got a cut answer (", "expected bytes 0 to 65535, 4 times in a row"]),
        (cut(None, reset=True), ["got no answer (", "4 times in a row"]),
        (Hold(0), ["got a cut answer (The read operation timed out)", "4 times in a row"]),
        (whole, ["answer that starts at byte 0", "4 times in a row"]),
    ],
    ids=["500", "cut", "reset", "silent", "no range"],
)
def test_given_up_after_the_last_retry_and_kept_for_the_next_start(runs: Runs, act: Act, words: list[str]) -> None:
    first = 1 if act is whole else 0  # the whole file is what the first segment can begin with
    for _ in range(first):
        runs.server.fault(BIG_PATH, lambda handler, reply: handler.answer(reply))
    runs.server.fault(BIG_PATH, act, times=FOR_EVER)
    done = runs.call("--streams", "1", "--retries", "3", "--timeout", "0.3")
    runs.assert_failed(done, runs.server.url(BIG_PATH), *words, "what was fetched is kept")
    assert len(runs.server.spans(BIG)) == first + 4
    runs.server.faults.clear()
    runs.server.sent.clear()
    runs.assert_done(runs.call(), FILES)
    # the two files before it were complete, and wait in their parts
    assert (runs.server.sent[f"{BASE}/LICENSE.txt"], runs.server.sent[f"{BASE}/NOTICE.txt"]) == (1, 1)


def test_one_failure_ends_all_streams_at_once(runs: Runs) -> None:
    holds = [Hold(10) for _ in range(3)]
    for hold in holds:
        runs.server.fault(BIG_PATH, hold)
    refused = f"{BASE}/LICENSE.txt"
    gate = threading.Event()

    def refuse_late(handler: Handler, reply: Reply) -> None:
        assert gate.wait(LIMIT)
        status(404)(handler, reply)

    runs.server.fault(refused, refuse_late)
    with runs.started() as process:
        for hold in holds:
            assert hold.reached.wait(LIMIT)
        gate.set()
        # the others are silent, and their timeout is a minute
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err.count("\n")) == (1, "", 1)
    assert "404" in err
    runs.assert_nothing_unverified()


def test_a_failure_ends_the_waits_of_the_other_streams(runs: Runs) -> None:
    waiting = threading.Event()

    def overloaded(handler: Handler, reply: Reply) -> None:
        waiting.set()
        status(503)(handler, reply)

    def refuse_late(handler: Handler, reply: Reply) -> None:
        assert waiting.wait(LIMIT)
        status(404)(handler, reply)

    runs.server.fault(BIG_PATH, overloaded, times=FOR_EVER)
    runs.server.fault(f"{BASE}/LICENSE.txt", refuse_late)
    runs.assert_failed(runs.call("--retry-wait", "60"), "404")
    for thread in [thread for thread in threading.enumerate() if thread.name == "fetch"]:
        thread.join(10)
        assert not thread.is_alive()


def test_no_server_at_all(runs: Runs) -> None:
    source = "https://127.0.0.1:1/metadata/x.uri"
    runs.assert_failed(
        runs.call("--source", source, "--retries", "1"), source, "got no answer (", "refused", "2 times in a row"
    )


def test_a_certificate_of_an_unknown_authority_is_refused_at_once(runs: Runs) -> None:
    other = runs.directory.parent / "other"
    other.mkdir()
    with serving(other) as stranger:
        runs.server.authority_file = stranger.authority_file
    done = runs.call("--retry-wait", "60")
    runs.assert_failed(done, runs.server.url(URI), "CERTIFICATE_VERIFY_FAILED", "REQUESTS_CA_BUNDLE")
    assert runs.server.asked == []


def test_a_file_that_changes_meanwhile_is_not_mixed(runs: Runs) -> None:
    for _ in range(2):
        runs.server.fault(BIG_PATH, lambda handler, reply: handler.answer(reply))
    runs.server.fault(BIG_PATH, with_headers(ETag='"new"'), times=FOR_EVER)
    done = runs.call("--streams", "1")
    runs.assert_failed(done, runs.server.url(BIG_PATH), 'another version (360448 bytes, tag "new")', "start the same")
    assert len(runs.server.spans(BIG)) == 3


def test_a_file_that_grows_meanwhile_is_not_mixed(runs: Runs) -> None:
    runs.server.fault(BIG_PATH, with_headers(Content_Range="bytes 0-65535/360449"), times=FOR_EVER)
    runs.assert_failed(runs.call("--streams", "1"), "another version (360449 bytes")


def no_length(handler: Handler, reply: Reply) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.abort(reset=False)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (with_headers(Content_Range="bytes */*"), ["content-range 'bytes */*'"]),
        (no_length, ["content-length"]),
    ],
)
def test_a_size_that_is_not_told_is_asked_for(runs: Runs, act: Act, words: list[str]) -> None:
    runs.server.fault(BIG_PATH, act, probes=True, times=FOR_EVER)
    runs.assert_failed(runs.call(), runs.server.url(BIG_PATH), *words)


# --- addresses and lists


@pytest.mark.parametrize(
    "base",
    [
        b"https://elsewhere.example/c4",
        b"http://{host}/llama-3-1-8b/c4",
        b"https://localhost:{port}/llama-3-1-8b/c4",
        b"https://127.0.0.1/llama-3-1-8b/c4",
        b"https://{host}@elsewhere.example/c4",
        b"https://user@{host}/llama-3-1-8b/c4",
        b"https://elsewhere.example\\@{host}/c4",
        b"file:///etc",
        b"/llama-3-1-8b/c4",
        b"<html>log in</html>",
        b"https://[",
        b"\xff\x1b[31m",
        b"",
    ],
)
def test_a_base_address_elsewhere_is_refused(runs: Runs, base: bytes) -> None:
    host = runs.server.authority.encode()
    runs.server.files[URI] = base.replace(b"{host}", host).replace(b"{port}", host.split(b":")[1])
    done = runs.call()
    runs.assert_failed(
        done, f"{runs.server.source}: base address: got the address ", f"https://{runs.server.authority}/"
    )
    assert [ask.path for ask in runs.server.asked] == [URI]


def test_a_redirect_away_is_not_followed_even_to_the_same_machine(runs: Runs) -> None:
    runs.server.files["/other"] = runs.server.files[URI]
    port = runs.server.authority.split(":")[1]
    runs.server.fault(URI, redirect(f"https://localhost:{port}/other"), times=FOR_EVER)
    runs.assert_failed(runs.call(), f"https://localhost:{port}/other")
    assert [ask.path for ask in runs.server.asked] == [URI]


def test_redirects_without_an_end(runs: Runs) -> None:
    runs.server.fault(URI, redirect(URI), times=FOR_EVER)
    runs.assert_failed(runs.call(), "got more than 3 in a row")
    assert len(runs.server.asked) == 4


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("http://127.0.0.1/metadata/x.uri", ["got no https address", "expected https://"]),
        ("file:///x.uri", ["got no https address"]),
        ("x.uri", ["got no https address"]),
        ("https://{}/metadata/x.md5", ["got no name that ends in .uri"]),
    ],
)
def test_a_source_that_is_none(runs: Runs, source: str, words: list[str]) -> None:
    source = source.format(runs.server.authority)
    runs.assert_failed(runs.call("--source", source), source, *words)
    assert runs.server.asked == []


@pytest.mark.parametrize(("path", "size"), [(URI, 4 << 10), (LIST, 1 << 20)])
def test_metadata_that_is_too_long(runs: Runs, path: str, size: int) -> None:
    runs.server.files[path] += b"\n" * (size - len(runs.server.files[path]))
    assert runs.call().status == 0
    runs.server.files[path] += b"\n"
    runs.assert_failed(runs.call(), f"{runs.server.url(path)}: got more than {size} bytes")


def test_a_list_with_a_bad_line(runs: Runs) -> None:
    runs.server.files[LIST] += f"{'0' * 32}  ../evil\n".encode()
    runs.assert_failed(runs.call(), f"{runs.server.url(LIST)}: line 7: got the path '../evil'")
    assert not (runs.directory.parent / "evil").exists()
    assert [ask.path for ask in runs.server.asked] == [URI, LIST]


def test_the_module_is_the_command(tmp_path: Path) -> None:
    """`python -m`, as it is called by people: here without a network."""
    command = [sys.executable, "-m", "data_scripts.download", str(tmp_path), "--offline"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("missing"), done.stderr.count("\n")) == (1, 4, 1)
    wrong = subprocess.run([*command, "--streams", "0"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
