"""Each trial as a step of a Slurm job, with pyxis in new containers."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time

from launch.child import Child
from launch.container import DATA, RESULTS, WORKDIR, forwarded_variables, known_variables, mounts
from launch.errors import RefusedError
from launch.launcher import CLEAR_CACHES, Launcher
from launch.plan import Plan
from launch.variables import Environment, require

# Until the signal to a step is repeated.
REPEAT_SECONDS = 20.0
# A step uses all CPUs of its nodes and the exported variables, and never times out after the end of its first task.
SRUN = ["srun", "--cpu-bind=none", "--mpi=none", "--export=ALL", "--wait=0"]
# The host's Python environment must not affect the image's Python.
_OF_THE_HOSTS_PYTHON = ("PYTHON", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


class SlurmLauncher(Launcher):
    """Start each trial on all nodes of a job: in containers of the image CONT, else with the nodes' own Python."""

    script = "sbatch run.sub"
    single_launcher = True

    def __init__(self, environment: Environment, plan: Plan) -> None:
        job_nodes = environment.get("SLURM_JOB_NUM_NODES")
        if job_nodes != str(plan.nodes):
            raise RefusedError(
                f"DGXNNODES: {environment['DGXSYSTEM']} needs {plan.nodes} nodes, but the job has {job_nodes}. "
                f"Submit with sbatch --nodes={plan.nodes}"
            )
        super().__init__(environment, plan)
        self.environment["MASTER_ADDR"] = environment.get("MASTER_ADDR") or _first_address(environment)
        # Each task is one node, which takes its rank from SLURM_NODEID.
        self.environment.pop("NODE_RANK", None)
        self.step = [*SRUN, f"--nodes={plan.nodes}", f"--ntasks={plan.nodes}", "--ntasks-per-node=1"]
        # bash has the same path in every image: srun may replace a command by its path on this host.
        self.clear_caches = [*self.step, *CLEAR_CACHES]
        self.container: list[str] = []
        self.python = [self.environment["PYTHON"]]
        if environment.get("CONT"):
            self._use_containers(environment["CONT"], environment, plan)

    def _use_containers(self, image: str, environment: Environment, plan: Plan) -> None:
        usage = subprocess.run(["srun", "--help"], stdout=subprocess.PIPE, text=True, check=False).stdout
        if "--container-image" not in usage:
            raise RefusedError(
                f"CONT: this Slurm has no pyxis, so it cannot run '{image}'. Unset CONT to use the nodes' own Python"
            )
        # No --container-name: pyxis removes an unnamed container at the end of its step.
        self.container = [
            f"--container-image={image}",
            f"--container-mounts={','.join(mounts(environment, plan))}",
            f"--container-workdir={WORKDIR}",
            "--no-container-mount-home",
        ]
        self.known = known_variables(environment)
        self.python = ["bash", "-c", 'exec python3 "$@"', "python3"]
        self.environment.update(DATADIR=DATA, LOGDIR=RESULTS)
        for name in _OF_THE_HOSTS_PYTHON:
            self.environment.pop(name, None)

    @staticmethod
    def check_start(environment: Environment) -> None:
        """Check that this is a job."""
        if not environment.get("SLURM_JOB_ID"):
            raise RefusedError("SLURM_JOB_ID: not set. Submit this batch script with: sbatch run.sub")
        require(environment, "SLURM_JOB_NODELIST")

    def _containers(self, environment: Environment) -> list[str]:
        """Return the flags of a step's containers. Every variable of the job is in them, but the image's own win.

        So the variables that a run may change are named here.
        """
        if not self.container:
            return []
        return [*self.container, f"--container-env={','.join(forwarded_variables(environment, self.known))}"]

    def trial_command(self, seed: int, environment: Environment) -> list[str]:
        """Return the command of a trial: one task per node."""
        task = ["bash", "run_and_time.sh", "--slurm-task"]
        return [*self.step, "--kill-on-bad-exit=1", *self._containers(environment), *task]

    def python_command(self, environment: Environment, on_gpus: bool = False) -> list[str]:
        """Return the command of Python on the first node."""
        return [*SRUN, "--nodes=1", "--ntasks=1", *self._containers(environment), *self.python]

    def stop_trial(self, child: Child, number: signal.Signals) -> None:
        """Signal the tasks through Slurm, so that each has time to end its log: srun would kill its tasks on TERM.

        The signal is repeated: a task that does not run yet, because its image is being imported, does not get it.
        """
        command = ["scancel", "--signal=TERM", self.environment["SLURM_JOB_ID"]]

        def terminate_steps() -> None:
            while child.returncode is None:
                subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
                time.sleep(REPEAT_SECONDS)

        threading.Thread(target=terminate_steps, daemon=True).start()


def _first_address(environment: Environment) -> str:
    """Return Slurm's own address of the first node: the host name may not resolve on the other nodes."""
    nodes = _ask("scontrol", "show", "hostnames", environment["SLURM_JOB_NODELIST"]).split()
    node = nodes[0] if nodes else ""
    found = re.search(r" NodeAddr=(\S+)", _ask("scontrol", "--oneliner", "show", "node", node))
    return found[1] if found else node


def _ask(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout
