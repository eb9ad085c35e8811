"""The reader of indexed datasets: it agrees with Megatron's own writer and reader, and refuses all damage."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss20b.data.files import DataError
from gptoss20b.data.indexed_dataset import IndexedDataset
from tests.support.small_sets import open_with_megatron, write_with_megatron

HEADER = 34
DTYPES: dict[int, type[np.integer]] = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}


def index_bytes(
    lengths: Sequence[int],
    boundaries: Sequence[int],
    code: int = 4,
    magic: bytes = b"MMIDIDX\x00\x00",
    version: int = 1,
    pointers: Sequence[int] | None = None,
) -> bytes:
    """Build an index from the format's description, without the code under test."""
    size = {6: 8, 7: 4}.get(code) or np.dtype(DTYPES.get(code, np.int32)).itemsize
    if pointers is None:
        pointers = [size * sum(lengths[:number]) for number in range(len(lengths))]
    head = magic + struct.pack("<QBQQ", version, code, len(lengths), len(boundaries))
    return head + struct.pack(f"<{len(lengths)}i{len(pointers)}q{len(boundaries)}q", *lengths, *pointers, *boundaries)


def write_files(folder: Path, index: bytes, data: bytes, name: str = "set.en_6_text") -> Path:
    prefix = folder / name
    Path(f"{prefix}.idx").write_bytes(index)
    Path(f"{prefix}.bin").write_bytes(data)
    return prefix


def small_dataset(folder: Path) -> Path:
    """Write ten int32 tokens 0, 10, ..., 90 in three documents."""
    return write_files(folder, index_bytes([3, 5, 2], [0, 1, 2, 3]), np.arange(0, 100, 10, dtype="<i4").tobytes())


def test_reads_tokens_in_file_order_across_documents(tmp_path: Path) -> None:
    with IndexedDataset.open(small_dataset(tmp_path)) as tokens:
        assert (tokens.token_count, tokens.sequence_count, tokens.document_count) == (10, 3, 3)
        assert tokens.dtype == np.int32
        assert tokens.prefix == tmp_path / "set.en_6_text"
        part = tokens.read(2, 5)
        assert part.dtype == np.int64
        assert part.tolist() == [20, 30, 40, 50, 60]
        assert tokens.read(0, 10).tolist() == list(range(0, 100, 10))
        assert tokens.read(10, 0).shape == (0,)
        part[:] = -1
        assert tokens.read(2, 2).tolist() == [20, 30], "a copy, which may be changed"


@pytest.mark.parametrize("code", sorted(DTYPES))
def test_every_integer_type_keeps_its_extremes(tmp_path: Path, code: int) -> None:
    limits = np.iinfo(DTYPES[code])
    values = [int(limits.min), int(limits.max), 0]
    prefix = write_files(tmp_path, index_bytes([3], [0, 1], code), np.array(values, DTYPES[code]).tobytes())
    with IndexedDataset.open(prefix) as tokens:
        assert tokens.read(0, 3).tolist() == values


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.lists(st.lists(st.integers(0, 60_000), max_size=30), min_size=1, max_size=12).filter(any),
    dtype=st.sampled_from([np.int32, np.uint16]),
)
def test_agrees_with_megatron(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], dtype: type[np.integer]
) -> None:
    prefix = tmp_path_factory.mktemp("megatron") / "c4-train.en_6_text_document"
    write_with_megatron(prefix, [np.array(document, np.int64) for document in documents], dtype)
    theirs = open_with_megatron(prefix)
    with IndexedDataset.open(prefix) as ours:
        assert ours.sequence_count == len(theirs)
        assert ours.document_count == len(documents)
        assert ours.dtype == dtype
        start = 0
        for number, document in enumerate(documents):
            part = ours.read(start, len(document))
            assert part.tolist() == document
            assert part.tolist() == theirs[number].tolist()
            start += len(document)
        assert start == ours.token_count


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (b"", ["0 bytes", "34"]),
        (index_bytes([3, 5, 2], [0, 1, 2, 3], magic=b"MMIDIDX\x00\x01"), ["first bytes", "MMIDIDX", "at byte 0"]),
        (index_bytes([3, 5, 2], [0, 1, 2, 3], version=2), ["version 2", "version 1", "at byte 9"]),
        (index_bytes([3, 5, 2], [0, 1, 2, 3], code=7), ["float32", "int32", "at byte 17"]),
        (index_bytes([3, 5, 2], [0, 1, 2, 3], code=9), ["dtype code 9", "unknown", "at byte 17"]),
        (index_bytes([], [0, 0]), ["0 sequences", "at least 1", "at byte 18"]),
        (index_bytes([3, 5, 2], [0]), ["1 document boundaries", "at byte 26"]),
        (index_bytes([3, 5, 2], [0, 1, 2, 3])[:-1], ["expected 102"]),
        (index_bytes([3, 5, 2], [0, 1, 2, 3]) + b"\0", ["expected 102"]),
        (index_bytes([3, 5, 2], [0, 1, 2, 3], pointers=[4, 12, 32]), ["byte 4", "byte 0", "(pointer at byte 46)"]),
        (index_bytes([3, 5, 2], [0, 1, 2, 3], pointers=[0, 12, -8]), ["-8", "negative", "(pointer at byte 62)"]),
        (index_bytes([3, 5, -2], [0, 1, 2, 3], pointers=[0, 12, 48]), ["-2", "negative", "(length at byte 42)"]),
        (index_bytes([3, 5, 2], [0, 1, 2]), ["sequence 0 ", " to 2 (boundary at byte 86)", "0 to 3"]),
        (index_bytes([3, 5, 2], [1, 2, 3]), ["sequence 1 (boundary at byte 70) to 3", "0 to 3"]),
    ],
)
def test_refuses_a_wrong_index(tmp_path: Path, index: bytes, words: list[str]) -> None:
    prefix = write_files(tmp_path, index, np.arange(10, dtype="<i4").tobytes())
    with pytest.raises(DataError) as caught:
        IndexedDataset.open(prefix)
    message = str(caught.value)
    for word in [f"{prefix}.idx", "got", "expected", "To fix: ", *words]:
        assert word in message


@pytest.mark.parametrize(("size", "words"), [(0, "got 0 bytes"), (39, "multiple of 4"), (36, "40"), (44, "40")])
def test_refuses_a_bin_of_another_size(tmp_path: Path, size: int, words: str) -> None:
    prefix = small_dataset(tmp_path)
    os.truncate(f"{prefix}.bin", size)
    with pytest.raises(DataError, match=words) as caught:
        IndexedDataset.open(prefix)
    assert f"{prefix}.bin" in str(caught.value)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_missing_file_is_named(tmp_path: Path, suffix: str) -> None:
    prefix = small_dataset(tmp_path)
    Path(f"{prefix}{suffix}").unlink()
    with pytest.raises(DataError, match="no such file") as caught:
        IndexedDataset.open(prefix)
    assert f"{prefix}{suffix}" in str(caught.value)
    Path(f"{prefix}{suffix}").mkdir()
    with pytest.raises(DataError):
        IndexedDataset.open(prefix)
    with pytest.raises(DataError, match=r"prefix without \.bin or \.idx"):
        IndexedDataset.open(Path(f"{prefix}{suffix}"))


def test_reads_outside_the_file_or_of_a_cut_file(tmp_path: Path) -> None:
    prefix = small_dataset(tmp_path)
    with IndexedDataset.open(prefix) as dataset:
        for start, count in ((0, 11), (10, 1), (-1, 1), (3, -1), (1 << 70, 1)):
            with pytest.raises(DataError, match="inside its 10 tokens"):
                dataset.read(start, count)
        os.truncate(f"{prefix}.bin", 18)
        assert dataset.read(0, 4).tolist() == [0, 10, 20, 30]
        for start, count in ((0, 10), (8, 1)):
            with pytest.raises(DataError, match="cut while it was in use"):
                dataset.read(start, count)


def test_short_reads_are_continued_and_a_failing_disk_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pread

    def fail(descriptor: int, size: int, offset: int) -> bytes:
        raise OSError(5, "Input/output error")

    with IndexedDataset.open(small_dataset(tmp_path)) as dataset:
        monkeypatch.setattr("os.pread", lambda descriptor, size, offset: real(descriptor, min(size, 7), offset))
        assert dataset.read(0, 10).tolist() == list(range(0, 100, 10))
        monkeypatch.setattr("os.pread", fail)
        with pytest.raises(DataError, match="Input/output error"):
            dataset.read(0, 1)


def test_closed_file_and_failed_open_leave_no_descriptor(tmp_path: Path) -> None:
    prefix = small_dataset(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    tokens = IndexedDataset.open(prefix)
    tokens.close()
    tokens.close()
    with pytest.raises(DataError, match="close"):
        tokens.read(0, 1)
    os.truncate(f"{prefix}.bin", 36)
    for _ in range(5):
        with pytest.raises(DataError):
            IndexedDataset.open(prefix)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    values = np.arange(100_000, dtype="<i4")
    with IndexedDataset.open(write_files(tmp_path, index_bytes([100_000], [0, 1]), values.tobytes())) as tokens:
        starts = [37 * number % 99_000 for number in range(800)]
        with ThreadPoolExecutor(4) as pool:
            for start, part in zip(starts, pool.map(lambda start: tokens.read(start, 1000), starts), strict=True):
                assert np.array_equal(part, values[start : start + 1000])


def test_opening_a_huge_index_is_immediate_and_small(tmp_path: Path) -> None:
    """The published training set's 45.6 million documents, as sparse files."""
    count = 45_600_000
    prefix = tmp_path / "huge"
    pointers_at, boundaries_at = HEADER + 4 * count, HEADER + 12 * count
    with Path(f"{prefix}.idx").open("wb") as index:
        index.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, count, count + 1))
        index.seek(pointers_at - 4)
        index.write(struct.pack("<i", 440))
        index.seek(boundaries_at - 8)
        index.write(struct.pack("<q", (count - 1) * 440 * 4))
        index.seek(boundaries_at + 8 * count)
        index.write(struct.pack("<q", count))
    with Path(f"{prefix}.bin").open("wb") as data:
        data.truncate(count * 440 * 4)
    tracemalloc.start()
    started = time.perf_counter()
    with IndexedDataset.open(prefix) as tokens:
        seconds = time.perf_counter() - started
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert tokens.token_count == count * 440
        assert tokens.document_count == count
        assert tokens.read(count * 440 - 3, 3).tolist() == [0, 0, 0]
    assert seconds < 0.5
    assert peak < 100_000, "bytes; the tables, 912 MB, must not be read"


def test_every_truncation_and_changed_header_byte_is_refused(tmp_path: Path) -> None:
    good, data = index_bytes([3, 5, 2], [0, 1, 2, 3]), np.arange(10, dtype="<i4").tobytes()
    for size in range(len(good)):
        with pytest.raises(DataError):
            IndexedDataset.open(write_files(tmp_path, good[:size], data))
    for place in range(HEADER):
        for value in {0, 1, 7, 127, 255} - {good[place]}:
            index = good[:place] + bytes([value]) + good[place + 1 :]
            with pytest.raises(DataError):
                IndexedDataset.open(write_files(tmp_path, index, data))
