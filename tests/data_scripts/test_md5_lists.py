"""The MD5 lists of a folder: malformed lists, contradictions, files that no list names."""

from __future__ import annotations

import os
from pathlib import Path

from data_scripts.checking.expectations import read_lists
from data_scripts.checking.findings import Finding
from tests.support.small_sets import (
    FILES,
    LIST,
    TRAIN_BIN,
    VALIDATION_IDX,
    read_report,
    verify_findings,
    write_md5_list,
)

SUM = "0123456789abcdef" * 2


def findings(folder: Path) -> list[Finding]:
    """Return the command's findings as file and message."""
    return [Finding(*line.split(": ", 1)) for line in verify_findings(folder)]


def test_entries_name_their_list(tmp_path: Path) -> None:
    (tmp_path / "x.md5").write_bytes(f"\n\n{SUM.upper()} *a/b\n\n".encode())
    # hidden: an unfinished download of another tool
    (tmp_path / ".x.md5").write_text(f"{SUM}  a\nnonsense\n")
    ((entry,), found) = read_lists(tmp_path)
    assert found == []
    assert (entry.file, entry.algorithm, entry.digest, entry.size) == ("a/b", "md5", SUM, None)
    assert entry.source == "x.md5"


def test_a_malformed_list_a_contradiction_and_an_empty_list(folder: Path) -> None:
    (folder / "a.md5").write_bytes(b"\xff\xfe nonsense\n" * 1000)
    (folder / "b.md5").write_text("\n")
    (folder / "z.md5").write_text(f"{SUM}  {TRAIN_BIN}\n")
    (folder / "y.md5").mkdir()
    # The same MD5 once more is fine.
    write_md5_list(folder, FILES, "again.md5")
    found = findings(folder)
    assert [finding.file for finding in found] == ["a.md5", "b.md5", "y.md5", "z.md5"]
    assert found[0].message.startswith("line 1: got ") and found[0].message.isprintable()
    assert found[1].message.startswith("got no file; expected lines")
    assert f"got MD5 {SUM} for {TRAIN_BIN}; expected " in found[3].message
    assert "as in again.md5" in found[3].message


def test_a_listed_path_that_no_file_can_have_is_a_missing_file(folder: Path) -> None:
    (folder / "long.md5").write_text(f"{SUM}  {'a' * 5000}\n")
    os.mkfifo(folder / "pipe")
    (folder / "pipe.md5").write_text(f"{SUM}  pipe\n")
    assert [finding.message.split(";")[0] for finding in findings(folder)] == ["got no such file"] * 2


def test_without_a_list_the_fix_is_named(folder: Path) -> None:
    (folder / LIST).unlink()
    (folder / ".hidden.md5").write_text("unfinished")
    (finding,) = findings(folder)
    assert finding.file == "*.md5"
    assert "download_dataset.sh" in finding.message and "--no-md5" in finding.message
    assert verify_findings(folder, "--no-md5") == []


def test_other_listed_files_and_files_that_no_list_names(folder: Path) -> None:
    other = folder / "more" / "tokens.txt"
    other.parent.mkdir()
    other.write_text("abc")
    write_md5_list(folder, ["more/tokens.txt"], "second.md5")
    assert findings(folder) == []
    saved = read_report(folder)
    assert saved["files"]["more/tokens.txt"] == {"bytes": 3, "md5": "900150983cd24fb0d6963f7d28e17f72"}
    assert "more/tokens.txt" in saved["checked"]["checksums"]
    other.write_text("abd")
    ((file, message),) = findings(folder)
    assert file == "more/tokens.txt" and message.startswith("got MD5")
    other.unlink()
    ((file, message),) = findings(folder)
    assert file == "more/tokens.txt" and message.startswith("got no such file")
    assert "as in second.md5" in message
    (folder / "second.md5").unlink()
    write_md5_list(folder, FILES[:3])
    ((file, message),) = findings(folder)
    assert file == VALIDATION_IDX and message.startswith("got no checksum in any list")
