"""Lengths, pointers and boundaries, against a slow and plain check; and findings beyond the cap."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_scripts.checking.findings import MAX_LISTED, CappedFindings, Finding
from data_scripts.checking.tables import check_tables, document_at
from gptoss20b.data import index as index_module
from gptoss20b.data.files import DataError
from gptoss20b.data.index import Index, pack_header

many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_index(path: Path, lengths: list[int], pointers: list[int], boundaries: list[int]) -> None:
    path.write_bytes(
        pack_header(np.dtype("<i4"), len(lengths), len(boundaries) - 1)
        + np.array(lengths, "<i4").tobytes()
        + np.array(pointers, "<i8").tobytes()
        + np.array(boundaries, "<i8").tobytes()
    )


def is_right(lengths: list[int], pointers: list[int], boundaries: list[int]) -> bool:
    """Check entry by entry whether the tables describe one file without gaps."""
    start = 0
    for length, pointer in zip(lengths, pointers, strict=True):
        if length < 0 or pointer != start:
            return False
        start += 4 * length
    inside = all(0 <= boundary <= len(lengths) for boundary in boundaries)
    return inside and all(before <= after for before, after in pairwise(boundaries))


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Right tables with up to two entries changed, whose ends still open."""
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=12))
    pointers = [4 * sum(lengths[:number]) for number in range(len(lengths))]
    inner = sorted(draw(st.lists(st.integers(0, len(lengths)), max_size=12)))
    boundaries = [0, *inner, len(lengths)]
    for _ in range(draw(st.integers(0, 2))):
        table, bits = draw(st.sampled_from([(lengths, 31), (pointers, 63), (boundaries, 63)]))
        place = draw(st.integers(0, len(table) - 1))
        low, high = -(1 << bits), (1 << bits) - 1
        near = st.integers(max(low, table[place] - 9), min(high, table[place] + 9))
        table[place] = draw(near | st.integers(low, high))
    return lengths, pointers, boundaries


@many
@given(made=tables(), block=st.integers(1, 5))
def test_tables_are_right_exactly_if_a_plain_reading_says_so(
    tmp_path: Path, made: tuple[list[int], list[int], list[int]], block: int
) -> None:
    write_index(tmp_path / "a.idx", *made)
    advanced: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_BLOCK", block)
        try:
            with Index.open(tmp_path / "a") as index:
                found = check_tables(index, advanced.append)
                size = index.boundaries.end - index.lengths.start
        except DataError:
            # The ends are wrong: opening refuses them.
            return
    assert (found.findings == []) == is_right(*made)
    assert sum(advanced) == size
    for finding in found.findings:
        assert finding.file == "a.idx"
        assert "at byte" in finding.message or "in all" in finding.message
    if not found.findings:
        lengths, _, boundaries = made
        assert found.empty_sequences == lengths.count(0)
        assert found.empty_documents == sum(a == b for a, b in pairwise(boundaries))


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
@pytest.mark.parametrize("table", ["pointers", "lengths"])
def test_one_wrong_entry_is_one_finding_wherever_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, block: int
) -> None:
    monkeypatch.setattr(index_module, "_BLOCK", block)
    for number in range(1, 9):
        lengths, pointers = [2] * 10, [8 * at for at in range(10)]
        if table == "pointers":
            pointers[number] += 4
            sequence, got, expected = number, 8 * number + 4, 8 * number
        else:
            lengths[number] = 3
            sequence, got, expected = number + 1, 8 * number + 8, 8 * number + 12
        write_index(tmp_path / "a.idx", lengths, pointers, list(range(11)))
        with Index.open(tmp_path / "a") as index:
            (finding,) = check_tables(index, lambda size: None).findings
        assert f"pointer {got} for sequence {sequence} (at byte {34 + 40 + 8 * sequence})" in finding.message
        assert f"expected {expected}, where sequence {sequence - 1} ends" in finding.message


@pytest.mark.parametrize(("pointer", "outside"), [(-1, True), (0, False), (80, False), (81, True)])
def test_a_pointer_is_outside_from_the_byte_after_the_end(tmp_path: Path, pointer: int, outside: bool) -> None:
    pointers = [8 * at for at in range(10)]
    pointers[5] = pointer
    write_index(tmp_path / "a.idx", [2] * 10, pointers, list(range(11)))
    with Index.open(tmp_path / "a") as index:
        (finding,) = check_tables(index, lambda size: None).findings
    assert (", outside the 80 bytes of its .bin; " in finding.message) == outside


def test_many_wrong_entries_are_the_first_few_and_a_count(tmp_path: Path) -> None:
    write_index(tmp_path / "a.idx", [2] * 5000, [8 * at + 4 * (at % 2) for at in range(4999)] + [8 * 4999], [0, 5000])
    with Index.open(tmp_path / "a") as index:
        found = check_tables(index, lambda size: None).findings
    assert len(found) == MAX_LISTED + 1
    assert "for sequence 9 " in found[MAX_LISTED - 1].message
    assert found[-1].message.startswith("got 2,499 pointers ")


def test_findings_beyond_the_cap_are_counted_and_never_built() -> None:
    built: list[int] = []

    def build(count: int) -> list[Finding]:
        built.append(count)
        return [Finding.about("f", str(count), "x")] * count

    capped = CappedFindings("f", "things")
    capped.add(build(3), 3)
    capped.add((build(1)[0] for _ in range(1000)), 1000)
    assert len(built) == 1 + 2
    assert [finding.message[:11] for finding in capped.findings()[:-1]] == ["got 3; expe"] * 3 + ["got 1; expe"] * 2
    assert capped.findings()[-1].message.startswith("got 1,003 things in all, of which the first 5 ")


@many
@given(documents=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=8))
def test_every_token_is_found_in_its_document(tmp_path: Path, documents: list[list[int]]) -> None:
    """Documents of several sequences, empty sequences, and documents without any."""
    lengths = [length for document in documents for length in document]
    if not lengths:
        return
    boundaries = np.cumsum([0, *(len(document) for document in documents)]).tolist()
    write_index(tmp_path / "a.idx", lengths, (4 * (np.cumsum(lengths) - lengths)).tolist(), boundaries)
    expected = [(at, within) for at, document in enumerate(documents) for within in range(sum(document))]
    with Index.open(tmp_path / "a") as index:
        assert [document_at(index, token) for token in range(sum(lengths))] == expected


def test_an_index_of_millions_is_checked_in_seconds_and_bounded_memory(tmp_path: Path) -> None:
    """A tenth of the published set's documents."""
    count = 4_560_000
    lengths = np.full(count, 424, "<i4")
    with (tmp_path / "a.idx").open("wb") as stream:
        stream.write(pack_header(np.dtype("<i4"), count, count))
        stream.write(lengths.data)
        stream.write((np.arange(count, dtype="<i8") * 4 * 424).data)
        stream.write(np.arange(count + 1, dtype="<i8").data)
    del lengths
    tracemalloc.start()
    with Index.open(tmp_path / "a") as index:
        assert check_tables(index, lambda size: None).findings == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6, "bytes: a few blocks of 8 MB each"
