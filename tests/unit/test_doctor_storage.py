"""What the doctor says of the data and of the folder for results: real pairs, real reports, real disks."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_scripts.checking.checks import verify
from data_scripts.checking.expectations import Expectations
from data_scripts.checking.report import Scope, report_content, write_report
from data_scripts.dataset_writer import IndexedDatasetWriter
from gptoss20b.config import resolve
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX
from gptoss20b.data.verification_report import REPORT_NAME
from gptoss20b.tools.doctor import data_set
from gptoss20b.tools.doctor import results as results_module
from gptoss20b.tools.doctor.data_set import look_at_data
from gptoss20b.tools.doctor.finding import Finding, Verdict
from gptoss20b.tools.doctor.results import look_at_checkpoints, look_at_results, written_bytes

GIB = 2**30
LENGTH, SEQUENCES = 64, 10
EXPECTED = Expectations(vocabulary=256, documents={}, sequences=SEQUENCES, sequence_length=LENGTH)
TINY = {
    "MODEL_VARIANT": "tiny",
    "SUBMISSION_DIVISION": "open",
    "SEQUENCE_LENGTH": str(LENGTH),
    "EVAL_SAMPLES": str(SEQUENCES),
}


class Quiet:
    def begin(self, total: int) -> None: ...

    def advance(self, size: int) -> None: ...


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Both pairs, of random bytes: 50 windows to train and 12 to validate."""
    place = tmp_path / "data"
    place.mkdir()
    random = np.random.default_rng(3)
    for prefix, windows in ((TRAIN_PREFIX, 50), (VALIDATION_PREFIX, 12)):
        with IndexedDatasetWriter(place / f"{prefix}.bin", tmp_path / "lengths") as writer:
            lengths = np.full(windows * 2, LENGTH // 2 + 1)
            writer.add(random.integers(0, 256, lengths.sum()), lengths)
            writer.write_index(place / f"{prefix}.idx")
        (tmp_path / "lengths").unlink()
    return place


def verified(folder: Path, expected: Expectations = EXPECTED, **scope: bool) -> dict[str, Any]:
    """Verify the folder and leave the report there, as `python -m data_scripts verify` does."""
    asked = Scope(**{"checksums": False, "tokens": True, "threads": 1, **scope})
    written = report_content(verify(folder, expected, asked, Quiet()))
    write_report(folder / REPORT_NAME, written)
    return written


def whole(folder: Path, **changes: Any) -> None:
    """A report of everything: with the checksums, which no list gives here."""
    written = verified(folder)
    assert written["verdict"] == "pass"
    written["not_checked"]["checksums"] = []
    write_report(folder / REPORT_NAME, {**written, **changes})


def look(folder: Path, **options: str) -> dict[str, Finding]:
    found = look_at_data(resolve(TINY | {"DATADIR": str(folder)} | options))
    return {finding.name: finding for finding in found}


def test_whole_verified_data_pass(folder: Path) -> None:
    whole(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    found = look(folder)
    assert {name: finding.verdict for name, finding in found.items()} == dict.fromkeys(
        ("data", "data verified", "data speed"), Verdict.PASS
    )
    assert f"{50 * 66 // 64:,} and {12 * 66 // 64:,} sequences of 64 tokens" in found["data"].found
    assert "evaluated tokens and sizes are still the same" in found["data verified"].found
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("prefix", [TRAIN_PREFIX, VALIDATION_PREFIX])
@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "a folder"])
def test_a_damaged_pair_fails_by_its_name(folder: Path, prefix: str, suffix: str, damage: str) -> None:
    whole(folder)
    path = folder / f"{prefix}{suffix}"
    if damage == "truncated":
        os.truncate(path, path.stat().st_size - 4)
    else:
        path.unlink()
    if damage == "a folder":
        path.mkdir()
    found = look(folder)
    assert found["data"].verdict is Verdict.FAIL
    assert prefix in found["data"].found
    assert f"verify {folder}" in found["data"].fix
    assert found["data verified"].verdict is Verdict.SKIPPED


def test_a_missing_folder_and_too_few_sequences_and_foreign_tokens_fail(folder: Path, tmp_path: Path) -> None:
    assert look(tmp_path / "nowhere")["data"].verdict is Verdict.FAIL
    few = look(folder, EVAL_SAMPLES="1000")["data"]
    assert (few.verdict, "at least 1000" in few.found) == (Verdict.FAIL, True)
    foreign = look(folder, VOCAB_SIZE="100")["data"]
    assert (foreign.verdict, "expected 0 to 99" in foreign.found) == (Verdict.FAIL, True)


def test_data_that_this_user_cannot_read_fail(folder: Path) -> None:
    (folder / f"{TRAIN_PREFIX}.bin").chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # nobody: root reads everything
    try:
        found = look(folder)["data"]
    finally:
        os.seteuid(user)
    assert (found.verdict, "Permission denied" in found.found) == (Verdict.FAIL, True)


def test_data_that_nobody_verified_or_not_wholly_are_a_warning(folder: Path) -> None:
    none = look(folder)["data verified"]
    assert none.verdict is Verdict.WARN
    assert none.fix == f"python -m data_scripts verify {folder}"
    for scope, left_out in (({}, "checksums"), ({"tokens": False}, "checksums, tokens")):
        verified(folder, **scope)
        part = look(folder)["data verified"]
        assert part.verdict is Verdict.WARN
        assert part.found.endswith(f"not checked: {left_out}")
    for text in ("", "{", "[]", '{"kind": "menu"}', "[" * 100_000):
        (folder / REPORT_NAME).write_text(text)
        assert look(folder)["data verified"].verdict is Verdict.WARN


def test_a_report_of_faults_fails(folder: Path) -> None:
    written = verified(folder, replace(EXPECTED, documents={VALIDATION_PREFIX: 91_205}))
    assert written["verdict"] == "fail"
    found = look(folder)["data verified"]
    assert found.verdict is Verdict.FAIL
    assert "says fail" in found.found


def test_data_that_changed_since_they_were_verified_fail(folder: Path) -> None:
    whole(folder)
    path = folder / f"{VALIDATION_PREFIX}.bin"
    with path.open("r+b") as stream:
        first = stream.read(1)
        stream.seek(0)
        stream.write(bytes([first[0] ^ 1]))
    found = look(folder)["data verified"]
    assert found.verdict is Verdict.FAIL
    assert "evaluated tokens hash to" in found.found
    # Another evaluation than the report's is another hash, and nothing to compare.
    assert look(folder, EVAL_SAMPLES="9")["data verified"].verdict is Verdict.PASS
    assert look(folder, SEQUENCE_LENGTH="32")["data verified"].verdict is Verdict.PASS


def test_a_file_of_another_size_than_the_report_says_fails(folder: Path) -> None:
    whole(folder)
    name = f"{TRAIN_PREFIX}.bin"
    files = json.loads((folder / REPORT_NAME).read_text())["files"]
    whole(folder, files={**files, name: {"bytes": 17}})
    found = look(folder)["data verified"]
    assert (found.verdict, f"{name}: 13,200 bytes, expected 17" in found.found) == (Verdict.FAIL, True)
    whole(folder, files={**files, "more.bin": {"bytes": 1}})
    assert "more.bin: no file, expected 1" in look(folder)["data verified"].found


def test_slow_storage_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(data_set.time, "monotonic", lambda: next(clock) * 0.4)  # each window takes 0.4 s
    found = look(folder)["data speed"]
    assert found.verdict is Verdict.WARN
    assert "expected 0.12 for 2 ranks" in found.found
    assert "in 2 random windows" in found.found


# Results.


def results(logdir: Path | None, **options: str) -> list[Finding]:
    return look_at_results(resolve(TINY | ({"LOGDIR": str(logdir)} if logdir else {}) | options))


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


def test_a_run_that_goes_on_finds_its_result_and_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "result_0.txt").touch()
    (lost,) = results(tmp_path, RESUME="1")
    assert (lost.verdict, "has no checkpoint" in lost.found) == (Verdict.FAIL, True)
    (tmp_path / "checkpoints/step_00000007").mkdir(parents=True)
    assert [found.verdict for found in results(tmp_path, RESUME="1")] == [Verdict.PASS] * 2
    assert results(tmp_path)[0].verdict is Verdict.FAIL
    (tmp_path / "result_0.txt").unlink()
    (mixed,) = results(tmp_path)
    assert (mixed.verdict, "checkpoints of a run whose log" in mixed.found) == (Verdict.FAIL, True)


def checkpoints(place: Path, **options: str) -> list[Finding]:
    return look_at_checkpoints(resolve(TINY | {"SAVE_DIR": str(place), "SAVE_INTERVAL": "1000"} | options))


def test_checkpoints_have_room_for_those_kept_and_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (none,) = checkpoints(tmp_path, SAVE_INTERVAL="0")
    assert (none.name, none.verdict) == ("checkpoints", Verdict.SKIPPED)
    free = shutil.disk_usage(tmp_path).free
    for keep, share, verdict in ((1, 2.1, Verdict.PASS), (2, 2.9, Verdict.FAIL), (2, 3.2, Verdict.PASS)):
        monkeypatch.setattr(results_module, "checkpoint_bytes", lambda config, share=share: round(free / share))
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
    monkeypatch.setattr(results_module, "checkpoint_bytes", lambda config: GIB)
    for free, verdict in ((to_come * GIB, Verdict.PASS), (to_come * GIB - 1, Verdict.FAIL)):
        monkeypatch.setattr(results_module.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        space = checkpoints(tmp_path, SAVE_KEEP=str(keep), RESUME="1")[-1]
        assert (space.name, space.verdict) == ("space for checkpoints", verdict)
        assert f"{to_come} more of 1.0 GiB needed ({keep} + 1 at a time, {there} there)" in space.found


def test_a_file_in_the_place_of_the_folder_fails(tmp_path: Path) -> None:
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
    assert written_bytes(resolve({})) == 64 * 2**20 + 2 * 300 * (120_000 + 6 * 1562)
    assert written_bytes(resolve(TINY)) < 65 * 2**20


def test_locks_that_do_not_exclude_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file system mounted without locks (Lustre's default once, NFS with nolock) lets everybody in.
    monkeypatch.setattr(fcntl, "flock", lambda stream, how: None)
    (found,) = results(tmp_path)
    assert found.verdict is Verdict.FAIL
    assert "flock failed" in found.found
    assert "two locked it at the same time" in found.found
