"""What docker and Slurm are called with: devices, variables, mounts and steps, on one node and two."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from gptoss20b.config import settings
from launch.container import forwarded_variables
from tests.support.configs import load_config
from tests.support.launch_stubs import Done, Sandbox, assert_refused
from tests.support.paths import ROOT

# --- docker

DEVICES = ["--ulimit=memlock=-1", "--ulimit=stack=67108864", "--ipc=host", "--cap-add=SYS_NICE"]
AMD = ["--device=/dev/kfd", "--device=/dev/dri", "--security-opt=seccomp=unconfined"]
# Variables of the run, the launcher's and libraries', each of a family or known by its name.
FORWARDED = {
    *[
        "NEXP",
        "CLEAR_CACHES",
        "CHECK_COMPLIANCE",
        "NODE_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "BINDCMD",
        "ALLOW_UNKNOWN",
    ],
    *["NCCL_DEBUG", "GLOO_SOCKET_IFNAME", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "CUDNN_LOGDEST_DBG", "TZ"],
    *["NVTE_FLASH_ATTN", "TORCH_LOGS", "TORCHINDUCTOR_X", "TRITON_DEBUG", "PYTORCH_CUDA_ALLOC_CONF", "GPU_MAX_HW"],
    *["HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HSA_NO_SCRATCH_RECLAIM", "RCCL_MSCCL_ENABLE", "FI_PROVIDER"],
    *["UCX_TLS", "OMP_NUM_THREADS", "NVIDIA_VISIBLE_DEVICES", "MLPERF_SUBMISSION_X"],
}
OF_THE_HOST = ["CUDA_HOME", "CUDA_PATH", "NCCL_VERSION", "TORCH_HOME", "TRITON_CACHE_DIR", "UCX_ROOT", "SECRET", "HOME"]


def one_trial(sandbox: Sandbox) -> dict[str, str]:
    return {"DATADIR": str(sandbox.folder / "data"), "CLEAR_CACHES": "0", "NEXP": "1", "SEED_BASE": "5"}


def docker(sandbox: Sandbox, config: str = "config_CPU_1x2.sh", **environment: str) -> Done:
    return sandbox.run("run_with_docker.sh", config, **(one_trial(sandbox) | environment))


def docker_base(sandbox: Sandbox) -> list[str]:
    return [
        *["docker", "run", "--rm", "--init", f"--user={os.getuid()}:{os.getgid()}"],
        *[f"--group-add={group}" for group in sorted({os.getgid(), *os.getgroups()})],
        *[f"--volume={sandbox.folder}/data:/data:ro", f"--volume={sandbox.set}:/results"],
    ]


def docker_trial(sandbox: Sandbox) -> list[str]:
    """Return the arguments of the only trial, without its name, which is checked here."""
    (call,) = [call for call in sandbox.calls("docker") if call[-1] == "./run_and_time.sh"]
    (name,) = [argument for argument in call if argument.startswith("--name=")]
    assert re.fullmatch(r"--name=gptoss20b_\d+_\d+_5", name)
    call.remove(name)
    return call


def variables(call: list[str]) -> list[str]:
    return [argument.removeprefix("--env=") for argument in call if argument.startswith("--env=")]


@pytest.mark.parametrize(
    ("tool", "config", "devices", "environment"),
    [
        ("nvidia-smi", "config_B200_1x8.sh", ["--gpus=all"], {}),
        ("rocm-smi", "config_MI355X_1x8.sh", AMD, {}),
        ("amd-smi", "config_MI355X_1x8.sh", AMD, {}),
        ("nvidia-smi", "config_CPU_1x2.sh", [], {}),  # the configuration hides the GPUs
        (
            *("nvidia-smi", "config_B200_2x8.sh", ["--gpus=all", "--device=/dev/infiniband", "--network=host"]),
            {"NODE_RANK": "0", "MASTER_ADDR": "leader"},
        ),
    ],
)
def test_a_container_gets_its_devices_and_the_variables_that_are_set(
    sandbox: Sandbox, tool: str, config: str, devices: list[str], environment: dict[str, str]
) -> None:
    sandbox.control(**{tool: ""})
    kfd = sandbox.folder / "dev" / "kfd"
    kfd.write_text("")
    if environment:
        (sandbox.folder / "dev" / "infiniband").mkdir()
    done = docker(sandbox, config, **environment)
    assert done.returncode == 0, done.stderr
    call = docker_trial(sandbox)
    own = {"CHECK_COMPLIANCE", "DATADIR", "LOGDIR", "MASTER_PORT", "SEED", "NEXP", "HOST_VARIABLES"}
    assert set(variables(call)) == {*load_config(config), *environment, *own} - {"CONFIG_DIR"}
    groups = [f"--group-add={kfd.stat().st_gid}"] if devices == AMD else []
    flags = [f"--env={name}" for name in variables(call)]
    assert call == [*docker_base(sandbox), *DEVICES, *devices, *groups, *flags, "gptoss20b", "./run_and_time.sh"]
    assert (sandbox.calls("nvidia-smi") == []) == (devices == [])
    assert sandbox.result(1) == "log of seed 5\n"
    inside = sandbox.trial(5)
    assert (inside["DATADIR"], inside["LOGDIR"]) == ("/data", "/results/trial_1")


def test_settings_and_families_are_forwarded_except_those_of_the_host_and_the_image(sandbox: Sandbox) -> None:
    names = [*settings(), "A_NEW_SETTING"]  # the launcher does not repeat the list
    sandbox.control(settings="\n".join(names))
    (sandbox.scripts / "config_CPU_1x2.sh").open("a").write("export OF_THE_CONFIGURATION=1\n")
    accepted = {"DGXNNODES": "1", "DGXSYSTEM": "CPU_1x2", "CHECK_COMPLIANCE": "1", "CLEAR_CACHES": "0"}
    given = dict.fromkeys([*names, *FORWARDED, *OF_THE_HOST, "OF_THE_CONFIGURATION"], "-1")
    given |= one_trial(sandbox) | accepted
    given |= {"SEED": "", "SAVE_DIR": "", "LOGDIR": str(sandbox.set), "MASTER_PORT": "4000", "BATCH_SIZES": "4"}
    done = docker(sandbox, **given, CONT="gptoss20b:v2", MODELDIR=str(sandbox.folder / "data"))
    assert done.returncode == 0, done.stderr
    call = docker_trial(sandbox)
    expected = {*names, *FORWARDED, "OF_THE_CONFIGURATION", "HOST_VARIABLES"}
    assert set(variables(call)) == expected - {"CACHE_CLEARED", "GIT_COMMIT", "SAVE_DIR"}
    assert len(set(variables(call))) == len(variables(call))
    assert f"--volume={sandbox.folder}/data:/model:ro" in call
    assert call[-2:] == ["gptoss20b:v2", "./run_and_time.sh"]
    # The image checks the names of the host's variables, of which it has no others.
    named = sandbox.trial(5)["HOST_VARIABLES"].split(":")
    assert {"BATCH_SIZES", "SECRET", "CONT"} <= set(named) and "-1" not in named


def test_python_runs_in_the_image_with_the_trials_folders_and_only_trials_are_stopped(sandbox: Sandbox) -> None:
    sandbox.control(**{"nvidia-smi": ""})
    docker(sandbox, "config_B200_1x8.sh", NEXP="3")
    first, *calls = [call for call in sandbox.calls("docker") if "python3" in call]
    assert first == ["docker", "run", "--rm", "gptoss20b", "python3", "-m", "gptoss20b", "settings"]
    assert [call[call.index("python3") + 1 :] for call in calls] == [
        ["-m", "gptoss20b", "preflight"],
        ["-m", "gptoss20b", "result", "--trials", "3", "/results"],
        ["-m", "compliance", "check-set", "--runs", "3", "/results"],
    ]
    assert "DATADIR = /data" in (sandbox.set / "settings.txt").read_text()
    assert all(call[: len(docker_base(sandbox))] == docker_base(sandbox) for call in calls)
    assert ["--gpus=all" in call for call in calls] == [True, False, False]  # only the preflight counts them
    # Each trial's container has its own name, and only these are stopped.
    docker(sandbox, NEXP="2", LOGDIR=str(sandbox.folder / "other"))
    arguments = [argument for call in sandbox.calls("docker") for argument in call]
    names = [argument.removeprefix("--name=") for argument in arguments if argument.startswith("--name=")]
    assert len(set(names)) == len(names) == 5
    assert [call[1:] for call in sandbox.calls("docker") if call[1] == "stop"] == [
        ["stop", "--time=120", name] for name in names
    ]


@pytest.mark.parametrize("possible", [True, False])
def test_the_hosts_caches_are_cleared_before_a_container(sandbox: Sandbox, possible: bool) -> None:
    if possible:
        sandbox.drop_caches.parent.mkdir()
    assert docker(sandbox, CLEAR_CACHES="1", NEXP="2").returncode == 0
    assert [sandbox.trial(seed)["CLEAR_CACHES"] for seed in (5, 6)] == ["done" if possible else "0"] * 2
    output = (sandbox.set / "trial_2" / "output.log").read_text()
    assert ("warning: could not drop the page cache" in output) == (not possible)


# --- Slurm

SRUN = ["srun", "--cpu-bind=none", "--mpi=none", "--export=ALL", "--wait=0"]
TWO_TASKS = ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
TRIAL = ["bash", "run_and_time.sh", "--slurm-task"]


def job(sandbox: Sandbox, config: str = "config_CPU_1x2.sh") -> dict[str, str]:
    """Return the variables that Slurm sets for a batch script, and those of one trial."""
    nodes = load_config(config)["DGXNNODES"]
    own = {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": nodes, "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NODEID": "0"}
    return one_trial(sandbox) | own | {"SLURM_SUBMIT_DIR": str(sandbox.scripts)}


def slurm(sandbox: Sandbox, config: str = "config_CPU_1x2.sh", **environment: str) -> Done:
    return sandbox.run("run.sub", config, **(job(sandbox, config) | environment))


def slurm_trials(sandbox: Sandbox) -> list[list[str]]:
    return [call for call in sandbox.calls("srun") if call[-3:] == TRIAL]


@pytest.mark.parametrize(
    ("config", "nodes"), [("config_CPU_1x2.sh", 1), ("config_MI355X_1x8.sh", 1), ("config_B200_2x8.sh", 2)]
)
def test_a_step_of_a_job_without_containers(sandbox: Sandbox, config: str, nodes: int) -> None:
    done = slurm(sandbox, config, PYTHONPATH="/x", NODE_RANK="1")
    assert done.returncode == 0, done.stderr
    size = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    assert slurm_trials(sandbox) == [[*SRUN, *size, "--kill-on-bad-exit=1", *TRIAL]]
    assert sandbox.result(1) == "log of seed 5\n"
    environment = sandbox.trial(5)
    assert environment["MASTER_ADDR"] == "10.1.2.3"
    assert "NODE_RANK" not in environment  # each task takes its rank from Slurm
    assert (environment["DATADIR"], environment["PYTHONPATH"]) == (str(sandbox.folder / "data"), "/x")


def test_a_step_of_a_job_with_containers(sandbox: Sandbox) -> None:
    sandbox.control(pyxis="")
    host = {"MODELDIR": str(sandbox.scripts), "PYTHONPATH": "/x", "VIRTUAL_ENV": "/y", "NCCL_DEBUG": "WARN"}
    given = host | {"EXTRA_MOUNTS": f"{sandbox.set.parent}:/more:ro", "CUDA_HOME": "/cuda"}
    done = slurm(sandbox, "config_B200_2x8.sh", CONT="/images/gptoss20b.sqsh", **given)
    assert done.returncode == 0, done.stderr
    data, model, more = (f"{sandbox.folder}{mount}" for mount in ("/data:/data:ro", "/scripts:/model:ro", ":/more:ro"))
    container = [
        "--container-image=/images/gptoss20b.sqsh",
        f"--container-mounts={data},{sandbox.set}:/results,{model},{more}",
        *["--container-workdir=/workspace/gptoss20b", "--no-container-mount-home"],
    ]
    # Every variable of the job is in the container, but the image's own win over those that are not named.
    own = {"CHECK_COMPLIANCE", "MASTER_ADDR", "MASTER_PORT", "NCCL_DEBUG", "NEXP"}
    names = sorted({*load_config("config_B200_2x8.sh"), "DATADIR", *own} - {"CONFIG_DIR"})
    assert slurm_trials(sandbox) == [
        [*SRUN, *TWO_TASKS, "--kill-on-bad-exit=1", *container, f"--container-env={','.join(names)}", *TRIAL]
    ]
    inside = sandbox.trial(5)
    assert (inside["DATADIR"], inside["LOGDIR"]) == ("/data", "/results/trial_1")
    assert not {"PYTHON", "PYTHONPATH", "VIRTUAL_ENV"} & set(inside)
    names.remove("MASTER_PORT")
    python = [*SRUN, "--nodes=1", "--ntasks=1", *container, f"--container-env={','.join(names)}"]
    python += ["bash", "-c", 'exec python3 "$@"', "python3"]
    assert [call for call in sandbox.calls("srun") if "python3" in call] == [
        [*python, "-m", "gptoss20b", "preflight"],
        [*python, "-m", "gptoss20b", "result", "--trials", "1", "/results"],
    ]


@pytest.mark.parametrize(("status", "cleared"), [(0, "done"), (1, "0")])
def test_the_caches_of_all_nodes_are_cleared_outside_the_containers(
    sandbox: Sandbox, status: int, cleared: str
) -> None:
    sandbox.control(pyxis="", clearing_status=status)
    slurm(sandbox, "config_B200_2x8.sh", CONT="image", CLEAR_CACHES="1", NEXP="2")
    clearing = [call for call in sandbox.calls("srun") if call[-1] == "launch/clear_caches.sh"]
    assert clearing == [[*SRUN, *TWO_TASKS, "bash", "launch/clear_caches.sh"]] * 2
    assert sandbox.trial(6)["CLEAR_CACHES"] == cleared
    output = (sandbox.set / "trial_2" / "output.log").read_text()
    assert ("warning: could not drop the page cache" in output) == (status == 1)


@pytest.mark.parametrize(("given", "expected"), [("10.0.0.1", "10.0.0.1"), ("", "n1")])
def test_the_rendezvous_is_the_users_address_or_the_first_nodes_name(
    sandbox: Sandbox, given: str, expected: str
) -> None:
    sandbox.control(no_address="")
    slurm(sandbox, "config_B200_2x8.sh", MASTER_ADDR=given, LOGDIR="")
    assert sandbox.trial(5)["MASTER_ADDR"] == expected
    # One launcher starts all nodes, so it may choose the folder.
    assert Path(sandbox.trial(5)["LOGDIR"]).parent.parent == sandbox.scripts / "results"


def test_the_batch_script_has_its_directives_and_is_submitted_from_its_folder(tmp_path: Path) -> None:
    """Slurm signals the batch shell 180 s before the time limit, and never repeats the job."""
    directives = re.findall(r"^#SBATCH (.*)$", (ROOT / "run.sub").read_text(), re.MULTILINE)
    assert directives == ["--job-name=gptoss20b", "--exclusive", "--mem=0", "--no-requeue", "--signal=B:TERM@180"]
    command, environment = ["bash", str(ROOT / "run.sub")], {"SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert_refused(done, f"run.sub: '{tmp_path}'")


def test_a_variable_that_is_empty_stays_on_the_host(sandbox: Sandbox) -> None:
    environment = {"DGXSYSTEM": "none", "NCCL_DEBUG": "", "SEED": "1"}
    assert forwarded_variables(environment, ["SEED", "LOGDIR"]) == ["SEED"]
