"""Small data sets of the published names, written by Megatron's own writer or ours, and ways to damage them."""

import hashlib
import os
import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_scripts.dataset_writer import IndexedDatasetWriter
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX

HEADER = 34
LENGTH = 16
SEQUENCES = 3
TRAIN_DOCUMENTS, VALIDATION_DOCUMENTS = 40, 7
FILES = [f"{prefix}{suffix}" for prefix in (TRAIN_PREFIX, VALIDATION_PREFIX) for suffix in (".bin", ".idx")]
OPTIONS = ["--validation-documents", str(VALIDATION_DOCUMENTS), "--sequences", "3", "--sequence-length", "16"]
LIST = "set.md5"

Documents = list[npt.NDArray[np.int64]]


def documents(count: int, seed: int = 0, largest: int = 128_255) -> Documents:
    """Documents of 5 to 30 random tokens; the first one starts with the largest id, the second one with 0."""
    random = np.random.default_rng(seed)
    made = [random.integers(0, largest + 1, random.integers(5, 31)) for _ in range(count)]
    made[0][0], made[1][0] = largest, 0
    return made


def write_by_megatron(prefix: Path, contents: Documents, dtype: type[np.integer] = np.int32) -> None:
    """Write a pair with the writer that made the published set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        import torch
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in contents:
        builder.add_item(torch.from_numpy(document))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")


def write_by_us(prefix: Path, contents: Documents) -> None:
    """Write a pair with the writer of `preprocess`."""
    lengths = Path(f"{prefix}.lengths")
    with IndexedDatasetWriter(Path(f"{prefix}.bin"), lengths) as writer:
        for document in contents:
            writer.add(document, np.array([document.size]))
        writer.write_index(Path(f"{prefix}.idx"))
    lengths.unlink()


WRITERS: dict[str, Callable[[Path, Documents], None]] = {"megatron": write_by_megatron, "ours": write_by_us}


def write_set(
    folder: Path, write: Callable[..., None] = write_by_us, largest: int = 128_255, **how: Any
) -> dict[str, Documents]:
    """Write both pairs and their MD5 list; returns the documents by prefix."""
    folder.mkdir(exist_ok=True)
    contents = {
        TRAIN_PREFIX: documents(TRAIN_DOCUMENTS, 1, largest),
        VALIDATION_PREFIX: documents(VALIDATION_DOCUMENTS, 2, largest),
    }
    for prefix, made in contents.items():
        write(folder / prefix, made, **how)
    list_files(folder)
    return contents


def list_files(folder: Path, names: Sequence[str] = FILES, name: str = LIST) -> None:
    """Write the MD5 list of files as they are now."""
    lines = [f"{hashlib.md5((folder / file).read_bytes()).hexdigest()}  ./{file}\n" for file in names]
    (folder / name).write_text("".join(lines))


def flip(path: Path, offset: int, mask: int = 0xFF) -> None:
    """Change bits of one byte; a negative offset counts from the end."""
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


def put(path: Path, offset: int, form: str, value: int) -> None:
    """Write one number, in a form of `struct`."""
    raw = struct.pack(form, value)
    data = path.read_bytes()
    path.write_bytes(data[:offset] + raw + data[offset + len(raw) :])


def cut(path: Path, less: int) -> None:
    """Take bytes off the end."""
    os.truncate(path, path.stat().st_size - less)


def exchange(folder: Path, *suffixes: str) -> None:
    """Give the files of the two sets each other's names."""
    for suffix in suffixes:
        ours, theirs, between = (folder / f"{name}{suffix}" for name in (TRAIN_PREFIX, VALIDATION_PREFIX, "between"))
        ours.rename(between)
        theirs.rename(ours)
        between.rename(theirs)


def tables_at(sequences: int) -> tuple[int, int, int]:
    """The bytes at which lengths, pointers and borders start in an index."""
    return HEADER, HEADER + 4 * sequences, HEADER + 12 * sequences
