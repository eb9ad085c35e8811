"""Test that each configuration loads in an empty environment, is valid, and sets only its own values."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from compliance.rcp import full_points
from gptoss20b.config import settings
from tests.support.configs import BARE, CONFIGS, dry_run, load_config, read_environment
from tests.support.paths import ROOT

# Variables that configurations may export beside settings: for run_and_time.sh, for the configuration that is sourced
# next, and for libraries.
OTHER_VARIABLES = {"CONFIG_DIR", "CLEAR_CACHES", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"}

# What each GPU configuration decides. Everything else is the same in all of them.
GPU_NODES = {
    "config_B200_1x8.sh": {"DGXNNODES": "1", "GLOBAL_BATCH_SIZE": "16", "MICRO_BATCH_SIZE": "2"},
    "config_B200_2x8.sh": {"DGXNNODES": "2", "GLOBAL_BATCH_SIZE": "32", "MICRO_BATCH_SIZE": "2"},
    "config_H200_1x8.sh": {"DGXNNODES": "1", "GLOBAL_BATCH_SIZE": "16", "MICRO_BATCH_SIZE": "1"},
    "config_MI355X_1x8.sh": {"DGXNNODES": "1", "GLOBAL_BATCH_SIZE": "16", "MICRO_BATCH_SIZE": "2"},
    "config_MI355X_2x8.sh": {"DGXNNODES": "2", "GLOBAL_BATCH_SIZE": "32", "MICRO_BATCH_SIZE": "2"},
}


def printed_values(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Return the derived values and the settings that a dry run prints."""
    return dict(line.strip().split(" = ", 1) for line in done.stdout.splitlines() if " = " in line)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_loads_in_an_empty_environment_and_is_valid(name: str, tmp_path: Path) -> None:
    loaded = load_config(name)
    assert set(loaded) <= set(settings()) | OTHER_VARIABLES
    assert loaded["CONFIG_FILENAME"] == name == f"config_{loaded['DGXSYSTEM']}.sh"
    assert loaded["DGXSYSTEM"].endswith(f"_{loaded['DGXNNODES']}x{loaded['DGXNGPU']}")
    assert load_config(name, cwd=tmp_path) == loaded  # from any folder
    done = dry_run(loaded)
    assert (done.returncode, done.stderr) == (0, "")
    values = printed_values(done)
    assert values["DGXSYSTEM"] == values["SUBMISSION_PLATFORM"] == loaded["DGXSYSTEM"]
    assert values["CONFIG_FILENAME"] == name
    assert values["SEED"] == values["LOGDIR"] == "(not set)"  # each run has its own


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_only_exports_settings(name: str) -> None:
    for line in (ROOT / name).read_text().splitlines():
        assert re.match(r"$|#|export [A-Z0-9_]+=|source ", line), line
    script = f'before=$(compgen -v); source ./{name}; comm -13 <(sort <<< "$before") <(compgen -v | sort)'
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=ROOT, env=BARE, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) - {"before", "_", "BASH_REMATCH", "PIPESTATUS"} <= set(settings()) | OTHER_VARIABLES


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_repeats_no_shared_value(name: str, tmp_path: Path) -> None:
    (tmp_path / "config_EMPTY_0x0.sh").write_text(f"source {ROOT}/config_common.sh\n")
    shared = load_config("config_EMPTY_0x0.sh", folder=tmp_path)
    assert shared["SUBMISSION_DIVISION"] == "closed"
    exported = re.findall(r"^export (\w+)=", (ROOT / name).read_text(), re.MULTILINE)
    loaded = load_config(name)
    assert [variable for variable in exported if shared.get(variable) == loaded[variable]] == []


@pytest.mark.parametrize(("name", "own"), GPU_NODES.items(), ids=GPU_NODES)
def test_gpu_nodes_run_the_closed_division_in_the_reference_layout_at_a_reference_point(
    name: str, own: dict[str, str]
) -> None:
    loaded = load_config(name)
    assert loaded["DATADIR"] == "/data"
    assert "DATADIR" not in load_config(name, DATADIR="/scratch/c4"), "the user's data folder was changed"
    done = dry_run(loaded)
    values = printed_values(done)
    expected = {
        "SUBMISSION_DIVISION": "closed",
        "SUBMISSION_STATUS": "onprem",
        "MODEL_VARIANT": "reference",
        "DGXNGPU": "8",
        "EXPERT_PARALLEL": "8",
        "TENSOR_PARALLEL": "1",
        "PIPELINE_PARALLEL": "1",
        "CONTEXT_PARALLEL": "1",
        "PRECISION": "bf16",
        "BACKEND": "auto",
        "eval_interval_samples": "12288",
        **own,
    }
    assert {key: values[key] for key in expected} == expected
    assert done.stdout.startswith("differs from the closed division's fixed values: nothing\n")
    free = (int(values["GLOBAL_BATCH_SIZE"]), float(values["LEARNING_RATE"]), int(values["WARMUP_STEPS"]))
    assert free in {(point.gbs, point.learning_rate, point.warmup_steps) for point in full_points("6.1.0")}


def test_the_other_configuration_is_an_open_run_of_the_small_model_on_cpus() -> None:
    assert set(CONFIGS) == {"config_CPU_1x2.sh", *GPU_NODES}
    loaded = load_config("config_CPU_1x2.sh")
    assert (loaded["SUBMISSION_DIVISION"], loaded["MODEL_VARIANT"], loaded["EXPERT_PARALLEL"]) == ("open", "tiny", "2")
    done = dry_run(loaded)
    assert "  SEQUENCE_LENGTH = 8192\n" in done.stdout
    # It overrides the shared PRECISION and BACKEND with the defaults of its model variant.
    defaults = {name: value for name, value in loaded.items() if name not in {"PRECISION", "BACKEND"}}
    assert dry_run(defaults).stdout == done.stdout


def test_the_cpu_configuration_hides_gpus_and_the_others_unhide_them() -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
    assert hidden.items() <= load_config("config_CPU_1x2.sh").items()
    after = load_config("config_CPU_1x2.sh", "config_B200_1x8.sh")
    assert not hidden.keys() & after.keys()
    selected = load_config("config_B200_1x8.sh", CUDA_VISIBLE_DEVICES="4,5,6,7")
    assert "CUDA_VISIBLE_DEVICES" not in selected, "the user's selection of GPUs was changed"


@pytest.mark.parametrize("second", CONFIGS)
@pytest.mark.parametrize("first", CONFIGS)
def test_a_configuration_removes_the_values_of_the_one_sourced_before(first: str, second: str) -> None:
    both, alone = load_config(first, second), load_config(second)
    assert both == alone


@pytest.mark.parametrize("shell", [["bash", "--norc"], ["zsh", "--no-rcs"]], ids=["bash", "zsh"])
def test_a_configuration_works_in_a_shell_from_any_folder_and_leaves_nothing(shell: list[str], tmp_path: Path) -> None:
    if not shutil.which(shell[0]):
        pytest.skip(f"{shell[0]} is not installed")
    # A configuration of the user in another folder, with a variable that no other has.
    text = (ROOT / "config_CPU_1x2.sh").read_text().replace('$(dirname "${BASH_SOURCE[0]:-$0}")', str(ROOT))
    (tmp_path / "config_MINE_1x2.sh").write_text(f"{text}export NCCL_ONLY_HERE=1\n")

    def sourced(*files: str, **given: str) -> dict[str, str]:
        script = "".join(f"source {file}\n" for file in files)
        command = [*shell, "-euc", f"{script}env -0"]
        done = subprocess.run(command, cwd=tmp_path, env=BARE | given, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return {name: value for name, value in read_environment(done.stdout).items() if name not in ("_", "SHLVL")}

    cpu, gpu, other = (f"{ROOT}/config_{system}.sh" for system in ("CPU_1x2", "B200_1x8", "H200_1x8"))
    assert load_config("config_CPU_1x2.sh").items() <= sourced(cpu).items()
    mine = sourced("./config_MINE_1x2.sh")
    assert (mine["NCCL_ONLY_HERE"], mine["DGXSYSTEM"]) == ("1", "MINE_1x2")
    assert mine["DATADIR"] == f"{tmp_path}/data/sample"
    assert sourced("./config_MINE_1x2.sh", gpu) == sourced(cpu, gpu) == sourced(gpu)
    # What the user has exported stays.
    kept = {"DATADIR": "/scratch/c4", "NCCL_DEBUG": "WARN"}
    assert kept.items() <= sourced(gpu, other, **kept).items()
