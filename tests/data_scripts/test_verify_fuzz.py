"""Indexes of any content: the verification fails only by findings, and both readers agree on what passes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from data_scripts.dataset_writer import write_dataset
from gptoss20b.data.indexed_dataset import IndexedDataset
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX
from tests.support.small_sets import open_with_megatron, random_documents, verify_set, write_with_megatron

TOKENS = 60


def pack_index(lengths: list[int], pointers: list[int], boundaries: list[int]) -> bytes:
    counts = len(lengths), len(boundaries)
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, *counts)
    return head + struct.pack(f"<{counts[0]}i{counts[0]}q{counts[1]}q", *lengths, *pointers, *boundaries)


GOOD_INDEX = pack_index([3, 6, 11, 1, 19, 15, 5], [0, 12, 36, 80, 84, 160, 220], list(range(8)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a good set whose validation file holds seven documents of sixty tokens together."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_dataset(folder / TRAIN_PREFIX, random_documents(9))
    tokens = np.arange(TOKENS)
    write_with_megatron(folder / VALIDATION_PREFIX, np.split(tokens, [3, 9, 20, 21, 40, 55]))
    assert Path(f"{folder / VALIDATION_PREFIX}.idx").read_bytes() == GOOD_INDEX
    return folder


def passes(folder: Path, index: bytes) -> bool:
    """Verify a set with this index; where it passes, both readers must read what its tables describe."""
    prefix = folder / VALIDATION_PREFIX
    Path(f"{prefix}.idx").write_bytes(index)
    any_number = ["--validation-documents", "0", "--no-md5", "--vocab-size", "200000"]
    done = verify_set(folder, *any_number, "--threads", "1")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    assert done.stderr == ""
    outcome = done.exit_code, "; expected " in done.stdout, ": PASS" in done.stdout
    assert outcome in [(0, False, True), (1, True, False)]
    if done.exit_code:
        return False
    theirs = open_with_megatron(prefix)
    with IndexedDataset.open(prefix) as ours:
        counts = ours.sequence_count, ours.document_count, ours.token_count
        assert counts == (len(theirs), len(theirs.document_indices) - 1, TOKENS)
        start = 0
        for number in range(len(theirs)):
            sequence = theirs[number]
            assert ours.read(start, sequence.size).tolist() == sequence.tolist()
            start += sequence.size
        assert start == TOKENS
    boundaries = theirs.document_indices.tolist()
    assert boundaries == sorted(boundaries)
    assert (boundaries[0], boundaries[-1]) == (0, len(theirs))
    return True


def test_the_undamaged_set_passes(folder: Path) -> None:
    assert passes(folder, GOOD_INDEX)


@st.composite
def mutated_indexes(draw: st.DrawFn) -> bytes:
    """Change up to three bytes of the good index, and maybe cut it."""
    index = bytearray(GOOD_INDEX)
    changes = st.tuples(st.integers(0, len(index) - 1), st.integers(0, 255))
    for place, value in draw(st.lists(changes, min_size=1, max_size=3)):
        index[place] = value
    return bytes(index[: draw(st.none() | st.integers(0, len(index)))])


@st.composite
def nearly_right_indexes(draw: st.DrawFn) -> bytes:
    """Change one entry of right tables, or none."""
    lengths = draw(st.lists(st.integers(0, 25), min_size=1, max_size=8))
    lengths = [*lengths, max(0, TOKENS - sum(lengths))]
    pointers = [4 * sum(lengths[:number]) for number in range(len(lengths))]
    boundaries = [0, *sorted(draw(st.lists(st.integers(0, len(lengths)), max_size=8))), len(lengths)]
    if draw(st.booleans()):
        table = draw(st.sampled_from([lengths, pointers, boundaries]))
        place = draw(st.integers(0, len(table) - 1))
        table[place] += draw(st.integers(-5, 5))
    return pack_index(lengths, pointers, boundaries)


@st.composite
def arbitrary_tables(draw: st.DrawFn) -> bytes:
    """Fill tables of the right size with any bytes."""
    sequences, boundaries = draw(st.integers(0, 8)), draw(st.integers(0, 9))
    size = 12 * sequences + 8 * boundaries
    code = draw(st.sampled_from([4, 4, 4, 1, 3, 5, 8]))
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, sequences, boundaries)
    return head + draw(st.binary(max_size=160)).ljust(size, b"\0")[:size]


@settings(max_examples=800, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=mutated_indexes() | nearly_right_indexes() | arbitrary_tables() | st.binary(max_size=200))
def test_any_index(folder: Path, index: bytes) -> None:
    event("passed" if passes(folder, index) else "findings")
