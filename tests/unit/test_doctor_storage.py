"""The doctor's findings on the folders of results and checkpoints: real folders on real file systems."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptoss20b.config import resolve
from gptoss20b.tools.doctor.finding import Finding, Verdict
from gptoss20b.tools.doctor.storage import check_checkpoints, check_results, estimate_log_bytes

GIB = 2**30
STORAGE = "gptoss20b.tools.doctor.storage"
TINY = {"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open", "SEQUENCE_LENGTH": "64", "EVAL_SAMPLES": "10"}


def results(logdir: Path | None, **options: str) -> list[Finding]:
    return check_results(resolve(TINY | ({"LOGDIR": str(logdir)} if logdir else {}) | options))


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_that_can_be_made_passes_and_nothing_is_left_there(tmp_path: Path) -> None:
    for logdir in (tmp_path, tmp_path / "new/set"):
        found = results(logdir)
        assert [(each.name, each.verdict) for each in found] == [("LOGDIR", Verdict.PASS), ("free space", Verdict.PASS)]
    assert f"will be made in {tmp_path}" in found[0].found
    assert tree(tmp_path) == []


def test_without_a_name_results_go_where_the_run_puts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert results(None)[0].found.startswith("results, will be made in")
    assert tree(tmp_path) == []


def test_an_existing_result_fails(tmp_path: Path) -> None:
    (tmp_path / "result_0.txt").touch()
    (found,) = results(tmp_path)
    assert found.verdict is Verdict.FAIL
    assert str(tmp_path / "result_0.txt") in found.found
    assert "another folder" in found.fix
    assert tree(tmp_path) == ["result_0.txt"]


def test_a_resuming_run_has_its_result_and_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "result_0.txt").touch()
    (lost,) = results(tmp_path, RESUME="1")
    assert (lost.verdict, "has no checkpoint" in lost.found) == (Verdict.FAIL, True)
    (tmp_path / "checkpoints/step_00000007").mkdir(parents=True)
    assert [found.verdict for found in results(tmp_path, RESUME="1")] == [Verdict.PASS] * 2
    assert results(tmp_path)[0].verdict is Verdict.FAIL
    (tmp_path / "result_0.txt").unlink()
    (mixed,) = results(tmp_path)
    assert (mixed.verdict, "checkpoints of a run whose log" in mixed.found) == (Verdict.FAIL, True)


def checkpoints(folder: Path, **options: str) -> list[Finding]:
    return check_checkpoints(resolve(TINY | {"SAVE_DIR": str(folder), "SAVE_INTERVAL": "1000"} | options))


def test_checkpoints_have_room_for_those_kept_and_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (none,) = checkpoints(tmp_path, SAVE_INTERVAL="0")
    assert (none.name, none.verdict) == ("checkpoints", Verdict.SKIPPED)
    free = shutil.disk_usage(tmp_path).free
    for keep, share, verdict in ((1, 2.1, Verdict.PASS), (2, 2.9, Verdict.FAIL), (2, 3.2, Verdict.PASS)):
        monkeypatch.setattr(f"{STORAGE}.checkpoint_bytes", lambda config, share=share: round(free / share))
        folder, space = checkpoints(tmp_path / "new", SAVE_KEEP=str(keep))
        assert (folder.name, folder.verdict) == ("SAVE_DIR", Verdict.PASS)
        assert (space.name, space.verdict) == ("space for checkpoints", verdict)
        assert f"{keep} + 1 at a time" in space.found
    (tmp_path / "file").touch()
    (found,) = checkpoints(tmp_path / "file")
    assert (found.verdict, "SAVE_DIR" in found.fix) == (Verdict.FAIL, True)


@pytest.mark.parametrize(
    ("there", "keep", "to_come"),
    [(0, 2, 3), (1, 2, 2), (2, 2, 1), (5, 2, 1), (1, 3, 3)],  # the next is complete before an old one goes
)
def test_checkpoints_that_are_there_need_no_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int, keep: int, to_come: int
) -> None:
    for step in range(there):
        (tmp_path / f"step_{step:08d}").mkdir()
    # No others: what an interrupted save left, and damaged ones.
    for name in (".step_00000009.part", ".step_00000001.old", "damaged_step_00000003"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(f"{STORAGE}.checkpoint_bytes", lambda config: GIB)
    for free, verdict in ((to_come * GIB, Verdict.PASS), (to_come * GIB - 1, Verdict.FAIL)):
        monkeypatch.setattr(f"{STORAGE}.shutil.disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        space = checkpoints(tmp_path, SAVE_KEEP=str(keep), RESUME="1")[-1]
        assert (space.name, space.verdict) == ("space for checkpoints", verdict)
        assert f"{to_come} more of 1.0 GiB needed ({keep} + 1 at a time, {there} there)" in space.found


def test_a_file_instead_of_the_folder_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for logdir in (tmp_path / "file", tmp_path / "file/set"):
        (found,) = results(logdir)
        assert (found.verdict, "Not a directory" in found.found) == (Verdict.FAIL, True)


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted, which needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_disk_fails(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "size=1m,ro") as place:
        (found,) = results(place / "set")
    assert found.verdict is Verdict.FAIL
    assert "making a folder failed" in found.found
    assert "Read-only file system" in found.found


def test_a_full_disk_fails_at_the_step_that_met_it(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "size=64k") as place:
        (place / "full").write_bytes(b"x" * 60_000)
        (found,) = results(place)
        assert tree(place) == ["full"]
    assert found.verdict is Verdict.FAIL
    assert "writing a file failed" in found.found
    assert "No space left" in found.found


def test_a_small_disk_has_no_room_for_a_run(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "size=60m") as place:
        found = results(place)[1]
        assert (found.name, found.verdict) == ("free space", Verdict.FAIL)
        assert "0.1 GiB free" in found.found
        subprocess.run(["mount", "-o", "remount,size=80m", str(place)], check=True)
        assert results(place)[1].verdict is Verdict.PASS


def test_a_disk_without_inodes_has_no_room_either(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "size=80m,nr_inodes=4") as place:
        assert results(place)[0].verdict is Verdict.PASS
        for number in range(1, 4):
            (place / str(number)).touch()
        assert "No space left" in results(place)[0].found


def test_a_run_of_the_rules_needs_room_for_its_log() -> None:
    # 120,000 losses and 1,562 evaluations of six records, 300 bytes each, twice; and 64 MiB.
    assert estimate_log_bytes(resolve({})) == 64 * 2**20 + 2 * 300 * (120_000 + 6 * 1562)
    assert estimate_log_bytes(resolve(TINY)) < 65 * 2**20


def test_locks_that_do_not_exclude_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file system mounted without locks (Lustre's default once, NFS with nolock) lets everybody in.
    monkeypatch.setattr(fcntl, "flock", lambda stream, how: None)
    (found,) = results(tmp_path)
    assert found.verdict is Verdict.FAIL
    assert "flock failed" in found.found
    assert "two locked it at the same time" in found.found
