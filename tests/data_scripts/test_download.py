"""A download from its start to its end: what it fetches, keeps, replaces and prints."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_scripts import c4
from tests.support.download_runs import (
    BIG,
    BIG_PATH,
    LIMIT,
    REMOTE_FILES,
    SEGMENT,
    Runs,
    ended,
)
from tests.support.faulty_server import BASE, LIST, NAME, URI, Hold, answer
from tests.support.paths import ROOT


@pytest.mark.parametrize("end", ["", "\n", "/", "/\r\n"])
def test_fetches_verifies_and_names_everything(runs: Runs, end: str) -> None:
    runs.server.files[URI] = f"{runs.server.url(BASE)}{end}".encode()
    done = runs.call()
    runs.assert_done(done, REMOTE_FILES)
    assert done.err == ""
    assert re.search(r": 6 files verified, 0 of them .*; 401,238 bytes fetched in [\d.]+ s, ", done.out)
    size = len(REMOTE_FILES[BIG])
    expected = [(start, min(start + SEGMENT, size) - 1) for start in range(0, size, SEGMENT)]
    assert sorted(runs.server.spans(BIG)) == expected


def test_streams_fetch_at_the_same_time(runs: Runs) -> None:
    holds = [Hold(10) for _ in range(4)]
    for hold in holds:
        runs.server.fault(BIG_PATH, hold)
    with runs.started("--streams", "4") as process:
        for hold in holds:
            assert hold.reached.wait(LIMIT)
        assert len(runs.server.spans(BIG)) == 4
        for hold in holds:
            hold.release.set()
        assert ended(process).status == 0


def test_a_second_run_fetches_nothing(runs: Runs) -> None:
    assert runs.run().status == 0
    before = {path: path.stat().st_mtime_ns for path in runs.directory.iterdir() if path.suffix != ".md5"}
    runs.forget()
    done = runs.run()
    assert done.status == 0
    assert re.search("6 files verified, 6 of them .*; nothing fetched", done.out)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {runs.server.sent[f"{BASE}/{name}"] for name in REMOTE_FILES} == {1}, "a probe of one byte each"


def test_files_in_folders_keep_them(runs: Runs) -> None:
    files = {"a b/c.bin": b"1" * 100, "a b/d/c.bin": b"2" * 100, "c.bin": b"3" * 100, "empty": b""}
    runs.server.publish(files)
    runs.server.ranges = False  # the only way a server can tell the size of an empty file
    runs.server.tags = {f"{BASE}/{name}": "" for name in files}
    done = runs.call()
    assert (done.status, runs.held()) == (0, files)


# --- files that exist before


@pytest.mark.parametrize("other", [b"mine", REMOTE_FILES[BIG][:-1] + b"?"], ids=["size", "MD5"])
def test_a_file_of_other_content_is_not_touched(runs: Runs, other: bytes) -> None:
    runs.directory.mkdir(parents=True)
    (runs.directory / BIG).write_bytes(other)
    done = runs.call()
    assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith(f"error: {runs.directory / BIG}: got ")
    assert runs.held() == {BIG: other}
    assert {ask for ask in runs.server.requests if not ask.probe and ask.path not in (URI, LIST)} == set()
    assert [path.name for path in runs.directory.iterdir()] == [BIG], "no list, no folder"


def test_what_is_right_is_kept_and_no_part_of_another_list(runs: Runs) -> None:
    assert runs.call().status == 0
    (runs.directory / "NOTICE.txt").unlink()
    (runs.directory / ".download" / "sub").mkdir(parents=True)
    (runs.directory / ".download" / "sub" / "old.part").write_bytes(b"1")
    runs.forget()
    done = runs.call()
    runs.assert_done(done, REMOTE_FILES)
    assert re.search("5 of them .*; 90 bytes", done.out)
    assert [name for name in REMOTE_FILES if runs.server.spans(name)] == ["NOTICE.txt"]


def test_a_folder_in_place_of_a_file_is_not_touched(runs: Runs) -> None:
    (runs.directory / BIG / "mine").mkdir(parents=True)
    runs.assert_failed(runs.call(), f"{runs.directory / BIG}: got ")
    assert (runs.directory / BIG / "mine").is_dir()


def test_a_file_that_appears_meanwhile_is_not_overwritten(runs: Runs) -> None:
    with runs.paused() as (process, hold):
        (runs.directory / BIG).write_bytes(b"mine")
        hold.release.set()
        done = ended(process)
    assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
    assert f"{runs.directory / BIG}: got a file" in done.err
    assert (runs.directory / BIG).read_bytes() == b"mine"


# --- the disk


@pytest.fixture
def small_disk(runs: Runs) -> Iterator[Path]:
    """Mount a disk of 512 KiB in the download's folder."""
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


def test_too_little_space_is_reported_before_anything_is_fetched(runs: Runs, small_disk: Path) -> None:
    (small_disk / "mine").write_bytes(bytes(200 << 10))
    done = runs.call()
    free = os.statvfs(small_disk)
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert done.err.startswith(f"error: {small_disk}: got {free.f_bavail * free.f_frsize:,} bytes")
    assert "expected 401,238" in done.err
    assert max(runs.server.sent[f"{BASE}/{name}"] for name in REMOTE_FILES) == 1, "probes alone"


def test_a_disk_that_gets_full_keeps_what_it_has(runs: Runs, small_disk: Path) -> None:
    filler = small_disk / "filler"
    for _ in range(2):
        runs.server.fault(BIG_PATH, answer)
    with runs.paused("--streams", "1", after=0) as (process, hold):
        space = os.statvfs(small_disk)
        filler.write_bytes(bytes((space.f_bavail - 8) * space.f_frsize))
        hold.release.set()
        done = ended(process)
    filler.unlink()
    runs.assert_failed(done, f"{runs.directory}: got No space left on device", "expected a disk with room")
    runs.forget()
    # The disk has no room for what was fetched a second time.
    (small_disk / "mine").write_bytes(bytes(40 << 10))
    done = runs.call()
    (small_disk / "mine").unlink()
    assert (done.status, runs.held()) == (0, REMOTE_FILES)
    assert sorted(runs.server.spans(BIG))[0][0] >= 2 * SEGMENT


@pytest.mark.parametrize("below", [".", "deeper/down"])
def test_a_file_in_place_of_the_folder_is_named(runs: Runs, below: str) -> None:
    runs.directory.parent.mkdir()
    runs.directory.write_text("mine")
    runs.directory = runs.directory / below
    runs.assert_failed(runs.call(), "c4 set", "Not a directory")
    assert runs.server.requests == []


# --- offline


def offline(runs: Runs) -> tuple[int, dict[str, str], str]:
    runs.forget()
    before = sorted(runs.directory.rglob("*"))
    done = runs.call("--offline")
    assert (runs.server.requests, sorted(runs.directory.rglob("*"))) == ([], before), "it only reads"
    return done.status, dict(line.split(": ", 1) for line in done.out.splitlines()), done.err


def test_offline_checks_what_is_there(runs: Runs) -> None:
    status, states, error = offline(runs)
    assert (status, states) == (1, dict.fromkeys(c4.FILES, "missing"))
    assert error.startswith(f"error: {runs.directory}: got 4 of 4 files")
    assert not runs.directory.exists()
    assert runs.call().status == 0
    assert offline(runs) == (0, dict.fromkeys(REMOTE_FILES, "verified"), "")
    (runs.directory / "NOTICE.txt").write_bytes(b"")
    status, states, error = offline(runs)
    assert (status, states.pop("NOTICE.txt").split(",")[0]) == (1, "wrong MD5")
    assert set(states.values()) == {"verified"}
    assert "got 1 of 6 files" in error
    # without the list no checksum is known
    (runs.directory / f"{NAME}.md5").unlink()
    (runs.directory / BIG).unlink()
    status, states, _ = offline(runs)
    assert (status, states.pop(BIG)) == (1, "missing")
    assert list(states.values()) == ["present (no checksum known)"] * 3


def test_offline_names_the_line_of_a_damaged_list(runs: Runs) -> None:
    runs.directory.mkdir(parents=True)
    (runs.directory / f"{NAME}.md5").write_text("no list\n")
    runs.assert_failed(runs.call("--offline"), f"{runs.directory / NAME}.md5: line 1: got ")


# --- progress


def test_without_a_terminal_progress_is_lines(runs: Runs) -> None:
    runs.interval = 0.0
    with runs.paused(after=100) as (process, hold):
        assert process.stderr is not None
        first = process.stderr.readline()
        hold.release.set()
        rest = ended(process)
    assert rest.status == 0
    lines = [first, *rest.err.splitlines(keepends=True)]
    form = r"(fetching|verifying): [\d.]+ \w+ of 401.2 kB, [\d.]+ \w+/s, ([\d,]+ s left|time left unknown)\n"
    assert [line for line in lines if not re.fullmatch(form, line)] == []
    assert {line.split(":")[0] for line in lines} == {"fetching", "verifying"}
    assert lines[-1].startswith("verifying: 401.2 kB of 401.2 kB, ")


# --- the command


def test_the_pinned_address_is_https_and_in_one_place() -> None:
    assert re.fullmatch(rf"https://[a-z.-]+/metadata/{NAME}\.uri", c4.SOURCE)
    host = c4.SOURCE.split("/")[2]
    sources = [
        path
        for path in [*ROOT.rglob("*.py"), *ROOT.rglob("*.sh")]
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]
    assert [path.name for path in sources if host in path.read_text(encoding="utf-8")] == ["c4.py"]
