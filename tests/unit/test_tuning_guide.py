"""Every table, command and output of docs/tuning.md is what the code and the installed RCP files say."""

from __future__ import annotations

import json
import math
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
from compliance.score import normalization, spread
from compliance.welch import welch
from gptoss20b.callbacks.console import samples_to_target
from gptoss20b.config import resolve, settings
from gptoss20b.config.tree import FixedHyperparameters, FreeHyperparameters
from gptoss20b.model.size import flops_per_token, state_bytes_per_gpu
from tests.support.configs import BARE, dry_run, load_config
from tests.support.paths import ROOT

GUIDE = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
FLAT = " ".join(GUIDE.split())
BLOCKS = re.findall(r"^```\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
LOGS = ROOT.parent / "shared" / "data" / "rcp_logs" / "gbs32"
GIB = 2**30
# GiB of a sequence's activations that the memory table reckons with.
ACTIVATIONS = 39
needs_logs = pytest.mark.skipif(not LOGS.is_dir(), reason="the published reference logs are not beside this checkout")


def rows(mark: str) -> list[list[str]]:
    """The cells of the table that follows a mark."""
    table = GUIDE.split(f"<!-- {mark} -->\n")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


@cache
def plan(gbs: int) -> Plan:
    return make_plan(gbs, "6.1.0")


def run(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command of the guide, with this Python."""
    folder = str(Path(sys.executable).parent)
    environment = {**BARE, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def says(text: str) -> bool:
    """Whether the guide has these words, wherever its lines break."""
    return " ".join(text.split()) in FLAT


@cache
def reference_runs() -> tuple[RunSummary, ...]:
    return check_set([LOGS], Options(ruleset="6.0.0", official=False)).sets[0].runs


# --- commands and their output


def shown_with_output() -> list[str]:
    return [block for block in BLOCKS if block.startswith("$ ")]


def test_four_commands_are_shown_with_their_output() -> None:
    assert len(shown_with_output()) == 4


@pytest.mark.parametrize("block", shown_with_output(), ids=lambda block: block.splitlines()[0])
def test_a_command_prints_what_is_shown(block: str, tmp_path: Path) -> None:
    command, shown = block.removeprefix("$ ").split("\n", 1)
    if "gbs32" in command or "compare" in command:
        if not LOGS.is_dir():
            pytest.skip("the published reference logs are not beside this checkout")
        for name in ("gbs32", "a", "b"):
            (tmp_path / name).mkdir()
        for log in LOGS.iterdir():
            half = "a" if int(log.name.split("_")[1][0]) < 5 else "b"
            for name in ("gbs32", half):
                shutil.copy(log, tmp_path / name)
    done = run(command, tmp_path)
    printed = done.stdout + done.stderr
    found = 0
    for part in shown.split("...\n"):
        assert part in printed[found:], printed
        found = printed.index(part, found) + len(part)


def recipe() -> list[str]:
    return [line for block in BLOCKS if "./run_local.sh" in block for line in block.splitlines()]


def test_the_recipe_s_configuration_and_its_short_run_are_valid() -> None:
    loaded = load_config("config_B200_1x8.sh")
    assert dry_run(loaded).returncode == 0
    assert "source config_B200_1x8.sh && python -m gptoss20b train --dry-run" in recipe()
    short = next(line for line in recipe() if line.endswith("./run_and_time.sh"))
    given = dict(re.findall(r"(\w+)=(\S+)", short))
    assert set(given) <= set(settings())
    done = dry_run(loaded | given)
    assert (done.returncode, done.stderr) == (0, "")
    # Two evaluations in all its steps.
    steps = int(re.search(r"eval_interval_steps = (\d+)", done.stdout)[1])  # type: ignore[index]
    assert int(given["MAX_STEPS"]) == 2 * steps


def test_every_command_of_the_recipe_exists_with_its_options() -> None:
    for line in recipe():
        words = shlex.split(line.split("&& ")[-1])
        assert set(re.findall(r"(\w+)=", line)) <= {*settings(), "NEXP"}
        if "-m" in words:
            helped = run(f"python -m {words[2]} {words[3]} --help", ROOT).stdout
            assert "Usage" in helped
            assert all(option in helped for option in re.findall(r"--[\w-]+", line))
        else:
            assert (ROOT / words[-1]).is_file()


def test_what_is_named_exists() -> None:
    for name in re.findall(r"`(?:\./|sbatch )?(\w+\.(?:sh|sub))`", GUIDE):
        assert (ROOT / name).is_file(), name
    rules = {rule.id for rule in ALL_RULES}
    named = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", GUIDE)) - {"check-set"}
    assert named == {"eval-cadence", "hyperparameter-end-rate"} and named <= rules
    launchers = {"NEXP", "LOGDIR", "SEED", "SEED_BASE", "STOP_ON_FAILURE"}
    variables = set(re.findall(r"`([A-Z]{2,}(?:_[A-Z0-9]+)*)(?:=\S+)?`", GUIDE))
    assert variables <= set(settings()) | launchers, variables - set(settings()) - launchers


# --- what may be changed


def test_the_table_of_knobs_begins_with_what_the_closed_division_leaves_free() -> None:
    table = GUIDE.split("| knob |")[1].split("\n\n")[0]
    listed = re.findall(r"`([A-Z_]+)`(?=[^|]*\| [^|]*\| [^|]*\| [^|]*\|$)", table, re.MULTILINE)
    free = [str(field.json_schema_extra["env"]) for field in FreeHyperparameters.model_fields.values()]  # type: ignore[index]
    assert listed[:3] == free
    refused = {str(field.json_schema_extra["env"]) for field in FixedHyperparameters.model_fields.values()}  # type: ignore[index]
    assert set(listed) <= set(settings()) - refused
    assert resolve({}).logging.interval == 10 and says("`LOG_INTERVAL` is 10")


def test_shares_in_the_table_of_knobs() -> None:
    small, large = plan(16).rcp.pruned.mean, plan(64).rcp.pruned.mean
    assert small is not None and large is not None
    assert says(f"+{100 * (large / small - 1):.0f} % from 16 to 64")
    assert plan(65).rcp.pruned.mean is None and says("64 at most")
    shares = [
        100 * float(samples.replace(",", "")) / (plan(int(gbs)).rcp.pruned.mean or 0)
        for gbs, _, _, samples, *_ in rows("published")
    ]
    assert says(f"it lasts {min(shares):.0f} to {max(shares):.0f} % of a run")


# --- time


def test_the_time_of_a_run() -> None:
    interval = benchmark.EVAL_INTERVAL_SAMPLES
    assert says(f"{100 * benchmark.EVAL_SAMPLES / 3 / interval:.1f} % of training time at any batch size")
    gbs, step, mean = 16, 0.450, plan(16).rcp.pruned.mean
    assert mean is not None
    evaluation = benchmark.EVAL_SAMPLES / (3 * gbs)
    evaluations = mean / interval
    training, evaluating = mean / gbs * step, evaluations * evaluation * step
    assert says(f"(GBS 16, {step:.3f} s a step, published 96.5 minutes) at the RCP's mean of {mean:,.0f} samples")
    assert says(
        f"{mean / gbs:,.0f} steps take {training:,.0f} s; {evaluations:.2f} evaluations of {evaluation:.1f} steps'"
    )
    assert says(f"time, {evaluation * step:.1f} s each, take {evaluating:.0f} s")
    assert says(f"together {(training + evaluating) / 60:.1f} minutes")
    assert says(f"0.354 s a step: {benchmark.EVAL_SAMPLES / 3 / 32 * 0.354:.1f} s an evaluation by this rule")


# --- batch size


@pytest.mark.parametrize("row", rows("grid"), ids=lambda row: f"GBS {row[0]}")
def test_the_grid(row: list[str]) -> None:
    planned, first = plan(int(row[0])), plan(16).rcp.pruned.mean
    point = planned.rcp.pruned
    cells = [f"{planned.gbs}", f"{planned.eval_interval_steps:,}", f"{planned.eval_interval_samples:,}"]
    if point.mean is None or point.minimum is None or planned.bootstrap.pruned is None or first is None:
        assert row == [*cells, "-", "none", "none", "-", "-", "-"]
        return
    steps = point.mean / planned.gbs
    cells += [f"{100 * planned.eval_interval_samples / point.mean:.1f}", f"{point.mean:,.1f}", f"{point.minimum:,.1f}"]
    cells += [f"{100 * planned.bootstrap.pruned.probability:.3f}", f"{steps:,.0f}", f"{first / 16 / steps:.2f}"]
    assert row == cells


def test_what_the_grid_says_of_twice_the_gpus() -> None:
    pays = {gbs: (plan(16).rcp.pruned.mean or 0) / 16 / ((plan(gbs).rcp.pruned.mean or 1) / gbs) for gbs in (32, 64)}
    assert says(f"GBS 32 beats GBS 16 on the same machine while its step takes less than {pays[32]:.2f} times as long")
    assert says(f"give {pays[32]:.2f}, not 2; from GBS 32 to 64 it is {pays[64] / pays[32]:.2f}")
    assert says(f"less than {1 / pays[32]:.2f} of that one's")
    risks = [plan(gbs).bootstrap.pruned for gbs in (16, 32)]
    assert risks[0] is not None and risks[1] is not None and risks[1].probability < risks[0].probability
    loaded = load_config("config_B200_2x8.sh")
    assert (loaded["GLOBAL_BATCH_SIZE"], loaded["MICRO_BATCH_SIZE"]) == ("32", "2")


# --- rates


def test_the_published_points() -> None:
    table = rows("published")
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
    steps = (plan(16).rcp.pruned.mean or 0) / 16
    schedule = Schedule(4e-4, 4e-5, 128, benchmark.MAX_STEPS - 128, benchmark.MAX_STEPS)
    share = schedule.rates(np.array([steps]), benchmark.MAX_STEPS)[0] / 4e-4
    assert says(f"at step {steps:,.0f} the rate is still {100 * share:.2f} % of its base")
    assert (
        says(f"at step {benchmark.MAX_STEPS:,}, a hundred times as far")
        and round(benchmark.MAX_STEPS / steps, -1) == 100
    )
    rates = {point.gbs: point.learning_rate for point in full_points("6.1.0")}
    assert rates[32] == 2 * rates[16] and rates[64] == 1.25 * rates[32]


def test_what_a_fast_set_costs() -> None:
    point = plan(32).rcp.pruned
    assert point.mean is not None and point.minimum is not None and point.minimum < 225_000
    assert says(f"a mean of 225,000 samples passes and costs a factor of {normalization(point.mean, 225_000):.3f}")


# --- spread


@pytest.mark.parametrize("row", rows("power"), ids=lambda row: f"GBS {row[0]}")
def test_what_ten_runs_can_show(row: list[str]) -> None:
    point = next(point for point in full_points("6.1.0") if point.gbs == int(row[0]))
    found = spread([float(samples) for samples in point.samples], benchmark.eval_interval_samples(point.gbs))
    assert found is not None and found.quantum_percent is not None
    test = welch(found, found)
    assert test is not None
    assert row == [
        f"{point.gbs}",
        f"{found.sd:,.0f}",
        f"{found.cv_percent:.1f}",
        f"{found.quantum_percent:.1f}",
        f"{test.detectable:,.0f}",
        f"{test.detectable_percent:.1f}",
    ]


def test_what_is_to_gain_at_gbs_32_is_less_than_ten_runs_show() -> None:
    rcp = plan(32).rcp
    assert rcp.full.mean is not None and rcp.pruned.mean is not None
    gain = 100 * (rcp.full.mean / rcp.pruned.mean - 1)
    assert says(f"stands {gain:.1f} % above its RCP mean")
    assert gain < float(next(row for row in rows("power") if row[0] == "32")[-1])


@needs_logs
def test_the_reference_logs_hide_their_spread_behind_the_grid() -> None:
    counts = [run.samples_to_target or 0 for run in reference_runs()]
    assert sorted(counts) == [233_472] * 9 + [245_760]
    assert says(f"a CV of {100 * statistics.stdev(counts) / statistics.mean(counts):.1f} %")
    crossings = []
    for each in reference_runs():
        curve = [(evaluation.samples, evaluation.loss) for evaluation in each.evaluations]
        first = next(index for index, (_, loss) in enumerate(curve) if loss <= benchmark.TARGET_LOSS)
        crossings.append(samples_to_target(curve[first - 1 : first + 1], benchmark.TARGET_LOSS) or math.nan)
    assert says(f"spreads by {100 * statistics.stdev(crossings) / statistics.mean(crossings):.1f} %")


@needs_logs
def test_the_loss_near_the_target() -> None:
    losses = {
        samples: [
            evaluation.loss
            for run in reference_runs()
            for evaluation in run.evaluations
            if evaluation.samples == samples
        ]
        for samples in (221_184, 233_472)
    }
    before, after = (statistics.mean(values) for values in losses.values())
    assert says(f"from {before:.3f} at 221,184 samples to {after:.3f} one interval later")
    slope, sd = before - after, statistics.stdev(losses[221_184])
    assert says(f"{slope:.3f} nats an interval, with {sd:.3f} nats (sd) between runs")
    share = 100 * 0.01 / slope * benchmark.EVAL_INTERVAL_SAMPLES / 233_472
    assert says(f"costs 0.01 nats costs {0.01 / slope:.2f} intervals, or {share:.1f} % of the run")
    found = spread(losses[221_184])
    assert found is not None
    test = welch(found, found)
    assert test is not None and says(f"ten runs each show {test.detectable:.3f} nats")


def test_the_margin_in_intervals() -> None:
    assert says(f"margin of 10,751.2 samples is {10_751.2 / benchmark.eval_interval_samples(32):.2f} of an interval")


# --- memory


@pytest.fixture(scope="module")
def counted() -> dict[str, int]:
    """What `info` counts at its defaults, and how many of the parameters are experts'."""
    figures = json.loads(run("python -m gptoss20b info --json", ROOT).stdout)
    model = resolve({}).model
    experts = model.num_layers * model.num_experts * 3 * model.hidden_size * model.moe_ffn_hidden_size
    return {"experts": experts, "other": figures["total_parameters"] - experts, "state": figures["state_bytes_per_gpu"]}


@pytest.mark.parametrize("row", rows("memory"), ids=lambda row: f"EP {row[0]}")
def test_the_memory_table(row: list[str], counted: dict[str, int]) -> None:
    header = GUIDE.split("<!-- memory -->\n")[1].splitlines()[0]
    capacities = [int(gigabytes) * 1e9 / GIB for gigabytes in re.findall(r"(\d+) GB", header)]
    parameters = {**counted, "embedding": 0}
    states = []
    for nodes in ("1", "2"):
        config = resolve({"DGXNNODES": nodes, "EXPERT_PARALLEL": row[0], "MICRO_BATCH_SIZE": "1"})
        states.append(state_bytes_per_gpu(config, parameters) / GIB)
    assert row[1:3] == [f"{state:.1f}" for state in states]
    left = [[capacity - states[0] - ACTIVATIONS * micro for micro in (1, 2)] for capacity in capacities]
    assert row[3:] == [" / ".join(f"{each:.1f}" if each > 0 else "-" for each in pair) for pair in left]
    assert says(f"a sequence's activations take {ACTIVATIONS} GiB")


def test_the_memory_table_is_what_info_says(counted: dict[str, int]) -> None:
    assert rows("memory")[0][:2] == ["8", f"{counted['state'] / GIB:.1f}"]


@pytest.mark.parametrize("system", ["B200", "H200", "MI355X"])
def test_each_node_takes_the_largest_micro_batch_that_keeps_memory_free(system: str) -> None:
    header = [cell.strip() for cell in GUIDE.split("<!-- memory -->\n")[1].splitlines()[0].strip("|").split("|")]
    column = next(index for index, cell in enumerate(header) if cell.startswith(system))
    free = [0.0 if cell == "-" else float(cell) for cell in rows("memory")[0][column].split(" / ")]
    needed = float(re.search(r"keep (\d+) GiB free", FLAT)[1])  # type: ignore[index]
    largest = max(micro for micro, left in zip((1, 2), free, strict=True) if left >= needed)
    assert load_config(f"config_{system}_1x8.sh")["MICRO_BATCH_SIZE"] == str(largest)


def test_the_layouts_in_words(counted: dict[str, int]) -> None:
    model = resolve({}).model
    per_expert = 8 * benchmark.SEQUENCE_LENGTH * model.router_topk // model.num_experts
    assert says(f"an expert still gets {per_expert:,} rows on average")
    every, dense = counted["experts"] + counted["other"], counted["other"]
    assert says(f"for {every / 1e9:.1f} instead of {dense / 1e9:.1f} billion gradients to reduce")


def test_the_configurations_say_why_with_the_guide_s_figures() -> None:
    state, h200 = float(rows("memory")[0][1]), [float(left) for left in rows("memory")[0][3].split(" / ")]
    words = " ".join((ROOT / "config_H200_1x8.sh").read_text().replace("#", "").split())
    assert f"{state:.0f} GiB of state and an estimated {ACTIVATIONS} GiB" in words
    assert f"leave {h200[0]:.0f} GiB at micro batch 1 and {h200[1]:.0f} GiB at 2" in words
    ratio = re.search(r"less than (0\.\d+) of that one's", FLAT)[1]  # type: ignore[index]
    assert f"less than {ratio} of this one's" in (ROOT / "config_B200_2x8.sh").read_text()


def test_what_is_computed_again_and_for_how_much() -> None:
    config = resolve({})
    model, tokens = config.model, config.fixed.sequence_length
    column = 2 * tokens * model.num_layers / GIB  # bf16, one number a token and layer
    assert says(f"`moe_act` frees {model.router_topk * model.moe_ffn_hidden_size * column:.1f} GiB")
    # The experts' rows, gates, ups and activations.
    assert says(f"`moe` {model.router_topk * (model.hidden_size + 3 * model.moe_ffn_hidden_size) * column:.1f} GiB")
    assert says(f"`layers` all but {model.hidden_size * column:.1f} GiB")
    experts = 6 * model.num_layers * model.router_topk * 3 * model.hidden_size * model.moe_ffn_hidden_size
    head = 6 * model.vocab_size * model.hidden_size
    total = flops_per_token(config)
    assert says(f"for {experts / total / 3:.0%}".replace("%", " %") + " of all FLOPs")
    assert says(f"a layer's needs for {(total - head) / total / 3:.0%}".replace("%", " %"))


# --- mistakes


def test_intervals_kept_from_another_batch() -> None:
    assert says(f"every 512 steps at GBS 32 and 48, that is every {512 * 32:,} and {512 * 48:,} samples")
    assert {512 * 32, 512 * 48}.isdisjoint({benchmark.eval_interval_samples(32), benchmark.eval_interval_samples(48)})
    assert says(f"floors 12,288 / 36 to {12_288 // 36}") and plan(36).eval_interval_steps == 12_288 // 36 + 1


def test_the_guide_is_short() -> None:
    assert len(GUIDE.splitlines()) <= 200
