"""What docker and Slurm are called with: devices, variables, mounts and steps, on one node and two."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from gptoss20b.config import settings
from tests.support.configs import load_config
from tests.support.launch_stubs import Done, Sandbox, assert_refused, read_pairs
from tests.support.paths import ROOT

# Variables that are no settings, but of a family or known by their names.
FORWARDED = re.findall(
    r"\w+",
    """
NEXP CLEAR_CACHES CHECK_COMPLIANCE NODE_RANK MASTER_ADDR MASTER_PORT BINDCMD ALLOW_UNKNOWN NVIDIA_VISIBLE_DEVICES TZ
NCCL_DEBUG RCCL_MSCCL_ENABLE GLOO_SOCKET_IFNAME FI_PROVIDER UCX_TLS CUDA_VISIBLE_DEVICES CUBLAS_WORKSPACE_CONFIG
CUDNN_LOGDEST_DBG NVTE_FLASH_ATTN HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES HSA_NO_SCRATCH_RECLAIM GPU_MAX_HW TORCH_LOGS
TORCHINDUCTOR_X PYTORCH_CUDA_ALLOC_CONF TRITON_DEBUG OMP_NUM_THREADS MLPERF_SUBMISSION_X
""",
)
OF_THE_HOST = ["CUDA_HOME", "CUDA_PATH", "NCCL_VERSION", "TORCH_HOME", "TRITON_CACHE_DIR", "UCX_ROOT", "SECRET", "HOME"]
NAMED = ["CHECK_COMPLIANCE", "DATADIR", "LOGDIR", "MASTER_PORT", "SEED", "NEXP", "HOST_VARIABLES"]


def start(sandbox: Sandbox, script: str, config: str = "config_CPU_1x2.sh", given: str = "", **more: str) -> Done:
    """Start one trial with the seed 5."""
    done = sandbox.run(script, config, **(sandbox.one_trial(given, config) | more))
    assert done.returncode == 0, done.stderr
    return done


def assert_caches_cleared(sandbox: Sandbox, cleared: bool) -> None:
    assert [sandbox.trial(seed)["CLEAR_CACHES"] for seed in (5, 6)] == ["done" if cleared else "0"] * 2
    output = (sandbox.set / "trial_2" / "output.log").read_text()
    assert ("warning: could not drop the page cache" in output) == (not cleared)


# --- docker

AMD = "--device=/dev/kfd --device=/dev/dri --security-opt=seccomp=unconfined"


def docker_base(sandbox: Sandbox) -> list[str]:
    groups = " ".join(f"--group-add={group}" for group in sorted({os.getgid(), *os.getgroups()}))
    folders = f"--volume={sandbox.folder}/data:/data:ro --volume={sandbox.set}:/results"
    return f"docker run --rm --init --user={os.getuid()}:{os.getgid()} {groups} {folders}".split()


def docker_trial(sandbox: Sandbox) -> tuple[list[str], list[str]]:
    """Return the arguments of the only trial, and its variables. Its name is checked here."""
    (call,) = [call for call in sandbox.calls("docker") if call[-1] == "./run_and_time.sh"]
    (name,) = [argument for argument in call if argument.startswith("--name=")]
    assert re.fullmatch(r"--name=gptoss20b_\d+_\d+_5", name)
    flags = [argument for argument in call if argument.startswith("--env=")]
    return [word for word in call if word not in (name, *flags)], [flag.removeprefix("--env=") for flag in flags]


@pytest.mark.parametrize(
    ("tool", "config", "devices", "given"),
    [
        ("nvidia-smi", "config_B200_1x8.sh", "--gpus=all", ""),
        ("rocm-smi", "config_MI355X_1x8.sh", AMD, ""),
        ("amd-smi", "config_MI355X_1x8.sh", AMD, ""),
        ("nvidia-smi", "config_CPU_1x2.sh", "", ""),  # the configuration hides the GPUs
        ("nvidia-smi", "config_B200_2x8.sh", "--gpus=all --device=/dev/infiniband --network=host", "NODE_RANK=0"),
    ],
)
def test_a_container_gets_its_devices_and_the_variables_that_are_set(
    sandbox: Sandbox, tool: str, config: str, devices: str, given: str
) -> None:
    sandbox.control(**{tool: ""})
    kfd = sandbox.folder / "dev" / "kfd"
    kfd.write_text("")
    if given:
        (sandbox.folder / "dev" / "infiniband").mkdir()
    start(sandbox, "run_with_docker.sh", config, f"{given} MASTER_ADDR=leader NCCL_DEBUG=")
    call, variables = docker_trial(sandbox)
    own = [*NAMED, "MASTER_ADDR", *read_pairs(given)]
    assert variables == sorted({*load_config(config), *own} - {"CONFIG_DIR"})
    always = "--ulimit=memlock=-1 --ulimit=stack=67108864 --ipc=host --cap-add=SYS_NICE"
    groups = f"--group-add={kfd.stat().st_gid}" if devices == AMD else ""
    flags = f"{always} {devices} {groups} gptoss20b ./run_and_time.sh"
    assert call == [*docker_base(sandbox), *flags.split()]
    assert (sandbox.calls("nvidia-smi") == []) == (devices == "")
    inside = sandbox.trial(5)
    assert (inside["DATADIR"], inside["LOGDIR"]) == ("/data", "/results/trial_1")
    assert sandbox.result(1) == "log of seed 5\n"


def test_settings_and_families_are_forwarded_except_those_of_the_host_and_the_image(sandbox: Sandbox) -> None:
    names = {*settings(), "A_NEW_SETTING"}  # the launcher does not repeat the list
    sandbox.control(settings="\n".join(names))
    with (sandbox.scripts / "config_CPU_1x2.sh").open("a") as file:
        file.write("export OF_THE_CONFIGURATION=1\n")
    given = dict.fromkeys([*names, *FORWARDED, *OF_THE_HOST, "OF_THE_CONFIGURATION"], "-1") | read_pairs(
        f"DGXNNODES=1 DGXSYSTEM=CPU_1x2 CHECK_COMPLIANCE=1 CLEAR_CACHES=0 SEED= SAVE_DIR= MASTER_PORT=4000 NEXP=1 "
        f"DATADIR={sandbox.folder}/data MODELDIR={sandbox.folder}/data LOGDIR={sandbox.set} CONT=gptoss20b:v2 "
        f"EXTRA_MOUNTS=/tmp:/t,/usr:/u:ro, BATCH_SIZES=4"
    )
    start(sandbox, "run_with_docker.sh", **given)
    call, variables = docker_trial(sandbox)
    expected = {*names, *FORWARDED, *NAMED, "OF_THE_CONFIGURATION"} - {"CACHE_CLEARED", "GIT_COMMIT", "SAVE_DIR"}
    assert variables == sorted(expected)
    assert " ".join(call).count(f"--volume={sandbox.folder}/data:/model:ro --volume=/tmp:/t --volume=/usr:/u:ro ") == 1
    assert call[-2:] == ["gptoss20b:v2", "./run_and_time.sh"]
    # The image checks the names of the host's variables, of which it has no others.
    named = sandbox.trial(5)["HOST_VARIABLES"].split(":")
    assert {"BATCH_SIZES", "SECRET", "CONT"} <= set(named) and "-1" not in named


def test_python_runs_in_the_image_with_the_trials_folders_and_only_trials_are_stopped(sandbox: Sandbox) -> None:
    sandbox.control(**{"nvidia-smi": ""})
    start(sandbox, "run_with_docker.sh", "config_B200_1x8.sh", "NEXP=3")
    first, *calls = [call for call in sandbox.calls("docker") if "python3" in call]
    assert first == ["docker", "run", "--rm", "gptoss20b", "python3", "-m", "gptoss20b", "settings"]
    assert [" ".join(call[call.index("python3") + 2 :]) for call in calls] == [
        *("gptoss20b preflight", "gptoss20b result --trials 3 /results", "compliance check-set --runs 3 /results")
    ]
    assert "DATADIR = /data" in (sandbox.set / "settings.txt").read_text()
    assert all(call[: len(docker_base(sandbox))] == docker_base(sandbox) for call in calls)
    assert ["--gpus=all" in call for call in calls] == [True, False, False]  # only the preflight counts them
    # Each trial's container has its own name, and only these are stopped.
    start(sandbox, "run_with_docker.sh", given=f"NEXP=2 LOGDIR={sandbox.folder}/other")
    names = re.findall(r"--name=(\S+)", "\n".join(" ".join(call) for call in sandbox.calls("docker")))
    assert len(set(names)) == len(names) == 5
    stops = [call for call in sandbox.calls("docker") if call[1] == "stop"]
    assert stops == [["docker", "stop", "--time=120", name] for name in names]


@pytest.mark.parametrize("possible", [True, False])
def test_the_hosts_caches_are_cleared_before_a_container(sandbox: Sandbox, possible: bool) -> None:
    if possible:
        sandbox.drop_caches.parent.mkdir()
    start(sandbox, "run_with_docker.sh", given="CLEAR_CACHES=1 NEXP=2")
    assert_caches_cleared(sandbox, possible)


# --- Slurm

SRUN = "srun --cpu-bind=none --mpi=none --export=ALL --wait=0"
TRIAL = "bash run_and_time.sh --slurm-task"


def steps(sandbox: Sandbox, part: str) -> list[str]:
    return [text for text in (" ".join(call) for call in sandbox.calls("srun")) if part in text]


@pytest.mark.parametrize(
    ("config", "nodes"), [("config_CPU_1x2.sh", 1), ("config_MI355X_1x8.sh", 1), ("config_B200_2x8.sh", 2)]
)
def test_a_step_of_a_job_without_containers(sandbox: Sandbox, config: str, nodes: int) -> None:
    start(sandbox, "run.sub", config, "PYTHONPATH=/x NODE_RANK=1")
    size = f"--nodes={nodes} --ntasks={nodes} --ntasks-per-node=1"
    assert steps(sandbox, TRIAL) == [f"{SRUN} {size} --kill-on-bad-exit=1 {TRIAL}"]
    environment = sandbox.trial(5)
    expected = {"MASTER_ADDR": "10.1.2.3", "DATADIR": f"{sandbox.folder}/data", "PYTHONPATH": "/x"}
    assert expected.items() <= environment.items()
    assert "NODE_RANK" not in environment  # each task takes its rank from Slurm
    assert sandbox.result(1) == "log of seed 5\n"


def test_a_step_of_a_job_with_containers(sandbox: Sandbox) -> None:
    sandbox.control(pyxis="")
    mounts = f"MODELDIR={sandbox.scripts} EXTRA_MOUNTS={sandbox.folder}:/more:ro CONT=/images/gptoss20b.sqsh"
    given = f"{mounts} PYTHONPATH=/x VIRTUAL_ENV=/y NCCL_DEBUG=WARN CUDA_HOME=/cuda"
    start(sandbox, "run.sub", "config_B200_2x8.sh", given)
    data, more = f"{sandbox.folder}/data:/data:ro", f"{sandbox.scripts}:/model:ro,{sandbox.folder}:/more:ro"
    container = (
        f"--container-image=/images/gptoss20b.sqsh --container-mounts={data},{sandbox.set}:/results,{more} "
        "--container-workdir=/workspace/gptoss20b --no-container-mount-home"
    )
    # Every variable of the job is in the container, but the image's own win over those that are not named.
    own = ["CHECK_COMPLIANCE", "MASTER_ADDR", "NCCL_DEBUG", "NEXP"]
    known = {*load_config("config_B200_2x8.sh"), "DATADIR", *own} - {"CONFIG_DIR"}
    names, of_a_trial = ",".join(sorted(known)), ",".join(sorted({*known, "MASTER_PORT"}))
    two = "--nodes=2 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1"
    assert steps(sandbox, TRIAL) == [f"{SRUN} {two} {container} --container-env={of_a_trial} {TRIAL}"]
    inside = sandbox.trial(5)
    assert (inside["DATADIR"], inside["LOGDIR"]) == ("/data", "/results/trial_1")
    assert not {"PYTHON", "PYTHONPATH", "VIRTUAL_ENV"} & set(inside)
    python = f'{SRUN} --nodes=1 --ntasks=1 {container} --container-env={names} bash -c exec python3 "$@" python3 -m'
    asked = [f"{python} gptoss20b preflight", f"{python} gptoss20b result --trials 1 /results"]
    assert steps(sandbox, "python3") == asked


@pytest.mark.parametrize("status", [0, 1])
def test_the_caches_of_all_nodes_are_cleared_outside_the_containers(sandbox: Sandbox, status: int) -> None:
    sandbox.control(pyxis="", clearing_status=status)
    start(sandbox, "run.sub", "config_B200_2x8.sh", "CONT=image CLEAR_CACHES=1 NEXP=2")
    clearing = f"{SRUN} --nodes=2 --ntasks=2 --ntasks-per-node=1 bash launch/clear_caches.sh"
    assert steps(sandbox, "launch/clear_caches.sh") == [clearing] * 2
    assert_caches_cleared(sandbox, status == 0)


@pytest.mark.parametrize(("given", "expected"), [("10.0.0.1", "10.0.0.1"), ("", "n1")])
def test_the_rendezvous_is_the_users_address_or_the_first_nodes_name(
    sandbox: Sandbox, given: str, expected: str
) -> None:
    sandbox.control(no_address="")
    start(sandbox, "run.sub", "config_B200_2x8.sh", f"MASTER_ADDR={given} LOGDIR=")
    assert sandbox.trial(5)["MASTER_ADDR"] == expected
    # One launcher starts all nodes, so it may choose the folder.
    assert Path(sandbox.trial(5)["LOGDIR"]).parent.parent == sandbox.scripts / "results"


@pytest.mark.parametrize("script", ["run_local.sh", "run_with_docker.sh", "run.sub"])
def test_a_single_trial_is_told_that_its_caller_has_cleared_the_caches(sandbox: Sandbox, script: str) -> None:
    start(sandbox, script, given="CLEAR_CACHES=done")
    assert sandbox.trial(5)["CLEAR_CACHES"] == "done" and steps(sandbox, "launch/clear_caches.sh") == []


def test_the_batch_script_has_its_directives_and_is_submitted_from_its_folder(tmp_path: Path) -> None:
    """Slurm signals the batch shell 180 s before the time limit, and never repeats the job."""
    directives = re.findall(r"^#SBATCH (.*)$", (ROOT / "run.sub").read_text(), re.MULTILINE)
    assert directives == ["--job-name=gptoss20b", "--exclusive", "--mem=0", "--no-requeue", "--signal=B:TERM@180"]
    command, environment = ["bash", str(ROOT / "run.sub")], {"SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert_refused(done, f"run.sub: '{tmp_path}'")
