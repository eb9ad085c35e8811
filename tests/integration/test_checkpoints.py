"""A killed and resumed run equals an uninterrupted one in losses, log and clock. Failed saves cost checkpoints only."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from gptoss20b.checkpoint.checkpointer import Checkpointer
from gptoss20b.checkpoint.files import STATE_FILE
from gptoss20b.config import resolve
from gptoss20b.mlperf_log import RunLog
from tests.support.local_runs import mounted, records, values
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tiny: dict[str, str]) -> dict[str, str]:
    """Run 12 steps with an evaluation every 5, a checkpoint every 3, expert parallel 2 and expert biases."""
    return tiny | {
        "DGXNGPU": "2",
        "EXPERT_PARALLEL": "2",
        "GLOBAL_BATCH_SIZE": "4",
        "EVAL_INTERVAL_SAMPLES": "20",
        "EXPERT_BIAS_RATE": "0.1",
        "LEARNING_RATE": "1e-2",
        "MAX_STEPS": "12",
        "TARGET_LOSS": "0.5",
        "LOG_INTERVAL": "1",
        "SAVE_INTERVAL": "12",
        "SEED": "11",
    }


def train(variables: dict[str, str], logdir: Path, ranks: int = 2, **options: Any) -> list[int]:
    return run_ranks("checkpoint_jobs.train", ranks, variables=variables | {"LOGDIR": str(logdir)}, **options)


def killed(variables: dict[str, str], logdir: Path, **where: Any) -> None:
    with pytest.raises(AssertionError, match="did not finish"):
        train(variables, logdir, **where)


def losses(logdir: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (samples, loss) of training and evaluation, with every digit."""
    found = records(logdir / "result_0.txt")
    return {
        key: [(each["metadata"]["samples_count"], each["value"]) for each in found if each["key"] == key]
        for key in ("train_loss", "eval_accuracy")
    }


def committed(logdir: Path) -> list[str]:
    """Return what `checkpoint_jobs.train` noted of each complete checkpoint."""
    return (logdir.parent / "committed").read_text().splitlines()


def names(logdir: Path) -> list[str]:
    return sorted(path.name for path in (logdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(base: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run to the end without interruption."""
    logdir = tmp_path_factory.mktemp("whole") / "log"
    assert train(base, logdir) == [3, 3]
    return logdir


@pytest.fixture(scope="module")
def interrupted(base: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kill a run before its ninth step, two after its second checkpoint. Copy it; do not change it."""
    logdir = tmp_path_factory.mktemp("interrupted") / "log"
    killed(base, logdir, die_before=9, hold_until=8)
    assert names(logdir) == ["step_00000003", "step_00000006"]
    return logdir


@pytest.fixture
def log(interrupted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(interrupted, tmp_path / "log"))


def resumed(variables: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name != "SEED"} | {"RESUME": "1"}


def test_checkpoints_change_nothing_and_the_last_are_kept(base: dict[str, str], whole: Path, tmp_path: Path) -> None:
    assert names(whole) == ["step_00000009", "step_00000012"]
    assert train(base | {"SAVE_INTERVAL": "0"}, tmp_path / "log") == [3, 3]
    assert losses(tmp_path / "log") == losses(whole)
    assert not (tmp_path / "log" / "checkpoints").exists()


def test_files_are_written_while_training_continues(whole: Path, interrupted: Path) -> None:
    # Each save is held until the next one waits for it, the last until the run ends; or until the eighth step.
    assert committed(whole) == [
        "3 at 6, 0 processes",
        "6 at 9, 0 processes",
        "9 at 12, 0 processes",
        "12 at 12 after run_stop, 0 processes",
    ]
    assert committed(interrupted) == ["3 at 6, 0 processes", "6 at 8, 0 processes"]


def test_a_killed_run_resumes_bit_for_bit_in_the_same_log(base: dict[str, str], whole: Path, log: Path) -> None:
    before = (log / "result_0.txt").read_text()
    assert train(resumed(base), log) == [3, 3]
    assert losses(log) == losses(whole)
    together, apart = records(log / "result_0.txt"), records(whole / "result_0.txt")
    (resumption,) = [each for each in together if each["key"] == "resumed"]
    assert (resumption["value"], resumption["metadata"]["samples_count"]) == (24, 24)
    assert [each["key"] for each in together if each is not resumption] == [each["key"] for each in apart]
    # The log keeps the first start's run_start, so the clock has never paused.
    after = (log / "result_0.txt").read_text()
    kept = after[: after.index('"resumed"')].rpartition("\n")[0] + "\n"
    assert before.startswith(kept)
    assert (log / "cut_1_of_result_0.txt").read_text() == before[len(kept) :]
    assert '"train_loss"' in before[len(kept) :]
    assert names(log) == ["step_00000009", "step_00000012"]


@pytest.mark.parametrize(("ranks", "expert"), [(1, 1), (2, 1), (4, 2)])
def test_another_layout_resumes(base: dict[str, str], whole: Path, log: Path, ranks: int, expert: int) -> None:
    layout = {"DGXNGPU": str(ranks), "EXPERT_PARALLEL": str(expert)}
    assert train(resumed(base) | layout, log, ranks) == [3] * ranks
    for key, expected in losses(whole).items():
        assert [loss for _, loss in losses(log)[key]] == pytest.approx([loss for _, loss in expected], rel=1e-5)


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ("writing", [".step_00000006.part", ".step_00000006.reserve", "step_00000003"]),
        ("committing", [".step_00000006.part", "step_00000003"]),
        ("pruning", ["step_00000003", "step_00000006"]),
    ],
)
def test_a_kill_at_any_moment_of_a_save_leaves_the_complete_ones(
    base: dict[str, str], whole: Path, tmp_path: Path, where: str, left: list[str]
) -> None:
    killed(base, tmp_path / "log", die_in=where)
    assert names(tmp_path / "log") == left
    assert train(resumed(base), tmp_path / "log") == [3, 3]
    assert losses(tmp_path / "log") == losses(whole)
    assert names(tmp_path / "log") == ["step_00000009", "step_00000012"]


def damage(folder: Path) -> str:
    """Change one byte in the middle of a checkpoint's largest file. Return the file's name."""
    largest = max(folder.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    return largest.name


def test_a_damaged_checkpoint_is_quarantined_and_the_previous_one_is_used(
    base: dict[str, str], whole: Path, log: Path
) -> None:
    damage(log / "checkpoints" / "step_00000006")
    assert train(resumed(base), log) == [3, 3]
    assert losses(log) == losses(whole)
    assert values(log / "result_0.txt", "resumed") == [12]
    assert names(log) == ["damaged_step_00000006", "step_00000009", "step_00000012"]


def test_without_an_intact_checkpoint_the_log_is_untouched(base: dict[str, str], log: Path) -> None:
    before = (log / "result_0.txt").read_bytes()
    older, newest = (log / "checkpoints" / name for name in names(log))
    damage(older)
    (newest / STATE_FILE).write_text("{")
    assert train(resumed(base), log) == [1, 1]
    assert (log / "result_0.txt").read_bytes() == before


@pytest.mark.parametrize(
    "changed", [{"LEARNING_RATE": "2e-2"}, {"SEED": "12"}, {"SEQUENCE_LENGTH": "32"}, {"TARGET_LOSS": "0.4"}]
)
def test_a_checkpoint_of_another_run_is_rejected(base: dict[str, str], log: Path, changed: dict[str, str]) -> None:
    before = (log / "result_0.txt").read_bytes()
    assert train(resumed(base) | changed, log) == [1, 1]
    assert (log / "result_0.txt").read_bytes() == before


def test_two_runs_never_resume_one_log(base: dict[str, str], log: Path) -> None:
    before = (log / "result_0.txt").read_bytes()
    other = RunLog(log / "result_0.txt", resuming=True)
    with pytest.raises(AssertionError, match="another run is writing"):
        train(resumed(base), log, limit_s=12)
    other.close()
    assert (log / "result_0.txt").read_bytes() == before


def test_resuming_without_a_log_starts_and_without_save_async_training_waits(
    base: dict[str, str], whole: Path, tmp_path: Path
) -> None:
    assert train(base | {"RESUME": "1", "SAVE_ASYNC": "0"}, tmp_path / "log") == [3, 3]
    assert losses(tmp_path / "log") == losses(whole)
    assert committed(tmp_path / "log") == [f"{step} at {step}, 0 processes" for step in (3, 6, 9, 12)]


def test_a_checkpoint_folder_that_cannot_be_written_does_not_end_the_run(
    base: dict[str, str], whole: Path, tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk", "ro"):
        assert train(base | {"SAVE_DIR": str(tmp_path / "disk" / "saves")}, tmp_path / "log") == [3, 3]
    assert losses(tmp_path / "log") == losses(whole)


def test_a_disk_that_fills_up_keeps_the_written_checkpoint_and_gets_no_other(
    base: dict[str, str], whole: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=48m"):
        assert train(base | {"SAVE_DIR": str(disk / "saves")}, tmp_path / "log", fill=str(disk)) == [3, 3]
        assert [path.name for path in (disk / "saves").iterdir()] == ["step_00000003"]
    assert losses(tmp_path / "log") == losses(whole)


def test_a_rank_that_cannot_write_its_files_costs_one_checkpoint(
    base: dict[str, str], whole: Path, tmp_path: Path
) -> None:
    assert train(base, tmp_path / "log", no_files_in=9) == [3, 3]
    assert losses(tmp_path / "log") == losses(whole)
    assert [line[:2] for line in committed(tmp_path / "log")] == ["3 ", "9 ", "12"]
    shown = (tmp_path / "stderr").read_text()
    assert "warning: the checkpoint after step 6 failed: OSError: [Errno 27] File too large" in shown


def test_no_collective_waits_for_a_slow_disk(base: dict[str, str], whole: Path, log: Path) -> None:
    impatient = resumed(base) | {"COLLECTIVE_TIMEOUT": "8", "SAVE_INTERVAL": "48"}
    assert train(impatient, log, slow_s=10) == [3, 3]
    assert losses(log) == losses(whole)
    assert names(log) == ["step_00000003", "step_00000006", "step_00000012"]
    shown = (log.parent / "stderr").read_text()
    assert "warning: an old checkpoint could not be removed: OSError: [Errno 39] Directory not empty" in shown


def test_a_disk_that_never_answers_costs_checkpoints_and_not_the_run(
    base: dict[str, str], whole: Path, tmp_path: Path
) -> None:
    impatient = base | {"COLLECTIVE_TIMEOUT": "8", "SAVE_INTERVAL": "24"}
    assert train(impatient, tmp_path / "log", never_writes=True) == [3, 3]
    assert losses(tmp_path / "log") == losses(whole)
    assert names(tmp_path / "log") == [".step_00000006.part", ".step_00000006.reserve"]
    shown = (tmp_path / "stderr").read_text()
    assert "no checkpoint after step 12" in shown
    assert "the last checkpoint is incomplete" in shown


def test_an_interval_in_minutes_is_read_from_rank_0s_clock_where_losses_are_logged(
    tiny: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    module = "gptoss20b.checkpoint.checkpointer"
    monkeypatch.setattr(f"{module}.broadcast_from_rank0", lambda action: action())
    monkeypatch.setattr(f"{module}.time.monotonic", lambda: clock[0])
    config = resolve(tiny | {"SAVE_INTERVAL": "2min", "LOG_INTERVAL": "5"})
    checkpointer = Checkpointer(config, tmp_path, False, pytest.fail)
    due = []
    for step in range(1, 31):
        clock[0] += 10
        if checkpointer.is_due(step):
            due.append(step)
            checkpointer._last_save_s = clock[0]  # as a save does
    assert due == [15, 30]  # 120 s after the start is step 12, and 120 s after step 15 is step 27
