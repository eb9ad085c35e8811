"""Expected checksums from the MD5 lists (`*.md5`) in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gptoss20b.data.files import REBUILD, DataError, open_binary

from ..md5_list import parse_lines
from .findings import CappedFindings, Finding

LIST_AGAIN = "download the list again"


class ExpectedFile(NamedTuple):
    """Checksum and size that a file must have.

    Attributes:
        file: path relative to the folder.
        algorithm: name of the checksum, as in hashlib.
        digest: the checksum, lower-case hex.
        size: bytes; None where the list does not give it.
        source: the list and the line, for messages.
        fix: how to get the right file.
    """

    file: str
    algorithm: str
    digest: str
    size: int | None
    source: str
    fix: str = REBUILD


def read_lists(directory: Path) -> tuple[list[ExpectedFile], list[Finding]]:
    """Read every `*.md5` of a folder; return its entries and what is wrong with the lists.

    A file may be listed twice with the same MD5.
    """
    expected: dict[str, ExpectedFile] = {}
    findings: list[Finding] = []
    # Hidden files are unfinished downloads of other tools.
    for path in sorted(path for path in directory.glob("*.md5") if not path.name.startswith(".")):
        try:
            with open_binary(path) as stream:
                data = stream.read()
        except DataError as error:
            findings.append(Finding.from_error(error, directory))
        except OSError as error:
            findings.append(Finding.about(path.name, f"{error.strerror}", "a readable file", LIST_AGAIN))
        else:
            findings += _read_list(path.name, data, expected)
    return list(expected.values()), findings


def _read_list(name: str, data: bytes, expected: dict[str, ExpectedFile]) -> list[Finding]:
    """Add a list's entries to `expected`, by file; return what is wrong with its lines."""
    malformed = CappedFindings(name, "malformed lines", LIST_AGAIN)
    conflicts = CappedFindings(name, "entries that contradict others", LIST_AGAIN)
    lines = list(parse_lines(data))
    for number, listed in lines:
        if isinstance(listed, str):
            malformed.add([Finding(name, f"line {number}: {listed}. To fix: {LIST_AGAIN}.")])
            continue
        file, digest = listed
        known = expected.setdefault(file, ExpectedFile(file, "md5", digest, None, f"line {number} of {name}"))
        if known.digest != digest:
            got = f"MD5 {digest} for {file} in line {number}"
            conflicts.add([Finding.about(name, got, f"{known.digest}, as in {known.source}", LIST_AGAIN)])
    if not lines:
        malformed.add([Finding.about(name, "no line", "one for every file of the set", LIST_AGAIN)])
    return malformed.findings() + conflicts.findings()
