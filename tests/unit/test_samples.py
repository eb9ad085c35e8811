"""Windows, training and validation samples, and batches, over files of Megatron's own writer."""

from __future__ import annotations

import hashlib
import multiprocessing
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from gptoss20b.data.files import DataError
from gptoss20b.data.indexed_dataset import IndexedDataset
from gptoss20b.data.samples import Batch, ValidationSamples, Windows, collate
from tests.support.small_sets import write_with_megatron

LENGTH = 16
VOCAB_SIZE = 500
STREAM = np.random.default_rng(0).integers(0, VOCAB_SIZE, size=LENGTH * 40 + 5)


def write_stream(prefix: Path, stream: npt.NDArray[np.int64], documents: int = 7) -> Path:
    write_with_megatron(prefix, np.array_split(stream, documents))
    return prefix


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IndexedDataset]:
    with IndexedDataset.open(write_stream(tmp_path_factory.mktemp("data") / "c4.en_text", STREAM)) as opened:
        yield opened


@pytest.fixture
def windows(dataset: IndexedDataset) -> Windows:
    return Windows(dataset, LENGTH, VOCAB_SIZE)


def test_windows_are_in_file_order(windows: Windows) -> None:
    assert windows.count == 40
    for number in range(40):
        shown = windows.window(number)
        assert shown.dtype == np.int64
        assert np.array_equal(shown, STREAM[number * LENGTH : number * LENGTH + LENGTH + 1])


@pytest.mark.parametrize(("size", "count"), [(0, 0), (1, 0), (16, 0), (17, 1), (32, 1), (33, 2), (48, 2), (49, 3)])
def test_a_window_needs_its_last_label(tmp_path: Path, size: int, count: int) -> None:
    with IndexedDataset.open(write_stream(tmp_path / "few", np.arange(size), 1)) as few:
        if count:
            windows = Windows(few, LENGTH, VOCAB_SIZE)
            assert windows.count == count
            assert windows.window(count - 1).shape == (LENGTH + 1,)
        else:
            with pytest.raises(DataError, match=rf"few\.bin: got {size} tokens; expected at least 17"):
                Windows(few, LENGTH, VOCAB_SIZE)


def test_numbers_out_of_range(windows: Windows) -> None:
    for number in (-1, 40):
        with pytest.raises(DataError, match="expected 0 to 39"):
            windows.window(number)


@pytest.mark.parametrize(("place", "value"), [(0, -1), (16, VOCAB_SIZE), (16, -5), (20, 70_000), (32, VOCAB_SIZE)])
def test_token_ids_outside_the_vocabulary_are_named(tmp_path: Path, place: int, value: int) -> None:
    stream = np.full(49, VOCAB_SIZE - 1)
    stream[place] = value
    with IndexedDataset.open(write_stream(tmp_path / "bad", stream, 1)) as bad:
        windows = Windows(bad, LENGTH, VOCAB_SIZE)
        touched = {number for number in range(3) if number * LENGTH <= place <= (number + 1) * LENGTH}
        for number in range(3):
            if number in touched:
                with pytest.raises(DataError) as caught:
                    windows.window(number)
                for part in (str(bad.path), f"got id {value} at token {place}", "expected 0 to 499"):
                    assert part in str(caught.value)
            else:
                windows.window(number)
        with pytest.raises(DataError, match=rf"token {place} \(byte {4 * place}\);"):
            ValidationSamples(windows, 3).sha256()
        with pytest.raises(DataError, match=rf"token {place} \(byte {4 * place}\);"):
            [windows.train_sample(position, 0) for position in range(3)]


def test_an_epoch_shows_every_window_once(windows: Windows) -> None:
    for epoch in range(2):
        shown = [windows.train_sample(position, seed=3).tobytes() for position in range(epoch * 40, epoch * 40 + 40)]
        assert len(set(shown)) == 40
        assert set(shown) == {windows.window(number).tobytes() for number in range(40)}


def test_training_order_follows_the_seed(windows: Windows) -> None:
    def order(seed: int, start: int = 0) -> list[bytes]:
        return [windows.train_sample(position, seed).tobytes() for position in range(start, start + 40)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != order(1, start=40)
    assert order(1) != [windows.window(number).tobytes() for number in range(40)]


def test_validation_is_the_start_of_the_file(windows: Windows) -> None:
    validation = ValidationSamples(windows, 11)
    for number in range(11):
        assert np.array_equal(validation.windows.window(number), STREAM[number * LENGTH : number * LENGTH + LENGTH + 1])


def test_validation_needs_enough_sequences(windows: Windows) -> None:
    ValidationSamples(windows, 40)
    with pytest.raises(DataError, match="got 40 sequences of 16 tokens; expected at least 41") as caught:
        ValidationSamples(windows, 41)
    assert str(windows.dataset.path) in str(caught.value)


def test_validation_hash_is_over_the_windows_as_int32(windows: Windows) -> None:
    flat = [int(token) for number in range(5) for token in STREAM[number * LENGTH : number * LENGTH + LENGTH + 1]]
    expected = hashlib.sha256(struct.pack(f"<{len(flat)}i", *flat)).hexdigest()
    assert ValidationSamples(windows, 5).sha256() == expected
    assert ValidationSamples(windows, 6).sha256() != expected


def test_validation_hash_covers_each_token_and_nothing_after(tmp_path: Path) -> None:
    prefix = write_stream(tmp_path / "held_out", STREAM)

    def digest() -> str:
        with IndexedDataset.open(prefix) as opened:
            return ValidationSamples(Windows(opened, LENGTH, VOCAB_SIZE), 5).sha256()

    def replace(place: int, token: int) -> None:
        with Path(f"{prefix}.bin").open("r+b") as stream:
            stream.seek(4 * place)
            stream.write(struct.pack("<i", token))

    original = digest()
    for place in (0, 37, 5 * LENGTH):
        replace(place, (int(STREAM[place]) + 1) % VOCAB_SIZE)
        assert digest() != original
        replace(place, int(STREAM[place]))
        assert digest() == original
    replace(5 * LENGTH + 1, 0)
    assert digest() == original


def test_validation_hash_does_not_depend_on_the_stored_type(tmp_path: Path, windows: Windows) -> None:
    write_with_megatron(tmp_path / "narrow", [STREAM], np.uint16)
    with IndexedDataset.open(tmp_path / "narrow") as narrow:
        narrow_hash = ValidationSamples(Windows(narrow, LENGTH, VOCAB_SIZE), 8).sha256()
    assert narrow_hash == ValidationSamples(windows, 8).sha256()


def test_ranks_start_together_and_write_nothing(tmp_path: Path, windows: Windows) -> None:
    prefix = write_stream(tmp_path / "set", STREAM)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.iterdir())}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(shown_to_a_rank, [prefix] * 4) == [shown(windows)] * 4
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.iterdir())} == before


def shown_to_a_rank(prefix: Path) -> tuple[str, list[bytes]]:
    with IndexedDataset.open(prefix) as opened:
        return shown(Windows(opened, LENGTH, VOCAB_SIZE))


def shown(windows: Windows) -> tuple[str, list[bytes]]:
    """Return the hash of the validation samples and the first training samples."""
    return ValidationSamples(windows, 8).sha256(), [
        windows.train_sample(position, seed=3).tobytes() for position in range(50)
    ]


def test_batch_shifts_labels_by_one(windows: Windows) -> None:
    made = collate([windows.window(2), windows.window(5)], eod_token=None)
    assert isinstance(made, Batch)
    assert made.tokens.dtype == made.labels.dtype == np.int64
    assert made.loss_mask.dtype == np.float32
    for row, number in enumerate((2, 5)):
        assert np.array_equal(made.tokens[row], STREAM[number * LENGTH : (number + 1) * LENGTH])
        assert np.array_equal(made.labels[row], STREAM[number * LENGTH + 1 : (number + 1) * LENGTH + 1])
    assert made.loss_mask.shape == (2, LENGTH)
    assert made.loss_mask.min() == 1
    assert made.tokens.flags.c_contiguous and made.labels.flags.c_contiguous
    assert not np.shares_memory(made.tokens, made.labels)


def test_batch_masks_where_the_input_ends_a_document() -> None:
    made = collate([np.array([9, 1, 9, 2, 9]), np.array([1, 2, 3, 4, 9])], eod_token=9)
    assert made.loss_mask.tolist() == [[0, 1, 0, 1], [1, 1, 1, 1]]
    assert made.labels.tolist() == [[1, 9, 2, 9], [2, 3, 4, 9]]
    row = [np.array([0, 1, 0])]
    assert collate(row, eod_token=0).loss_mask.tolist() == [[0, 1]]
    assert collate(row, eod_token=None).loss_mask.tolist() == [[1, 1]]
