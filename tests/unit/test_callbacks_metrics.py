"""metrics.jsonl: a line per logged loss, kept up to where a run resumes; spikes are warned of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptoss20b.callbacks import metrics
from gptoss20b.config import resolve


@pytest.fixture(autouse=True)
def probe(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the probe by one that records its calls and measures one number."""
    calls: list[str] = []

    class Probe:
        def __init__(self, _trainer: Any) -> None: ...

        def start(self) -> None:
            calls.append("start")

        def read(self) -> dict[str, float]:
            calls.append("read")
            return {"grad_norm": 0.5}

    monkeypatch.setattr(metrics, "Probe", Probe)
    return calls


CONFIG = resolve({"LOG_INTERVAL": "10", "GLOBAL_BATCH_SIZE": "16"})


def train(callback: metrics.Metrics, steps: range, spike_at: int = 0) -> None:
    double: Any = None
    callback.trainer = double
    for step in steps:
        callback.on_step_start(step)
        if step == 1 or step % 10 == 0:
            callback.on_train_loss(step, 5.0 if step == spike_at else 3.0 + 0.01 * (step % 20 > 0), 1e-3)


def test_only_steps_whose_loss_is_logged_are_measured_and_a_resumed_file_continues(
    tmp_path: Path, probe: list[str]
) -> None:
    path, said = tmp_path / "metrics.jsonl", list[str]()
    train(metrics.Metrics(CONFIG, path, 0, said.append), range(1, 36))
    assert probe == ["start", "read"] * 4
    whole = path.read_text()
    first, *_ = lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["step"] for line in lines] == [1, 10, 20, 30]
    assert (first["samples"], first["loss"], first["grad_norm"], first["spike_score"]) == (16, 3.01, 0.5, None)
    train(metrics.Metrics(CONFIG, path, 20, said.append), range(21, 36))
    assert (path.read_text(), said) == (whole, [])


def test_a_cut_line_ends_the_file_and_no_run(tmp_path: Path) -> None:
    path, said = tmp_path / "metrics.jsonl", list[str]()
    train(metrics.Metrics(CONFIG, path, 0, said.append), range(1, 36))
    whole = path.read_text()
    path.write_text(whole[:-40])
    train(metrics.Metrics(CONFIG, path, 30, said.append), range(31, 36))
    assert path.read_text() == "".join(whole.splitlines(keepends=True)[:3]) and said == []


def test_a_spike_is_warned_of_once_also_by_a_resumed_run(tmp_path: Path) -> None:
    path, said = tmp_path / "metrics.jsonl", list[str]()
    train(metrics.Metrics(CONFIG, path, 0, said.append), range(1, 201), spike_at=150)
    (warning,) = said
    assert "step 150" in warning
    train(metrics.Metrics(CONFIG, path, 140, said.append), range(141, 201), spike_at=150)
    assert said[1:] == [warning]


def test_a_file_that_cannot_be_written_ends_with_a_warning_and_other_ranks_write_none(tmp_path: Path) -> None:
    said: list[str] = []
    train(metrics.Metrics(CONFIG, tmp_path / "gone" / "metrics.jsonl", 0, said.append), range(1, 36))
    (warning,) = said
    assert "metrics.jsonl ends here" in warning
    train(metrics.Metrics(CONFIG, None, 0, said.append), range(1, 36))
    assert len(said) == 1
