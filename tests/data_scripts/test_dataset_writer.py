"""The writer of indexed datasets: the bytes of Megatron's own writer, in bounded memory, resumable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_scripts import dataset_writer
from data_scripts.dataset_writer import DatasetSize, IndexedDatasetWriter, write_dataset
from gptoss20b.data.files import DataError
from gptoss20b.data.index import Index
from gptoss20b.data.indexed_dataset import IndexedDataset
from tests.support.small_sets import dataset_bytes, open_with_megatron, write_with_megatron

Texts = list[list[int]]
tokens = st.integers(0, 2**31 - 1)
some_texts = st.lists(st.lists(tokens, min_size=1, max_size=9), min_size=1, max_size=12)


def write_theirs(prefix: Path, texts: Texts) -> None:
    write_with_megatron(prefix, [np.array(text) for text in texts])


def add(writer: IndexedDatasetWriter, texts: Texts) -> None:
    writer.add(np.array([token for text in texts for token in text], np.int64), np.array([*map(len, texts)], np.int64))


@given(texts=some_texts, cut=st.integers(0, 12), block=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_the_same_bytes_as_megatrons_own_writer(
    tmp_path_factory: pytest.TempPathFactory, texts: Texts, cut: int, block: int
) -> None:
    folder = tmp_path_factory.mktemp("dataset")
    write_theirs(folder / "theirs", texts)
    with pytest.MonkeyPatch.context() as patch, IndexedDatasetWriter(folder / "ours.bin", folder / "lengths") as writer:
        patch.setattr(dataset_writer, "_BLOCK", block)
        add(writer, texts[:cut])
        add(writer, texts[cut:])
        assert writer.flush() == DatasetSize(len(texts), sum(map(len, texts)))
        writer.write_index(folder / "ours.idx")
    assert dataset_bytes(folder / "ours") == dataset_bytes(folder / "theirs")


@given(texts=some_texts, kept=st.integers(0, 12), lost=some_texts)
@settings(max_examples=40, deadline=None)
def test_resuming_drops_what_was_written_after_the_saved_size(
    tmp_path_factory: pytest.TempPathFactory, texts: Texts, kept: int, lost: Texts
) -> None:
    folder = tmp_path_factory.mktemp("dataset")
    write_theirs(folder / "theirs", texts)
    with IndexedDatasetWriter(folder / "ours.bin", folder / "lengths") as writer:
        add(writer, texts[:kept])
        saved = writer.flush()
        add(writer, lost)
    with IndexedDatasetWriter(folder / "ours.bin", folder / "lengths", saved) as writer:
        assert writer.size == saved
        add(writer, texts[kept:])
        writer.write_index(folder / "ours.idx")
    assert dataset_bytes(folder / "ours") == dataset_bytes(folder / "theirs")


def test_empty_documents_stay_documents(tmp_path: Path) -> None:
    texts = [[1, 2], [], [3]]
    write_dataset(tmp_path / "x", [np.array(text, np.int64) for text in texts])
    theirs = open_with_megatron(tmp_path / "x")
    assert [theirs[number].tolist() for number in range(3)] == texts
    with IndexedDataset.open(tmp_path / "x") as ours:
        assert (ours.document_count, ours.read(0, 3).tolist()) == (3, [1, 2, 3])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.idx"]


def test_pointers_beyond_two_gigabytes(tmp_path: Path) -> None:
    """Lengths whose sum exceeds an int32, in bytes and in tokens; the token file is not needed."""
    lengths = np.array([2**31 - 1, 2**31 - 1, 5], "<i4")
    writer = IndexedDatasetWriter(tmp_path / "x.bin", tmp_path / "lengths")
    (tmp_path / "lengths").write_bytes(lengths.tobytes())
    writer.size = DatasetSize(3, int(lengths.sum(dtype=np.int64)))
    writer.write_index(tmp_path / "x.idx")
    writer.close()
    with Index.open(tmp_path / "x") as index:
        assert index.pointers.read(0, 3).tolist() == [0, (2**31 - 1) * 4, (2**32 - 2) * 4]
        assert index.data_bytes == (2**32 + 3) * 4


def test_lengths_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    with IndexedDatasetWriter(tmp_path / "x.bin", tmp_path / "lengths") as writer:
        with pytest.raises(ValueError, match="sum of 3; expected 2"):
            writer.add(np.array([1, 2]), np.array([3]))
        assert writer.size == dataset_writer.EMPTY


@pytest.mark.parametrize("short", ["x.bin", "lengths"])
def test_a_file_shorter_than_the_saved_size_is_refused_and_untouched(tmp_path: Path, short: str) -> None:
    with IndexedDatasetWriter(tmp_path / "x.bin", tmp_path / "lengths") as writer:
        add(writer, [[1, 2, 3], [4]])
        saved = writer.flush()
    content = (tmp_path / short).read_bytes()[:-1]
    (tmp_path / short).write_bytes(content)
    with pytest.raises(DataError, match=f"{short}: got {len(content)} bytes; expected at least {len(content) + 1}"):
        IndexedDatasetWriter(tmp_path / "x.bin", tmp_path / "lengths", saved)
    assert (tmp_path / short).read_bytes() == content


def test_the_index_of_many_documents_needs_little_memory(tmp_path: Path) -> None:
    """Eight million documents: 160 MB of index, of which a list of Python numbers would make more than 300."""
    script = """
import resource, sys
from pathlib import Path
import numpy as np
from data_scripts.dataset_writer import DatasetSize, IndexedDatasetWriter
folder = Path(sys.argv[1])
writer = IndexedDatasetWriter(folder / "x.bin", folder / "lengths")
(folder / "lengths").write_bytes(np.full(8_000_000, 400, "<i4").tobytes())
writer.size = DatasetSize(8_000_000, 3_200_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
writer.write_index(folder / "x.idx")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert (tmp_path / "x.idx").stat().st_size == 34 + 8_000_000 * 20 + 8
    assert float(done.stdout) < 60
