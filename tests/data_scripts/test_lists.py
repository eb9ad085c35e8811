"""MD5 lists: lines of md5sum, lines that are none, lists that contradict each other."""

import os
from pathlib import Path

import pytest

from data_scripts.checking.findings import Finding
from data_scripts.checking.lists import read_lists
from tests.support.small_sets import FILES, LIST, list_files, write_set
from tests.support.verify_runs import findings

TRAIN_BIN = FILES[0]
GOOD = "0123456789abcdef0123456789ABCDEF"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_set(tmp_path / "set")
    return tmp_path / "set"


def told(folder: Path) -> list[Finding]:
    """What the command tells of the lists and the listed files, file and message."""
    return [Finding(*line.split(": ", 1)) for line in findings(folder)]


@pytest.mark.parametrize(
    "line", [f"{GOOD}  a/b", f"{GOOD} *a/b", f"{GOOD}\t./a/b", f"{GOOD.upper()} a/b \r", f"\n\n{GOOD} a/b\n\n"]
)
def test_lines_of_md5sum(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.md5").write_bytes(line.encode())
    ((entry,), found) = read_lists(tmp_path)
    assert found == []
    assert (entry.file, entry.algorithm, entry.digest, entry.size) == ("a/b", "md5", GOOD.lower(), None)
    assert entry.source.endswith(" of x.md5")


def test_a_hidden_list_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / ".x.md5").write_text(f"{GOOD}  a\nnonsense\n")
    assert read_lists(tmp_path) == ([], [])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (GOOD, "32 hexadecimal digits, a space and a path"),
        (f"{GOOD}a  b", "32 hexadecimal"),
        (f"{GOOD[1:]}  b", "32 hexadecimal"),
        (f"{GOOD[1:]}g  b", "32 hexadecimal"),
        (f"# {GOOD}  b", "32 hexadecimal"),
        (f"{GOOD}  a\x1b[2Jb", "a relative one"),
        (f"{GOOD}  a\0b", "a relative one"),
        (f"{GOOD}  /etc/passwd", "a relative one"),
        (f"{GOOD}  ../b", "a relative one"),
        (f"{GOOD}  a/../../b", "a relative one"),
        (f"{GOOD}  ./", "a relative one"),
    ],
)
def test_lines_that_are_none_are_told_with_their_number(folder: Path, line: str, expected: str) -> None:
    text = (folder / LIST).read_text()
    (folder / LIST).write_text(f"{text}\n{line}\n")
    (finding,) = told(folder)
    assert finding.file == LIST
    assert finding.message.startswith("line 6: got ") and f"; expected {expected}" in finding.message
    assert "\x1b" not in finding.message


def test_many_bad_lines_a_contradiction_and_an_empty_list(folder: Path) -> None:
    (folder / "a.md5").write_bytes(b"\xff\xfe nonsense\n" * 1000)
    (folder / "b.md5").write_text("\n")
    (folder / "z.md5").write_text(f"{GOOD}  {TRAIN_BIN}\n")
    (folder / "y.md5").mkdir()
    found = told(folder)
    assert [finding.file for finding in found] == ["a.md5"] * 6 + ["b.md5", "y.md5", "z.md5"]
    assert found[5].message.startswith("got 1,000 lines that are no entries in all")
    assert found[6].message.startswith("got no line; expected one for every file")
    assert f"got MD5 {GOOD.lower()} for {TRAIN_BIN} in line 1; expected " in found[8].message
    assert f"as in line 1 of {LIST}" in found[8].message


def test_a_listed_path_that_no_system_can_have_is_a_missing_file(folder: Path) -> None:
    (folder / "long.md5").write_text(f"{GOOD}  {'a' * 5000}\n")
    os.mkfifo(folder / "pipe")
    (folder / "pipe.md5").write_text(f"{GOOD}  pipe\n")
    found = told(folder)
    assert [finding.message.split(";")[0] for finding in found] == ["got no such file"] * 2


def test_a_file_twice_in_lists_with_one_md5_is_fine(folder: Path) -> None:
    list_files(folder, FILES, "again.md5")
    assert told(folder) == []
