"""What the files of a folder must be, by the MD5 lists that lie beside them in md5sum's format."""

from pathlib import Path
from typing import NamedTuple

from data_scripts.checking.findings import DOWNLOAD_AGAIN, Few, Finding
from gptoss20b.data.files import DataError, open_binary
from gptoss20b.data.md5_list import list_lines, parse_line

LIST_AGAIN = "download the list again"


class Listed(NamedTuple):
    """What a file must be.

    Attributes:
        file: its path relative to the folder.
        algorithm: name of the checksum, as hashlib has it.
        digest: the checksum, lower-case hex.
        size: bytes; None where the list does not say.
        source: the list and the line, for messages.
        fix: how to get the right file.
    """

    file: str
    algorithm: str
    digest: str
    size: int | None
    source: str
    fix: str = DOWNLOAD_AGAIN


def read_lists(directory: Path) -> tuple[list[Listed], list[Finding]]:
    """The entries of every `*.md5` in a folder, and what is wrong in these lists.

    A line is 32 hex digits, white space, optionally `*` or `./`, and a path relative to the folder; empty lines are
    skipped. A file may be listed twice with the same MD5.
    """
    listed: dict[str, Listed] = {}
    findings: list[Finding] = []
    # Hidden ones are somebody's unfinished files.
    for path in sorted(path for path in directory.glob("*.md5") if not path.name.startswith(".")):
        try:
            with open_binary(path) as stream:
                data = stream.read()
        except DataError as error:
            findings.append(Finding.of(error, directory))
        except OSError as error:
            findings.append(Finding.about(path.name, f"{error.strerror}", "a readable file", LIST_AGAIN))
        else:
            findings += _read_list(path.name, data, listed)
    return list(listed.values()), findings


def _read_list(name: str, data: bytes, listed: dict[str, Listed]) -> list[Finding]:
    """Add a list's entries to `listed`, by file; returns what is wrong with its lines."""
    malformed = Few(name, "lines that are no entries", LIST_AGAIN)
    conflicts = Few(name, "entries that contradict others", LIST_AGAIN)
    lines = list_lines(data)
    for number, line in lines:
        try:
            file, digest = parse_line(line)
        except ValueError as error:
            malformed.add([Finding(name, f"line {number}: {error}. To fix: {LIST_AGAIN}.")])
            continue
        known = listed.setdefault(file, Listed(file, "md5", digest, None, f"line {number} of {name}"))
        if known.digest != digest:
            got = f"MD5 {digest} for {file} in line {number}"
            conflicts.add([Finding.about(name, got, f"{known.digest}, as in {known.source}", LIST_AGAIN)])
    if not lines:
        malformed.add([Finding.about(name, "no line", "one for every file of the set", LIST_AGAIN)])
    return malformed.findings() + conflicts.findings()
