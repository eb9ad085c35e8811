"""Checkpoints on disk: complete or absent, intact or reported as damaged, kept, pruned and quarantined."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gptoss20b.checkpoint.files import (
    STATE_FILE,
    CheckpointError,
    CheckpointMetadata,
    TrainState,
    bytes_on_disk,
    commit,
    file_checksums,
    host_bytes_to_save,
    list_checkpoints,
    prepare_save,
    prune,
    quarantine,
    read_metadata,
    release_reserved_space,
    should_resume,
    size_and_crc,
    verify_files,
)
from gptoss20b.config import resolve
from tests.support.paths import ROOT

POSITION = TrainState(step=3, seed=5, log_bytes=100, eval_tokens_sha256="ab")
RUNNING = ':::MLLOG {"key": "run_start", "value": null, "time_ms": 60000, "metadata": {}}\n'


def prepare(folder: Path, step: int) -> Path:
    return prepare_save(folder, step, needed_bytes=1, needed_host_bytes=1)


def make_checkpoint(folder: Path, step: int = 3) -> CheckpointMetadata:
    """Write a complete checkpoint with two files."""
    part = prepare(folder, step)
    (part / "a").write_bytes(b"x" * 1000)
    (part / "b").write_bytes(b"")
    release_reserved_space(part)
    files = file_checksums(part, {"a": size_and_crc(part / "a")})
    checkpoint = CheckpointMetadata(folder / f"step_{step:08d}", POSITION, {"fixed.max_steps": 7}, files)
    commit(part, checkpoint)
    return checkpoint


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_written_checkpoint_is_read_back(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path)
    assert read_metadata(checkpoint.folder) == checkpoint
    assert verify_files(checkpoint) == []
    assert list_checkpoints(tmp_path) == [checkpoint.folder]
    assert names_in(tmp_path) == ["step_00000003"]


def test_checksums_are_length_and_crc_32_and_known_ones_are_not_computed_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123456789")
    (tmp_path / "b").write_bytes(bytes(40_000_000))
    assert size_and_crc(tmp_path / "b")[0] == 40_000_000
    check_value = (9, 0xCBF43926)  # of CRC-32
    assert file_checksums(tmp_path, {"b": (7, 7)}) == {"a": check_value, "b": (7, 7)}


def test_the_newest_comes_first_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (9, 100, 12):
        make_checkpoint(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000100", "step_00000012", "step_00000009"]
    prune(tmp_path, keep=2)
    assert names_in(tmp_path) == ["step_00000012", "step_00000100"]


def test_the_next_save_removes_what_an_interrupted_save_or_removal_left(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path)
    (prepare(tmp_path, 6) / "half").write_text("x")
    (tmp_path / ".step_00000001.old").mkdir()
    (tmp_path / "mine").mkdir()
    prepare(tmp_path, 9)
    kept = [".step_00000009.part", ".step_00000009.reserve", "mine", checkpoint.folder.name]
    assert names_in(tmp_path) == kept


def test_space_for_the_last_files_is_reserved_and_required(tmp_path: Path) -> None:
    part = prepare(tmp_path, 3)
    assert names_in(part) == []  # Megatron-Core warns otherwise
    assert (tmp_path / ".step_00000003.reserve").stat().st_blocks * 512 >= 2**25
    release_reserved_space(part)
    assert names_in(tmp_path) == [part.name]
    with pytest.raises(CheckpointError, match="GiB free"):
        prepare_save(tmp_path, 6, shutil.disk_usage(tmp_path).free - 2**24, 1)


@pytest.mark.parametrize(("needed", "resource"), [((2**50, 1), "free"), ((1, 2**50), "memory")])
def test_a_save_needs_disk_space_and_memory(tmp_path: Path, needed: tuple[int, int], resource: str) -> None:
    with pytest.raises(CheckpointError, match=rf"[0-9.]+ GiB .*{resource}.* 1048576\.0 GiB"):
        prepare_save(tmp_path / "new", 3, *needed)
    assert names_in(tmp_path / "new") == []


@pytest.mark.parametrize(
    ("name", "change"), [("a", "flip"), ("a", "cut"), ("a", "longer"), ("a", "gone"), ("b", "longer"), ("b", "gone")]
)
def test_any_change_of_a_file_is_damage(tmp_path: Path, name: str, change: str) -> None:
    checkpoint = make_checkpoint(tmp_path)
    path = checkpoint.folder / name
    if change == "gone":
        path.unlink()
    elif change == "longer":
        path.write_bytes(path.read_bytes() + b"y")
    else:
        path.write_bytes(b"x" * 999 + (b"y" if change == "flip" else b""))
    (message,) = verify_files(checkpoint)
    assert message.startswith(f"{path} ")
    assert ("missing" in message) == (change == "gone")


@pytest.mark.parametrize("name", ["a", STATE_FILE])
def test_an_error_of_the_disk_is_no_damage(tmp_path: Path, name: str) -> None:
    checkpoint = make_checkpoint(tmp_path)
    (checkpoint.folder / name).unlink()
    # Reading a link to itself is an error of the file system, while the file exists.
    (checkpoint.folder / name).symlink_to(name)
    with pytest.raises(OSError, match="symbolic links"):
        read_metadata(checkpoint.folder) if name == STATE_FILE else verify_files(checkpoint)


def test_a_save_takes_the_state_twice_in_memory_spread_over_the_nodes() -> None:
    one, two = (resolve({"DGXNNODES": nodes, "DGXNGPU": "8", "GLOBAL_BATCH_SIZE": "32"}) for nodes in ("1", "2"))
    assert host_bytes_to_save(one, 1000) == 2 * 14 * 1000  # bf16 weight, fp32 weight and two moments
    assert host_bytes_to_save(two, 1000) == 14 * 1000


def test_the_readme_has_the_size_of_the_reference_model() -> None:
    gigabytes = bytes_on_disk(resolve({}), 20_488_418_112) / 1e9
    assert f"{gigabytes:.0f} GB" in (ROOT / "docs" / "running.md").read_text(encoding="utf-8")


def test_each_file_is_in_one_share(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path)
    for name in checkpoint.files:
        (checkpoint.folder / name).unlink()
    assert [len(verify_files(checkpoint, part, 3)) for part in range(3)] == [1, 1, 0]


def test_each_quarantined_checkpoint_is_kept(tmp_path: Path) -> None:
    for text in ("first", "second", "third"):
        (make_checkpoint(tmp_path).folder / "b").write_text(text)
        quarantine(tmp_path / "step_00000003")
    names = ["damaged_step_00000003", "damaged_step_00000003_1", "damaged_step_00000003_2"]
    assert names_in(tmp_path) == names
    assert [(tmp_path / name / "b").read_text() for name in names] == ["first", "second", "third"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": 2}',
        '{"format": 2, "train_state": {"step": 1}, "run_identity": {}, "files": {}}',
    ],
)
def test_invalid_metadata(tmp_path: Path, text: str) -> None:
    folder = make_checkpoint(tmp_path).folder
    (folder / STATE_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=f"{folder}/{STATE_FILE} "):
        read_metadata(folder)


def test_metadata_of_another_format(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path).folder / STATE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    with pytest.raises(CheckpointError, match="got format 1, expected 2"):
        read_metadata(path.parent)


@pytest.mark.parametrize(
    ("log", "saved", "resume", "expected"),
    [
        (None, False, False, False),
        (None, False, True, False),
        (None, True, False, "SAVE_DIR"),
        (None, True, True, "SAVE_DIR"),
        (RUNNING, False, False, False),  # RunLog then refuses to overwrite the log
        (RUNNING, False, True, "no checkpoint"),
        (RUNNING, True, False, False),
        (RUNNING, True, True, True),
        ("success", True, True, "has ended"),
        ("target 3.0 not reached in 9 steps", True, True, "has ended"),
        ("received SIGTERM", True, True, True),
    ],
)
def test_when_a_run_resumes(tmp_path: Path, log: str | None, saved: bool, resume: bool, expected: bool | str) -> None:
    path = tmp_path / "result_0.txt"
    if log is not None:
        detail = {"status": "success"} if log == "success" else {"status": "aborted", "reason": log}
        stop = {"key": "run_stop", "value": None, "time_ms": 120_000, "metadata": {"samples_count": 8, **detail}}
        path.write_text(RUNNING + ("" if log == RUNNING else f":::MLLOG {json.dumps(stop)}\n"))
    if saved:
        make_checkpoint(tmp_path / "checkpoints")
    if isinstance(expected, bool):
        assert should_resume(tmp_path / "checkpoints", path, resume) is expected
    else:
        with pytest.raises(CheckpointError, match=expected):
            should_resume(tmp_path / "checkpoints", path, resume)
