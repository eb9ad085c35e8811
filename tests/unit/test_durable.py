"""Durable writes: the old file or the new one, and no temporary file left."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gptoss20b.durable import atomic_write, fsync_path


def test_writes_text_and_bytes_and_flushes_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, order = tmp_path / "a.json", list[str]()

    def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            order.append(function.__name__)
            return function(*arguments)

        return call

    for name, function in (("os.fsync", os.fsync), ("pathlib.Path.replace", Path.replace)):
        monkeypatch.setattr(name, recorded(function))
    atomic_write(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    atomic_write(path, b"\xff")
    assert path.read_bytes() == b"\xff"
    assert order == ["fsync", "replace"] * 2
    fsync_path(tmp_path)
    assert order[4:] == ["fsync"]


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace"])
def test_a_failure_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(failing, fail)
    with pytest.raises(OSError, match="No space"):
        atomic_write(tmp_path / "a", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_writers_of_one_path_do_not_disturb_each_other(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: atomic_write(tmp_path / "a", str(number) * 9), range(40)))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() in {str(number) * 9 for number in range(40)}
