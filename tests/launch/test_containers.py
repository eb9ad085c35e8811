"""What docker and Slurm are called with: devices, variables, mounts and steps, on one node and two."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from gptoss20b.config import settings
from tests.support.configs import load_config
from tests.support.launch_stubs import Done, Sandbox, assert_refused, cases, read_pairs
from tests.support.paths import ROOT

# Variables that are no settings, but of a family or known by their names.
FORWARDED = """
NEXP CLEAR_CACHES CHECK_COMPLIANCE NODE_RANK MASTER_ADDR MASTER_PORT BINDCMD ALLOW_UNKNOWN NVIDIA_VISIBLE_DEVICES TZ
NCCL_DEBUG RCCL_MSCCL_ENABLE GLOO_SOCKET_IFNAME FI_PROVIDER UCX_TLS CUDA_VISIBLE_DEVICES CUBLAS_WORKSPACE_CONFIG
CUDNN_LOGDEST_DBG NVTE_FLASH_ATTN HIP_VISIBLE_DEVICES ROCM_X ROCR_VISIBLE_DEVICES HSA_NO_SCRATCH_RECLAIM GPU_MAX_HW
TORCH_LOGS TORCHINDUCTOR_X PYTORCH_CUDA_ALLOC_CONF TRITON_DEBUG TRITON_CACHE_DIR OMP_NUM_THREADS MLPERF_SUBMISSION_X
"""
OF_THE_HOST = ["CUDA_HOME", "CUDA_PATH", "NCCL_VERSION", "TORCH_HOME", "NVTE_DIR", "UCX_ROOT", "SECRET", "HOME"]
NAMED = ["CHECK_COMPLIANCE", "DATADIR", "LOGDIR", "MASTER_PORT", "SEED", "NEXP", "HOST_VARIABLES"]


def start(sandbox: Sandbox, script: str, config: str = "config_CPU_1x2.sh", given: str = "", **more: str) -> Done:
    """Start one trial with the seed 5."""
    done = sandbox.run(script, config, **(sandbox.one_trial(given, config) | more))
    assert done.returncode == 0, done.stderr
    return done


# Asked for, and whether the caches can be cleared; what the trial gets.
@cases("""
script             | asked | possible | told
run_with_docker.sh | 1     | yes      | done
run_with_docker.sh | 1     |          | 0
run_with_docker.sh | done  | yes      | done
run.sub            | 1     | yes      | done
run.sub            | 1     |          | 0
run.sub            | done  | yes      | done
run_local.sh       | done  | yes      | done
""")
def test_the_hosts_caches_are_cleared_outside_the_containers(
    sandbox: Sandbox, script: str, asked: str, possible: str, told: str
) -> None:
    sandbox.control(pyxis="", clearing_status=int(not possible))
    if possible:
        sandbox.drop_caches.parent.mkdir()
    config = "config_B200_2x8.sh" if script == "run.sub" else "config_CPU_1x2.sh"
    start(sandbox, script, config, f"CONT=gptoss20b CLEAR_CACHES={asked}")
    assert sandbox.trial(5)["CLEAR_CACHES"] == told
    output = (sandbox.set / "trial_1" / "output.log").read_text()
    assert ("warning: could not drop the page cache" in output) == (not possible)
    here = asked == "1" and script == "run_with_docker.sh"
    assert sandbox.drop_caches.exists() == (here and told == "done")
    assert len(sandbox.calls("sudo")) == (here and told == "0")
    clearing = f"{SRUN} --nodes=2 --ntasks=2 --ntasks-per-node=1 bash launch/clear_caches.sh"
    assert steps(sandbox, "launch/clear_caches.sh") == [clearing] * (asked == "1" and script == "run.sub")


# --- docker


def docker_calls(sandbox: Sandbox, word: str) -> list[list[str]]:
    """Return the arguments of the containers with this word, after those that all have."""
    groups = [f"--group-add={group}" for group in sorted({os.getgid(), *os.getgroups()})]
    folders = f"--volume={sandbox.folder}/data:/data:ro --volume={sandbox.set}:/results"
    base = f"docker run --rm --init --user={os.getuid()}:{os.getgid()} {' '.join(groups)} {folders}".split()
    calls = [call for call in sandbox.calls("docker") if word in call and call[-1] != "settings"]
    assert all(call[: len(base)] == base for call in calls)
    return [call[len(base) :] for call in calls]


def docker_trial(sandbox: Sandbox) -> tuple[str, list[str]]:
    """Return the arguments of the only trial, and its variables. Its name is checked here."""
    (call,) = docker_calls(sandbox, "./run_and_time.sh")
    (name,) = [word for word in call if word.startswith("--name=")]
    assert re.fullmatch(r"--name=gptoss20b_\d+_\d+_5", name)
    flags = [word for word in call if word.startswith("--env=")]
    return " ".join(word for word in call if word not in (name, *flags)), [flag[len("--env=") :] for flag in flags]


# The CPU's configuration hides the GPUs.
@cases("""
tool       | config               | devices
nvidia-smi | config_B200_1x8.sh   | --gpus=all
rocm-smi   | config_MI355X_1x8.sh | AMD
amd-smi    | config_MI355X_1x8.sh | AMD
nvidia-smi | config_CPU_1x2.sh    |
nvidia-smi | config_B200_2x8.sh   | --gpus=all --device=/dev/infiniband --network=host
""")
def test_a_container_gets_its_devices_and_the_variables_that_are_set(
    sandbox: Sandbox, tool: str, config: str, devices: str
) -> None:
    sandbox.control(**{tool: ""})
    (sandbox.folder / "dev" / "kfd").touch()
    if "infiniband" in devices:
        (sandbox.folder / "dev" / "infiniband").mkdir()
    start(sandbox, "run_with_docker.sh", config, "NODE_RANK=0 MASTER_ADDR=leader NCCL_DEBUG=")
    call, variables = docker_trial(sandbox)
    assert variables == sorted({*load_config(config), *NAMED, "MASTER_ADDR", "NODE_RANK"} - {"CONFIG_DIR"})
    always = "--ulimit=memlock=-1 --ulimit=stack=67108864 --ipc=host --cap-add=SYS_NICE"
    amd = f"--device=/dev/kfd --device=/dev/dri --security-opt=seccomp=unconfined --group-add={os.getgid()}"
    assert call.split() == f"{always} {devices} gptoss20b ./run_and_time.sh".replace("AMD", amd).split()
    assert (sandbox.calls("nvidia-smi") == []) == (devices == "")
    inside = sandbox.trial(5)
    assert (inside["DATADIR"], inside["LOGDIR"]) == ("/data", "/results/trial_1")
    assert sandbox.result(1) == "log of seed 5\n"


def test_settings_and_families_are_forwarded_except_those_of_the_host_and_the_image(sandbox: Sandbox) -> None:
    names = {*settings(), "A_NEW_SETTING"}  # the launcher does not repeat the list
    sandbox.control(settings="\n".join(names))
    with (sandbox.scripts / "config_CPU_1x2.sh").open("a") as file:
        file.write("export OF_THE_CONFIGURATION=1\n")
    given = dict.fromkeys([*names, *FORWARDED.split(), *OF_THE_HOST, "OF_THE_CONFIGURATION"], "-1") | read_pairs(
        f"DGXNNODES=1 DGXSYSTEM=CPU_1x2 CHECK_COMPLIANCE=1 CLEAR_CACHES=0 SEED= SAVE_DIR= MASTER_PORT=4000 NEXP=1 "
        f"DATADIR={sandbox.folder}/data MODELDIR={sandbox.folder}/data LOGDIR={sandbox.set} CONT=gptoss20b:v2 "
        f"EXTRA_MOUNTS=/tmp:/t,/usr:/u:ro, BATCH_SIZES=4"
    )
    start(sandbox, "run_with_docker.sh", **given)
    call, variables = docker_trial(sandbox)
    expected = {*names, *FORWARDED.split(), *NAMED, "OF_THE_CONFIGURATION"} - {
        "CACHE_CLEARED",
        "GIT_COMMIT",
        "SAVE_DIR",
    }
    assert variables == sorted(expected)
    assert call.startswith(f"--volume={sandbox.folder}/data:/model:ro --volume=/tmp:/t --volume=/usr:/u:ro ")
    assert call.endswith(" gptoss20b:v2 ./run_and_time.sh")
    # The image checks the names of the host's variables, of which it has no others.
    named = sandbox.trial(5)["HOST_VARIABLES"].split(":")
    assert {"BATCH_SIZES", "SECRET", "CONT"} <= set(named) and "-1" not in named


def test_python_runs_in_the_image_with_the_trials_folders_and_only_trials_are_stopped(sandbox: Sandbox) -> None:
    sandbox.control(**{"nvidia-smi": ""})
    start(sandbox, "run_with_docker.sh", "config_B200_1x8.sh", "NEXP=3")
    assert sandbox.asked() == [
        *("gptoss20b settings", "gptoss20b preflight", "gptoss20b result --trials 3 /results"),
        "compliance check-set --runs 3 /results",
    ]
    assert "DATADIR = /data" in (sandbox.set / "settings.txt").read_text()
    # Only the preflight counts the GPUs.
    assert ["--gpus=all" in call for call in docker_calls(sandbox, "python3")] == [True, False, False]
    # Each trial's container has its own name, also in another set, and only these are stopped.
    start(sandbox, "run_with_docker.sh", given=f"NEXP=2 LOGDIR={sandbox.folder}/other")
    names = [word[7:] for call in sandbox.calls("docker") for word in call if word.startswith("--name=")]
    assert len(set(names)) == len(names) == 5
    stops = [call for call in sandbox.calls("docker") if call[1] == "stop"]
    assert stops == [["docker", "stop", "--time=120", name] for name in names]


# --- Slurm

SRUN = "srun --cpu-bind=none --mpi=none --export=ALL --wait=0"
TRIAL = "bash run_and_time.sh --slurm-task"


def steps(sandbox: Sandbox, part: str) -> list[str]:
    return [text for text in (" ".join(call) for call in sandbox.calls("srun")) if part in text]


@cases("""
config             | nodes | control    | given                | address
config_CPU_1x2.sh  | 1     | an_address |                      | 10.1.2.3
config_B200_2x8.sh | 2     | no_address |                      | n1
config_B200_2x8.sh | 2     | an_address | MASTER_ADDR=10.0.0.1 | 10.0.0.1
""")
def test_a_step_of_a_job_without_containers(
    sandbox: Sandbox, config: str, nodes: str, control: str, given: str, address: str
) -> None:
    sandbox.control(**{control: ""})
    start(sandbox, "run.sub", config, f"PYTHONPATH=/x NODE_RANK=1 LOGDIR= {given}")
    size = f"--nodes={nodes} --ntasks={nodes} --ntasks-per-node=1"
    assert steps(sandbox, TRIAL) == [f"{SRUN} {size} --kill-on-bad-exit=1 {TRIAL}"]
    environment = sandbox.trial(5)
    expected = {"MASTER_ADDR": address, "DATADIR": f"{sandbox.folder}/data", "PYTHONPATH": "/x"}
    assert expected.items() <= environment.items()
    assert "NODE_RANK" not in environment  # each task takes its rank from Slurm
    # One launcher starts all nodes, so it may choose the folder.
    folder = Path(environment["LOGDIR"]).parent
    assert folder.parent == sandbox.scripts / "results" and (folder / "result_1.txt").exists()


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


def test_the_batch_script_has_its_directives_and_is_submitted_from_its_folder(tmp_path: Path) -> None:
    """Slurm signals the batch shell 180 s before the time limit, and never repeats the job."""
    directives = re.findall(r"^#SBATCH (.*)$", (ROOT / "run.sub").read_text(), re.MULTILINE)
    assert directives == ["--job-name=gptoss20b", "--exclusive", "--mem=0", "--no-requeue", "--signal=B:TERM@180"]
    command, environment = ["bash", str(ROOT / "run.sub")], {"SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert_refused(done, f"run.sub: '{tmp_path}'")
