"""Start a run or a set: `python -m launch run | local | docker | slurm`, from run_and_time.sh and the launchers."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from launch.child import INTERRUPTED, TERMINATED
from launch.docker import DockerLauncher
from launch.errors import RefusedError
from launch.launcher import Launcher
from launch.one_run import OneRun, run_slurm_task
from launch.plan import read_plan
from launch.slurm import SlurmLauncher
from launch.trials import Leader, Worker
from launch.variables import Environment, resolve_from

LAUNCHERS: dict[str, type[Launcher]] = {"local": Launcher, "docker": DockerLauncher, "slurm": SlurmLauncher}


def run_set(kind: type[Launcher], environment: Environment) -> int:
    """Run the trials of a set, and return its exit status.

    0 all converged, 1 a trial failed, 2 bad configuration, 3 a trial diverged or did not reach the target, 5 converged
    but not compliant, 130 interrupted, 143 terminated.
    """
    kind.check_start(environment)
    plan = read_plan(environment, kind.single_launcher)
    launcher = kind(environment, plan)
    return (Worker if plan.node_rank else Leader)(plan, launcher).run()


def main() -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(
        usage="source config_<SYSTEM>.sh && [VARIABLE=VALUE ...] ./run_and_time.sh | ./run_local.sh | ...",
        description="Start one run, or the NEXP trials of a set, of the sourced configuration. Environment variables "
        "are all options: docs/running.md lists those of the launchers, docs/reference/settings.md those of a run.",
    )
    # From the scripts: what to start, the folder of relative paths in variables, and if srun has started it.
    parser.add_argument("what", choices=["run", *LAUNCHERS], help=argparse.SUPPRESS)
    parser.add_argument("--from", dest="start", default=".", help=argparse.SUPPRESS)
    parser.add_argument("--slurm-task", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    environment = dict(os.environ)
    resolve_from(arguments.start, environment, "LOGDIR", "DATADIR", "MODELDIR", "SAVE_DIR")
    # A trial writes to a pipe. On a terminal behind that pipe, the log's records would hide the progress.
    if arguments.what != "run" and sys.stdout.isatty():
        environment.setdefault("MLLOG_STDOUT", "0")
    try:
        if arguments.what != "run":
            return run_set(LAUNCHERS[arguments.what], environment)
        return run_slurm_task(environment) if arguments.slurm_task else OneRun(environment).run()
    except RefusedError as error:
        # A check that has explained itself leaves no message.
        if str(error):
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


def _end(_number: int, _frame: object) -> None:
    """End before or after the run, by TERM or HUP: the checks or reports that run are killed."""
    sys.exit(TERMINATED)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    sys.exit(main())
