"""The doctor's findings on the folders of results and checkpoints: real folders on real file systems."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptoss20b.config import resolve
from gptoss20b.tools.doctor.finding import Finding, Verdict
from gptoss20b.tools.doctor.storage import check_checkpoints, check_results, estimate_log_bytes
from tests.support.findings import assert_finding, mounted_tmpfs

GIB = 2**30
PASS, FAIL = Verdict.PASS, Verdict.FAIL
STORAGE = "gptoss20b.tools.doctor.storage"
TINY = {"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open", "SEQUENCE_LENGTH": "64", "EVAL_SAMPLES": "10"}


def results(logdir: Path | None, **options: str) -> list[Finding]:
    return check_results(resolve(TINY | ({"LOGDIR": str(logdir)} if logdir else {}) | options))


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_that_can_be_made_passes_and_nothing_is_left_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for logdir, shown in ((tmp_path, str(tmp_path)), (tmp_path / "new/set", f"made in {tmp_path}"), (None, "results")):
        found = results(logdir)
        assert [(each.name, each.verdict) for each in found] == [("LOGDIR", PASS), ("free space", PASS)]
        assert shown in found[0].found
    assert tree(tmp_path) == []


def test_an_existing_result_is_for_a_run_that_resumes(tmp_path: Path) -> None:
    (tmp_path / "result_0.txt").touch()
    assert_finding(results(tmp_path)[0], FAIL, str(tmp_path / "result_0.txt"), fix="LOGDIR")
    assert_finding(results(tmp_path, RESUME="1")[0], FAIL, "no checkpoint")
    assert tree(tmp_path) == ["result_0.txt"]
    (tmp_path / "checkpoints/step_00000007").mkdir(parents=True)
    assert [found.verdict for found in results(tmp_path, RESUME="1")] == [PASS] * 2
    assert results(tmp_path)[0].verdict is FAIL
    (tmp_path / "result_0.txt").unlink()
    assert_finding(results(tmp_path)[0], FAIL, "whose log")


def checkpoints(folder: Path, **options: str) -> list[Finding]:
    return check_checkpoints(resolve(TINY | {"SAVE_DIR": str(folder), "SAVE_INTERVAL": "1000"} | options))


def test_a_file_instead_of_a_folder_fails_if_something_will_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/set"):
        assert_finding(results(folder)[0], FAIL, "Not a directory", fix="LOGDIR")
        assert_finding(checkpoints(folder)[0], FAIL, "Not a directory", fix="SAVE_DIR")
        assert_finding(checkpoints(folder, SAVE_INTERVAL="0")[0], Verdict.SKIPPED)


@pytest.mark.parametrize(
    ("there", "keep", "to_come"),
    [(0, 1, 2), (0, 2, 3), (1, 2, 2), (2, 2, 1), (5, 2, 1), (1, 3, 3)],  # the next is complete before an old one goes
)
def test_checkpoints_have_room_for_those_kept_and_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int, keep: int, to_come: int
) -> None:
    for step in range(there):
        (tmp_path / f"step_{step:08d}").mkdir()
    # No others: what an interrupted save left, and damaged ones.
    for name in (".step_00000009.part", ".step_00000001.old", "damaged_step_00000003"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(f"{STORAGE}.checkpoint_bytes", lambda config: GIB)
    for free, verdict in ((to_come * GIB, PASS), (to_come * GIB - 1, FAIL)):
        monkeypatch.setattr(f"{STORAGE}.shutil.disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        folder, space = checkpoints(tmp_path, SAVE_KEEP=str(keep), RESUME="1")
        assert (folder.name, folder.verdict) == ("SAVE_DIR", PASS)
        assert (space.name, space.verdict) == ("space for checkpoints", verdict)
        assert f"{to_come} more of 1.0 GiB needed ({keep} + 1 at a time, {there} there)" in space.found


@pytest.mark.parametrize(
    ("options", "used", "error"), [("size=1m,ro", 0, "Read-only file system"), ("size=64k", 60_000, "No space left")]
)
def test_a_read_only_or_full_disk_fails(tmp_path: Path, options: str, used: int, error: str) -> None:
    with mounted_tmpfs(tmp_path / "disk", options) as disk:
        if used:
            (disk / "full").write_bytes(b"x" * used)
        (found,) = results(disk / "set")
        assert tree(disk) == ["full"] * bool(used)
    assert_finding(found, FAIL, error)


def test_a_small_disk_has_no_room_for_a_run(tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path / "disk", "size=60m") as disk:
        assert_finding(results(disk)[1], FAIL, "0.1 GiB free")
        subprocess.run(["mount", "-o", "remount,size=80m,nr_inodes=5", str(disk)], check=True)
        assert [found.verdict for found in results(disk)] == [PASS, PASS]
        for number in range(1, 5):  # no inode is left
            (disk / str(number)).touch()
        assert_finding(results(disk)[0], FAIL, "No space left")


def test_a_run_of_the_rules_needs_room_for_its_log() -> None:
    # 120,000 losses and 1,562 evaluations of six records, 300 bytes each, twice; and 64 MiB.
    assert estimate_log_bytes(resolve({})) == 64 * 2**20 + 2 * 300 * (120_000 + 6 * 1562)
    assert estimate_log_bytes(resolve(TINY)) < 65 * 2**20


def test_locks_that_do_not_exclude_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file system mounted without locks (Lustre's default once, NFS with nolock) lets everybody in.
    monkeypatch.setattr(fcntl, "flock", lambda stream, how: None)
    assert_finding(results(tmp_path)[0], FAIL, "two processes can lock a file", fix="LOGDIR")
