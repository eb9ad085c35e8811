"""The download from its start to its end: what it fetches, what it keeps, and how it goes on after an interruption."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_scripts import c4
from tests.support.download_runs import BIG, LIMIT, SEGMENT, TRAIN, VALIDATION, Runs, ended, small_set
from tests.support.faulty_server import BASE, LIST, NAME, URI, Hold, serving
from tests.support.paths import ROOT

FILES = small_set()


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    with serving(tmp_path) as server:
        server.publish(FILES)
        yield Runs(server, tmp_path / "data" / "c4 set")


def interrupt(runs: Runs, number: int, segment: int = 3, after: int = 1000) -> float:
    """End a download of one stream with a signal in the middle of a segment; the seconds it took to end."""
    hold = Hold(after)
    spans = [(number * SEGMENT, (number + 1) * SEGMENT - 1) for number in range(segment)]
    for _ in spans:
        runs.server.fault(f"{BASE}/{BIG}", lambda handler, reply: handler.answer(reply))
    runs.server.fault(f"{BASE}/{BIG}", hold)
    with runs.started("--streams", "1") as process:
        assert hold.reached.wait(LIMIT)
        # the bytes were sent; the client has taken them when its part holds them
        part = runs.directory / ".download" / f"{BIG}.part"
        until = time.monotonic() + LIMIT
        while part.stat().st_size < segment * SEGMENT + after and time.monotonic() < until:
            time.sleep(0.01)
        assert runs.server.spans(BIG)[:segment] == spans
        began = time.monotonic()
        process.send_signal(number)
        done = ended(process)
        took = time.monotonic() - began
    hold.go_on.set()
    assert BIG not in runs.held()
    runs.assert_nothing_unverified()
    if number != signal.SIGKILL:
        word, status = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}[number]
        assert done == (status, "", f"error: {word}\n")
    runs.server.asked.clear()
    runs.server.sent.clear()
    return took


# --- all is well


@pytest.mark.parametrize("end", ["", "\n", "/", "/\r\n"])
def test_fetches_verifies_and_names_everything(runs: Runs, end: str) -> None:
    runs.server.files[URI] = f"{runs.server.url(BASE)}{end}".encode()
    done = runs.call()
    runs.assert_done(done._replace(out=done.out.replace("'", "")), FILES)
    assert done.err == ""
    assert re.search(r": 6 files verified, 0 of them were there; 401,238 bytes fetched in [\d.]+ s, ", done.out)
    assert f"next: data_scripts/verify_dataset.sh '{runs.directory}'\n" in done.out
    expected = [(start, min(start + SEGMENT, len(FILES[BIG])) - 1) for start in range(0, len(FILES[BIG]), SEGMENT)]
    assert sorted(runs.server.spans(BIG)) == expected


def test_streams_fetch_at_the_same_time_and_one_does_not(runs: Runs) -> None:
    holds = [Hold(10) for _ in range(4)]
    for hold in holds:
        runs.server.fault(f"{BASE}/{BIG}", hold)
    with runs.started("--streams", "4") as process:
        for hold in holds:
            assert hold.reached.wait(LIMIT)
        assert len(runs.server.spans(BIG)) == 4
        for hold in holds:
            hold.go_on.set()
        assert ended(process).status == 0


def test_a_second_run_fetches_nothing(runs: Runs) -> None:
    assert runs.run().status == 0
    before = {path: path.stat().st_mtime_ns for path in runs.directory.iterdir() if path.suffix != ".md5"}
    runs.server.sent.clear()
    done = runs.run()
    assert done.status == 0
    assert "6 files verified, 6 of them were there; nothing fetched" in done.out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {runs.server.sent[f"{BASE}/{name}"] for name in FILES} == {1}, "a probe of one byte each"


def test_a_file_that_is_there_is_checked_and_kept(runs: Runs) -> None:
    runs.directory.mkdir(parents=True)
    (runs.directory / BIG).write_bytes(FILES[BIG])
    done = runs.call()
    assert (done.status, runs.held()) == (0, FILES)
    assert "1 of them were there; 40,790 bytes" in done.out
    assert runs.server.spans(BIG) == []


def test_files_in_folders_keep_them(runs: Runs) -> None:
    files = {"a b/c.bin": b"1" * 100, "a b/d/c.bin": b"2" * 100, "c.bin": b"3" * 100, "empty": b""}
    runs.server.publish(files)
    runs.server.ranges = False  # a server can tell the size of an empty file in no other way
    done = runs.call()
    assert (done.status, runs.held()) == (0, files)


def test_unfinished_files_of_another_list_go_with_the_rest(runs: Runs) -> None:
    old = runs.directory / ".download" / "sub"
    old.mkdir(parents=True)
    (old / "old.part").write_bytes(b"1")
    (old.parent / "older.part").write_bytes(b"1")
    assert runs.call().status == 0
    assert not old.parent.exists()


# --- interruptions


def noted(state: Path) -> int:
    """Bytes of the first segment that a state file tells of."""
    return int(json.loads(state.read_text())["received"][0]) if state.exists() else 0


def test_a_segment_under_way_is_noted_now_and_then(runs: Runs) -> None:
    runs.noting = 0.0
    hold = Hold(40_000)
    runs.server.fault(f"{BASE}/{BIG}", hold)
    state = runs.directory / ".download" / f"{BIG}.state"
    with runs.started("--streams", "1") as process:
        assert hold.reached.wait(LIMIT)
        until = time.monotonic() + LIMIT
        while not noted(state) and time.monotonic() < until:
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert 0 < noted(state) <= 40_000
    runs.server.asked.clear()
    hold.go_on.set()
    assert runs.call().status == 0
    assert runs.held() == FILES
    assert (0, SEGMENT - 1) not in runs.server.spans(BIG)


def test_after_a_kill_no_finished_segment_is_fetched_again(runs: Runs) -> None:
    interrupt(runs, signal.SIGKILL)
    assert (runs.directory / ".download" / "lock").exists()
    assert runs.call().status == 0
    assert runs.held() == FILES
    assert sorted(runs.server.spans(BIG))[0][0] == 3 * SEGMENT
    assert runs.server.sent[f"{BASE}/{BIG}"] == 1 + len(FILES[BIG]) - 3 * SEGMENT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_and_keeps_every_byte(runs: Runs, number: int) -> None:
    took = interrupt(runs, number)
    assert took < 5, "the server was silent, with a timeout of a minute"
    assert runs.call().status == 0
    assert runs.held() == FILES
    assert sorted(runs.server.spans(BIG))[0][0] == 3 * SEGMENT + 1000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_wait_for_the_first_answer(runs: Runs, number: int) -> None:
    hold = Hold(3)
    runs.server.fault(URI, hold)
    with runs.started() as process:
        assert hold.reached.wait(LIMIT)
        process.send_signal(number)
        runs.assert_failed(ended(process), status=128 + number)
    assert not (runs.directory / ".download").exists()


def test_a_file_that_changed_since_is_fetched_from_the_start_and_it_is_said(runs: Runs) -> None:
    interrupt(runs, signal.SIGTERM)
    runs.server.publish({**FILES, BIG: FILES[BIG][::-1]})
    done = runs.call()
    assert (done.status, runs.held()) == (0, {**FILES, BIG: FILES[BIG][::-1]})
    assert done.err == f"{BIG}: another version than before, fetched from the start again\n"
    assert runs.server.sent[f"{BASE}/{BIG}"] == 1 + len(FILES[BIG])


def test_a_new_tag_of_the_same_size_is_another_version(runs: Runs) -> None:
    interrupt(runs, signal.SIGTERM)
    runs.server.tags[f"{BASE}/{BIG}"] = '"another"'
    done = runs.call()
    assert (done.status, runs.held()) == (0, FILES)
    assert "another version than before" in done.err
    assert runs.server.sent[f"{BASE}/{BIG}"] == 1 + len(FILES[BIG])


def test_a_second_process_ends_at_once_and_the_first_goes_on(runs: Runs) -> None:
    hold = Hold(10)
    runs.server.fault(f"{BASE}/{BIG}", hold)
    with runs.started() as first:
        assert hold.reached.wait(LIMIT)
        asked = len(runs.server.asked)
        second = runs.run()
        assert second == (1, "", f"error: {runs.directory}: got another download that is working in it; expected none. "
                                 "To fix: wait until it ends.\n")  # fmt: skip
        # the first may still have asked for other files
        assert [ask for ask in runs.server.asked[asked:] if ask.path in (URI, LIST)] == []
        hold.go_on.set()
        assert ended(first).status == 0
    assert runs.held() == FILES


# --- files of another content


@pytest.mark.parametrize("other", [b"mine", FILES[BIG][:-1] + b"?"], ids=["size", "MD5"])
def test_a_file_of_another_content_is_not_touched_unless_asked(runs: Runs, other: bytes) -> None:
    runs.directory.mkdir(parents=True)
    (runs.directory / BIG).write_bytes(other)
    done = runs.call()
    assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith(f"error: {runs.directory / BIG}: got ")
    assert "--replace" in done.err
    assert runs.held() == {BIG: other}
    assert {ask for ask in runs.server.asked if not ask.probe and ask.path not in (URI, LIST)} == set()
    assert [path.name for path in runs.directory.iterdir()] == [BIG], "no list, no folder"

    hold = Hold(10)
    runs.server.fault(f"{BASE}/{BIG}", hold)
    with runs.started("--replace") as process:
        assert hold.reached.wait(LIMIT)
        assert runs.held()[BIG] == other, "until the new one is verified"
        hold.go_on.set()
        assert ended(process).status == 0
    assert runs.held() == FILES


def test_replace_keeps_what_is_right(runs: Runs) -> None:
    assert runs.call().status == 0
    (runs.directory / "NOTICE.txt").write_bytes(b"mine")
    runs.server.asked.clear()
    done = runs.call("--replace")
    assert (done.status, runs.held()) == (0, FILES)
    assert "5 of them were there; 90 bytes" in done.out
    assert [name for name in FILES if runs.server.spans(name)] == ["NOTICE.txt"]


def test_a_folder_in_a_files_place_is_left_alone_even_with_replace(runs: Runs) -> None:
    (runs.directory / BIG / "mine").mkdir(parents=True)
    runs.assert_failed(
        runs.call("--replace"), f"{runs.directory / BIG}: got something else than a file", "move it away"
    )
    assert (runs.directory / BIG / "mine").is_dir()


def test_a_file_that_appears_meanwhile_is_not_overwritten(runs: Runs) -> None:
    hold = Hold(10)
    runs.server.fault(f"{BASE}/{BIG}", hold)
    with runs.started() as process:
        assert hold.reached.wait(LIMIT)
        (runs.directory / BIG).write_bytes(b"mine")
        hold.go_on.set()
        done = ended(process)
    assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
    assert f"{runs.directory / BIG}: got a file that was not there at the start" in done.err
    assert (runs.directory / BIG).read_bytes() == b"mine"


# --- the disk


@pytest.fixture
def small_disk(runs: Runs) -> Iterator[Path]:
    """The download's folder as a disk of its own, of 512 KiB."""
    runs.directory.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(runs.directory)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield runs.directory
    finally:
        subprocess.run(["umount", "--lazy", str(runs.directory)], check=True)


def test_too_little_space_is_said_before_anything_is_fetched(runs: Runs, small_disk: Path) -> None:
    (small_disk / "mine").write_bytes(bytes(200 << 10))
    done = runs.call()
    free = os.statvfs(small_disk)
    assert (done.status, done.err.count("\n")) == (1, 1)
    expected = f"error: {small_disk}: got {free.f_bavail * free.f_frsize:,} bytes of free space; expected 401,238, "
    assert done.err.startswith(expected)
    assert max(runs.server.sent[f"{BASE}/{name}"] for name in FILES) == 1, "probes alone"


def test_a_disk_that_gets_full_keeps_what_it_has(runs: Runs, small_disk: Path) -> None:
    hold = Hold(0)
    for _ in range(2):
        runs.server.fault(f"{BASE}/{BIG}", lambda handler, reply: handler.answer(reply))
    runs.server.fault(f"{BASE}/{BIG}", hold)
    filler = small_disk / "filler"
    with runs.started("--streams", "1") as process:
        assert hold.reached.wait(LIMIT)
        space = os.statvfs(small_disk)
        filler.write_bytes(bytes((space.f_bavail - 8) * space.f_frsize))
        hold.go_on.set()
        done = ended(process)
    filler.unlink()
    runs.assert_failed(done, f"{BIG}.part: got a full disk at ", "expected room for 360,448", "free space")
    runs.server.asked.clear()
    # what was fetched is part of what the disk holds: there is no room for all of it a second time
    (small_disk / "mine").write_bytes(bytes(40 << 10))
    done = runs.call()
    (small_disk / "mine").unlink()
    assert (done.status, runs.held()) == (0, FILES)
    assert sorted(runs.server.spans(BIG))[0][0] >= 2 * SEGMENT


def test_a_folder_that_cannot_be_written_is_named(runs: Runs, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    runs.assert_failed(runs.call(), f"{small_disk / '.download'}: cannot be written (Read-only file system)", "DIR")
    assert runs.server.asked == []


@pytest.mark.parametrize("below", [".", "deeper/down"])
def test_a_file_in_the_folders_place_is_named(runs: Runs, below: str) -> None:
    runs.directory.parent.mkdir()
    runs.directory.write_text("mine")
    runs.directory = runs.directory / below
    runs.assert_failed(runs.call(), "c4 set", "cannot be written (", "name a DIR")
    assert runs.server.asked == []


# --- offline


def offline(runs: Runs) -> tuple[int, dict[str, str], str]:
    runs.server.asked.clear()
    before = sorted(runs.directory.rglob("*"))
    done = runs.call("--offline")
    assert (runs.server.asked, sorted(runs.directory.rglob("*"))) == ([], before), "it only looks"
    return done.status, dict(line.split(": ", 1) for line in done.out.splitlines()), done.err


def test_offline_says_what_is_missing(runs: Runs) -> None:
    status, states, error = offline(runs)
    assert (status, set(states.values())) == (1, {"missing"})
    assert set(states) == {f"{prefix}{suffix}" for prefix in (TRAIN, VALIDATION) for suffix in (".bin", ".idx")}
    assert error.startswith(f"error: {runs.directory}: got 4 of 4 files that are not there and verified; ")
    assert error.count("\n") == 1
    assert not runs.directory.exists()


def test_offline_says_that_all_is_there(runs: Runs) -> None:
    assert runs.call().status == 0
    assert offline(runs) == (0, dict.fromkeys(FILES, "verified"), "")


def test_offline_knows_no_checksum_without_the_list(runs: Runs) -> None:
    assert runs.call().status == 0
    (runs.directory / f"{NAME}.md5").unlink()
    (runs.directory / BIG).unlink()
    status, states, _ = offline(runs)
    assert (status, states.pop(BIG)) == (1, "missing")
    assert list(states.values()) == ["present (no checksum known)"] * 3


def test_offline_says_how_much_of_a_file_is_there(runs: Runs) -> None:
    interrupt(runs, signal.SIGTERM)
    status, states, _ = offline(runs)
    assert (status, states[BIG]) == (1, f"partial, {3 * SEGMENT + 1000:,} of {len(FILES[BIG]):,} bytes")


def test_offline_tells_a_wrong_file(runs: Runs) -> None:
    assert runs.call().status == 0
    (runs.directory / "NOTICE.txt").write_bytes(b"")
    status, states, error = offline(runs)
    assert (status, states.pop("NOTICE.txt").split(",")[0]) == (1, "wrong MD5")
    assert set(states.values()) == {"verified"}
    assert "got 1 of 6 files" in error


def test_offline_names_the_line_of_a_damaged_list(runs: Runs) -> None:
    runs.directory.mkdir(parents=True)
    (runs.directory / f"{NAME}.md5").write_text("no list\n")
    runs.assert_failed(runs.call("--offline"), f"{runs.directory / NAME}.md5: line 1: got ")


# --- what is shown


def test_without_a_terminal_a_plain_line_tells_how_far_it_is(runs: Runs) -> None:
    runs.interval = 0.0
    hold = Hold(100)
    runs.server.fault(f"{BASE}/{BIG}", hold)
    with runs.started() as process:
        assert hold.reached.wait(LIMIT)
        assert process.stderr is not None
        first = process.stderr.readline()
        hold.go_on.set()
        rest = ended(process)
    assert rest.status == 0
    lines = [first, *rest.err.splitlines(keepends=True)]
    form = r"(fetching|verifying): [\d.]+ \w+ of 401.2 kB, [\d.]+ \w+/s, ([\d,]+ s left|time left unknown)\n"
    assert [line for line in lines if not re.fullmatch(form, line)] == []
    assert {line.split(":")[0] for line in lines} == {"fetching", "verifying"}
    assert lines[-1].startswith("verifying: 401.2 kB of 401.2 kB, ")


def test_a_terminal_has_a_bar(runs: Runs) -> None:
    hold = Hold(100)
    runs.server.fault(f"{BASE}/{BIG}", hold)
    ours, theirs = os.openpty()
    environment = {**runs.environment(), "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        runs.command(), cwd=ROOT, env=environment, stderr=theirs, stdout=subprocess.DEVNULL
    ) as process:
        os.close(theirs)
        assert hold.reached.wait(LIMIT)
        seen = b""
        while b"fetching" not in seen or b"401.2 kB" not in seen:
            seen += os.read(ours, 1 << 16)
        hold.go_on.set()
        while True:
            try:
                seen += os.read(ours, 1 << 16)
            except OSError:  # how Linux says that the other end of a terminal is closed
                break
        assert process.wait(LIMIT) == 0
    os.close(ours)
    assert b"verifying" in seen


def test_a_server_without_tags_is_fine(runs: Runs) -> None:
    for name in FILES:
        runs.server.tags[f"{BASE}/{name}"] = ""
    assert runs.call().status == 0
    assert runs.held() == FILES


# --- the address


def test_the_pinned_address_is_https_and_in_one_place() -> None:
    assert re.fullmatch(rf"https://[a-z.-]+/metadata/{NAME}\.uri", c4.SOURCE)
    host = c4.SOURCE.split("/")[2]
    sources = [
        path
        for path in [*ROOT.rglob("*.py"), *ROOT.rglob("*.sh")]
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]
    assert [path.name for path in sources if host in path.read_text(encoding="utf-8")] == ["c4.py"]
