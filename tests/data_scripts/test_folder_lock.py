"""One process at a time in a folder, and nothing left of the lock."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
from pathlib import Path

import pytest

from data_scripts.errors import CommandError
from data_scripts.folder_lock import locked_folder


def is_locked(folder: Path) -> bool:
    try:
        with locked_folder(folder):
            return False
    except CommandError as error:
        assert str(error).startswith(f"{folder}: got a folder that another process writes to")
        return True


def test_the_lock_is_for_one_process_and_an_empty_folder_goes_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "deeper" / "work"
    with locked_folder(folder):
        assert is_locked(folder)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(is_locked, (folder,))
        (folder / "x").touch()
    assert [path.name for path in folder.iterdir()] == ["x"]
    (folder / "x").unlink()
    assert not is_locked(folder)
    assert not folder.exists()


def test_a_lock_file_that_a_killed_process_left_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("left")
    with locked_folder(tmp_path):
        assert (tmp_path / "lock").read_text() == "left", "not truncated"
        assert is_locked(tmp_path)


def test_a_lock_on_a_file_that_was_removed_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The previous holder ends between our opening of the file and our lock on it."""
    folder = tmp_path / "work"
    folder.mkdir()
    real, calls = fcntl.flock, 0

    def flock(descriptor: int, operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            (folder / "lock").unlink()
            folder.rmdir()
        real(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", flock)
    with locked_folder(folder):
        assert calls == 2
        assert is_locked(folder)
    assert not folder.exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_an_error_and_no_marker_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match="no locks"), locked_folder(tmp_path):
        pass
