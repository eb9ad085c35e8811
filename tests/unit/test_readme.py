"""Commands of the README run, and its tables match the code."""

from __future__ import annotations

import importlib.resources
import json
import re
import shlex
import statistics
import subprocess
import sys

import pytest

from compliance.cli import ExitCode as JudgingExitCode
from compliance.render.text import rules_text
from compliance.rules import ALL_RULES
from data_scripts.errors import ExitCode as DataExitCode
from gptoss20b.config import settings
from gptoss20b.config.presets import PRESETS
from gptoss20b.stopping import ExitCode
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def rows(header: str) -> list[list[str]]:
    """Return the cells of the table whose header row starts with ``header``."""
    table = README.split(f"\n| {header}", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("|")]


def test_it_opens_with_the_two_commands() -> None:
    commands = [line.split("#")[0].split() for line in BLOCKS[0].splitlines()]
    assert commands == [["make", "run"], ["make", "test"]]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"run", "test"} <= set(targets)


def test_every_setting_is_listed_with_its_meaning() -> None:
    section = README.split("<!-- settings: checked against the code -->")[1].split("<!-- /settings -->")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
    assert listed == {setting.variable: setting.description for setting in settings().values()}


def test_every_python_command_exists_with_its_options() -> None:
    commands = re.findall(r"python -m ((?:gptoss20b|compliance|data_scripts) [^`\n&|#]*)", README)
    assert len(commands) >= 16
    for command in commands:
        words = shlex.split(command)
        helped = subprocess.run(
            [sys.executable, "-m", *words[:2], "--help"], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert helped.returncode == 0, command
        for option in re.findall(r"--[\w-]+", command):
            assert option in helped.stdout, command


def test_the_dry_run_of_each_configuration_named_here_works() -> None:
    for name in set(re.findall(r"config_\w+\.sh", README)):
        command = f"source {name} && {shlex.quote(sys.executable)} -m gptoss20b train --dry-run"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert "eval_interval_steps" in done.stdout


def test_exit_statuses() -> None:
    assert sorted(int(row[0]) for row in rows("exit status")) == sorted(ExitCode)
    assert sorted(int(row[0]) for row in rows("exit code")) == sorted(JudgingExitCode)


def test_exit_statuses_of_the_data_commands() -> None:
    assert sorted(int(row[0]) for row in rows("status")) == sorted(DataExitCode)


def test_shell_commands_of_the_data_exist() -> None:
    named = set(re.findall(r"data_scripts/\w+\.sh", README))
    assert named == {"data_scripts/download_dataset.sh", "data_scripts/verify_dataset.sh"}
    assert all((ROOT / name).is_file() for name in named)


def test_the_table_of_rules_is_the_one_that_the_command_prints() -> None:
    table = README.split("<!-- rules: python -m compliance rules --markdown -->\n")[1].split("\n<!-- /rules -->")[0]
    assert table == rules_text(ALL_RULES, markdown=True).rstrip()


def test_what_judging_needs_is_pinned_like_the_rest() -> None:
    pins: dict[str, str] = {}
    for name in ("cpu", "compliance", "data", "test"):
        for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
            if "==" in line:
                package, version = line.split("==")
                assert pins.setdefault(package.lower().replace("_", "-"), version) == version, f"{name}.txt: {line}"
    judging = (ROOT / "requirements" / "compliance.txt").read_text().lower()
    assert "torch==" not in judging and "megatron-core==" not in judging


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, float]]:
    """Count each variant with `info --json`, all in one process."""
    command = (
        "from typer.testing import CliRunner; from gptoss20b.cli import app\n"
        f"for variant in {list(PRESETS)}:\n"
        "    print(CliRunner().invoke(app, ['info', '--variant', variant, '--json']).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, cwd=ROOT)
    figures, decoder, text = {}, json.JSONDecoder(), done.stdout.strip()
    while text:
        found, end = decoder.raw_decode(text)
        figures[found["variant"]], text = found, text[end:].strip()
    return figures


@pytest.mark.parametrize("row", rows("variant"), ids=lambda row: row[0])
def test_the_model_table_is_what_info_counts(row: list[str], counted: dict[str, dict[str, float]]) -> None:
    variant, layers, total, active, mflop = row
    figures = counted[variant.strip("`")]
    assert figures["layers"] == int(layers)
    assert figures["total_parameters"] == int(total.replace(",", ""))
    assert figures["active_parameters"] == int(active.replace(",", ""))
    assert f"{figures['flops_per_token'] / 1e6:,.1f}" == mflop


def test_all_variants_are_in_the_model_table() -> None:
    assert [row[0].strip("`") for row in rows("variant")] == list(PRESETS)


def test_the_published_points_are_those_of_the_official_package() -> None:
    package = importlib.resources.files("mlperf_logging.rcp_checker") / "training_6.1.0" / "rcps_gpt_oss_20b.json"
    official = {
        (
            rcp["BS"],
            rcp["Hyperparams"]["opt_base_learning_rate"],
            rcp["Hyperparams"]["opt_learning_rate_warmup_samples"] // rcp["BS"],
        ): (round(statistics.mean(rcp["Epochs to converge"])))
        for rcp in json.loads(package.read_text()).values()
    }
    listed = {
        (int(gbs), float(rate), int(steps)): int(samples.replace(",", ""))
        for _, gbs, rate, steps, samples in rows("published point")
    }
    assert listed == official


def test_paths_named_here_exist() -> None:
    section = README.split("## Where things are")[1]
    paths = [path for path in re.findall(r"`([\w./*]+)`", section) if "/" in path or path.endswith(".sh")]
    assert len(paths) > 8
    for path in paths:
        assert list(ROOT.glob(path)), path


def test_the_launchers_variables_named_here_are_the_ones_read() -> None:
    source = (ROOT / "gptoss20b" / "config" / "environment.py").read_text()
    for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"):
        assert f'"{variable}"' in source
        assert f"`{variable}`" in README
