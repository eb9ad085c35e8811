"""A real Slurm on this one machine: a controller and several nodes, in a folder and on ports of its own.

Debian's slurmd can be several nodes of one host (`slurmd -N`), so two nodes share the host's name and its CPUs. Nothing
of the system's own Slurm or MUNGE is read, written or spoken to: key, socket, configuration, state and logs are in the
folder, every daemon listens on the loopback address alone and runs as the user of the tests, root or not. Nothing is
installed here; `unavailable` says what is missing.
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
# Daemons live in sbin, which is not on every user's PATH.
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
# A Unix socket's path has at most 107 characters; slurmd's, <folder>/n1/n1_1234.4294967291, are the longest here.
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
    """Why no Slurm can run here, or None if one can."""
    missing = [name for name in (*DAEMONS, *CLIENTS) if program(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install --no-install-recommends {PACKAGES}"
    return None


def program(name: str) -> str | None:
    """The path of one of Slurm's programs, also where sbin is not on PATH."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN]))


@dataclass(frozen=True)
class Ended:
    """How a job ended: Slurm's word for it, and the exit status and the signal of the batch script."""

    state: str
    status: int
    signal: int


@dataclass(frozen=True)
class Slurm:
    """A cluster that is up. ``environment`` is what a process needs to speak to it; ``daemons`` are process numbers."""

    folder: Path
    environment: dict[str, str]
    nodes: tuple[str, ...]
    daemons: list[int] = field(default_factory=list)

    def run(
        self, command: Sequence[str], cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's clients, e.g. ``["scancel", "7"]``, whatever its exit status.

        ``environment`` is that of the command, and so of the job it submits; this process's own by default, less the
        variables of a Slurm job that these tests may run in. The cluster's own is always added.
        """
        whole = {**(_outside_of_jobs() if environment is None else environment), **self.environment}
        return subprocess.run(command, cwd=cwd, env=whole, capture_output=True, text=True, check=False, timeout=60)

    def sbatch(
        self, arguments: Sequence[str], cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> int:
        """Submit a job and return its number; as `run` otherwise. Where nothing else is said it writes into ``cwd``."""
        done = self.run(["sbatch", "--parsable", *arguments], cwd, environment)
        if done.returncode != 0:
            raise AssertionError(f"sbatch {' '.join(arguments)}: exit status {done.returncode}\n{done.stderr}")
        return int(done.stdout)

    def wait(self, job: int, timeout: float) -> Ended:
        """Wait until a job and all its tasks are over; TimeoutError, with the logs, after ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while True:
            shown = self.run(["scontrol", "--oneliner", "show", "job", str(job)]).stdout
            found = re.search(r" JobState=(\w+) .* ExitCode=(\d+):(\d+) ", shown)
            if found is None:
                raise AssertionError(f"job {job}: not known to the controller: {shown!r}\n{self.logs()}")
            if found[1] not in UNFINISHED:
                return Ended(found[1], int(found[2]), int(found[3]))
            if time.monotonic() > end:
                raise TimeoutError(f"job {job} is {found[1]} after {timeout:g} s\n{self.logs()}")
            time.sleep(POLL_S)

    def logs(self) -> str:
        """What the daemons have said, for the message of a failed assertion."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')}" for path in sorted(self.folder.glob("*.log"))
        )


@contextlib.contextmanager
def cluster(folder: Path, nodes: int = 2) -> Iterator[Slurm]:
    """Start Slurm in ``folder``, with the nodes n1, n2, ... of two CPUs each; at the end nothing of it is left.

    What runs then is killed at once, also the tasks of jobs and if this process is killed: wait for jobs that matter.
    """
    folder = folder.resolve()
    if len(str(folder)) > LONGEST_FOLDER:
        raise ValueError(f"{folder}: a path over {LONGEST_FOLDER} characters is too long for Slurm's sockets")
    names = tuple(f"n{number}" for number in range(1, nodes + 1))
    slurm = Slurm(folder, {"SLURM_CONF": str(folder / "slurm.conf")}, names)
    _prepare(slurm)
    with _keeper(slurm.environment) as keeper:
        _start_all(slurm, keeper)
        yield slurm


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _prepare(slurm: Slurm) -> None:
    """The folders, the key and the configuration."""
    for name in ("munge", "state", *slurm.nodes):
        (slurm.folder / name).mkdir(mode=0o700, parents=True)
    key = slurm.folder / "munge" / "key"
    key.touch(mode=0o600)  # munged refuses one that others can read
    key.write_bytes(secrets.token_bytes(64))
    host = socket.gethostname().split(".")[0]
    port, *ports = free_ports(1 + len(slurm.nodes))
    text = CONFIGURATION.format(host=host, port=port, folder=slurm.folder, user=os.geteuid())
    for node, own_port in zip(slurm.nodes, ports, strict=True):
        text += f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={own_port} CPUs=2\n"
    (slurm.folder / "slurm.conf").write_text(text)


def _start_all(slurm: Slurm, keeper: subprocess.Popen[str]) -> None:
    munge = slurm.folder / "munge"
    files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "seed")]
    # --force: the folders above belong to whoever made them, which munged would refuse.
    _start(slurm, keeper, "munged", "munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *files)
    _until(slurm, (munge / "socket").is_socket, "the socket of munged")
    _start(slurm, keeper, "slurmctld", "slurmctld", "-D")
    for node in slurm.nodes:
        _start(slurm, keeper, f"slurmd-{node}", "slurmd", "-D", "-N", node)
    _until(slurm, lambda: _idle(slurm) == list(slurm.nodes), f"{len(slurm.nodes)} idle nodes")


def _start(slurm: Slurm, keeper: subprocess.Popen[str], log: str, name: str, *arguments: str) -> None:
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    keeper.stdin.write(json.dumps([str(slurm.folder / f"{log}.log"), program(name), *arguments]) + "\n")
    keeper.stdin.flush()
    slurm.daemons.append(int(keeper.stdout.readline()))


def _until(slurm: Slurm, reached: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + START_LIMIT_S
    while not reached():
        if not all(map(psutil.pid_exists, slurm.daemons)) or time.monotonic() > end:
            raise RuntimeError(f"no Slurm: waited for {what}\n{slurm.logs()}")
        time.sleep(POLL_S)


def _idle(slurm: Slurm) -> list[str]:
    return sorted(slurm.run(["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]).stdout.split())


def _outside_of_jobs() -> dict[str, str]:
    """This process's environment, without what a Slurm that these tests may run under has put there."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}


def _keeper(environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """The process that keeps all others of a cluster, and ends them when this one closes its input or dies."""
    return subprocess.Popen(
        [sys.executable, __file__],
        env={**_outside_of_jobs(), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # an interrupt at the terminal is for the tests, which then end it
    )


def _keep() -> None:
    """Start a daemon for each line of the input and say its number; at the end of the input kill all that is left.

    The steps of jobs are no children of slurmd, hide their environment, and have sessions of their own: what makes them
    findable is that orphans become children of this process, not of init.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    for line in sys.stdin:
        log, *command = json.loads(line)
        with Path(log).open("wb") as output:
            daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        print(daemon.pid, flush=True)
    while left := psutil.Process().children():
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(POLL_S)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    _keep()
