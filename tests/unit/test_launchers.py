"""Test the argument lists of run_with_docker.sh and run.sub: NVIDIA, AMD and CPU, one node and two."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptoss20b.config import settings
from tests.support.configs import load_config
from tests.support.launch_stubs import Sandbox, assert_refused
from tests.support.paths import ROOT


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def one_trial(sandbox: Sandbox) -> dict[str, str]:
    return {"DATADIR": str(sandbox.folder / "data"), "CLEAR_CACHES": "0", "NEXP": "1", "SEED_BASE": "5"}


# --- run_with_docker.sh

DEVICES = ["--ulimit=memlock=-1", "--ulimit=stack=67108864", "--ipc=host"]
AMD = ["--device=/dev/kfd", "--device=/dev/dri", "--security-opt=seccomp=unconfined"]
# Variables that are no settings, but are forwarded to a container.
BESIDE_SETTINGS = {
    *["CLEAR_CACHES", "CHECK_COMPLIANCE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"],
    *["OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"],
}


def docker(sandbox: Sandbox, config: str = "config_CPU_1x2.sh", **environment: str) -> subprocess.CompletedProcess[str]:
    return sandbox.run("run_with_docker.sh", config, **(one_trial(sandbox) | environment))


def docker_base(sandbox: Sandbox) -> list[str]:
    return [
        *["docker", "run", "--rm", "--init", f"--user={os.getuid()}:{os.getgid()}"],
        *[f"--group-add={group}" for group in subprocess.check_output(["id", "-G"], text=True).split()],
        *[f"--volume={sandbox.folder}/data:/data:ro", f"--volume={sandbox.set}:/results"],
    ]


def docker_trial(sandbox: Sandbox) -> list[str]:
    """Return the arguments of the only trial, without its name, which is checked here."""
    (call,) = [call for call in sandbox.calls("docker") if call[-1] == "./run_and_time.sh"]
    (name,) = [argument for argument in call if argument.startswith("--name=")]
    assert re.fullmatch(r"--name=gptoss20b_\d+_\d+_5", name)
    call.remove(name)
    return call


def forwarded(call: list[str]) -> set[str]:
    return {argument.removeprefix("--env=") for argument in call if argument.startswith("--env=")}


def container_names(sandbox: Sandbox) -> list[str]:
    arguments = [argument for call in sandbox.calls("docker") for argument in call]
    return [argument.removeprefix("--name=") for argument in arguments if argument.startswith("--name=")]


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
    expected = {*load_config(config), *environment, "CHECK_COMPLIANCE", "DATADIR", "LOGDIR", "MASTER_PORT", "SEED"}
    assert forwarded(call) == expected
    groups = [f"--group-add={kfd.stat().st_gid}"] if devices == AMD else []
    flags = [argument for argument in call if argument.startswith("--env=")]
    assert call == [
        *[*docker_base(sandbox), *DEVICES, *devices, *groups, *flags, "gptoss20b", "./run_and_time.sh"],
    ]
    assert (sandbox.calls("nvidia-smi") == []) == (devices == [])
    assert sandbox.result(1) == "log of seed 5\n"
    inside = sandbox.trial(5)
    assert (inside["DATADIR"], inside["LOGDIR"]) == ("/data", "/results/trial_1")


def test_every_setting_is_forwarded_except_those_of_the_launcher_and_the_image(sandbox: Sandbox) -> None:
    names = [*settings(), "A_NEW_SETTING"]  # the script does not repeat the list
    sandbox.control(settings="\n".join(names))
    accepted = {"DGXNNODES": "1", "DGXSYSTEM": "CPU_1x2", "CHECK_COMPLIANCE": "1", "CLEAR_CACHES": "0"}
    given = dict.fromkeys([*names, *BESIDE_SETTINGS], "-1") | one_trial(sandbox) | accepted
    given |= {"SEED": "", "SAVE_DIR": "", "LOGDIR": str(sandbox.set), "MASTER_PORT": "4000"}
    library = {"NCCL_DEBUG": "WARN", "NCCL_ALGO": "Ring", "MLPERF_SUBMISSION_X": "x"}
    model = {"CONT": "gptoss20b:v2", "MODELDIR": str(sandbox.folder / "data")}
    done = docker(sandbox, **given, **library, **model, SECRET="x")
    assert done.returncode == 0, done.stderr
    call = docker_trial(sandbox)
    assert forwarded(call) == {*names, *BESIDE_SETTINGS, *library} - {"CACHE_CLEARED", "GIT_COMMIT", "SAVE_DIR"}
    assert len(forwarded(call)) == sum(argument.startswith("--env=") for argument in call)
    assert f"--volume={sandbox.folder}/data:/model:ro" in call
    assert call[-2:] == ["gptoss20b:v2", "./run_and_time.sh"]


def test_the_program_lists_its_settings() -> None:
    command = [sys.executable, "-m", "gptoss20b", "settings"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines(), done.stderr) == (list(settings()), "")


def test_python_runs_in_the_image_with_the_trials_folders_and_only_trials_are_stopped(sandbox: Sandbox) -> None:
    docker(sandbox, NEXP="3")
    first, *calls = [call for call in sandbox.calls("docker") if "python3" in call]
    assert first == ["docker", "run", "--rm", "gptoss20b", "python3", "-m", "gptoss20b", "settings"]
    assert [call[call.index("python3") + 1 :] for call in calls] == [
        ["-m", "gptoss20b", "train", "--dry-run"],
        ["-m", "gptoss20b", "result", "--trials", "3", "/results"],
        ["-m", "compliance", "check-set", "--runs", "3", "/results"],
    ]
    assert "DATADIR = /data" in (sandbox.set / "settings.txt").read_text()
    assert all(call[: len(docker_base(sandbox))] == docker_base(sandbox) for call in calls)
    assert not any("--gpus=all" in call for call in calls)
    # Each trial's container has its own name, and only these are stopped.
    docker(sandbox, NEXP="2", LOGDIR=str(sandbox.folder / "other"))
    names = container_names(sandbox)
    assert len(set(names)) == len(names) == 5
    assert [call[-1] for call in sandbox.calls("docker") if call[1] == "stop"] == names


@pytest.mark.parametrize("possible", [True, False])
def test_the_hosts_caches_are_cleared_before_a_container(sandbox: Sandbox, possible: bool) -> None:
    if possible:
        sandbox.drop_caches.parent.mkdir()
    done = docker(sandbox, CLEAR_CACHES="1", NEXP="2")
    assert [sandbox.trial(seed)["CLEAR_CACHES"] for seed in (5, 6)] == ["done" if possible else "0"] * 2
    output = (sandbox.set / "trial_2" / "output.log").read_text()
    assert ("warning: could not drop the page cache" in output) == (not possible)
    assert done.returncode == 0


def test_a_signal_stops_our_container_and_no_other(sandbox: Sandbox) -> None:
    sandbox.control(sleep="")
    terminate(sandbox, "run_with_docker.sh")
    assert sandbox.record("signals") == "TERM\n"
    (name,) = container_names(sandbox)
    stops = [call for call in sandbox.calls("docker") if call[1] == "stop"]
    assert stops
    assert {tuple(call) for call in stops} == {("docker", "stop", "--time=120", name)}
    assert not any(call[1] in ("rm", "kill", "system") for call in sandbox.calls("docker"))


def test_a_missing_or_outdated_image_is_refused(sandbox: Sandbox) -> None:
    sandbox.control(settings="")
    assert_refused(docker(sandbox, CONT="gptoss20b:old"), "CONT", "'gptoss20b:old'", "settings")
    sandbox.control(no_image="")
    assert_refused(docker(sandbox, CONT="mine"), "CONT", "'mine'", "docker build")


def test_a_machine_without_gpus_or_docker_is_refused(sandbox: Sandbox) -> None:
    assert_refused(docker(sandbox, "config_B200_1x8.sh"), "DGXSYSTEM", "B200_1x8", "nvidia-smi")
    if Path("/usr/bin/docker").exists():
        pytest.skip("docker is in /usr/bin, beside the tools that the script needs")
    (sandbox.folder / "bin" / "docker").unlink()
    assert_refused(docker(sandbox, PATH=f"{sandbox.folder}/bin:/usr/bin:/bin"), "docker", "./run_local.sh")


# --- run.sub

SRUN = ["srun", "--cpu-bind=none", "--mpi=none", "--export=ALL", "--wait=0"]
TWO_TASKS = ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
TRIAL = ["bash", "launch/slurm_task.sh"]


def job(sandbox: Sandbox, config: str = "config_CPU_1x2.sh") -> dict[str, str]:
    """Return the variables that Slurm sets for a batch script, and those of one trial."""
    nodes = load_config(config)["DGXNNODES"]
    return one_trial(sandbox) | {
        **{"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": nodes, "SLURM_JOB_NODELIST": "n[1-2]"},
        **{"SLURM_SUBMIT_DIR": str(sandbox.scripts), "SLURM_NODEID": "0"},
    }


def slurm(sandbox: Sandbox, config: str = "config_CPU_1x2.sh", **environment: str) -> subprocess.CompletedProcess[str]:
    return sandbox.run("run.sub", config, **(job(sandbox, config) | environment))


def terminate(sandbox: Sandbox, script: str, limit_s: float = 30, **environment: str) -> None:
    """Signal a launcher of two trials when a stub waits, and wait for its end."""
    process = sandbox.start(script, "config_CPU_1x2.sh", **(job(sandbox) | {"NEXP": "2"} | environment))
    sandbox.wait_for("running", process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=limit_s)
    assert process.returncode == 143


def slurm_trials(sandbox: Sandbox) -> list[list[str]]:
    return [call for call in sandbox.calls("srun") if call[-2:] == TRIAL]


@pytest.mark.parametrize(
    ("config", "nodes"), [("config_CPU_1x2.sh", 1), ("config_MI355X_1x8.sh", 1), ("config_B200_2x8.sh", 2)]
)
def test_a_step_of_a_job_without_containers(sandbox: Sandbox, config: str, nodes: int) -> None:
    done = slurm(sandbox, config, PYTHONPATH="/x")
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
    host = {"MODELDIR": str(sandbox.scripts), "PYTHONPATH": "/x", "VIRTUAL_ENV": "/y"}
    done = slurm(sandbox, "config_B200_2x8.sh", CONT="/images/gptoss20b.sqsh", **host)
    assert done.returncode == 0, done.stderr
    container = [
        "--container-image=/images/gptoss20b.sqsh",
        f"--container-mounts={sandbox.folder}/data:/data:ro,{sandbox.set}:/results,{sandbox.scripts}:/model:ro",
        *["--container-workdir=/workspace/gptoss20b", "--no-container-mount-home"],
    ]
    assert slurm_trials(sandbox) == [[*SRUN, *TWO_TASKS, "--kill-on-bad-exit=1", *container, *TRIAL]]
    inside = sandbox.trial(5)
    assert (inside["DATADIR"], inside["LOGDIR"]) == ("/data", "/results/trial_1")
    assert not {"PYTHON", "PYTHONPATH", "VIRTUAL_ENV"} & set(inside)
    python = [*SRUN, "--nodes=1", "--ntasks=1", *container, "bash", "-c", 'exec python3 "$@"', "python3"]
    assert [call for call in sandbox.calls("srun") if "python3" in call] == [
        [*python, "-m", "gptoss20b", "train", "--dry-run"],
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


def test_a_signal_goes_through_slurm_and_not_to_srun_which_would_kill_its_tasks(sandbox: Sandbox) -> None:
    sandbox.control(sleep="")
    # The background process that repeats the signal is not waited for.
    terminate(sandbox, "run.sub", 15)
    assert sandbox.calls("scancel") == [["scancel", "--signal=TERM", "77"]]
    assert sandbox.record("signals") == "TERM\n"
    assert sandbox.seeds == [5]
    # Nor does it hold the lock of the set.
    sandbox.clear("sleep")
    assert slurm(sandbox, NEXP="2").returncode == 0
    assert sandbox.seeds == [5, 6]


def test_a_signal_while_caches_are_cleared_starts_no_trial(sandbox: Sandbox) -> None:
    sandbox.control(clearing_sleeps="")
    terminate(sandbox, "run.sub", CLEAR_CACHES="1")
    assert sandbox.seeds == []
    assert sandbox.rows == [["1", "5", "143"]]


def test_the_signal_is_repeated_until_the_step_ends(sandbox: Sandbox) -> None:
    sandbox.edit("run.sub", "sleep 20", "sleep 1")
    (sandbox.folder / "bin" / "scancel").write_text(
        '#!/bin/bash\necho x >> "$STUB/sent"\n'
        '[[ $(wc -l < "$STUB/sent") -lt 3 ]] || kill -TERM $(cat "$STUB/running")\n'
    )
    sandbox.control(sleep="")
    terminate(sandbox, "run.sub")
    assert sandbox.record("signals") == "TERM\n"
    time.sleep(1.2)
    assert sandbox.record("sent") == "x\n" * 3  # and not again after the end


@pytest.mark.parametrize("name", ["LOGDIR", "DATADIR", "MODELDIR"])
@pytest.mark.parametrize("separator", [":", ","])
def test_a_path_with_a_separator_of_mounts_is_refused(sandbox: Sandbox, name: str, separator: str) -> None:
    sandbox.control(pyxis="")
    folder = sandbox.folder / f"a{separator}b"
    folder.mkdir()
    expected = (name, f"a{separator}b", "without ':' and ','")
    assert_refused(slurm(sandbox, CONT="image", **{name: str(folder)}), *expected)
    assert_refused(docker(sandbox, **{name: str(folder)}), *expected)
    assert slurm(sandbox, **{name: str(folder)}).returncode == 0


@pytest.mark.parametrize(
    ("given", "facts"),
    [({"SAVE_DIR": "/c"}, ("SAVE_DIR", "'/c'")), ({"RESUME": "1", "LOGDIR": ""}, ("RESUME", "LOGDIR"))],
)
def test_every_launcher_checks_the_trials(sandbox: Sandbox, given: dict[str, str], facts: tuple[str, ...]) -> None:
    sandbox.control(pyxis="")
    for done in (docker(sandbox, **given), slurm(sandbox, **given), slurm(sandbox, CONT="image", **given)):
        assert_refused(done, *facts)
    assert sandbox.seeds == []


@pytest.mark.parametrize(
    ("config", "given", "facts"),
    [
        ("config_B200_2x8.sh", {"SLURM_JOB_NUM_NODES": "1"}, ("DGXNNODES", "2 nodes", "job has 1", "sbatch --nodes=2")),
        ("config_CPU_1x2.sh", {"CONT": "image"}, ("CONT", "'image'", "no pyxis", "Unset CONT")),
        ("config_CPU_1x2.sh", {"SLURM_JOB_ID": ""}, ("SLURM_JOB_ID", "sbatch run.sub")),
        ("config_CPU_1x2.sh", {"SLURM_SUBMIT_DIR": "/no/such"}, ("run.sub", "'/no/such'")),
    ],
)
def test_a_job_that_cannot_run_is_refused(
    sandbox: Sandbox, config: str, given: dict[str, str], facts: tuple[str, ...]
) -> None:
    assert_refused(slurm(sandbox, config, **given), *facts)


def test_the_directives_of_the_batch_script() -> None:
    """Slurm signals the batch shell 180 s before the time limit, and never repeats the job."""
    directives = re.findall(r"^#SBATCH (.*)$", (ROOT / "run.sub").read_text(), re.MULTILINE)
    assert directives == ["--job-name=gptoss20b", "--exclusive", "--mem=0", "--no-requeue", "--signal=B:TERM@180"]


@pytest.mark.parametrize(
    ("node", "status", "expected"),
    [(0, 0, 0), (0, 1, 1), (0, 4, 4), (1, 0, 0), (1, 1, 0), (1, 143, 0), (1, 2, 2), (0, 2, 2)],
)
def test_only_a_worker_that_cannot_start_ends_the_leader(tmp_path: Path, node: int, status: int, expected: int) -> None:
    run = tmp_path / "run_and_time.sh"
    run.write_text(f"#!/bin/sh\nexit {status}\n")
    run.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "SLURM_NODEID": str(node)}
    done = subprocess.run([ROOT / "launch" / "slurm_task.sh"], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == expected
