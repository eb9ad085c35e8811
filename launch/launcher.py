"""How a trial is started: on this machine, here; in a container or by Slurm, in the subclasses."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from launch.child import WITH_PARENT, Child, Supervisor, forward
from launch.plan import Plan
from launch.variables import Environment

CLEAR_CACHES = ["bash", "launch/clear_caches.sh"]


class Launcher:
    """Start trials with this machine's Python.

    Attributes:
        environment: variables of every process, with DATADIR and LOGDIR as a trial sees them.
        clear_caches: command that clears the caches of all hosts before a trial; empty where the trial itself can.
    """

    script = f"{Path.cwd()}/run_local.sh"
    # One launcher starts all nodes.
    single_launcher = False

    def __init__(self, environment: Environment, plan: Plan) -> None:
        self.plan = plan
        self.clear_caches: list[str] = []
        # NEXP: preflight looks for room for all checkpoints of the set. Each trial has its own SEED.
        self.environment = environment | {
            "DATADIR": plan.data,
            "LOGDIR": str(plan.files.folder),
            "DGXNNODES": str(plan.nodes),
            "CHECK_COMPLIANCE": str(int(plan.check_compliance)),
            "NEXP": str(plan.files.trials),
            "SEED": "",
        }

    @staticmethod
    def check_start(environment: Environment) -> None:
        """Check what must be known before the variables of the set; raise RefusedError."""

    def trial_command(self, seed: int, environment: Environment) -> list[str]:
        """Return the command of a trial."""
        return ["./run_and_time.sh"]

    def python_command(self, environment: Environment, on_gpus: bool = False) -> list[str]:
        """Return the command of Python where the harness is installed; ``on_gpus``: where it sees a trial's GPUs."""
        return [environment["PYTHON"]]

    def stop_trial(self, child: Child, number: signal.Signals) -> None:
        """End the running trial in an orderly way."""
        forward(child, number)

    def clean_up(self) -> None:
        """Remove what an ended trial may have left running."""

    def folder(self, number: int) -> str:
        """Return the folder of a trial, as the trial sees it."""
        return str(Path(self.environment["LOGDIR"], f"trial_{number}"))

    def run_python(self, supervisor: Supervisor, *arguments: str) -> int:
        """Run Python without output, and return its exit status."""
        command = [*self.python_command(self.environment), *arguments]
        return supervisor.run(command, self.environment, output=subprocess.DEVNULL)

    def ask_python(self, *arguments: str, on_gpus: bool = False) -> tuple[int, str]:
        """Run Python, and return its exit status and stdout."""
        command = [*WITH_PARENT, *self.python_command(self.environment, on_gpus), *arguments]
        done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, text=True, check=False)
        return done.returncode, done.stdout
