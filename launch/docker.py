"""Each trial in a new container of docker."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path

from launch.child import Child, forward
from launch.container import DATA, RESULTS, forwarded_variables, known_variables, mounts
from launch.errors import RefusedError
from launch.launcher import CLEAR_CACHES, Launcher
from launch.plan import Plan
from launch.variables import Environment

DEVICES = Path("/dev")
# Until docker kills a container that does not end.
_GRACE_SECONDS = 120


class DockerLauncher(Launcher):
    """Start each trial in a container of the image CONT. The caches are the host's."""

    script = f"{Path.cwd()}/run_with_docker.sh"

    def __init__(self, environment: Environment, plan: Plan) -> None:
        super().__init__(environment, plan)
        volumes = mounts(environment, plan)
        self.image = environment.get("CONT") or "gptoss20b"
        _check_image(self.image)
        self.clear_caches = CLEAR_CACHES
        # Unique: this launcher only ever stops its own containers.
        self.name = f"gptoss20b_{os.getpid()}_{secrets.randbelow(10**9)}"
        self.container = ""
        # The check for misspelt settings needs the names of all variables of the host, but none of their values.
        self.environment.update(DATADIR=DATA, LOGDIR=RESULTS, HOST_VARIABLES=":".join(environment))
        user = f"{os.getuid()}:{os.getgid()}"
        # A folder may be accessible only through one of the user's other groups.
        groups = [f"--group-add={group}" for group in sorted({os.getgid(), *os.getgroups()})]
        self.docker_run = ["docker", "run", "--rm", "--init", f"--user={user}", *groups]
        self.docker_run += [f"--volume={volume}" for volume in volumes]
        self.known = known_variables(environment, self._list_settings())
        self.devices = _device_flags(environment, plan)

    def _list_settings(self) -> list[str]:
        command = ["docker", "run", "--rm", self.image, "python3", "-m", "gptoss20b", "settings"]
        names = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.split()
        if not names:
            raise RefusedError(
                f"CONT: image '{self.image}' does not list its settings (python3 -m gptoss20b settings). "
                "Rebuild it from this checkout"
            )
        return names

    def _with_variables(self, environment: Environment) -> list[str]:
        # --env=NAME takes the value from the environment, so no value appears in a command line.
        return [f"--env={name}" for name in forwarded_variables(environment, self.known)]

    def trial_command(self, seed: int, environment: Environment) -> list[str]:
        """Return the command of a trial in a container with the name of its seed."""
        self.container = f"{self.name}_{seed}"
        flags = [f"--name={self.container}", *self.devices, *self._with_variables(environment)]
        return [*self.docker_run, *flags, self.image, "./run_and_time.sh"]

    def python_command(self, environment: Environment, on_gpus: bool = False) -> list[str]:
        """Return the command of the image's Python."""
        devices = self.devices if on_gpus else []
        return [*self.docker_run, *devices, *self._with_variables(environment), self.image, "python3"]

    def stop_trial(self, child: Child, number: signal.Signals) -> None:
        """Stop the client and the container: the client forwards a signal only once its container runs."""
        forward(child, number)
        subprocess.Popen(self._docker_stop(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def clean_up(self) -> None:
        """Stop the container: the client may end before it."""
        subprocess.run(self._docker_stop(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)

    def _docker_stop(self) -> list[str]:
        return ["docker", "stop", f"--time={_GRACE_SECONDS}", self.container]


def _check_image(image: str) -> None:
    if not shutil.which("docker"):
        raise RefusedError("docker: command not found. Install docker, or run without a container: ./run_local.sh")
    if not _succeeds("docker", "image", "inspect", image):
        raise RefusedError(
            f"CONT: image '{image}' is not on this machine. Build it: docker build --build-arg "
            f"GIT_COMMIT=\"$(git describe --always --dirty --abbrev=40 --exclude='*')\" -t {image} ."
        )


def _device_flags(environment: Environment, plan: Plan) -> list[str]:
    """Return the flags that give a container the accelerators and the network, unless the configuration hides them.

    SYS_NICE: without it docker forbids the memory policies of numactl, which binds ranks to NUMA nodes.
    """
    flags = ["--ulimit=memlock=-1", "--ulimit=stack=67108864", "--ipc=host", "--cap-add=SYS_NICE"]
    if environment.get("CUDA_VISIBLE_DEVICES") == "-1":
        pass
    elif _succeeds("nvidia-smi", "--list-gpus"):
        flags.append("--gpus=all")
    elif _succeeds("rocm-smi", "--showid") or _succeeds("amd-smi", "list"):
        flags += ["--device=/dev/kfd", "--device=/dev/dri", "--security-opt=seccomp=unconfined"]
        # By number, not by name: the devices belong to the host's groups, which have other numbers in the image.
        devices = [*DEVICES.glob("kfd"), *(DEVICES / "dri").glob("renderD*")]
        flags += [f"--group-add={group}" for group in sorted({device.stat().st_gid for device in devices})]
    else:
        raise RefusedError(
            f"DGXSYSTEM: {environment['DGXSYSTEM']} needs GPUs, but nvidia-smi, rocm-smi and amd-smi find none. "
            "Source config_CPU_1x2.sh on a machine without GPUs"
        )
    if (DEVICES / "infiniband").is_dir():
        flags.append("--device=/dev/infiniband")
    # Nodes connect to each other by the hosts' addresses. A single node needs no network.
    return flags if plan.nodes == 1 else [*flags, "--network=host"]


def _succeeds(*command: str) -> bool:
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    except OSError:
        return False
    return done.returncode == 0
