"""Checkpoints on disk: complete or not there, whole or said to be damaged, kept and removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gptoss20b.checkpoint.files import (
    STATE,
    CheckpointError,
    CheckpointMetadata,
    TrainState,
    bytes_on_disk,
    commit,
    file_checksums,
    host_bytes_to_save,
    list_checkpoints,
    partition_by_size,
    prepare,
    prune,
    quarantine,
    read_metadata,
    release_reserved_space,
    should_resume,
    size_and_crc,
    verify_files,
)
from gptoss20b.config import resolve

AT = TrainState(step=3, seed=5, log_bytes=100, eval_tokens_sha256="ab")
RUNNING = ':::MLLOG {"key": "run_start", "value": null, "time_ms": 60000, "metadata": {}}\n'


def make(folder: Path, step: int = 3) -> CheckpointMetadata:
    """A complete checkpoint with two files."""
    part = prepare(folder, step, needed=1, host_needed=1)
    (part / "a").write_bytes(b"x" * 1000)
    (part / "b").write_bytes(b"")
    release_reserved_space(part)
    files = file_checksums(part, {"a": size_and_crc(part / "a")})
    saved = CheckpointMetadata(folder / f"step_{step:08d}", AT, {"fixed.max_steps": 7}, files)
    commit(part, saved)
    return saved


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    saved = make(tmp_path)
    assert read_metadata(saved.folder) == saved
    assert verify_files(saved) == []
    assert list_checkpoints(tmp_path) == [saved.folder]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000003"]


def test_the_fingerprint_is_length_and_crc_32(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"123456789")
    assert size_and_crc(tmp_path / "file") == (9, 0xCBF43926)  # the check value of CRC-32
    (tmp_path / "large").write_bytes(bytes(40_000_000))
    assert size_and_crc(tmp_path / "large")[0] == 40_000_000


def test_the_newest_comes_first_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (9, 100, 12):
        make(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000100", "step_00000012", "step_00000009"]
    prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000012", "step_00000100"]


def test_what_an_interrupted_save_or_removal_left_goes_with_the_next_save(tmp_path: Path) -> None:
    saved = make(tmp_path)
    (prepare(tmp_path, 6, needed=1, host_needed=1) / "half").write_text("x")
    (tmp_path / ".step_00000001.old").mkdir()
    (tmp_path / "mine").mkdir()
    prepare(tmp_path, 9, needed=1, host_needed=1)
    kept = [".step_00000009.part", ".step_00000009.reserve", "mine", saved.folder.name]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_room_for_the_last_files_is_kept_and_needed(tmp_path: Path) -> None:
    part = prepare(tmp_path, 3, needed=1, host_needed=1)
    assert list(part.iterdir()) == []  # which Megatron-Core would remark on
    assert (tmp_path / ".step_00000003.reserve").stat().st_blocks * 512 >= 2**25
    release_reserved_space(part)
    assert list(tmp_path.iterdir()) == [part]
    with pytest.raises(CheckpointError, match="GiB free"):
        prepare(tmp_path, 6, needed=shutil.disk_usage(tmp_path).free - 2**24, host_needed=1)


def test_known_fingerprints_are_not_taken_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123456789")
    (tmp_path / "b").write_bytes(b"")
    assert file_checksums(tmp_path, {"b": (7, 7)}) == {"a": (9, 0xCBF43926), "b": (7, 7)}


def test_without_room_nothing_is_begun(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has [0-9.]+ GiB free, a checkpoint takes 1048576\.0"):
        prepare(tmp_path / "new", 3, needed=2**50, host_needed=1)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "change"), [("a", "flip"), ("a", "cut"), ("a", "longer"), ("a", "gone"), ("b", "longer"), ("b", "gone")]
)
def test_any_change_of_a_file_is_damage(tmp_path: Path, name: str, change: str) -> None:
    saved = make(tmp_path)
    path = saved.folder / name
    if change == "gone":
        path.unlink()
    elif change == "longer":
        path.write_bytes(path.read_bytes() + b"y")
    else:
        path.write_bytes(b"x" * 999 + (b"y" if change == "flip" else b""))
    (found,) = verify_files(saved)
    assert found.startswith(f"{path} ")
    assert ("is missing" in found) == (change == "gone")


@pytest.mark.parametrize("name", ["a", STATE])
def test_a_disk_that_gives_an_error_is_no_damage(tmp_path: Path, name: str) -> None:
    saved = make(tmp_path)
    (saved.folder / name).unlink()
    (saved.folder / name).symlink_to(name)  # reading it is an error of the file system, not the absence of a file
    with pytest.raises(OSError, match="symbolic links"):
        read_metadata(saved.folder) if name == STATE else verify_files(saved)


def test_without_memory_for_the_copy_nothing_is_begun(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"GiB of memory available, saving a checkpoint takes 1048576\.0"):
        prepare(tmp_path, 3, needed=1, host_needed=2**50)
    assert list(tmp_path.iterdir()) == []


def test_memory_for_a_save_is_that_of_the_state_twice_on_each_node() -> None:
    one, two = (resolve({"DGXNNODES": nodes, "DGXNGPU": "8", "GLOBAL_BATCH_SIZE": "32"}) for nodes in ("1", "2"))
    assert host_bytes_to_save(one, 1000) == 2 * 14 * 1000  # bf16 weight, fp32 weight and two moments
    assert host_bytes_to_save(two, 1000) == 14 * 1000


def test_the_readme_says_how_large_one_of_the_whole_model_is() -> None:
    readme = " ".join((Path(__file__).resolve().parents[2] / "README.md").read_text().split())
    size = bytes_on_disk(resolve({}), 20_488_418_112)
    assert f"One of the whole model is {size / 1e9:.0f} GB, and saving it takes twice that" in readme
    assert host_bytes_to_save(resolve({}), 20_488_418_112) == 2 * size


def test_files_are_shared_out_by_their_bytes() -> None:
    sizes = {"a": 5, "b": 143, "c": 143, "d": 2, "e": 140}
    lists = partition_by_size(sizes, 3)
    assert sorted(name for names in lists for name in names) == sorted(sizes)
    assert sorted(sum(sizes[name] for name in names) for names in lists) == [143, 145, 145]
    assert partition_by_size({}, 2) == [[], []]


def test_what_is_put_aside_twice_is_kept_twice(tmp_path: Path) -> None:
    for text in ("first", "second", "third"):
        (make(tmp_path).folder / "b").write_text(text)
        quarantine(tmp_path / "step_00000003")
    names = ["damaged_step_00000003", "damaged_step_00000003_1", "damaged_step_00000003_2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [(tmp_path / name / "b").read_text() for name in names] == ["first", "second", "third"]


def test_shares_of_the_files_are_all_of_them(tmp_path: Path) -> None:
    saved = make(tmp_path)
    for name in saved.files:
        (saved.folder / name).unlink()
    assert [len(verify_files(saved, part, 3)) for part in range(3)] == [1, 1, 0]


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
def test_a_state_that_is_none(tmp_path: Path, text: str) -> None:
    saved = make(tmp_path)
    (saved.folder / STATE).write_text(text)
    with pytest.raises(CheckpointError, match=f"{saved.folder}/{STATE} cannot be read"):
        read_metadata(saved.folder)


def test_a_state_of_another_version(tmp_path: Path) -> None:
    path = make(tmp_path).folder / STATE
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
        (RUNNING, False, False, False),  # the log refuses to be overwritten
        (RUNNING, False, True, "no checkpoint"),
        (RUNNING, True, False, False),
        (RUNNING, True, True, True),
        ("success", True, True, "has ended"),
        ("target 3.0 not reached in 9 steps", True, True, "has ended"),
        ("received SIGTERM", True, True, True),
    ],
)
def test_when_a_run_goes_on(tmp_path: Path, log: str | None, saved: bool, resume: bool, expected: bool | str) -> None:
    path = tmp_path / "result_0.txt"
    if log is not None:
        detail = {"status": "success"} if log == "success" else {"status": "aborted", "reason": log}
        stop = {"key": "run_stop", "value": None, "time_ms": 120_000, "metadata": {"samples_count": 8, **detail}}
        path.write_text(RUNNING + ("" if log == RUNNING else f":::MLLOG {json.dumps(stop)}\n"))
    if saved:
        make(tmp_path / "checkpoints")
    if isinstance(expected, bool):
        assert should_resume(tmp_path / "checkpoints", path, resume) is expected
    else:
        with pytest.raises(CheckpointError, match=expected):
            should_resume(tmp_path / "checkpoints", path, resume)
