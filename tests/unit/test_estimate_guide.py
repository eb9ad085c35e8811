"""The tables, figures and commands of docs/scaling.md are what the code says."""

from __future__ import annotations

import re
import shlex
import statistics
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.published_steps import (
    COUNTS,
    FITTED,
    PUBLISHED,
    Prediction,
    efficiency_of,
    predicted_evaluation,
    predictions,
)
from gptoss20b.cli import app
from gptoss20b.config import resolve
from gptoss20b.hardware import SYSTEMS
from gptoss20b.tools.estimate.assumptions import Assumptions
from gptoss20b.tools.estimate.efficiency import DEFAULT_MFU, assumed
from gptoss20b.tools.estimate.scaling import CONVERGENCE, Estimate, estimate, step_time

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
FLAT = " ".join(GUIDE.split())
RUNS = {run.name: run for run in PUBLISHED}
EVERY = tuple(predictions())
GIVEN = Assumptions()


def rows(mark: str) -> list[list[str]]:
    """The cells of the table that follows a mark."""
    table = GUIDE.split(f"<!-- {mark} -->\n")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def says(text: str) -> bool:
    return " ".join(text.split()) in FLAT


@cache
def on_h200(nodes: int, expert: int, gbs: int, micro_batch: int, imbalance: float = GIVEN.imbalance) -> Estimate:
    named = {"DGXNNODES": nodes, "EXPERT_PARALLEL": expert, "GLOBAL_BATCH_SIZE": gbs, "MICRO_BATCH_SIZE": micro_batch}
    config = resolve({name: str(value) for name, value in named.items()})
    given = replace(GIVEN, imbalance=imbalance)
    return estimate(config, COUNTS, SYSTEMS["H200"], assumed(config, COUNTS, SYSTEMS["H200"], given).value, given)


def test_bytes() -> None:
    shown = {int(row[0]): row[1:] for row in rows("bytes")}
    assert list(shown) == [8, 4, 2, 1]
    for expert, cells in shown.items():
        sent = on_h200(1, expert, 16, 2).bytes_per_step
        assert cells == [f"{sent[name] / 1e9:.1f}" for name in ("all_to_all", "reduce_scatter", "all_gather")]


def test_published_runs() -> None:
    expected = []
    for run in PUBLISHED:
        _, _, expert, context = run.layout
        evaluated = run.evaluation_seconds
        both = [f"{evaluated:.2f}", f"{predicted_evaluation(run):.2f}"] if evaluated else ["-", "-"]
        layout = f"EP {expert}, CP {context}" if context > 1 else f"EP {expert}"
        figures = [str(run.gbs), str(run.micro_batch), f"{run.step_seconds:.4f}", f"{efficiency_of(run):.3f}"]
        expected.append([run.name, layout, *figures, *both])
    assert rows("published") == expected


def group_of(each: Prediction) -> str:
    if each.same_generation and each.same_split:
        return "like GPUs and layouts: 4 to 32 GPUs, GBS 16 to 64"
    if each.same_generation:
        whole_first = not each.calibrated.split
        tail = "whole sequences to half ones on 72 GPUs" if whole_first else "half sequences to whole ones"
        return f"like GPUs, {tail}"
    if not each.same_split:
        return "GPUs and layouts both differ"
    older = each.calibrated.system in ("B200", "GB200")
    newer_too = "older GPUs to newer (B200, GB200 to B300, GB300), like layouts"
    return newer_too if older else "newer GPUs to older, like layouts"


def test_errors() -> None:
    groups: dict[str, list[float]] = {}
    for each in EVERY:
        groups.setdefault(group_of(each), []).append(100 * each.error)
    expected = {name: [str(len(found)), f"{min(found):+.1f} to {max(found):+.1f}"] for name, found in groups.items()}
    assert {row[0]: row[1:] for row in rows("errors")} == expected
    assert says(f"{len(EVERY)} predictions are left")
    like = max(abs(each.error) for each in EVERY if each.like)
    worst = max(abs(each.error) for each in EVERY)
    assert 0.065 < like < 0.07 and 0.29 < worst < 0.30
    assert says("within 7 % from a measurement on the same GPUs") and says("up to 30 % from anything else")


def test_why_it_is_off() -> None:
    newer = [each.error for each in EVERY if group_of(each).startswith("older GPUs")]
    assert round(statistics.median(newer), 2) == 0.20 and says("B300 and GB300 do about 20 % more")
    calibrated, fitted = (RUNS[name] for name in FITTED)
    balanced = replace(fitted.assumed, imbalance=1)
    efficiency = efficiency_of(calibrated)
    without = step_time(fitted.config, COUNTS, SYSTEMS[fitted.system], efficiency, balanced).seconds
    assert says(f"factor of {GIVEN.imbalance:g} holds all of it")
    assert says(f"without it those steps would come out {1 - without / fitted.step_seconds:.0%}".replace("%", " %"))
    off = {
        run.name: predicted_evaluation(run) / run.evaluation_seconds - 1 for run in PUBLISHED if run.evaluation_seconds
    }
    late = [off.pop(name) for name in ("Lambda 8 x B200", "NVIDIA 8 x GB200")]
    assert says("within 9 %, but 19 to 21 % too long on 8 B200 and GB200")
    assert [round(100 * error) for error in sorted(late)] in ([19, 20], [19, 21]) and max(map(abs, off.values())) < 0.09
    reference = [abs(each.error) for each in EVERY if each.calibrated.kind == "AMD bf16"]
    assert says(f"so that {100 * max(reference):.1f} % from GBS 16 to 32")


@pytest.mark.parametrize(
    ("calibrated", "predicted", "text"),
    [
        ("NVIDIA 8 x GB200", "Lambda 8 x B200", "Lambda's 8 B200 {} minutes (published 96.5)"),
        ("HPE 16 x GB300", "NVIDIA 8 x GB300", "NVIDIA's 8 GB300 {} minutes (published 73.0)"),
    ],
)
def test_times_to_train(calibrated: str, predicted: str, text: str) -> None:
    run = RUNS[predicted]
    found = estimate(run.config, COUNTS, SYSTEMS[run.system], efficiency_of(RUNS[calibrated]), run.assumed)
    assert found.seconds_to_target is not None
    assert says(text.format(round(found.seconds_to_target / 60)))


def test_h200() -> None:
    for cells in rows("h200"):
        found = on_h200(*map(int, cells[:4]))
        assert found.seconds_to_target is not None
        figures = [f"{found.step.seconds:.3f}", f"{100 * found.mfu:.1f}", f"{found.evaluation_seconds:.1f}"]
        assert cells[4:] == [*figures, f"{found.seconds_to_target / 60:.1f}"]
    first, balanced = on_h200(1, 8, 16, 1), on_h200(1, 8, 16, 1, 1.0)
    surplus = first.step.matrix_products - balanced.step.matrix_products
    assert says(
        f"{surplus:.3f} s are the busiest rank's surplus rows and {first.step.all_to_all:.3f} s the all-to-alls"
    )
    assert says(f"`--assume imbalance=1` it is {balanced.step.seconds:.3f} s")


def test_the_assumptions_that_the_text_names() -> None:
    assert says(f"an S1 MFU of {100 * DEFAULT_MFU:.0f} %, which **nobody measured**")
    assert says(f"{GIVEN.traffic_bytes:g} bytes of memory traffic per parameter on the GPU and micro batch")
    assert says(f"times `imbalance`; {GIVEN.latency_us:g} us each")
    assert FLAT.count(f"{100 * GIVEN.overlap:.0f} % at most, behind the") == 2
    owned = 24 + 2 * GIVEN.gradient_bytes + GIVEN.weight_bytes
    assert says(f"{owned:g} bytes per parameter owned, and clearing {GIVEN.gradient_bytes:g} bytes")
    assert GIVEN.link_fraction == GIVEN.memory_fraction and says(f"reach {100 * GIVEN.link_fraction:.0f} % of what")
    means = [f"{CONVERGENCE[size]:,.0f} at" for size in (16, 32, 64)]
    assert all(mean in FLAT for mean in means)


def test_its_commands_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("gptoss20b.tools.estimate.command._counts", lambda config: dict(COUNTS))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s1.json").write_text(
        '{"scenario": "S1", "system": "NVIDIA B200", "backend": "torch", "micro_batch_size": 2, '
        '"sequence_length": 8192, "step_without_optimizer_seconds": {"median": 0.4}}'
    )
    commands = re.findall(r"^python -m gptoss20b (estimate .*)$", GUIDE, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command))
        assert done.exit_code == 0, done.stderr
