"""A real Slurm on this machine: a controller and two nodes, in one folder and on its own ports.

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

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "srun")
NODES = ("n1", "n2")
# Daemons are in sbin, which may not be on PATH.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
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
    missing = [name for name in PROGRAMS if shutil.which(name, path=SEARCH_PATH) is None]
    packages = "slurmctld slurmd slurm-client munge"
    return f"{', '.join(missing)} not installed: apt-get install {packages}" if missing else None


@dataclass(frozen=True)
class Slurm:
    """A running cluster, its folder, and the process ids of its daemons."""

    folder: Path
    daemons: list[int] = field(default_factory=list)

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """Run a client, and return its output. Jobs get its environment, by default that of this process."""
        variables = {**(_environment_outside_jobs() if environment is None else environment), **self.variables()}
        return subprocess.run(
            command, env=variables, cwd=cwd, stdout=subprocess.PIPE, text=True, check=True, timeout=60
        ).stdout

    def variables(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def wait(self, job: int, limit_s: float) -> tuple[str, int]:
        """Wait for the end of a job and all its tasks. Return its state and the exit status of the batch script."""
        end = time.monotonic() + limit_s
        while True:
            shown = self.run(["scontrol", "--oneliner", "show", "job", str(job)])
            found = re.search(r" JobState=(\w+) .* ExitCode=(\d+):", shown)
            assert found is not None, shown
            if found[1] not in UNFINISHED:
                return found[1], int(found[2])
            assert time.monotonic() < end, f"job {job} is {found[1]} after {limit_s:g} s\n{self.logs()}"
            time.sleep(POLL_S)

    def logs(self) -> str:
        """Return the logs of all daemons."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')}" for path in sorted(self.folder.glob("*.log"))
        )


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Slurm]:
    """Start Slurm in ``folder``, with two CPUs per node, and kill all of it at the end of the block.

    Running jobs are killed too, even if this process is killed.
    """
    slurm = Slurm(folder.resolve())
    if len(str(slurm.folder)) > LONGEST_FOLDER:
        raise ValueError(f"{slurm.folder}: a path over {LONGEST_FOLDER} characters is too long for Slurm's sockets")
    _write_configuration(slurm.folder)
    # The keeper owns the daemons. It kills them when this process closes its stdin or dies.
    with subprocess.Popen(
        [sys.executable, __file__],
        env={**_environment_outside_jobs(), **slurm.variables()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the tests, which then end it
    ) as keeper:
        _start_all(slurm, keeper)
        yield slurm


def _write_configuration(folder: Path) -> None:
    """Make the folders, the MUNGE key and slurm.conf."""
    for name in ("munge", "state", *NODES):
        (folder / name).mkdir(mode=0o700, parents=True)
    key = folder / "munge" / "key"
    key.touch(mode=0o600)  # munged refuses a key that others can read
    key.write_bytes(secrets.token_bytes(64))
    host = socket.gethostname().split(".")[0]
    port, *ports = _find_free_ports(1 + len(NODES))
    text = CONFIGURATION.format(host=host, port=port, folder=folder, user=os.geteuid())
    for node, node_port in zip(NODES, ports, strict=True):
        text += f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs=2\n"
    (folder / "slurm.conf").write_text(text)


def _find_free_ports(count: int) -> list[int]:
    """Return different ports of the loopback address on which nobody listens."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _start_all(slurm: Slurm, keeper: subprocess.Popen[str]) -> None:
    munge = slurm.folder / "munge"
    files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "seed")]
    # --force: munged would refuse the socket's folder, because of the owners of the folders above it.
    _start(slurm, keeper, "munged", "munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *files)
    _wait_until(slurm, (munge / "socket").is_socket, "the socket of munged")
    _start(slurm, keeper, "slurmctld", "slurmctld", "-D")
    for node in NODES:
        _start(slurm, keeper, f"slurmd-{node}", "slurmd", "-D", "-N", node)
    idle_nodes = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
    _wait_until(slurm, lambda: sorted(slurm.run(idle_nodes).split()) == list(NODES), f"{len(NODES)} idle nodes")


def _start(slurm: Slurm, keeper: subprocess.Popen[str], log: str, name: str, *arguments: str) -> None:
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    program = shutil.which(name, path=SEARCH_PATH)
    keeper.stdin.write(json.dumps([str(slurm.folder / f"{log}.log"), program, *arguments]) + "\n")
    keeper.stdin.flush()
    slurm.daemons.append(int(keeper.stdout.readline()))


def _wait_until(slurm: Slurm, condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + START_LIMIT_S
    while True:
        if not all(map(psutil.pid_exists, slurm.daemons)) or time.monotonic() > end:
            raise RuntimeError(f"no Slurm: waited for {what}\n{slurm.logs()}")
        with contextlib.suppress(subprocess.CalledProcessError):  # the controller does not answer yet
            if condition():
                return
        time.sleep(POLL_S)


def _environment_outside_jobs() -> dict[str, str]:
    """Return this process's environment without the variables of a Slurm job, in which the tests may run."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}


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
