"""Open the training and the validation set, and detect files that have each other's names."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gptoss20b.data.files import DataError, append_suffix, open_binary
from gptoss20b.data.index import Index

from .findings import Finding


@dataclass(frozen=True)
class OpenedDataset:
    """A `.bin` and its `.idx`, as far as they open.

    Attributes:
        prefix: path without `.bin` / `.idx`.
        index: the open index; None if it does not open.
        data_bytes: size of the `.bin`; None if it does not open.
    """

    prefix: Path
    index: Index | None
    data_bytes: int | None

    @property
    def consistent(self) -> bool:
        """Whether both files opened and the index describes as many bytes as the `.bin` has."""
        return self.index is not None and self.index.data_bytes == self.data_bytes


class Swap(NamedTuple):
    """Files of the training and the validation set that have each other's names.

    Attributes:
        suffixes: ".bin", ".idx" or both.
        names: for each name, the name of the file that holds its content.
        finding: the swap as a finding.
    """

    suffixes: tuple[str, ...]
    names: dict[str, str]
    finding: Finding


def open_dataset(prefix: Path, stack: ExitStack) -> tuple[OpenedDataset, list[Finding]]:
    """Open both files; one that does not open is a finding. The index stays open until `stack` closes."""
    findings: list[Finding] = []
    index = data_bytes = None
    try:
        index = stack.enter_context(Index.open(prefix))
    except DataError as error:
        findings.append(Finding.from_error(error, prefix.parent))
    try:
        with open_binary(append_suffix(prefix, ".bin")) as data:
            data_bytes = data.seek(0, 2)
    except DataError as error:
        findings.append(Finding.from_error(error, prefix.parent))
    return OpenedDataset(prefix, index, data_bytes), findings


def find_swap(training: OpenedDataset, validation: OpenedDataset, validation_documents: int) -> Swap | None:
    """Detect swapped files by numbers of documents and sizes alone.

    Args:
        training: the dataset under the name of the training set.
        validation: the dataset under the name of the validation set.
        validation_documents: expected documents of the validation set; 0 if any number is right.
    """
    if (
        training.index is None
        or validation.index is None
        or training.data_bytes is None
        or validation.data_bytes is None
    ):
        return None
    counts = training.index.document_count, validation.index.document_count
    distinguishable = validation_documents in counts and counts[0] != counts[1]
    wrong_index = counts[0] == validation_documents
    if (
        not training.consistent
        and training.index.data_bytes == validation.data_bytes
        and validation.index.data_bytes == training.data_bytes
    ):
        if not distinguishable:
            wrong_index = validation.index.data_bytes > training.index.data_bytes
        suffixes: tuple[str, ...] = (".idx",) if wrong_index else (".bin",)
    # By the documents alone: a validation set that is larger than its training set is odd, not wrong.
    elif distinguishable and wrong_index and training.consistent and validation.consistent:
        suffixes = (".bin", ".idx")
    else:
        return None
    names: dict[str, str] = {}
    for suffix in suffixes:
        train_name, validation_name = (append_suffix(each.prefix, suffix).name for each in (training, validation))
        names |= {train_name: validation_name, validation_name: train_name}
    kinds = " and ".join(suffixes)
    finding = Finding.about(
        f"{training.prefix.name}{suffixes[0]}",
        f"the two sets swapped: {kinds} of training and validation have each other's names ({counts[0]:,} documents "
        f"and {training.data_bytes:,} bytes for training, {counts[1]:,} and {validation.data_bytes:,} for validation)",
        f"the validation set under {validation.prefix.name}",
        f"exchange the names of the two {kinds} files",
    )
    return Swap(suffixes, names, finding)
