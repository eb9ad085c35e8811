"""One pass over a file for checksums and tokens: right, on several threads, in bounded memory."""

from __future__ import annotations

import hashlib
import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_scripts.checking import reading
from data_scripts.checking.findings import MAX_LISTED
from data_scripts.checking.reading import FileScan, Reader, TokenRange
from gptoss20b.data.files import DataError

many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def scan(path: Path, threads: int, algorithms: tuple[str, ...] = ("md5",), vocab_size: int | None = 100) -> FileScan:
    with Reader(threads, lambda size: None) as reader:
        return reader.scan(path, algorithms, vocab_size)


@many
@given(
    tokens=st.lists(st.integers(-2, 102), max_size=60),
    tail=st.binary(max_size=3),
    piece=st.integers(1, 9),
    threads=st.integers(1, 5),
)
def test_one_pass_gives_what_separate_ones_give(
    tmp_path: Path, tokens: list[int], tail: bytes, piece: int, threads: int
) -> None:
    data = np.array(tokens, "<i4").tobytes() + tail
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PIECE", 4 * piece)
        found = scan(tmp_path / "a.bin", threads, ("md5", "sha256"))
        bare = scan(tmp_path / "a.bin", threads, (), None)
    assert found.digests == {"md5": hashlib.md5(data).hexdigest(), "sha256": hashlib.sha256(data).hexdigest()}
    wrong = [(place, token) for place, token in enumerate(tokens) if not 0 <= token < 100]
    low, high = (min(tokens), max(tokens)) if tokens else (None, None)
    assert found.tokens == TokenRange(low, high, len(wrong), wrong[:MAX_LISTED])
    assert bare == FileScan({}, None)


def test_no_more_pieces_than_threads_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE", 1 << 20)
    with (tmp_path / "a.bin").open("wb") as stream:
        stream.truncate(60 << 20)
    for threads in (1, 3):
        tracemalloc.start()
        scan(tmp_path / "a.bin", threads)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (threads + 0.5) * (1 << 20)


def test_reading_is_spread_over_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three threads must be inside a read at the same time, or the barrier breaks."""
    monkeypatch.setattr(reading, "PIECE", 4)
    (tmp_path / "a.bin").write_bytes(b"\0" * 12)
    together = threading.Barrier(3, timeout=20)
    real = os.pread

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        together.wait()
        return real(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    assert scan(tmp_path / "a.bin", 3).tokens == TokenRange(0, 0, 0, [])


def test_an_error_in_one_piece_ends_the_file_and_leaves_no_thread_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE", 4)
    (tmp_path / "a.bin").write_bytes(b"\0" * 4000)
    real = os.pread
    begun = []

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        begun.append(offset)
        if offset == 40:
            raise OSError(5, "Input/output error")
        return real(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(DataError, match="Input/output error"):
        scan(tmp_path / "a.bin", 4)
    assert len(begun) < 20
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("verify")]
