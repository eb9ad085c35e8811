"""`new-config`: the files that it writes are valid, equal the shipped ones, and never replace another."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compliance.rcp import full_points
from gptoss20b.config import Config, ConfigError
from gptoss20b.tools.new_config import REFERENCE_POINTS, Request, memory_warning, prepare_config, write_config
from tests.support.configs import BARE, load_config
from tests.support.guides import fenced_blocks, read_guide
from tests.support.paths import ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a folder with the shared settings and no configuration."""
    shutil.copy(ROOT / "config_common.sh", tmp_path)
    return tmp_path


def prepare(project: Path, name: str = "X", nodes: int = 1, gpus: int = 8, **given: Any) -> tuple[Path, Config]:
    """Write a configuration, and return its path and what it resolves to."""
    request = Request(name, nodes, gpus, **given)
    text, config = prepare_config(request, project)
    assert not (project / request.filename).exists()
    return write_config(request, text, project), config


@pytest.mark.parametrize(
    ("name", "nodes", "given"),
    [("B200", 1, {}), ("B200", 2, {}), ("H200", 1, {"micro_batch": 1}), ("MI355X", 1, {}), ("MI355X", 2, {})],
)
def test_the_defaults_give_the_shipped_configurations(
    project: Path, name: str, nodes: int, given: dict[str, int]
) -> None:
    path, config = prepare(project, name, nodes, **given)
    expected = load_config(path.name) | {"CONFIG_DIR": str(project)}
    assert load_config(path.name, folder=project) == expected
    assert config.submission.system == f"{name}_{nodes}x8"


def test_the_points_are_the_reference_s() -> None:
    points = {point.gbs: (point.learning_rate, point.warmup_steps) for point in full_points("6.1.0")}
    assert {gbs: (float(rate), warmup) for gbs, (rate, warmup) in REFERENCE_POINTS.items()} == points


def test_options_replace_the_reference_s_choices(project: Path) -> None:
    path, config = prepare(
        project, "GB300", 2, 4, expert_parallel=4, micro_batch=3, global_batch_size=24, learning_rate="5e-4",
        warmup_steps=0,
    )  # fmt: skip
    assert path.name == "config_GB300_2x4.sh"
    parallel, free = config.parallel, config.free
    assert (parallel.nodes, parallel.gpus_per_node, parallel.expert) == (2, 4, 4)
    assert (free.global_batch_size, free.learning_rate, free.warmup_steps) == (24, 5e-4, 0)
    assert config.execution.micro_batch_size == 3
    assert load_config(path.name, folder=project)["DGXSYSTEM"] == "GB300_2x4"


def test_a_file_only_exports_settings_and_is_clean_shell(project: Path) -> None:
    path, _ = prepare(project)
    for line in path.read_text().splitlines():
        assert re.match(r"$|#|export [A-Z0-9_]+=|source ", line), line
    shellcheck = Path(sys.executable).with_name("shellcheck")
    subprocess.run([shellcheck, "config_common.sh", path.name], cwd=project, check=True)


def test_the_callers_environment_changes_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {"MODEL_VARIANT": "tiny", "DGXNNODES": "3", "TENSOR_PARALEL": "2"}.items():
        monkeypatch.setenv(variable, value)
    _, config = prepare(project)
    assert (config.model.variant, config.parallel.nodes) == ("reference", 1)


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (Request("", 1, 8), ["NAME"]),
        (Request("../B200", 1, 8), ["NAME"]),
        (Request("a b", 1, 8), ["NAME"]),
        (Request("B200_1x8", 1, 8), ["NAME"]),
        (Request("X", 1, 4, expert_parallel=8), ["EXPERT_PARALLEL"]),
        (Request("X", 8, 8), ["GLOBAL_BATCH_SIZE"]),
        (Request("X", 1, 8, expert_parallel=5), ["EXPERT_PARALLEL", "EXPERT_PARALLEL"]),
        (Request("X", 1, 8, global_batch_size=24), ["LEARNING_RATE", "WARMUP_STEPS"]),
        (Request("X", 1, 8, global_batch_size=24, warmup_steps=1), ["LEARNING_RATE"]),
        (Request("X", 1, 8, learning_rate="$(touch made)"), ["LEARNING_RATE"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_train_would_reject_is_not_written(project: Path, request_: Request, named: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        prepare_config(request_, project)
    assert [problem.variables[0] for problem in error.value.problems] == named
    assert [path.name for path in project.iterdir()] == ["config_common.sh"]


def test_no_file_is_overwritten(project: Path) -> None:
    path, _ = prepare(project)
    path.write_text("mine")
    with pytest.raises(ConfigError, match=path.name):
        prepare_config(Request("X", 1, 8), project)
    with pytest.raises(ConfigError, match=path.name):  # made since it was checked
        write_config(Request("X", 1, 8), "text", project)
    assert path.read_text() == "mine"


def test_a_folder_that_is_not_the_projects_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config_common\.sh"):
        prepare_config(Request("X", 1, 8), tmp_path)
    (tmp_path / "config_common.sh").write_text("no_such_command\n")
    with pytest.raises(ConfigError, match="no_such_command"):
        prepare_config(Request("X", 1, 8), tmp_path)


def test_a_micro_batch_that_may_not_fit_the_gpu_is_a_warning(project: Path) -> None:
    _, two = prepare_config(Request("X", 1, 8), project)
    _, one = prepare_config(Request("X", 1, 8, micro_batch=1), project)
    assert "MICRO_BATCH_SIZE" in (memory_warning(two, "h200") or "")
    assert [memory_warning(one, "H200"), memory_warning(two, "B200"), memory_warning(two, "MI355X")] == [None] * 3
    with pytest.raises(ConfigError, match=r"H2000.*expected one of H100, H200"):
        memory_warning(two, "H2000")


def run_in_bash(project: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the project in another folder, with ``python`` this one."""
    return subprocess.run(
        ["bash", "--norc", "-c", f'python() {{ {shlex.quote(sys.executable)} "$@"; }}; {command}'],
        cwd=project,
        env={**BARE, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_commands_of_the_page_write_a_configuration_that_a_dry_run_takes(project: Path) -> None:
    write_and_check = fenced_blocks(read_guide(ROOT / "docs" / "add-your-system.md"))[0]
    done = run_in_bash(project, write_and_check.strip().replace("\n", " && "))
    assert (done.returncode, done.stderr) == (0, "")
    assert "  DGXSYSTEM = MYSYSTEM_1x8\n" in done.stdout


def test_the_command_writes_prints_or_refuses(project: Path) -> None:
    def new_config(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_in_bash(project, shlex.join(["python", "-m", "gptoss20b", "new-config", "X", *arguments]))

    file = project / "config_X_1x8.sh"
    shown = new_config("--gpus", "8", "--dry-run")
    assert (shown.returncode, shown.stderr, file.exists()) == (0, "", False)
    written = new_config("--gpus", "8")
    assert (written.returncode, written.stderr) == (0, "")
    assert written.stdout.startswith(f"{file.name}: ")
    assert file.read_text() == shown.stdout
    refused = new_config("--gpus", "8")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert file.name in refused.stderr
