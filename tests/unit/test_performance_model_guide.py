"""The tables and commands of docs/performance-model.md."""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.published_steps import (
    COUNTS,
    IMBALANCE_FIT,
    PUBLISHED,
    Prediction,
    fit_efficiency,
    predict_evaluation,
    predictions,
)
from gptoss20b.cli import app
from gptoss20b.config import resolve
from gptoss20b.hardware import SYSTEMS
from gptoss20b.tools.estimate.assumptions import Assumptions
from gptoss20b.tools.estimate.efficiency import assumed_efficiency
from gptoss20b.tools.estimate.scaling import CONVERGENCE, Estimate, ScalingModel, make_estimate
from tests.support.guides import read_guide, table_rows
from tests.support.paths import ROOT

GUIDE = read_guide(ROOT / "docs" / "performance-model.md")
RUNS = {run.name: run for run in PUBLISHED}
ERRORS = tuple(predictions())


@cache
def on_h200(nodes: int, expert: int, gbs: int, micro_batch: int, imbalance: float = 1.6) -> Estimate:
    named = {"DGXNNODES": nodes, "EXPERT_PARALLEL": expert, "GLOBAL_BATCH_SIZE": gbs, "MICRO_BATCH_SIZE": micro_batch}
    config = resolve({name: str(value) for name, value in named.items()})
    model = ScalingModel(config, COUNTS, SYSTEMS["H200"], Assumptions(imbalance=imbalance))
    return make_estimate(model, assumed_efficiency(model).value)


def error_range(errors: Iterable[float]) -> str:
    """Return the least and the greatest of some relative errors, in percent."""
    found = sorted(100 * error for error in errors)
    return f"{found[0]:+.1f} to {found[-1]:+.1f}"


def test_assumptions() -> None:
    expected = [[name, f"{value:g}", unit, source] for name, value, unit, source in Assumptions().rows()]
    assert table_rows(GUIDE, "assumptions") == expected


def test_convergence() -> None:
    assert table_rows(GUIDE, "convergence") == [[str(gbs), f"{mean:,.0f}"] for gbs, mean in CONVERGENCE.items()]


def test_bytes() -> None:
    shown = {int(row[0]): row[1:] for row in table_rows(GUIDE, "bytes")}
    assert list(shown) == [8, 4, 2, 1]
    for expert, cells in shown.items():
        sent = on_h200(1, expert, 16, 2).bytes_per_step
        assert cells == [f"{sent[name] / 1e9:.1f}" for name in ("all_to_all", "reduce_scatter", "all_gather")]


def test_published_runs() -> None:
    expected = []
    for run in PUBLISHED:
        _, _, expert, context = run.layout
        evaluated = run.evaluation_seconds
        both = [f"{evaluated:.2f}", f"{predict_evaluation(run):.2f}"] if evaluated else ["-", "-"]
        layout = f"EP {expert}, CP {context}" if context > 1 else f"EP {expert}"
        figures = [str(run.gbs), str(run.micro_batch), f"{run.step_seconds:.4f}", f"{fit_efficiency(run):.3f}"]
        expected.append([run.name, layout, *figures, *both])
    assert table_rows(GUIDE, "published") == expected


def group_of(each: Prediction) -> str:
    calibrated, predicted = each.calibrated, each.predicted
    same_split = calibrated.splits_sequences == predicted.splits_sequences
    if each.is_like:
        return "like GPUs and layouts: 4 to 32 GPUs, GBS 16 to 64"
    if not same_split and calibrated.generation != predicted.generation:
        return "GPUs and layouts both differ"
    if not same_split and calibrated.splits_sequences:
        return "like GPUs, half sequences to whole ones"
    if not same_split:
        return "like GPUs, whole sequences to half ones on 72 GPUs"
    if calibrated.system in ("B200", "GB200"):
        return "older GPUs to newer (B200, GB200 to B300, GB300), like layouts"
    return "newer GPUs to older, like layouts"


def test_errors() -> None:
    groups: dict[str, list[float]] = {}
    for each in ERRORS:
        groups.setdefault(group_of(each), []).append(each.error)
    groups["all"] = [each.error for each in ERRORS]
    expected = {
        name: [str(len(found)), error_range(found), f"{100 * statistics.median(found):+.1f}"]
        for name, found in groups.items()
    }
    assert {row[0]: row[1:] for row in table_rows(GUIDE, "errors")} == expected


def test_single_errors() -> None:
    calibrated, fitted = (RUNS[name] for name in IMBALANCE_FIT)
    balanced = replace(fitted, assumptions=replace(fitted.assumptions, imbalance=1))
    step = balanced.model.step_time(fit_efficiency(calibrated))
    evaluations = {
        run.name: predict_evaluation(run) / run.evaluation_seconds - 1 for run in PUBLISHED if run.evaluation_seconds
    }
    too_long = [evaluations.pop(name) for name in ("Lambda 8 x B200", "NVIDIA 8 x GB200")]
    assert [row[1] for row in table_rows(GUIDE, "single errors")] == [
        error_range(each.error for each in ERRORS if each.calibrated.kind == "AMD bf16"),
        f"{100 * (step.seconds / fitted.step_seconds - 1):+.1f}",
        error_range(too_long),
        error_range(evaluations.values()),
    ]


@pytest.mark.parametrize("row", table_rows(GUIDE, "minutes"), ids=lambda row: row[1])
def test_minutes_to_train(row: list[str]) -> None:
    """With the efficiency of another run, and the reference's mean samples, which are not the submission's."""
    found = make_estimate(RUNS[row[1]].model, fit_efficiency(RUNS[row[0]]))
    assert found.seconds_to_target is not None
    assert row[2] == f"{found.seconds_to_target / 60:.0f}"
    assert float(row[2]) == pytest.approx(float(row[3]), rel=0.1)


@pytest.mark.parametrize("row", table_rows(GUIDE, "h200"), ids=lambda row: f"{row[0]} nodes, imbalance {row[4]}")
def test_h200(row: list[str]) -> None:
    found = on_h200(*map(int, row[:4]), float(row[4]))
    assert found.seconds_to_target is not None
    assert row[5:] == [
        f"{found.step.seconds:.3f}",
        f"{found.step.all_to_all:.3f}",
        f"{100 * found.mfu:.1f}",
        f"{found.evaluation_seconds:.1f}",
        f"{found.seconds_to_target / 60:.1f}",
    ]


def test_its_commands_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("gptoss20b.tools.estimate.command.count_parameters", lambda config: dict(COUNTS))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s1.json").write_text(
        '{"scenario": "S1", "system": "NVIDIA B200", "backend": "torch", "micro_batch_size": 2, '
        '"sequence_length": 8192, "step_without_optimizer_seconds": {"median": 0.4}}'
    )
    commands = re.findall(r"^python -m gptoss20b (estimate .*)$", GUIDE.replace("\\\n", ""), re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command))
        assert done.exit_code == 0, done.stderr
