"""The two pairs of a data set, opened; and whether one has the place of the other."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_scripts.checking.findings import Finding
from gptoss20b.data.files import DataError, open_binary, with_suffix
from gptoss20b.data.index import Index


@dataclass(frozen=True)
class Pair:
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
    def fits(self) -> bool:
        """Whether both opened and the index tells of as many bytes as there are."""
        return self.index is not None and self.index.data_bytes == self.data_bytes


class Swap(NamedTuple):
    """Files of the training and the validation set that have each other's names.

    Attributes:
        suffixes: ".bin", ".idx" or both.
        names: by name of a file, the name of the one that has its place.
        finding: it, in words.
    """

    suffixes: tuple[str, ...]
    names: dict[str, str]
    finding: Finding


def open_pair(prefix: Path, stack: ExitStack) -> tuple[Pair, list[Finding]]:
    """Open both files of a pair; what does not open is a finding. The index stays open until `stack` closes."""
    findings: list[Finding] = []
    index = data_bytes = None
    try:
        index = stack.enter_context(Index.open(prefix))
    except DataError as error:
        findings.append(Finding.of(error, prefix.parent))
    try:
        with open_binary(with_suffix(prefix, ".bin")) as data:
            data_bytes = data.seek(0, 2)
    except DataError as error:
        findings.append(Finding.of(error, prefix.parent))
    return Pair(prefix, index, data_bytes), findings


def find_swap(training: Pair, validation: Pair, validation_documents: int) -> Swap | None:
    """Whether the two sets have each other's files, told by documents and sizes alone; None if they do not.

    Args:
        training, validation: the pairs under these names.
        validation_documents: how many the validation set has; 0 if any number.
    """
    if None in (training.index, validation.index, training.data_bytes, validation.data_bytes):
        return None
    assert training.index is not None
    assert validation.index is not None
    crossed = (
        not training.fits
        and training.index.data_bytes == validation.data_bytes
        and validation.index.data_bytes == training.data_bytes
    )
    counts = training.index.document_count, validation.index.document_count
    told_apart = validation_documents in counts and counts[0] != counts[1]
    wrong_index = counts[0] == validation_documents
    if crossed:
        if not told_apart:
            wrong_index = validation.index.data_bytes > training.index.data_bytes
        return _swap(training, validation, (".idx",) if wrong_index else (".bin",))
    # By the documents alone: a validation set that is larger than its training set is odd, not wrong.
    if told_apart and wrong_index and training.fits and validation.fits:
        return _swap(training, validation, (".bin", ".idx"))
    return None


def _swap(training: Pair, validation: Pair, suffixes: tuple[str, ...]) -> Swap:
    names: dict[str, str] = {}
    for suffix in suffixes:
        ours, theirs = (with_suffix(pair.prefix, suffix).name for pair in (training, validation))
        names |= {ours: theirs, theirs: ours}
    assert training.index is not None
    assert validation.index is not None
    what = " and ".join(suffixes)
    finding = Finding.about(
        f"{training.prefix.name}{suffixes[0]}",
        f"the two sets swapped: {what} of training and validation have each other's names "
        f"({training.index.document_count:,} documents and {training.data_bytes:,} bytes for training, "
        f"{validation.index.document_count:,} and {validation.data_bytes:,} for validation)",
        f"the validation set under {validation.prefix.name}",
        f"exchange the names of the two {what} files",
    )
    return Swap(suffixes, names, finding)
