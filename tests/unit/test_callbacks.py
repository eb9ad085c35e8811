"""The order of hooks and log records around training, with a trainer that only pretends to train."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from gptoss20b.callbacks import Callback, CallbackList
from gptoss20b.callbacks.checkpointing import Checkpointing
from gptoss20b.callbacks.mlperf import MlperfLogging
from gptoss20b.checkpoint.files import TrainState
from gptoss20b.config import Config, resolve
from gptoss20b.mlperf_log import RunLog
from gptoss20b.stopping import NonFiniteGradientError, NonFiniteLossError
from gptoss20b.train import fit

HOOKS = [name for name in vars(Callback) if name.startswith("on_")]


class Pretender:
    """Trainer and data loader in one: evaluations are the given ones in order, and step ``skipped`` updates nothing."""

    eval_micro_batches = 1

    def __init__(self, evaluations: list[float], skipped: int = 0) -> None:
        self._evaluations, self._skipped = iter(evaluations), skipped
        self.steps: list[int] = []

    def train_batches(self, step: int) -> int:
        return step

    def eval_batches(self) -> Iterator[Any]:
        return iter(())

    def step(self, batches: int) -> SimpleNamespace:
        self.steps.append(batches + 1)
        return SimpleNamespace(loss=lambda: 5.0, learning_rate=1e-3)

    def synchronize(self) -> None:
        pass

    def check_finite(self) -> None:
        if self._skipped in self.steps:
            raise NonFiniteGradientError(f"at step {self._skipped}")

    def evaluate(self, batches: Iterator[Any], count: int) -> float:
        return next(self._evaluations)


class Recorder(Callback):
    """Write down every hook with its arguments."""

    def __init__(self, calls: list[Any], name: str = "") -> None:
        for hook in HOOKS:
            setattr(self, hook, lambda *arguments, hook=hook: calls.append((name, hook, *arguments)))


@pytest.fixture
def config() -> Config:
    """Evaluate every second step, read a loss every third, stop after five."""
    settings = {
        "MODEL_VARIANT": "tiny",
        "SUBMISSION_DIVISION": "open",
        "EVAL_INTERVAL_SAMPLES": "8",
        "WARMUP_STEPS": "1",
        "MAX_STEPS": "5",
        "LOG_INTERVAL": "3",
        "TARGET_LOSS": "3.0",
    }
    return resolve(settings)


def run_fit(config: Config, pretender: Pretender, *callbacks: Callback, start_step: int = 0) -> bool:
    double: Any = pretender
    return fit(config, double, double, CallbackList(callbacks), start_step)


def test_hooks_of_a_run_that_converges_at_its_second_evaluation(config: Config) -> None:
    calls: list[Any] = []
    assert run_fit(config, Pretender([3.5, 3.0]), Recorder(calls))
    assert [call[1:] for call in calls] == [
        ("on_block_start", 0),
        ("on_step_start", 1),
        ("on_train_loss", 1, 5.0, 1e-3),  # the first step's, for a first sign of life
        ("on_step_stop", 1),
        ("on_step_start", 2),
        ("on_eval_start", 2),
        ("on_eval_stop", 2, 3.5, False),
        ("on_block_start", 2),
        ("on_step_stop", 2),
        ("on_step_start", 3),
        ("on_train_loss", 3, 5.0, 1e-3),
        ("on_step_stop", 3),
        ("on_step_start", 4),
        ("on_eval_start", 4),
        ("on_eval_stop", 4, 3.0, True),  # at the target is enough
        ("on_train_stop", True),
    ]


@pytest.mark.parametrize(("max_steps", "last_hooks"), [(5, ["on_step_stop"]), (4, ["on_eval_stop"])])
def test_a_run_that_misses_the_target_trains_max_steps(config: Config, max_steps: int, last_hooks: list[str]) -> None:
    config = config.model_copy(update={"fixed": config.fixed.model_copy(update={"max_steps": max_steps})})
    calls: list[Any] = []
    pretender = Pretender([3.5, 3.4])
    assert not run_fit(config, pretender, Recorder(calls))
    assert pretender.steps == list(range(1, max_steps + 1))
    assert [call[1] for call in calls[-2:]] == [*last_hooks, "on_train_stop"]


def test_a_resumed_run_starts_behind_its_completed_steps(config: Config) -> None:
    calls: list[Any] = []
    pretender = Pretender([2.0])
    assert run_fit(config, pretender, Recorder(calls), start_step=3)
    assert pretender.steps == [4]
    assert calls[:2] == [("", "on_block_start", 3), ("", "on_step_start", 4)]


def test_an_evaluation_that_is_no_number_ends_the_run(config: Config) -> None:
    with pytest.raises(NonFiniteLossError):
        run_fit(config, Pretender([float("inf")]), Recorder([]))


# Losses are read at steps 1, 3, 6, and evaluations are at steps 2, 4, 6.
@pytest.mark.parametrize(("skipped", "last"), [(1, 1), (2, 2), (3, 3), (4, 4)])
def test_a_skipped_update_ends_the_run_where_the_host_next_waits(config: Config, skipped: int, last: int) -> None:
    calls: list[Any] = []
    pretender = Pretender([3.5, 3.4], skipped)
    with pytest.raises(NonFiniteGradientError, match=str(skipped)):
        run_fit(config, pretender, Recorder(calls))
    assert pretender.steps[-1] == last
    assert not {("", "on_train_loss", last, 5.0, 1e-3), ("", "on_eval_start", last)} & set(calls)


def test_every_hook_reaches_every_callback_in_order() -> None:
    calls: list[Any] = []
    callbacks = CallbackList([Recorder(calls, "first"), Recorder(calls, "second")])
    for hook in HOOKS:
        arguments = list(range(len(inspect.signature(getattr(Callback, hook)).parameters) - 1))
        getattr(callbacks, hook)(*arguments)
        assert calls == [("first", hook, *arguments), ("second", hook, *arguments)]
        calls.clear()


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in path.read_text().splitlines()]


def started_log(path: Path) -> RunLog:
    log = RunLog(path, echo=lambda line: None)
    log.run_start()
    return log


def test_the_clock_stops_before_another_callback_hears_of_the_target(tmp_path: Path, config: Config) -> None:
    log = started_log(tmp_path / "log")
    seen: list[str] = []

    class Late(Callback):
        def on_eval_stop(self, step: int, loss: float, converged: bool) -> None:
            seen.append(records(tmp_path / "log")[-1]["key"])

    assert run_fit(config, Pretender([3.5, 2.9]), MlperfLogging(log, config), Late())
    assert seen == ["eval_stop", "run_stop"]
    keys = [record["key"] for record in records(tmp_path / "log")]
    assert keys[2:] == [
        *("block_start", "train_loss", "tracked_stats", "block_stop", "eval_start", "eval_accuracy", "eval_stop"),
        *("block_start", "train_loss", "tracked_stats", "block_stop", "eval_start", "eval_accuracy", "eval_stop"),
        "run_stop",
    ]
    assert records(tmp_path / "log")[-1]["metadata"]["status"] == "success"


def test_a_missed_target_is_logged_with_the_reason(tmp_path: Path, config: Config) -> None:
    log = started_log(tmp_path / "log")
    assert not run_fit(config, Pretender([3.5, 3.4]), MlperfLogging(log, config))
    stop = records(tmp_path / "log")[-1]
    assert (stop["key"], stop["metadata"]["status"]) == ("run_stop", "aborted")
    assert "target 3.0 not reached in 5 steps" in stop["metadata"]["reason"]


def test_a_resumed_log_has_its_block_start_already(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "log"
    started_log(path).close()
    log = RunLog(path, echo=lambda line: None, resuming=True)
    log.resumed(path.stat().st_size, samples=12)
    run_fit(config, Pretender([3.5]), MlperfLogging(log, config), start_step=3)
    keys = [record["key"] for record in records(path)][3:]
    assert keys[:3] == ["tracked_stats", "block_stop", "eval_start"]  # of the block that was open
    assert keys[5] == "block_start"


def test_checkpoints_are_polled_where_losses_are_read_and_saved_when_due(tmp_path: Path, config: Config) -> None:
    store = Mock()
    store.is_due.side_effect = lambda step: step == 2
    pretender = Pretender([3.5, 3.4])
    log = started_log(tmp_path / "log")
    size = (tmp_path / "log").stat().st_size
    run_fit(config, pretender, Checkpointing(store, config, log, seed=5, eval_tokens_sha256="ab"))
    assert [name for name, _, _ in store.mock_calls if name != "is_due"] == ["save", "complete_pending", "close"]
    store.save.assert_called_once_with(pretender, TrainState(2, 5, size, "ab"))
    store.complete_pending.assert_called_once_with(timeout_s=0)
