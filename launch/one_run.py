"""One timed run of this node: check, clear caches, train, report.

Exit status: 0 converged, 1 failed, 2 bad configuration, 3 target not reached, 4 diverged, 5 converged but not
compliant, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from launch.child import TERMINATED, WITH_PARENT, Supervisor, log
from launch.errors import RefusedError
from launch.plan import default_logdir
from launch.trial_set import lock, warn_if_full
from launch.variables import (
    Environment,
    check_system,
    make_folder,
    read_choice,
    read_integer,
    read_node_rank,
    resume_requested,
)

CACHES_NOT_CLEARED = "warning: could not drop the page cache (needs root on the host); cache_clear is logged as false"
RULESET = "6.1.0"


def checker_arguments(folder: str) -> list[str]:
    """Return Python's arguments for the official checker of the log in a folder."""
    return [
        *["-m", "mlperf_logging.compliance_checker", "--usage", "training", "--ruleset", RULESET],
        *["--log_output", f"{folder}/compliance_checker.log", f"{folder}/result_0.txt"],
    ]


class OneRun:
    """A run, or this node's part of it.

    Attributes:
        logdir: folder of the log.
        is_leader: this is node 0, whose rank 0 writes the log.
    """

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        check_system(environment)
        self.nodes = read_integer(environment, "DGXNNODES", 1, 1, 100_000)
        # "done": the launcher has just dropped the caches of all hosts, which a container may be unable to do.
        self.clear_caches = read_choice(environment, "CLEAR_CACHES", "0", "0", "1", "done")
        self.check_compliance = read_choice(environment, "CHECK_COMPLIANCE", "1", "0", "1") == "1"
        environment["NODE_RANK"] = environment.get("NODE_RANK") or environment.get("SLURM_NODEID", "")
        self.node_rank = read_node_rank(environment, self.nodes)
        self.is_leader = self.node_rank == 0
        # A trial of a set has a LOGDIR and no terminal.
        self.is_trial = bool(environment.get("LOGDIR")) and not sys.stderr.isatty()
        self.bind_command = _read_bind_command(environment)
        self.logdir = environment["LOGDIR"] = default_logdir(environment)
        environment["NEXP"] = "1"  # preflight looks for room for this run's checkpoints
        self.log = Path(self.logdir, "result_0.txt")
        self.supervisor = Supervisor()

    def run(self) -> int:
        """Return the exit status of the run."""
        if self._python("preflight", stdout=subprocess.DEVNULL).returncode:
            return 2
        fds = self._take_folder() if self.is_leader else ()
        # The log records whether the caches were in fact dropped, so a value from the environment is ignored.
        self.environment["CACHE_CLEARED"] = self._clear_caches()
        begin, system = time.monotonic(), self.environment["DGXSYSTEM"]
        log(f"run of {system} started at {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}")
        with self.supervisor.handle_signals():
            status = self.supervisor.run(self._torchrun(), self.environment, pass_fds=fds)
        log(f"run of {system} ended after {time.monotonic() - begin:.0f} s")
        # Only the leader has the log.
        status = self._report(status) if self.is_leader else status
        return self.supervisor.terminated or status

    def _take_folder(self) -> tuple[int, ...]:
        """Create and lock the folder of the log, which must not have one, unless the run resumes."""
        make_folder("LOGDIR", self.logdir)
        busy = f"LOGDIR: another run is writing to '{self.logdir}'. Wait until it ends, or use another folder"
        locked = lock(Path(self.logdir, ".lock"), busy)
        if self.log.exists() and not resume_requested(self.environment):
            raise RefusedError(f"LOGDIR: '{self.log}' exists, and results are never overwritten. Use another folder")
        return (locked,)

    def _clear_caches(self) -> str:
        if self.clear_caches != "1":
            return str(int(self.clear_caches == "done"))
        if subprocess.run(["bash", "launch/clear_caches.sh"], check=False).returncode:
            log(CACHES_NOT_CLEARED)
            return "0"
        return "1"

    def _torchrun(self) -> list[str]:
        environment = self.environment
        python = environment["PYTHON"]
        command = [python, "-m", "gptoss20b.launch", f"--nproc_per_node={environment['DGXNGPU']}"]
        if self.nodes == 1:
            command.append("--standalone")
        else:
            command += [f"--nnodes={self.nodes}", f"--node_rank={self.node_rank}"]
            command += [f"--master_addr={environment['MASTER_ADDR']}"]
            command += [f"--master_port={environment.get('MASTER_PORT') or 29500}"]
        if self.bind_command:
            command += ["--no-python", *self.bind_command, python, "-u"]
        return [*command, "-m", "gptoss20b", "train"]

    def _report(self, status: int) -> int:
        """Print the outcome, and return the run's exit status, given that of `gptoss20b.launch`: 0, 1 or 2."""
        terminated = self.supervisor.terminated
        if status == 2 and not terminated:
            return 2  # the run was refused, and has said why: a log here is an earlier start's, or its self-test's
        if not self.log.exists():
            log(f"error: the run ended with status {status} before it wrote a log")
            warn_if_full(Path(self.logdir))
            return status or 1
        outcome = self._python("result", self.logdir, stdout=subprocess.PIPE)
        # A failure that is not in the log is still a failure. torchrun sends TERM to the other ranks when one fails:
        # that is a failure, not a request to terminate.
        code = outcome.returncode
        if not terminated and ((code == 0 and status) or code == TERMINATED):
            code = 1
        if code == 0 and not terminated:
            code = self._check()
        if code in (0, 3, 4, 5) and not terminated:
            self._draw_report()
        if code == 0 and not self.is_trial:
            system = self.environment["DGXSYSTEM"]
            log(f"next, the ten runs of a result: source config_{system}.sh && NEXP=10 ./run_local.sh")
        # The run has just shown its result, if it could.
        if outcome.returncode not in (0, 3, 4):
            log(outcome.stdout.rstrip("\n"))
        if code == 1:
            warn_if_full(Path(self.logdir))
        return code

    def _check(self) -> int:
        """Run the official checker on the log, and return 0, or 5 if it rejects the log."""
        if not self.check_compliance:
            return 0
        command = [self.environment["PYTHON"], *checker_arguments(self.logdir)]
        rejected = _run_quietly(command, self.environment).returncode
        failed = f"FAILED, see {self.logdir}/compliance_checker.log"
        log(f"compliance checker ({RULESET}): {failed if rejected else 'passed'}")
        return 5 if rejected else 0

    def _draw_report(self) -> None:
        """Draw the log. A failure is only a warning, and an environment without the packages draws nothing."""
        python, page, curve = self.environment["PYTHON"], f"{self.logdir}/report.html", f"{self.logdir}/loss_curve.svg"
        if _run_quietly([python, "-c", "import compliance.render.report_file"], self.environment).returncode:
            return
        command = [python, "-m", "compliance", "report", "--out", page, "--curve", curve, str(self.log)]
        done = _run_quietly(command, self.environment)
        # Status 1: the log violates a rule, as the report says.
        if done.returncode > 1:
            log(f"warning: could not draw '{page}': {done.stdout.strip()}")
            return
        log(f"report: {page}")
        # A run that ended before its first evaluation has no curve.
        if Path(curve).exists():
            log(f"loss curve: {curve}")

    def _python(self, *arguments: str, stdout: int) -> subprocess.CompletedProcess[str]:
        command = [*WITH_PARENT, self.environment["PYTHON"], "-m", "gptoss20b", *arguments]
        return subprocess.run(command, env=self.environment, stdout=stdout, text=True, check=False)


def run_slurm_task(environment: Environment) -> int:
    """Run one node's part of a trial, under srun --kill-on-bad-exit.

    Only node 0's log has the outcome. A worker may end first with status 1, and srun would then kill node 0 while it
    reports. So workers hide their failures, except status 2: a node that cannot start must end the step.
    """
    run = OneRun(environment)
    status = run.run()
    return status if run.is_leader or status == 2 else 0


def _read_bind_command(environment: Environment) -> list[str]:
    """Return BINDCMD, a command that starts each rank on its own CPUs, as words."""
    try:
        words = shlex.split(environment.get("BINDCMD", ""))
    except ValueError as error:
        raise RefusedError(f"BINDCMD: got '{environment['BINDCMD']}': {error}. Quote it as in a shell") from error
    if words and not shutil.which(words[0]):
        raise RefusedError(f"BINDCMD: '{words[0]}' cannot be executed. Unset BINDCMD, or name a command on PATH")
    return words


def _run_quietly(command: list[str], environment: Environment) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
