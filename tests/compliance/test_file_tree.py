"""File trees: listing, and kinds of files by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compliance.file_tree import TreeFile, has_rejected_name, is_binary, is_source, list_tree
from compliance.submission import read_submission


def test_a_tree_is_sorted_and_enters_selected_folders(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a/x/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("ab")
    found = list_tree(tmp_path, lambda folder: folder != "a/x")
    assert found.folders == ["a", "a/x", "b"]
    assert found.files == [TreeFile("b/1", 2), TreeFile("b/2", 2)]


def test_a_tree_has_a_maximum_number_of_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    for name in "bcd":
        (tmp_path / "a" / name).write_text("")
    monkeypatch.setattr("compliance.file_tree.MAX_ENTRIES", 4)
    assert list_tree(tmp_path, lambda _: True).unlisted == []
    monkeypatch.setattr("compliance.file_tree.MAX_ENTRIES", 3)
    found = list_tree(tmp_path, lambda _: True)
    assert (found.folders, found.files) == (["a"], [])
    assert [name for name, _ in found.unlisted] == ["a"]
    assert "more than 3 " in found.unlisted[0][1]
    (_, error), *_ = read_submission(tmp_path).problems
    assert error.rule == "package-structure"


@pytest.mark.parametrize(
    ("kind", "names", "others"),
    [
        (
            is_binary,
            ["a.whl", "lib.so", "lib.so.1.2", "x/y.tar.gz", "model.bin", "A.ZIP", "w.safetensors", "a.pyc", "a\nb.so"],
            ["a.py", "so", "tar", "binary.txt", "x.so/readme", "zip.md", "a.txt"],
        ),
        (is_source, ["a/train.py", "K.CU"], ["py", "train.pyx.txt"]),
        (has_rejected_name, ["a/.env", "a b.py"], ["a b/c.py", "a.b"]),
    ],
)
def test_kinds_of_files_by_name(kind: Callable[[str], bool], names: list[str], others: list[str]) -> None:
    assert all(map(kind, names)) and not any(map(kind, others))
