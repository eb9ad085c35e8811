"""Unfinished files: what a state promises, and what becomes of a damaged one."""

import errno
import json
import os
from pathlib import Path

import pytest

from data_scripts.errors import CommandError
from data_scripts.fetching import parts
from data_scripts.fetching.parts import Part
from data_scripts.fetching.remote import Remote
from data_scripts.fetching.work_folder import locked
from gptoss20b.data.md5_list import ListedFile

LISTED = ListedFile("sub/a.bin", "0" * 32)
REMOTE = Remote("https://x/a.bin", 25, '"tag"', ranges=True)


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SEGMENT", 10)


def begun(work: Path) -> None:
    """A part of three segments: the first complete, the second with 4 bytes, the third empty."""
    with Part(work, LISTED, REMOTE) as part:
        assert (part.received, part.restarted, part.open_segments()) == (0, False, [0, 1, 2])
        part.write(0, b"0123456789")
        part.write(1, b"01")
        part.write(1, b"23")
        part.note()


def test_a_part_is_taken_up_where_it_was_noted(tmp_path: Path) -> None:
    begun(tmp_path)
    with Part(tmp_path, LISTED, REMOTE) as part:
        assert (part.received, part.restarted, part.open_segments()) == (14, False, [1, 2])
        assert [part.missing(segment) for segment in range(3)] == [None, (14, 19), (20, 24)]
        part.write(2, b"abcde")
        part.write(1, b"456789")
        assert (part.open_segments(), part.received) == ([], 25)
        assert part.path.read_bytes() == b"01234567890123456789abcde"


def test_what_was_not_noted_does_not_count(tmp_path: Path) -> None:
    begun(tmp_path)
    with Part(tmp_path, LISTED, REMOTE) as part:
        part.write(1, b"456789")
    with Part(tmp_path, LISTED, REMOTE) as part:
        assert part.received == 14


@pytest.mark.parametrize(
    ("listed", "remote"),
    [
        (LISTED._replace(md5="1" * 32), REMOTE),
        (LISTED, REMOTE._replace(etag='"other"')),
        (LISTED, REMOTE._replace(etag="")),
        (LISTED, REMOTE._replace(size=26)),
        (LISTED, REMOTE._replace(ranges=False)),
    ],
    ids=["md5", "tag", "no tag", "size", "ranges"],
)
def test_a_part_of_another_version_is_thrown_away(tmp_path: Path, listed: ListedFile, remote: Remote) -> None:
    begun(tmp_path)
    with Part(tmp_path, listed, remote) as part:
        assert (part.received, part.restarted, part.path.stat().st_size) == (0, True, 0)
    assert not part.path.with_name("a.bin.state").exists(), "a state of the old version would lie about the new part"


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"\xff",
        b'{"size": 25}',
        json.dumps({"size": 25, "etag": '"tag"', "md5": "0" * 32, "segment": 10, "received": [10, 4]}).encode(),
        json.dumps({"size": 25, "etag": '"tag"', "md5": "0" * 32, "segment": 10, "received": [10, 11, 0]}).encode(),
        json.dumps({"size": 25, "etag": '"tag"', "md5": "0" * 32, "segment": 10, "received": [10, -1, 0]}).encode(),
        json.dumps({"size": 25, "etag": '"tag"', "md5": "0" * 32, "segment": 10, "received": ["a", 0, 0]}).encode(),
        json.dumps({"size": 25, "etag": '"tag"', "md5": "0" * 32, "segment": 0, "received": []}).encode(),
        json.dumps({"size": "x", "etag": '"tag"', "md5": "0" * 32, "segment": 10, "received": []}).encode(),
    ],
)
def test_a_damaged_state_counts_for_nothing(tmp_path: Path, state: bytes) -> None:
    begun(tmp_path)
    (tmp_path / "sub" / "a.bin.state").write_bytes(state)
    with Part(tmp_path, LISTED, REMOTE) as part:
        assert (part.received, part.path.stat().st_size) == (0, 0)


@pytest.mark.parametrize("name", ["a.bin.part", "a.bin.state"])
def test_neither_counts_without_the_other(tmp_path: Path, name: str) -> None:
    begun(tmp_path)
    (tmp_path / "sub" / name).unlink()
    with Part(tmp_path, LISTED, REMOTE) as part:
        assert part.received == 0


def test_a_write_stays_in_its_segment(tmp_path: Path) -> None:
    with Part(tmp_path, LISTED, REMOTE) as part:
        part.write(2, b"abcd")
        for segment, data in ((0, b"0123456789x"), (2, b"ef")):
            with pytest.raises(ValueError, match=f"segment {segment}: got {len(data)} bytes more"):
                part.write(segment, data)
        assert part.received == 4


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_part_and_what_was_received_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The disk takes 2 bytes more, and then none."""
    begun(tmp_path)
    real, room = os.pwrite, 2

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal room
        if not room:
            raise OSError(number, os.strerror(number))
        room -= (written := real(descriptor, data[:room], offset))
        return written

    with Part(tmp_path, LISTED, REMOTE) as part:
        monkeypatch.setattr(os, "pwrite", pwrite)
        with pytest.raises(CommandError) as caught:
            part.write(1, b"456789")
        assert str(caught.value).startswith(f"{part.path}: got a full disk at 14 bytes; expected room for 25.")
        assert (part.received, part.missing(1)) == (14, (14, 19))
        part.note()
    with Part(tmp_path, LISTED, REMOTE) as part:
        assert (part.received, part.restarted) == (14, False)


def test_a_late_stream_cannot_touch_a_closed_part(tmp_path: Path) -> None:
    with Part(tmp_path, LISTED, REMOTE) as part:
        pass
    part.close()
    other = tmp_path / "other"
    descriptor = os.open(other, os.O_RDWR | os.O_CREAT)
    try:
        with pytest.raises(ValueError, match="is closed"):
            part.write(0, b"x")
        with pytest.raises(ValueError, match="is closed"):
            part.note()
        assert other.read_bytes() == b""
    finally:
        os.close(descriptor)


def test_emptying_forgets_everything(tmp_path: Path) -> None:
    begun(tmp_path)
    with Part(tmp_path, LISTED, REMOTE) as part:
        part.empty()
        assert (part.received, part.path.stat().st_size) == (0, 0)
    with Part(tmp_path, LISTED, REMOTE) as part:
        assert (part.received, part.restarted) == (0, False)


def test_space_is_what_is_not_on_the_disk_yet(tmp_path: Path) -> None:
    with Part(tmp_path, LISTED, REMOTE._replace(size=1 << 20)) as part:
        assert part.to_allocate() == 1 << 20
        for segment in range(10_000):
            part.write(segment, b"0123456789")
        os.fsync(os.open(part.path, os.O_RDONLY))
        assert part.to_allocate() <= (1 << 20) - 100_000
    with Part(tmp_path, LISTED, REMOTE) as part:
        part.write(0, b"1")
        assert part.to_allocate() in (0, 25), "never less than nothing"


def test_the_lock_is_for_one_and_leaves_nothing(tmp_path: Path) -> None:
    with locked(tmp_path / "c4") as work:
        with pytest.raises(CommandError, match="another download"), locked(tmp_path / "c4"):
            pass
        (work / "x").touch()
    assert [path.name for path in work.iterdir()] == ["x"]
    (work / "x").unlink()
    with locked(tmp_path / "c4"):
        pass
    assert not work.exists()


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process ends between our opening of the file and our lock on it."""
    import fcntl

    (tmp_path / ".download").mkdir()
    real, opened = fcntl.flock, 0

    def flock(descriptor: int, how: int) -> None:
        nonlocal opened
        opened += 1
        if opened == 1:
            (tmp_path / ".download" / "lock").unlink()
            (tmp_path / ".download").rmdir()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path) as work:
        assert opened == 2
        with pytest.raises(CommandError, match="another download"), locked(tmp_path):
            pass
    assert not work.exists()
