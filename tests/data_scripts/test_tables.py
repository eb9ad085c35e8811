"""Lengths, pointers and borders, against a slow and plain reading; and findings that are too many."""

import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_scripts.checking.findings import SHOWN, Few, Finding
from data_scripts.checking.tables import check_tables, document_at
from gptoss20b.data import index as index_module
from gptoss20b.data.files import DataError
from gptoss20b.data.index import Index, header

many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_index(path: Path, lengths: list[int], pointers: list[int], borders: list[int]) -> None:
    path.write_bytes(
        header(np.dtype("<i4"), len(lengths), len(borders) - 1)
        + np.array(lengths, "<i4").tobytes()
        + np.array(pointers, "<i8").tobytes()
        + np.array(borders, "<i8").tobytes()
    )


def is_right(lengths: list[int], pointers: list[int], borders: list[int]) -> bool:
    """Whether the tables tell of one gapless file, told entry by entry."""
    start = 0
    for length, pointer in zip(lengths, pointers, strict=True):
        if length < 0 or pointer != start:
            return False
        start += 4 * length
    inside = all(0 <= border <= len(lengths) for border in borders)
    return inside and all(before <= after for before, after in pairwise(borders))


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Right tables with up to two entries changed, whose ends still open."""
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=12))
    pointers = [4 * sum(lengths[:number]) for number in range(len(lengths))]
    inner = sorted(draw(st.lists(st.integers(0, len(lengths)), max_size=12)))
    borders = [0, *inner, len(lengths)]
    for _ in range(draw(st.integers(0, 2))):
        table, bits = draw(st.sampled_from([(lengths, 31), (pointers, 63), (borders, 63)]))
        place = draw(st.integers(0, len(table) - 1))
        low, high = -(1 << bits), (1 << bits) - 1
        near = st.integers(max(low, table[place] - 9), min(high, table[place] + 9))
        table[place] = draw(near | st.integers(low, high))
    return lengths, pointers, borders


@many
@given(made=tables(), block=st.integers(1, 5))
def test_tables_are_right_exactly_if_a_plain_reading_says_so(
    tmp_path: Path, made: tuple[list[int], list[int], list[int]], block: int
) -> None:
    write_index(tmp_path / "a.idx", *made)
    told: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_BLOCK", block)
        try:
            with Index.open(tmp_path / "a") as index:
                found = check_tables(index, told.append)
                size = index.borders.end - index.lengths.start
        except DataError:
            # The ends alone are wrong, which the reader of a run refuses.
            return
    assert (found.findings == []) == is_right(*made)
    assert sum(told) == size
    for finding in found.findings:
        assert finding.file == "a.idx"
        assert "at byte" in finding.message or "in all" in finding.message
    if not found.findings:
        lengths, _, borders = made
        assert found.empty_sequences == lengths.count(0)
        assert found.empty_documents == sum(a == b for a, b in pairwise(borders))


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_one_wrong_entry_is_one_finding_wherever_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(index_module, "_BLOCK", block)
    for number in range(1, 9):
        pointers = [8 * at for at in range(10)]
        pointers[number] += 4
        write_index(tmp_path / "a.idx", [2] * 10, pointers, list(range(11)))
        with Index.open(tmp_path / "a") as index:
            (finding,) = check_tables(index, lambda size: None).findings
        assert f"pointer {8 * number + 4} for sequence {number} (at byte {34 + 40 + 8 * number})" in finding.message
        assert f"expected {8 * number}, where sequence {number - 1} ends" in finding.message


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_one_wrong_length_is_one_finding_wherever_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(index_module, "_BLOCK", block)
    for number in range(9):
        lengths = [2] * 10
        lengths[number] = 3
        write_index(tmp_path / "a.idx", lengths, [8 * at for at in range(10)], list(range(11)))
        with Index.open(tmp_path / "a") as index:
            (finding,) = check_tables(index, lambda size: None).findings
        assert f"pointer {8 * number + 8} for sequence {number + 1} " in finding.message
        assert f"expected {8 * number + 12}, where sequence {number} ends" in finding.message


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
    assert len(found) == SHOWN + 1
    assert "for sequence 9 " in found[SHOWN - 1].message
    assert found[-1].message.startswith("got 2,499 pointers that are not where the sequence before ends in all")


def test_few_makes_only_what_is_shown() -> None:
    made: list[int] = []

    def places(count: int) -> list[Finding]:
        made.append(count)
        return [Finding.about("f", str(count), "x")] * count

    few = Few("f", "things")
    few.add(places(3), 3)
    few.add((places(1)[0] for _ in range(1000)), 1000)
    assert len(made) == 1 + 2
    assert [finding.message[:11] for finding in few.findings()[:-1]] == ["got 3; expe"] * 3 + ["got 1; expe"] * 2
    assert few.findings()[-1].message.startswith(
        "got 1,003 things in all, of which the first 5 are told; expected none"
    )


@many
@given(documents=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=8))
def test_every_token_is_found_in_its_document(tmp_path: Path, documents: list[list[int]]) -> None:
    """Documents of several sequences, empty sequences, and documents without any."""
    lengths = [length for document in documents for length in document]
    if not lengths:
        return
    borders = np.cumsum([0, *(len(document) for document in documents)]).tolist()
    write_index(tmp_path / "a.idx", lengths, (4 * (np.cumsum(lengths) - lengths)).tolist(), borders)
    expected = [(at, within) for at, document in enumerate(documents) for within in range(sum(document))]
    with Index.open(tmp_path / "a") as index:
        assert [document_at(index, token) for token in range(sum(lengths))] == expected


def test_an_index_of_millions_is_checked_in_seconds_and_bounded_memory(tmp_path: Path) -> None:
    """A tenth of the published set's documents."""
    count = 4_560_000
    lengths = np.full(count, 424, "<i4")
    with (tmp_path / "a.idx").open("wb") as stream:
        stream.write(header(np.dtype("<i4"), count, count))
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
