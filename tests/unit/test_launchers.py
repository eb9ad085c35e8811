"""The exact argument lists that containers and Slurm get: NVIDIA, AMD and CPU, one node and two."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from gptoss20b.config import settings
from tests.support.configs import load_config
from tests.support.launch_stubs import Place
from tests.support.paths import ROOT


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "data").mkdir()
    return Place(tmp_path)


def passed_on() -> list[str]:
    """The variables that run_with_docker.sh hands to a container, in its order."""
    listed = re.search(r"^passed_on=\((.*?)\)", (ROOT / "run_with_docker.sh").read_text(), re.MULTILINE | re.DOTALL)
    assert listed is not None
    return listed[1].split()


def environment_flags(config: str, *more: str) -> list[str]:
    """One --env for each variable that the configuration sets or the test gives, in the script's order."""
    names = {*load_config(config), "CHECK_COMPLIANCE", "DATADIR", "LOGDIR", "MASTER_PORT", *more}
    return [f"--env={name}" for name in passed_on() if name in names]


def docker_base(place: Place) -> list[str]:
    return [
        *["docker", "run", "--rm", "--init", f"--user={os.getuid()}:{os.getgid()}"],
        *[f"--group-add={group}" for group in subprocess.check_output(["id", "-G"], text=True).split()],
        *[f"--volume={place.folder}/data:/data:ro", f"--volume={place.set}:/results"],
    ]


ALWAYS = ["--ulimit=memlock=-1", "--ulimit=stack=67108864", "--ipc=host"]
AMD = ["--device=/dev/kfd", "--device=/dev/dri", "--security-opt=seccomp=unconfined"]


def docker(place: Place, config: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {"DATADIR": str(place.folder / "data"), "CLEAR_CACHES": "0", "NEXP": "1", "SEED_BASE": "5"} | environment
    return place.run("run_with_docker.sh", config, **given)


def trial_of(place: Place) -> list[str]:
    """The one `docker run` that is a trial, its name checked and cut out."""
    (call,) = [call for call in place.calls("docker") if call[-1] == "./run_and_time.sh"]
    names = [argument for argument in call if argument.startswith("--name=")]
    assert len(names) == 1
    assert re.fullmatch(r"--name=gptoss20b_\d+_\d+_5", names[0])
    call.remove(names[0])
    return call


# --- run_with_docker.sh


def test_every_setting_reaches_a_container_but_what_the_launcher_and_the_image_know() -> None:
    assert set(settings()) - set(passed_on()) == {"CACHE_CLEARED", "GIT_COMMIT", "SAVE_DIR"}
    beside = set(passed_on()) - set(settings())
    assert beside == {
        *["CLEAR_CACHES", "CHECK_COMPLIANCE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"],
        *["OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"],
    }


def test_a_container_on_one_nvidia_node(place: Place) -> None:
    place.tell("nvidia-smi")
    done = docker(place, "config_B200_1x8.sh")
    assert done.returncode == 0, done.stderr
    flags = environment_flags("config_B200_1x8.sh", "SEED")
    assert trial_of(place) == [*docker_base(place), *ALWAYS, "--gpus=all", *flags, "gptoss20b", "./run_and_time.sh"]
    assert place.result(1) == "log of seed 5\n"
    inside = place.trial(5)
    assert (inside["DATADIR"], inside["LOGDIR"]) == ("/data", "/results/trial_1")


def test_a_container_on_one_amd_node(place: Place) -> None:
    place.tell("rocm-smi")
    (place.folder / "dev" / "kfd").write_text("")
    done = docker(place, "config_MI355X_1x8.sh")
    assert done.returncode == 0, done.stderr
    group = f"--group-add={(place.folder / 'dev' / 'kfd').stat().st_gid}"
    flags = environment_flags("config_MI355X_1x8.sh", "SEED")
    assert trial_of(place) == [*docker_base(place), *ALWAYS, *AMD, group, *flags, "gptoss20b", "./run_and_time.sh"]


def test_amd_nodes_are_found_by_the_newer_tool_too(place: Place) -> None:
    place.tell("amd-smi")
    (place.folder / "dev" / "kfd").write_text("")
    assert docker(place, "config_MI355X_1x8.sh").returncode == 0
    assert "--device=/dev/kfd" in trial_of(place)


def test_a_container_without_gpus(place: Place) -> None:
    place.tell("nvidia-smi")  # hidden by the configuration
    done = docker(place, "config_CPU_1x2.sh")
    assert done.returncode == 0, done.stderr
    flags = environment_flags("config_CPU_1x2.sh", "SEED")
    assert trial_of(place) == [*docker_base(place), *ALWAYS, *flags, "gptoss20b", "./run_and_time.sh"]
    assert place.calls("nvidia-smi") == []


def test_a_container_on_the_first_of_two_nodes(place: Place) -> None:
    place.tell("nvidia-smi")
    (place.folder / "dev" / "infiniband").mkdir()
    done = docker(place, "config_B200_2x8.sh", NODE_RANK="0", MASTER_ADDR="first")
    assert done.returncode == 0, done.stderr
    network = ["--device=/dev/infiniband", "--network=host"]
    flags = environment_flags("config_B200_2x8.sh", "SEED", "NODE_RANK", "MASTER_ADDR")
    assert trial_of(place) == [
        *[*docker_base(place), *ALWAYS, "--gpus=all", *network, *flags, "gptoss20b", "./run_and_time.sh"]
    ]


def test_an_image_a_model_and_what_libraries_read(place: Place) -> None:
    (place.folder / "model").mkdir()
    more = {"CONT": "gptoss20b:v2", "MODELDIR": str(place.folder / "model"), "NCCL_DEBUG": "WARN", "NCCL_ALGO": "Ring"}
    done = docker(place, "config_CPU_1x2.sh", **more, SECRET="x", SUBMISSION_ORG="org")
    assert done.returncode == 0, done.stderr
    call = trial_of(place)
    assert call[-2:] == ["gptoss20b:v2", "./run_and_time.sh"]
    assert f"--volume={place.folder}/model:/model:ro" in call
    assert [flag for flag in call if "NCCL" in flag] == ["--env=NCCL_ALGO", "--env=NCCL_DEBUG"]
    assert "--env=SUBMISSION_ORG" in call
    assert not any("SECRET" in argument for argument in call)


def test_the_checks_run_in_the_image_too_and_see_the_folders_as_trials_do(place: Place) -> None:
    docker(place, "config_CPU_1x2.sh", NEXP="3")
    calls = [call for call in place.calls("docker") if "python3" in call]
    assert [call[call.index("python3") + 1 :] for call in calls] == [
        ["-m", "gptoss20b", "train", "--dry-run"],
        ["-m", "gptoss20b", "result", "--trials", "3", "/results"],
        ["-m", "compliance", "check-set", "--runs", "3", "/results"],
    ]
    assert "DATADIR = /data" in (place.set / "settings.txt").read_text()
    assert all(call[: len(docker_base(place))] == docker_base(place) for call in calls)
    assert not any("--gpus=all" in call for call in calls)


def test_containers_of_several_trials_and_launchers_have_names_of_their_own(place: Place) -> None:
    for folder in ("one", "two"):
        docker(place, "config_CPU_1x2.sh", NEXP="2", LOGDIR=str(place.folder / folder))
    names = [argument for call in place.calls("docker") for argument in call if argument.startswith("--name=")]
    assert len(set(names)) == len(names) == 4
    stopped = [call[-1] for call in place.calls("docker") if call[1] == "stop"]
    assert [f"--name={name}" for name in stopped] == names  # and nobody else's


@pytest.mark.parametrize("possible", [True, False])
def test_the_hosts_caches_are_cleared_before_a_container(place: Place, possible: bool) -> None:
    switch = place.folder / "drop_caches" / "file"
    if possible:
        switch.parent.mkdir()
    done = docker(place, "config_CPU_1x2.sh", CLEAR_CACHES="1", NEXP="2")
    assert [place.trial(seed)["CLEAR_CACHES"] for seed in (5, 6)] == ["done" if possible else "0"] * 2
    output = (place.set / "trial_2" / "output.log").read_text()
    assert ("warning: the page cache could not be dropped" in output) == (not possible)
    assert done.returncode == 0


def test_a_signal_stops_our_container_and_no_other(place: Place) -> None:
    place.tell("sleep")
    process = place.start(
        "run_with_docker.sh", DATADIR=str(place.folder / "data"), NEXP="2", SEED_BASE="5", CLEAR_CACHES="0"
    )
    place.wait_for("running", process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert place.told("signals") == "TERM\n"
    (name,) = [argument for call in place.calls("docker") for argument in call if argument.startswith("--name=")]
    stops = [call for call in place.calls("docker") if call[1] == "stop"]
    assert stops
    assert {tuple(call) for call in stops} == {("docker", "stop", "--time=120", name.removeprefix("--name="))}
    assert not any(call[1] in ("rm", "kill", "system") for call in place.calls("docker"))


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert all(part in last for part in parts), last


def test_an_image_that_is_not_there(place: Place) -> None:
    place.tell("no_image")
    refused(docker(place, "config_CPU_1x2.sh", CONT="mine"), "CONT", "'mine'", "docker build")


def test_a_machine_without_gpus(place: Place) -> None:
    refused(docker(place, "config_B200_1x8.sh"), "DGXSYSTEM", "B200_1x8", "nvidia-smi")


def test_a_machine_without_docker(place: Place) -> None:
    (place.folder / "bin" / "docker").unlink()
    environment = {"PATH": f"{place.folder}/bin:/usr/bin:/bin"}
    if (Path("/usr/bin/docker")).exists():
        pytest.skip("docker is in /usr/bin, beside the tools that the script needs")
    done = subprocess.run(
        ["bash", "-c", f"source {place.scripts}/config_CPU_1x2.sh; exec {place.scripts}/run_with_docker.sh"],
        env=environment | {"LOGDIR": str(place.set)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    refused(done, "docker: not found", "./run_local.sh")


# --- run.sub

SRUN = ["srun", "--cpu-bind=none", "--mpi=none", "--export=ALL", "--wait=0"]


def job(place: Place, nodes: int = 1) -> dict[str, str]:
    """What Slurm says to a batch script, and one trial."""
    return {
        **{"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_JOB_NODELIST": "n[1-2]"},
        **{"SLURM_SUBMIT_DIR": str(place.scripts), "SLURM_NODEID": "0"},
        **{"DATADIR": str(place.folder / "data"), "CLEAR_CACHES": "0", "NEXP": "1", "SEED_BASE": "5"},
    }


def slurm(place: Place, config: str, nodes: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
    return place.run("run.sub", config, **(job(place, nodes) | environment))


def terminated(place: Place, limit_s: float, **environment: str) -> None:
    """Signal a job of two trials as soon as a stub waits, and see its end."""
    process = place.start("run.sub", **(job(place) | {"NEXP": "2"} | environment))
    place.wait_for("running", process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=limit_s)
    assert process.returncode == 143


def trials(place: Place) -> list[list[str]]:
    return [call for call in place.calls("srun") if call[-2:] == ["bash", "launch/slurm_task.sh"]]


@pytest.mark.parametrize(
    ("config", "nodes"), [("config_CPU_1x2.sh", 1), ("config_MI355X_1x8.sh", 1), ("config_B200_2x8.sh", 2)]
)
def test_a_step_of_a_job_without_containers(place: Place, config: str, nodes: int) -> None:
    done = slurm(place, config, nodes)
    assert done.returncode == 0, done.stderr
    size = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    assert trials(place) == [[*SRUN, *size, "--kill-on-bad-exit=1", "bash", "launch/slurm_task.sh"]]
    assert place.result(1) == "log of seed 5\n"
    environment = place.trial(5)
    assert environment["MASTER_ADDR"] == "10.1.2.3"
    assert "NODE_RANK" not in environment  # each task takes its own from Slurm
    assert environment["DATADIR"] == str(place.folder / "data")


def test_a_step_of_a_job_with_containers(place: Place) -> None:
    place.tell("pyxis")
    done = slurm(place, "config_B200_2x8.sh", 2, CONT="/images/gptoss20b.sqsh", MODELDIR=str(place.scripts))
    assert done.returncode == 0, done.stderr
    contained = [
        "--container-image=/images/gptoss20b.sqsh",
        f"--container-mounts={place.folder}/data:/data:ro,{place.set}:/results,{place.scripts}:/model:ro",
        *["--container-workdir=/workspace/gptoss20b", "--no-container-mount-home"],
    ]
    size = ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert trials(place) == [[*SRUN, *size, "--kill-on-bad-exit=1", *contained, "bash", "launch/slurm_task.sh"]]
    inside = place.trial(5)
    assert (inside["DATADIR"], inside["LOGDIR"]) == ("/data", "/results/trial_1")
    one = [
        *SRUN,
        "--nodes=1",
        "--ntasks=1",
        *contained,
        "bash",
        "-c",
        'exec python3 "$@"',
        "python3",
        "-m",
        "gptoss20b",
    ]
    assert [call for call in place.calls("srun") if "python3" in call] == [
        [*one, "train", "--dry-run"],
        [*one, "result", "--trials", "1", "/results"],
    ]


def test_the_caches_of_all_nodes_are_cleared_outside_the_containers(place: Place) -> None:
    place.tell("pyxis")
    slurm(place, "config_B200_2x8.sh", 2, CONT="image", CLEAR_CACHES="1", NEXP="2")
    size = ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    clearing = [call for call in place.calls("srun") if call[-1] == "launch/clear_caches.sh"]
    assert clearing == [[*SRUN, *size, "bash", "launch/clear_caches.sh"]] * 2
    assert place.trial(6)["CLEAR_CACHES"] == "done"


def test_caches_that_one_node_could_not_clear_are_not_cleared(place: Place) -> None:
    place.tell("caches", "1")
    slurm(place, "config_B200_2x8.sh", 2, CLEAR_CACHES="1")
    assert place.trial(5)["CLEAR_CACHES"] == "0"
    assert "warning: the page cache" in (place.set / "trial_1" / "output.log").read_text()


def test_the_users_address_wins(place: Place) -> None:
    slurm(place, "config_B200_2x8.sh", 2, MASTER_ADDR="10.0.0.1")
    assert place.trial(5)["MASTER_ADDR"] == "10.0.0.1"


def test_a_first_node_without_an_address_has_its_name(place: Place) -> None:
    place.tell("no_address")
    slurm(place, "config_B200_2x8.sh", 2)
    assert place.trial(5)["MASTER_ADDR"] == "n1"


def test_a_signal_goes_through_slurm_and_not_to_srun_which_would_kill_its_tasks(place: Place) -> None:
    place.tell("sleep")
    # Whatever still repeats the signal is not waited for.
    terminated(place, 15)
    assert place.calls("scancel") == [["scancel", "--signal=TERM", "77"]]
    assert place.told("signals") == "TERM\n"
    assert place.seeds == [5]
    # Nor does it hold the set.
    (place.folder / "stub" / "sleep").unlink()
    assert slurm(place, "config_CPU_1x2.sh", NEXP="2").returncode == 0
    assert place.seeds == [5, 6]


def test_a_signal_while_caches_are_cleared_starts_no_trial(place: Place) -> None:
    place.tell("clear")
    terminated(place, 30, CLEAR_CACHES="1")
    assert place.seeds == []
    assert place.journal == [["1", "5", "143"]]


def test_a_step_that_did_not_hear_the_signal_gets_it_again(place: Place) -> None:
    place.replace("run.sub", "sleep 20", "sleep 1")
    (place.folder / "bin" / "scancel").write_text(
        '#!/bin/bash\necho x >> "$STUB/sent"\n'
        '[[ $(wc -l < "$STUB/sent") -lt 3 ]] || kill -TERM $(cat "$STUB/running")\n'
    )
    place.tell("sleep")
    terminated(place, 30)
    assert place.told("signals") == "TERM\n"
    time.sleep(1.2)
    assert place.told("sent") == "x\n" * 3  # and not once more when it has ended


@pytest.mark.parametrize("name", ["LOGDIR", "DATADIR", "MODELDIR"])
@pytest.mark.parametrize("sign", [":", ","])
def test_a_path_that_cannot_be_written_in_a_list_of_mounts(place: Place, name: str, sign: str) -> None:
    place.tell("pyxis")
    folder = place.folder / f"a{sign}b"
    folder.mkdir()
    expected = (name, f"a{sign}b", "without ':' and ','")
    refused(slurm(place, "config_CPU_1x2.sh", CONT="image", **{name: str(folder)}), *expected)
    refused(docker(place, "config_CPU_1x2.sh", **{name: str(folder)}), *expected)
    assert slurm(place, "config_CPU_1x2.sh", **{name: str(folder)}).returncode == 0


def test_what_no_launcher_takes(place: Place) -> None:
    place.tell("pyxis")
    for image in ({}, {"CONT": "image"}):
        for given, expected in (
            ({"SAVE_DIR": "/c"}, ("SAVE_DIR", "'/c'", "LOGDIR/trial_<i>/checkpoints", "Unset it")),
            ({"RESUME": "1", "LOGDIR": ""}, ("RESUME", "without the LOGDIR", "Name it")),
        ):
            refused(docker(place, "config_CPU_1x2.sh", **image, **given), *expected)
            refused(slurm(place, "config_CPU_1x2.sh", **image, **given), *expected)
    assert place.seeds == []


def test_the_hosts_python_is_none_of_the_images(place: Place) -> None:
    place.tell("pyxis")
    slurm(place, "config_CPU_1x2.sh", CONT="image", PYTHONPATH="/x", VIRTUAL_ENV="/y")
    assert not {"PYTHON", "PYTHONPATH", "VIRTUAL_ENV"} & set(place.trial(5))
    slurm(place, "config_CPU_1x2.sh", PYTHONPATH="/x", LOGDIR=str(place.folder / "other"))
    assert place.trial(5)["PYTHONPATH"] == "/x"


def test_a_job_with_another_number_of_nodes(place: Place) -> None:
    refused(slurm(place, "config_B200_2x8.sh", 1), "DGXNNODES", "2 nodes", "sbatch --nodes=2")


def test_an_image_without_pyxis(place: Place) -> None:
    refused(slurm(place, "config_CPU_1x2.sh", CONT="image"), "CONT", "no pyxis", "Unset CONT")


def test_a_job_may_choose_its_folder(place: Place) -> None:
    assert slurm(place, "config_B200_2x8.sh", 2, LOGDIR="").returncode == 0
    assert Path(place.trial(5)["LOGDIR"]).parent.parent == place.scripts / "results"


def test_no_job(place: Place) -> None:
    refused(place.run("run.sub"), "SLURM_JOB_ID", "sbatch run.sub")


def test_a_job_submitted_from_elsewhere(place: Place) -> None:
    done = slurm(place, "config_CPU_1x2.sh", SLURM_SUBMIT_DIR=str(place.folder))
    refused(done, "run.sub", str(place.folder), "from the folder of this file")


def test_the_batch_shell_is_told_before_the_time_limit_and_never_repeated() -> None:
    directives = re.findall(r"^#SBATCH (.*)$", (ROOT / "run.sub").read_text(), re.MULTILINE)
    assert directives == ["--job-name=gptoss20b", "--exclusive", "--mem=0", "--no-requeue", "--signal=B:TERM@180"]


@pytest.mark.parametrize(
    ("node", "status", "expected"),
    [(0, 0, 0), (0, 1, 1), (0, 4, 4), (1, 0, 0), (1, 1, 0), (1, 143, 0), (1, 2, 2), (0, 2, 2)],
)
def test_only_a_node_that_could_not_begin_ends_the_first_one(
    tmp_path: Path, node: int, status: int, expected: int
) -> None:
    run = tmp_path / "run_and_time.sh"
    run.write_text(f"#!/bin/sh\nexit {status}\n")
    run.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "SLURM_NODEID": str(node)}
    done = subprocess.run([ROOT / "launch" / "slurm_task.sh"], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == expected
