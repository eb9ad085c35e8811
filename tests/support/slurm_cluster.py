"""A real Slurm on this machine: a controller and several nodes, in one folder and on its own ports.

Debian's slurmd can be several nodes of one host (`slurmd -N`), so the nodes share the host's name and CPUs. The
system's own Slurm and MUNGE are not touched: key, socket, configuration, state and logs are in the folder. Every daemon
listens only on the loopback address, and runs as the user of the tests. `unavailable` names missing programs.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "scancel", "scontrol", "sinfo", "srun")
PACKAGES = "slurmctld slurmd slurm-client munge"
# Daemons are in sbin, which may not be on PATH.
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
# The path of a Unix socket has at most 107 characters. The longest here is <folder>/n1/n1_1234.4294967291.
LONGEST_FOLDER = 80
START_LIMIT_S = 20.0
POLL_S = 0.05
PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl
UNFINISHED = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0
EnforcePartLimits=ALL
PartitionName=test Nodes=ALL Default=YES
"""


def unavailable() -> str | None:
    """Return why Slurm cannot run on this machine, or None if it can."""
    missing = [name for name in (*DAEMONS, *CLIENTS) if find_program(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install --no-install-recommends {PACKAGES}"
    return None


def find_program(name: str) -> str | None:
    """Return the path of one of Slurm's programs, or None."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN]))


@dataclass(frozen=True)
class JobEnd:
    """End of a job: Slurm's state, and the exit status and signal of the batch script."""

    state: str
    status: int
    signal: int


@dataclass(frozen=True)
class Slurm:
    """A running cluster.

    Attributes:
        environment: variables that Slurm's clients need to find it.
        daemons: process ids.
    """

    folder: Path
    environment: dict[str, str]
    nodes: tuple[str, ...]
    daemons: list[int] = field(default_factory=list)

    def run(
        self, command: Sequence[str], cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, e.g. ``["scancel", "7"]``. Jobs get its environment, by default that of this process."""
        variables = {**(_environment_outside_jobs() if environment is None else environment), **self.environment}
        return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False, timeout=60)

    def sbatch(
        self, arguments: Sequence[str], cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> int:
        """Submit a job, and return its id. Its output is in ``cwd`` unless the arguments name a file."""
        done = self.run(["sbatch", "--parsable", *arguments], cwd, environment)
        if done.returncode != 0:
            raise AssertionError(f"sbatch {' '.join(arguments)}: exit status {done.returncode}\n{done.stderr}")
        return int(done.stdout)

    def wait(self, job: int, timeout: float) -> JobEnd:
        """Wait for the end of a job and all its tasks. Raise TimeoutError, with the logs, after ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while True:
            shown = self.run(["scontrol", "--oneliner", "show", "job", str(job)]).stdout
            found = re.search(r" JobState=(\w+) .* ExitCode=(\d+):(\d+) ", shown)
            if found is None:
                raise AssertionError(f"job {job}: unknown to the controller: {shown!r}\n{self.logs()}")
            if found[1] not in UNFINISHED:
                return JobEnd(found[1], int(found[2]), int(found[3]))
            if time.monotonic() > end:
                raise TimeoutError(f"job {job} is {found[1]} after {timeout:g} s\n{self.logs()}")
            time.sleep(POLL_S)

    def logs(self) -> str:
        """Return the logs of all daemons."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')}" for path in sorted(self.folder.glob("*.log"))
        )


@contextlib.contextmanager
def cluster(folder: Path, nodes: int = 2) -> Iterator[Slurm]:
    """Start Slurm in ``folder`` with nodes n1, n2, ... of two CPUs each, and kill all of it at the end of the block.

    Running jobs are killed too, even if this process is killed.
    """
    folder = folder.resolve()
    if len(str(folder)) > LONGEST_FOLDER:
        raise ValueError(f"{folder}: a path over {LONGEST_FOLDER} characters is too long for Slurm's sockets")
    names = tuple(f"n{number}" for number in range(1, nodes + 1))
    slurm = Slurm(folder, {"SLURM_CONF": str(folder / "slurm.conf")}, names)
    _write_configuration(slurm)
    with _keeper(slurm.environment) as keeper:
        _start_all(slurm, keeper)
        yield slurm


def find_free_ports(count: int) -> list[int]:
    """Return different ports of the loopback address on which nobody listens."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _write_configuration(slurm: Slurm) -> None:
    """Make the folders, the MUNGE key and slurm.conf."""
    for name in ("munge", "state", *slurm.nodes):
        (slurm.folder / name).mkdir(mode=0o700, parents=True)
    key = slurm.folder / "munge" / "key"
    key.touch(mode=0o600)  # munged refuses a key that others can read
    key.write_bytes(secrets.token_bytes(64))
    host = socket.gethostname().split(".")[0]
    port, *ports = find_free_ports(1 + len(slurm.nodes))
    text = CONFIGURATION.format(host=host, port=port, folder=slurm.folder, user=os.geteuid())
    for node, own_port in zip(slurm.nodes, ports, strict=True):
        text += f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={own_port} CPUs=2\n"
    (slurm.folder / "slurm.conf").write_text(text)


def _start_all(slurm: Slurm, keeper: subprocess.Popen[str]) -> None:
    munge = slurm.folder / "munge"
    files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "seed")]
    # --force: munged would refuse the socket's folder, because of the owners of the folders above it.
    _start(slurm, keeper, "munged", "munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *files)
    _wait_until(slurm, (munge / "socket").is_socket, "the socket of munged")
    _start(slurm, keeper, "slurmctld", "slurmctld", "-D")
    for node in slurm.nodes:
        _start(slurm, keeper, f"slurmd-{node}", "slurmd", "-D", "-N", node)
    _wait_until(slurm, lambda: _idle_nodes(slurm) == list(slurm.nodes), f"{len(slurm.nodes)} idle nodes")


def _start(slurm: Slurm, keeper: subprocess.Popen[str], log: str, name: str, *arguments: str) -> None:
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    keeper.stdin.write(json.dumps([str(slurm.folder / f"{log}.log"), find_program(name), *arguments]) + "\n")
    keeper.stdin.flush()
    slurm.daemons.append(int(keeper.stdout.readline()))


def _wait_until(slurm: Slurm, condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + START_LIMIT_S
    while not condition():
        if not all(map(psutil.pid_exists, slurm.daemons)) or time.monotonic() > end:
            raise RuntimeError(f"no Slurm: waited for {what}\n{slurm.logs()}")
        time.sleep(POLL_S)


def _idle_nodes(slurm: Slurm) -> list[str]:
    return sorted(slurm.run(["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]).stdout.split())


def _environment_outside_jobs() -> dict[str, str]:
    """Return this process's environment without the variables of a Slurm job, in which the tests may run."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}


def _keeper(environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start the process that owns the daemons, and kills them when this process closes its stdin or dies."""
    return subprocess.Popen(
        [sys.executable, __file__],
        env={**_environment_outside_jobs(), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the tests, which then end it
    )


def _keep() -> None:
    """Start a daemon for each line of stdin and print its process id. At the end of stdin, kill all descendants.

    slurmd is not the parent of the steps of jobs, which have their own sessions. This process finds them because it is
    a subreaper: orphans become its children, and not those of init.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    for line in sys.stdin:
        log, *command = json.loads(line)
        with Path(log).open("wb") as output:
            daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        print(daemon.pid, flush=True)
    while children := psutil.Process().children():
        for process in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(POLL_S)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    _keep()
