"""Indexes of any content: the verification never fails but by findings, and what passes reads the same everywhere."""

import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from gptoss20b.data.indexed_dataset import IndexedDataset
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX
from tests.support.small_sets import HEADER, OPTIONS, documents, write_by_megatron, write_by_us
from tests.support.verify_runs import app

fuzz = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TOKENS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good set whose validation file holds seven documents of sixty tokens together."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_by_us(folder / TRAIN_PREFIX, documents(9))
    tokens = np.arange(TOKENS)
    write_by_megatron(folder / VALIDATION_PREFIX, np.split(tokens, [3, 9, 20, 21, 40, 55]))
    (folder / "good.idx").write_bytes(Path(f"{folder / VALIDATION_PREFIX}.idx").read_bytes())
    return folder


def verify(folder: Path, index: bytes) -> bool:
    """Whether a set with this index passes; where it does, both readers must read what the tables say."""
    Path(f"{folder / VALIDATION_PREFIX}.idx").write_bytes(index)
    any_number = ["--validation-documents", "0", "--no-md5", "--vocab-size", "200000"]
    done = CliRunner().invoke(app, [str(folder), *OPTIONS, *any_number, "--threads", "1"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    assert done.stderr == ""
    assert (done.exit_code, "; expected " in done.stdout, ": PASS" in done.stdout) in [
        (0, False, True),
        (1, True, False),
    ]
    return done.exit_code == 0


def read_by_both(folder: Path) -> None:
    """Every sequence by Megatron, and the same stretch by the reader of a run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        from megatron.core.datasets.indexed_dataset import IndexedDataset as MegatronDataset

    prefix = folder / VALIDATION_PREFIX
    theirs = MegatronDataset(str(prefix))
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
    borders = theirs.document_indices.tolist()
    assert borders == sorted(borders)
    assert (borders[0], borders[-1]) == (0, len(theirs))


def test_the_undamaged_set_passes_and_both_read_it(folder: Path) -> None:
    assert verify(folder, (folder / "good.idx").read_bytes())
    read_by_both(folder)


@fuzz
@given(
    changes=st.lists(st.tuples(st.integers(0, 173), st.integers(0, 255)), min_size=1, max_size=3),
    cut=st.none() | st.integers(0, 180),
)
def test_mutations(folder: Path, changes: list[tuple[int, int]], cut: int | None) -> None:
    index = bytearray((folder / "good.idx").read_bytes())
    for place, value in changes:
        index[place] = value
    passed = verify(folder, bytes(index[:cut]))
    event("passed" if passed else "findings")
    if passed:
        read_by_both(folder)


@st.composite
def whole_indexes(draw: st.DrawFn) -> bytes:
    """Indexes of the right size whose tables are nearly right: most pass, others miss by little."""
    lengths = draw(st.lists(st.integers(0, 25), min_size=1, max_size=8))
    lengths = [*lengths, max(0, TOKENS - sum(lengths))]
    pointers = [4 * sum(lengths[:number]) for number in range(len(lengths))]
    borders = [0, *sorted(draw(st.lists(st.integers(0, len(lengths)), max_size=8))), len(lengths)]
    if draw(st.booleans()):
        table = draw(st.sampled_from([lengths, pointers, borders]))
        place = draw(st.integers(0, len(table) - 1))
        table[place] += draw(st.integers(-5, 5))
    count = len(lengths)
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, count, len(borders))
    return head + struct.pack(f"<{count}i{count}q{len(borders)}q", *lengths, *pointers, *borders)


@fuzz
@given(index=whole_indexes())
def test_nearly_right_tables(folder: Path, index: bytes) -> None:
    passed = verify(folder, index)
    event("passed" if passed else "findings")
    if passed:
        read_by_both(folder)


@settings(fuzz, max_examples=150)
@given(
    tables=st.binary(max_size=160),
    code=st.sampled_from([4, 4, 4, 1, 3, 5, 8]),
    counts=st.tuples(st.integers(0, 8), st.integers(0, 9)),
)
def test_arbitrary_tables(folder: Path, tables: bytes, code: int, counts: tuple[int, int]) -> None:
    sequences, borders = counts
    size = 12 * sequences + 8 * borders
    body = tables.ljust(size, b"\0")[:size]
    if verify(folder, b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, sequences, borders) + body):
        read_by_both(folder)


@settings(fuzz, max_examples=100)
@given(index=st.binary(max_size=200))
def test_arbitrary_bytes(folder: Path, index: bytes) -> None:
    assert not verify(folder, index)


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
        if verify(folder, bytes(index)):
            passed.append((place - HEADER - 12 * 7) / 8)
            read_by_both(folder)
    # Only a border may be moved by one and still tell of a possible set.
    assert passed
    assert all(border > 0 and border == int(border) for border in passed)
