"""Indexes of any content: the verification fails only by findings, and both readers agree on what passes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from data_scripts.dataset_writer import write_dataset
from gptoss20b.data.indexed_dataset import IndexedDataset
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX
from tests.support.small_sets import HEADER, open_with_megatron, random_documents, verify_set, write_with_megatron

fuzz = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TOKENS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a good set whose validation file holds seven documents of sixty tokens together."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_dataset(folder / TRAIN_PREFIX, random_documents(9))
    tokens = np.arange(TOKENS)
    write_with_megatron(folder / VALIDATION_PREFIX, np.split(tokens, [3, 9, 20, 21, 40, 55]))
    (folder / "good.idx").write_bytes(Path(f"{folder / VALIDATION_PREFIX}.idx").read_bytes())
    return folder


def passes(folder: Path, index: bytes) -> bool:
    """Verify a set with this index."""
    Path(f"{folder / VALIDATION_PREFIX}.idx").write_bytes(index)
    any_number = ["--validation-documents", "0", "--no-md5", "--vocab-size", "200000"]
    done = verify_set(folder, *any_number, "--threads", "1")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    assert done.stderr == ""
    assert (done.exit_code, "; expected " in done.stdout, ": PASS" in done.stdout) in [
        (0, False, True),
        (1, True, False),
    ]
    return done.exit_code == 0


def check_with_both_readers(folder: Path) -> None:
    """Read every sequence with Megatron's reader and the same range with ours."""
    prefix = folder / VALIDATION_PREFIX
    theirs = open_with_megatron(prefix)
    with IndexedDataset.open(prefix) as ours:
        assert ours.sequence_count == len(theirs)
        assert ours.document_count == len(theirs.document_indices) - 1
        assert ours.token_count == TOKENS
        start = 0
        for number in range(len(theirs)):
            sequence = theirs[number]
            assert sequence.dtype == np.int32
            assert ours.read(start, sequence.size).tolist() == sequence.tolist()
            start += sequence.size
        assert start == TOKENS
    boundaries = theirs.document_indices.tolist()
    assert boundaries == sorted(boundaries)
    assert (boundaries[0], boundaries[-1]) == (0, len(theirs))


def test_the_undamaged_set_passes_and_both_read_it(folder: Path) -> None:
    assert passes(folder, (folder / "good.idx").read_bytes())
    check_with_both_readers(folder)


@fuzz
@given(
    changes=st.lists(st.tuples(st.integers(0, 173), st.integers(0, 255)), min_size=1, max_size=3),
    cut=st.none() | st.integers(0, 180),
)
def test_mutations(folder: Path, changes: list[tuple[int, int]], cut: int | None) -> None:
    index = bytearray((folder / "good.idx").read_bytes())
    for place, value in changes:
        index[place] = value
    passed = passes(folder, bytes(index[:cut]))
    event("passed" if passed else "findings")
    if passed:
        check_with_both_readers(folder)


@st.composite
def whole_indexes(draw: st.DrawFn) -> bytes:
    """Draw indexes of the right size whose tables are nearly right."""
    lengths = draw(st.lists(st.integers(0, 25), min_size=1, max_size=8))
    lengths = [*lengths, max(0, TOKENS - sum(lengths))]
    pointers = [4 * sum(lengths[:number]) for number in range(len(lengths))]
    boundaries = [0, *sorted(draw(st.lists(st.integers(0, len(lengths)), max_size=8))), len(lengths)]
    if draw(st.booleans()):
        table = draw(st.sampled_from([lengths, pointers, boundaries]))
        place = draw(st.integers(0, len(table) - 1))
        table[place] += draw(st.integers(-5, 5))
    count = len(lengths)
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, count, len(boundaries))
    return head + struct.pack(f"<{count}i{count}q{len(boundaries)}q", *lengths, *pointers, *boundaries)


@fuzz
@given(index=whole_indexes())
def test_nearly_right_tables(folder: Path, index: bytes) -> None:
    passed = passes(folder, index)
    event("passed" if passed else "findings")
    if passed:
        check_with_both_readers(folder)


@settings(fuzz, max_examples=150)
@given(
    tables=st.binary(max_size=160),
    code=st.sampled_from([4, 4, 4, 1, 3, 5, 8]),
    counts=st.tuples(st.integers(0, 8), st.integers(0, 9)),
)
def test_arbitrary_tables(folder: Path, tables: bytes, code: int, counts: tuple[int, int]) -> None:
    sequences, boundaries = counts
    size = 12 * sequences + 8 * boundaries
    body = tables.ljust(size, b"\0")[:size]
    if passes(folder, b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, sequences, boundaries) + body):
        check_with_both_readers(folder)


@settings(fuzz, max_examples=100)
@given(index=st.binary(max_size=200))
def test_arbitrary_bytes(folder: Path, index: bytes) -> None:
    assert not passes(folder, index)


def single_changes(size: int) -> Iterator[tuple[int, int]]:
    for place in range(HEADER, size):
        yield place, 1
        yield place, 0x80


def test_every_byte_of_the_tables_flipped_is_found_or_harmless(folder: Path) -> None:
    good = (folder / "good.idx").read_bytes()
    passed = []
    for place, mask in single_changes(len(good)):
        index = bytearray(good)
        index[place] ^= mask
        if passes(folder, bytes(index)):
            passed.append((place - HEADER - 12 * 7) / 8)
            check_with_both_readers(folder)
    # Only a boundary may move by one and still describe a possible set.
    assert passed
    assert all(boundary > 0 and boundary == int(boundary) for boundary in passed)
