"""The tables, commands and outputs of docs/tuning.md, against the code and the installed RCP files."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from compliance import benchmark
from compliance.check import Options, check_set
from compliance.findings import RunSummary
from compliance.plan import Plan, make_plan
from compliance.rcp import full_points
from compliance.rules import ALL_RULES
from compliance.schedule import Schedule
from compliance.score import spread
from compliance.welch import welch_test
from gptoss20b.config import resolve, settings
from gptoss20b.config.tree import FixedHyperparameters, FreeHyperparameters
from gptoss20b.gpu_allocator import VARIABLES
from gptoss20b.hardware import system_of_configuration
from gptoss20b.memory import PeakMemory, peak_memory
from gptoss20b.model.size import flops_per_token, state_bytes_per_gpu
from gptoss20b.tools.estimate.scaling import work_per_token
from tests.support.configs import BARE, dry_run, load_config
from tests.support.guides import fenced_blocks, read_guide, table_rows, table_with_header
from tests.support.paths import REFERENCE_LOGS, ROOT

GUIDE = read_guide(ROOT / "docs" / "tuning.md")
BLOCKS = fenced_blocks(GUIDE)
GIB = 2**30
needs_logs = pytest.mark.skipif(
    not REFERENCE_LOGS.is_dir(), reason="the published reference logs are not beside this checkout"
)


@cache
def plan(gbs: int) -> Plan:
    return make_plan(gbs, "6.1.0")


def rcp_mean(gbs: int) -> float:
    mean = plan(gbs).rcp.pruned.mean
    assert mean is not None
    return mean


def run(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the guide with this Python."""
    folder = str(Path(sys.executable).parent)
    environment = {**BARE, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


# --- commands and their output


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.startswith("$ ")], ids=lambda block: block.splitlines()[0]
)
def test_a_command_prints_the_shown_output(block: str, tmp_path: Path) -> None:
    command, shown = block.removeprefix("$ ").split("\n", 1)
    if "gbs32" in command or "compare" in command:
        if not REFERENCE_LOGS.is_dir():
            pytest.skip("the published reference logs are not beside this checkout")
        for name in ("gbs32", "a", "b"):
            (tmp_path / name).mkdir()
        for log in REFERENCE_LOGS.iterdir():
            half = "a" if int(log.name.split("_")[1][0]) < 5 else "b"
            for name in ("gbs32", half):
                shutil.copy(log, tmp_path / name)
    done = run(command, tmp_path)
    printed = done.stdout + done.stderr
    end = 0
    for part in shown.split("...\n"):
        assert part in printed[end:], printed
        end = printed.index(part, end) + len(part)


def recipe() -> list[str]:
    return [line for block in BLOCKS if "./run_local.sh" in block for line in block.splitlines()]


def test_the_recipe_s_configuration_and_its_short_run_are_valid() -> None:
    loaded = load_config("config_B200_1x8.sh")
    assert dry_run(loaded).returncode == 0
    assert any(line.startswith("source config_B200_1x8.sh") for line in recipe())
    short = next(line for line in recipe() if line.endswith("./run_and_time.sh"))
    given = dict(re.findall(r"(\w+)=(\S+)", short))
    assert set(given) <= set(settings())
    done = dry_run(loaded | given)
    assert (done.returncode, done.stderr) == (0, "")
    # Two evaluations in all its steps.
    steps = int(re.search(r"eval_interval_steps = (\d+)", done.stdout)[1])  # type: ignore[index]
    assert int(given["MAX_STEPS"]) == 2 * steps


@pytest.mark.parametrize("line", recipe())
def test_every_command_of_the_recipe_exists_with_its_options(line: str) -> None:
    words = shlex.split(line.rsplit("&& ", maxsplit=1)[-1])
    assert set(re.findall(r"(\w+)=", line)) <= {*settings(), "NEXP"}
    if "-m" in words:
        helped = run(f"python -m {words[2]} {words[3]} --help", ROOT).stdout
        assert "Usage" in helped
        assert all(option in helped for option in re.findall(r"--[\w-]+", line))
    else:
        assert (ROOT / words[-1]).is_file()


def test_every_name_in_the_guide_exists() -> None:
    for name in re.findall(r"`(?:\./|sbatch )?(\w+\.(?:sh|sub))`", GUIDE):
        assert (ROOT / name).is_file(), name
    rules = {rule.id for rule in ALL_RULES}
    named = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", GUIDE)) - {"check-set"}
    assert named and named <= rules
    launchers = {"NEXP", "LOGDIR", "SEED", "SEED_BASE", "STOP_ON_FAILURE"}
    launchers |= {f"{vendor}_VISIBLE_DEVICES" for vendor in ("CUDA", "HIP", "ROCR")}
    variables = set(re.findall(r"`([A-Z]{2,}(?:_[A-Z0-9]+)*)(?:=\S+)?`", GUIDE))
    assert variables <= set(settings()) | launchers | set(VARIABLES), variables - set(settings()) - launchers


def test_the_table_of_knobs_begins_with_the_free_hyperparameters() -> None:
    listed = [name for row in table_rows(GUIDE, "knobs") for name in re.findall(r"`([A-Z_]+)`", row[0])]
    free = [str(field.json_schema_extra["env"]) for field in FreeHyperparameters.model_fields.values()]  # type: ignore[index]
    assert listed[:3] == free
    fixed = {str(field.json_schema_extra["env"]) for field in FixedHyperparameters.model_fields.values()}  # type: ignore[index]
    assert set(listed) <= set(settings()) - fixed


# --- time and batch size


def test_the_example_run() -> None:
    gbs, step, mean = 16, 0.450, rcp_mean(16)
    evaluations = mean / benchmark.EVAL_INTERVAL_SAMPLES
    steps_per_evaluation = benchmark.EVAL_SAMPLES / (3 * gbs)
    training, evaluating = mean / gbs * step, evaluations * steps_per_evaluation * step
    assert [row[1] for row in table_rows(GUIDE, "example run")] == [
        f"{mean:,.0f}",
        f"{mean / gbs:,.0f}",
        f"{training:,.0f}",
        f"{evaluations:.2f}",
        f"{steps_per_evaluation:.1f}",
        f"{steps_per_evaluation * step:.1f}",
        f"{evaluating:.0f}",
        f"{(training + evaluating) / 60:.1f}",
    ]


@pytest.mark.parametrize("row", table_rows(GUIDE, "grid"), ids=lambda row: f"GBS {row[0]}")
def test_the_grid(row: list[str]) -> None:
    planned = plan(int(row[0]))
    point = planned.rcp.pruned
    cells = [f"{planned.gbs}", f"{planned.eval_interval_steps:,}", f"{planned.eval_interval_samples:,}"]
    if point.mean is None or point.min is None or planned.bootstrap.pruned is None:
        assert row == [*cells, "-", "none", "none", "-", "-", "-"]
        return
    steps = point.mean / planned.gbs
    cells += [f"{100 * planned.eval_interval_samples / point.mean:.1f}", f"{point.mean:,.1f}", f"{point.min:,.1f}"]
    cells += [f"{100 * planned.bootstrap.pruned.probability:.3f}", f"{steps:,.0f}", f"{rcp_mean(16) / 16 / steps:.2f}"]
    assert row == cells


def test_two_nodes_of_b200_double_the_batch() -> None:
    loaded = load_config("config_B200_2x8.sh")
    assert (loaded["GLOBAL_BATCH_SIZE"], loaded["MICRO_BATCH_SIZE"]) == ("32", "2")
    pays = rcp_mean(16) / 16 / (rcp_mean(32) / 32)
    assert f"{1 / pays:.2f}" in (ROOT / "config_B200_2x8.sh").read_text()


# --- learning rates


def test_the_published_points() -> None:
    table = table_rows(GUIDE, "published")
    reference = {(int(row[0]), float(row[1]), int(row[2])) for row in table if row[4] == "reference"}
    assert reference == {(point.gbs, point.learning_rate, point.warmup_steps) for point in full_points("6.1.0")}
    known = {point for gbs in (16, 24, 32, 48, 64) for point in plan(gbs).suggested}
    listed = {(int(row[0]), float(row[1]), int(row[2])) for row in table}
    assert listed == {(point.gbs, point.learning_rate, point.warmup_steps) for point in known}
    for gbs, _, steps, samples, _, machine, _ in table:
        assert int(gbs) * int(steps) == int(samples.replace(",", ""))
        sizes = {name: int(size) for name, size in re.findall(r"(TP|CP|micro batch) (\d+)", machine)}
        if machine != "-":  # one micro batch a step in all of them
            ranks = int(machine.split()[0]) // sizes.get("TP", 1) // sizes.get("CP", 1)
            assert ranks * sizes["micro batch"] == int(gbs), machine


def test_the_rate_is_constant() -> None:
    schedule = Schedule(4e-4, 4e-5, 128, benchmark.MAX_STEPS - 128, benchmark.MAX_STEPS)
    share = schedule.rates(np.array([rcp_mean(16) / 16]), benchmark.MAX_STEPS)[0] / 4e-4
    assert f"{100 * share:.2f} %" in GUIDE


# --- spread


@pytest.mark.parametrize("row", table_rows(GUIDE, "power"), ids=lambda row: f"GBS {row[0]}")
def test_the_resolution_of_ten_runs(row: list[str]) -> None:
    point = next(point for point in full_points("6.1.0") if point.gbs == int(row[0]))
    found = spread([float(samples) for samples in point.samples], benchmark.eval_interval_samples(point.gbs))
    assert found is not None and found.quantum_percent is not None
    test = welch_test(found, found)
    assert test is not None
    assert row == [
        f"{point.gbs}",
        f"{found.sd:,.0f}",
        f"{found.cv_percent:.1f}",
        f"{found.quantum_percent:.1f}",
        f"{test.detectable:,.0f}",
        f"{test.detectable_percent:.1f}",
    ]


def test_the_largest_gain_at_gbs_32_is_less_than_ten_runs_show() -> None:
    full = plan(32).rcp.full.mean
    assert full is not None
    gain = 100 * (full / rcp_mean(32) - 1)
    assert f"{gain:.1f} % above" in GUIDE
    assert gain < float(next(row for row in table_rows(GUIDE, "power") if row[0] == "32")[-1])


def crossing(summary: RunSummary) -> float:
    """Return the samples at which a run's loss, interpolated between evaluations, crosses the target."""
    curve = [(evaluation.samples, evaluation.loss) for evaluation in summary.evaluations]
    first = next(index for index, (_, loss) in enumerate(curve) if loss <= benchmark.TARGET_LOSS)
    (x0, y0), (x1, y1) = curve[first - 1 : first + 1]
    return x0 + (y0 - benchmark.TARGET_LOSS) * (x1 - x0) / (y0 - y1)


def cv_percent(values: list[float]) -> float:
    return 100 * statistics.stdev(values) / statistics.mean(values)


@needs_logs
def test_the_reference_logs() -> None:
    runs = check_set([REFERENCE_LOGS], Options(ruleset="6.0.0", official=False)).sets[0].runs
    counts = [float(each.samples_to_target or 0) for each in runs]
    losses = {
        samples: [each.loss for run in runs for each in run.evaluations if each.samples == samples]
        for samples in (221_184, 233_472)
    }
    before, after = (statistics.mean(values) for values in losses.values())
    slope = before - after
    found = spread(losses[221_184])
    assert found is not None
    test = welch_test(found, found)
    assert test is not None
    assert [row[1] for row in table_rows(GUIDE, "reference logs")] == [
        str(counts.count(233_472)),
        str(counts.count(245_760)),
        f"{cv_percent(counts):.1f}",
        f"{cv_percent([crossing(each) for each in runs]):.1f}",
        f"{before:.3f}",
        f"{after:.3f}",
        f"{slope:.3f}",
        f"{statistics.stdev(losses[221_184]):.3f}",
        f"{0.01 / slope:.2f}",
        f"{100 * 0.01 / slope * benchmark.EVAL_INTERVAL_SAMPLES / 233_472:.1f}",
        f"{test.detectable:.3f}",
    ]


# --- memory


@pytest.fixture(scope="module")
def counted() -> dict[str, int]:
    """Return the figures of `info` at its defaults, and the number of expert parameters."""
    figures = json.loads(run("python -m gptoss20b info --json", ROOT).stdout)
    model = resolve({}).model
    experts = model.num_layers * model.num_experts * 3 * model.hidden_size * model.moe_ffn_hidden_size
    return {"experts": experts, "other": figures["total_parameters"] - experts, "state": figures["state_bytes_per_gpu"]}


def peak_of(counted: dict[str, int], **settings: str) -> PeakMemory:
    config = resolve(settings)
    return peak_memory(config, state_bytes_per_gpu(config, {**counted, "embedding": 0}))


def rows_that_fit(peak: PeakMemory, memory: float) -> str:
    if not peak.fits(memory, 1.0):
        return "-"
    fits = peak.survivable_imbalance(memory)
    return "any" if fits is None else f"{fits:.1f}"


@pytest.mark.parametrize("row", table_rows(GUIDE, "memory"), ids=lambda row: f"EP {row[0]}")
def test_the_memory_table(row: list[str], counted: dict[str, int]) -> None:
    header = " ".join(table_with_header(GUIDE, "memory")[0])
    capacities = [int(gigabytes) * 1e9 for gigabytes in re.findall(r"(\d+) GB", header)]
    one, two, more = (
        peak_of(counted, EXPERT_PARALLEL=row[0], DGXNNODES=nodes, MICRO_BATCH_SIZE=micro)
        for nodes, micro in (("1", "1"), ("1", "2"), ("2", "1"))
    )
    assert row[1:3] == [f"{peak.state_bytes / GIB:.1f}" for peak in (one, more)]
    assert row[3] == " / ".join(f"{peak.reserved_bytes() / GIB:.1f}" for peak in (one, two))
    assert row[4:] == [" / ".join(rows_that_fit(peak, memory) for peak in (one, two)) for memory in capacities]
    if row[0] == "8":
        assert row[1] == f"{counted['state'] / GIB:.1f}"


@pytest.mark.parametrize("system", ["B200", "H200", "MI355X"])
def test_each_node_takes_the_largest_micro_batch_with_room_for_unbalanced_rows(system: str) -> None:
    header, _, first, *_ = table_with_header(GUIDE, "memory")
    column = next(index for index, cell in enumerate(header) if cell.startswith(system))
    fit = [0.0 if cell == "-" else float(cell) for cell in first[column].split(" / ")]
    needed = float(re.search(r"room for (\d+) times the mean", GUIDE)[1])  # type: ignore[index]
    largest = max(micro for micro, each in zip((1, 2), fit, strict=True) if each >= needed)
    assert load_config(f"config_{system}_1x8.sh")["MICRO_BATCH_SIZE"] == str(largest)


@pytest.mark.parametrize("name", ["B200_1x8", "B200_2x8", "H200_1x8", "MI355X_1x8", "MI355X_2x8"])
def test_each_configuration_says_the_rows_that_fit(name: str, counted: dict[str, int]) -> None:
    system = system_of_configuration(name)
    assert system is not None
    loaded = {name: value for name, value in load_config(f"config_{name}.sh").items() if name in settings()}
    fits = peak_of(counted, **loaded).survivable_imbalance(system.memory_bytes)
    text = (ROOT / f"config_{name}.sh").read_text().replace("\n#", "")
    assert re.findall(r"([\d.]+) times the mean", text)[0] == f"{fits:.1f}"


@pytest.mark.parametrize("row", table_rows(GUIDE, "recompute"), ids=lambda row: row[0])
def test_recomputation(row: list[str], counted: dict[str, int]) -> None:
    level = row[0].strip("`")
    config, peak = resolve({"RECOMPUTE": level}), peak_of(counted, RECOMPUTE=level)
    again = work_per_token(config) / flops_per_token(config) - 1
    assert row[1:3] == [f"{peak.reserved_bytes(imbalance) / GIB:.1f}" for imbalance in (1, 2)]
    assert row[3] == f"{100 * again:.0f}"
