"""Small datasets under the published names, and ways to damage them."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typer.testing import Result

from data_scripts.dataset_writer import write_dataset
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX
from tests.support.data_commands import run_data_command

HEADER = 34
LENGTH = 16
EVAL_SAMPLES = 3
TRAIN_DOCUMENTS, VALIDATION_DOCUMENTS = 40, 7
FILES = [f"{prefix}{suffix}" for prefix in (TRAIN_PREFIX, VALIDATION_PREFIX) for suffix in (".bin", ".idx")]
TRAIN_BIN, TRAIN_IDX, VALIDATION_BIN, VALIDATION_IDX = FILES
OPTIONS = ["--validation-documents", str(VALIDATION_DOCUMENTS), "--sequences", "3", "--sequence-length", "16"]
LIST = "set.md5"

Documents = Sequence[npt.NDArray[np.integer]]


def random_documents(count: int, seed: int = 0, largest: int = 128_255) -> Documents:
    """Documents of 5 to 30 random tokens; the first one starts with the largest id, the second one with 0."""
    random = np.random.default_rng(seed)
    documents = [random.integers(0, largest + 1, random.integers(5, 31)) for _ in range(count)]
    documents[0][0], documents[1][0] = largest, 0
    return documents


def write_with_megatron(prefix: Path, documents: Documents, dtype: type[np.integer] = np.int32) -> None:
    """Write a dataset with the writer that made the published set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        import torch
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_item(torch.from_numpy(np.asarray(document, np.int64)))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")


def open_with_megatron(prefix: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        from megatron.core.datasets.indexed_dataset import IndexedDataset

    return IndexedDataset(str(prefix))


def dataset_bytes(prefix: Path) -> tuple[bytes, bytes]:
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()


def write_set(folder: Path) -> dict[str, Documents]:
    """Write both datasets and their MD5 list; return the documents by prefix."""
    folder.mkdir(exist_ok=True)
    contents = {
        TRAIN_PREFIX: random_documents(TRAIN_DOCUMENTS, 1),
        VALIDATION_PREFIX: random_documents(VALIDATION_DOCUMENTS, 2),
    }
    for prefix, documents in contents.items():
        write_dataset(folder / prefix, documents)
    write_md5_list(folder)
    return contents


def write_md5_list(folder: Path, names: Sequence[str] = FILES, name: str = LIST) -> None:
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


def shorten(path: Path, less: int) -> None:
    """Take bytes off the end."""
    os.truncate(path, path.stat().st_size - less)


def exchange(folder: Path, *suffixes: str) -> None:
    """Give the files of the two sets each other's names."""
    for suffix in suffixes:
        first, second, between = (folder / f"{name}{suffix}" for name in (TRAIN_PREFIX, VALIDATION_PREFIX, "between"))
        first.rename(between)
        second.rename(first)
        between.rename(second)


def table_offsets(sequences: int) -> tuple[int, int, int]:
    """Return the bytes at which lengths, pointers and boundaries start in an index."""
    return HEADER, HEADER + 4 * sequences, HEADER + 12 * sequences


def verify_set(folder: Path, *options: str) -> Result:
    """Run the command with the options that fit a small set."""
    return run_data_command("verify", folder, *OPTIONS, *options)


def verify_findings(folder: Path, *options: str) -> list[str]:
    """Run the command and return its findings, a line each without the folder's path; the exit status must fit."""
    done = verify_set(folder, *options)
    found = [line.removeprefix(f"{folder}/") for line in done.stdout.splitlines() if "; expected " in line]
    assert done.exit_code == (1 if found else 0), done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    verdict = f"FAIL, {len(found)} finding" if found else "PASS"
    assert f"{folder}: {verdict}" in done.stdout.splitlines()[-1]
    assert all("got " in line and ". To fix: " in line for line in found)
    return found


def read_report(folder: Path) -> dict[str, Any]:
    """Load the report beside the data."""
    report: dict[str, Any] = json.loads((folder / "verified.json").read_text())
    return report
