"""Partial downloads: which bytes a state counts, and when it counts for nothing."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from data_scripts.fetching import partial_file
from data_scripts.fetching.partial_file import PartialFile
from data_scripts.fetching.remote import RemoteFile
from data_scripts.md5_list import ListedFile

LISTED = ListedFile("sub/a.bin", "0" * 32)
REMOTE = RemoteFile("https://x/a.bin", 25, '"tag"', ranges=True)


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_file, "SEGMENT", 10)


def begin(work: Path) -> None:
    """Write a part of three segments: the first complete, the second with 4 bytes, the third empty."""
    with PartialFile(work, LISTED, REMOTE) as part:
        assert (part.received, part.restarted, part.incomplete_segments()) == (0, False, [0, 1, 2])
        part.write(0, b"0123456789")
        part.write(1, b"01")
        part.write(1, b"23")
        part.save_state()


def test_a_part_resumes_from_the_saved_state(tmp_path: Path) -> None:
    begin(tmp_path)
    with PartialFile(tmp_path, LISTED, REMOTE) as part:
        assert (part.received, part.restarted, part.incomplete_segments()) == (14, False, [1, 2])
        assert [part.missing_range(segment) for segment in range(3)] == [None, (14, 19), (20, 24)]
        part.write(2, b"abcde")
        part.write(1, b"456789")
        assert (part.incomplete_segments(), part.received) == ([], 25)
        assert part.path.read_bytes() == b"01234567890123456789abcde"
    with PartialFile(tmp_path, LISTED, REMOTE) as part:
        assert part.received == 14, "what was not saved does not count"


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
def test_a_part_of_another_version_is_dropped(tmp_path: Path, listed: ListedFile, remote: RemoteFile) -> None:
    begin(tmp_path)
    with PartialFile(tmp_path, listed, remote) as part:
        assert (part.received, part.restarted, part.path.stat().st_size) == (0, True, 0)
    assert not part.path.with_name("a.bin.state").exists(), "a state of the old version would lie about the new part"


def state_bytes(**changes: object) -> bytes:
    return json.dumps({"size": 25, "etag": '"tag"', "md5": "0" * 32, "segment": 10} | changes).encode()


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"size": 25}',
        state_bytes(received=[10, 4]),
        state_bytes(received=[10, 11, 0]),
        state_bytes(received=[10, -1, 0]),
        state_bytes(received=["a", 0, 0]),
        state_bytes(segment=0, received=[]),
        state_bytes(size="x", received=[]),
    ],
)
def test_a_damaged_state_counts_for_nothing(tmp_path: Path, state: bytes) -> None:
    begin(tmp_path)
    (tmp_path / "sub" / "a.bin.state").write_bytes(state)
    with PartialFile(tmp_path, LISTED, REMOTE) as part:
        assert (part.received, part.path.stat().st_size) == (0, 0)


@pytest.mark.parametrize("name", ["a.bin.part", "a.bin.state"])
def test_neither_counts_without_the_other(tmp_path: Path, name: str) -> None:
    begin(tmp_path)
    (tmp_path / "sub" / name).unlink()
    with PartialFile(tmp_path, LISTED, REMOTE) as part:
        assert part.received == 0


def test_what_a_full_disk_took_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes 2 bytes more, and then none."""
    begin(tmp_path)
    real, room = os.pwrite, 2

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room -= (written := real(descriptor, data[:room], offset))
        return written

    with PartialFile(tmp_path, LISTED, REMOTE) as part:
        monkeypatch.setattr(os, "pwrite", pwrite)
        with pytest.raises(OSError, match="No space"):
            part.write(1, b"456789")
        assert (part.received, part.missing_range(1)) == (14, (14, 19))
        part.save_state()
    with PartialFile(tmp_path, LISTED, REMOTE) as part:
        assert (part.received, part.restarted) == (14, False)


def test_a_late_stream_cannot_touch_a_closed_part(tmp_path: Path) -> None:
    with PartialFile(tmp_path, LISTED, REMOTE) as part:
        pass
    part.close()
    other = tmp_path / "other"
    descriptor = os.open(other, os.O_RDWR | os.O_CREAT)
    try:
        with pytest.raises(ValueError, match="closed file"):
            part.write(0, b"x")
        with pytest.raises(ValueError, match="closed file"):
            part.save_state()
        assert other.read_bytes() == b""
    finally:
        os.close(descriptor)


def test_a_reset_forgets_everything(tmp_path: Path) -> None:
    begin(tmp_path)
    with PartialFile(tmp_path, LISTED, REMOTE) as part:
        part.reset()
        assert (part.received, part.path.stat().st_size) == (0, 0)
    with PartialFile(tmp_path, LISTED, REMOTE) as part:
        assert (part.received, part.restarted) == (0, False)


def test_space_needed_is_what_is_not_on_disk_yet(tmp_path: Path) -> None:
    with PartialFile(tmp_path, LISTED, REMOTE._replace(size=1 << 20)) as part:
        assert part.bytes_to_allocate() == 1 << 20
        for segment in range(10_000):
            part.write(segment, b"0123456789")
        os.fsync(os.open(part.path, os.O_RDONLY))
        assert part.bytes_to_allocate() <= (1 << 20) - 100_000
    with PartialFile(tmp_path, LISTED, REMOTE) as part:
        part.write(0, b"1")
        assert part.bytes_to_allocate() in (0, 25), "never less than nothing"
