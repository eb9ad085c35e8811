"""A real Slurm on this machine: a controller and two nodes, in one folder and on its own ports.

Debian's slurmd can be several nodes of one host (`slurmd -N`), so the nodes share the host's name and CPUs. The
system's own Slurm and MUNGE are not touched: key, socket, configuration, state and logs are in the folder. Every daemon
listens only on the loopback address, and runs as the user of the tests.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.ranks import free_port
from tests.support.waiting import wait_until

# Daemons are in sbin, which may not be on PATH. The tests may themselves run in a job, whose variables must not count.
OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
OUTSIDE["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
# The kernel kills all processes of a PID namespace with its first, and that one with unshare, even by KILL.
NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
NAMESPACE += ["--user", "--map-current-user"] if os.geteuid() else []
# --force: munged would refuse the socket's folder, because of the owners of the folders above it.
DAEMONS = """
munged --foreground --force --socket=munge/socket --key-file=munge/key --pid-file=munge/pid --seed-file=munge/seed &
until [[ -S munge/socket ]]; do sleep 0.02; done
slurmctld -D &
slurmd -D -N n1 &
slurmd -D -N n2 &
wait -n
"""
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
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_1} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_2} CPUs=2
"""


@dataclass(frozen=True)
class Slurm:
    """A running cluster, and its folder."""

    folder: Path

    def run(self, command: Sequence[str], environment: Mapping[str, str] = OUTSIDE, cwd: Path | None = None) -> str:
        """Run a client, and return its output. Jobs get its environment."""
        variables = {**environment, "SLURM_CONF": f"{self.folder}/slurm.conf"}
        return subprocess.run(
            command, env=variables, cwd=cwd, stdout=subprocess.PIPE, text=True, check=True, timeout=60
        ).stdout

    def wait(self, job: int, limit_s: float) -> tuple[str, int]:
        """Wait for the end of a job and all its tasks. Return its state and the exit status of the batch script."""
        ended: list[str] = []

        def has_ended() -> bool:
            shown = self.run(["scontrol", "--oneliner", "show", "job", str(job)])
            ended[:] = re.findall(r" JobState=(\w+) .* ExitCode=(\d+):", shown)[0]
            return ended[0] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED")

        wait_until(has_ended, limit_s, f"the end of job {job}")
        return ended[0], int(ended[1])


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Slurm]:
    """Start Slurm in ``folder``, and kill it and all its jobs at the end of the block or of this process.

    Skip the tests where its programs are not installed, or namespaces not permitted.
    """
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "srun")
    if missing := [name for name in programs if shutil.which(name, path=OUTSIDE["PATH"]) is None]:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge")
    if subprocess.run([*NAMESPACE, "true"], check=False).returncode:
        pytest.skip("a PID namespace is not permitted")
    _configure(folder)
    slurm = Slurm(folder)
    with (folder / "log").open("wb") as log:
        daemons = subprocess.Popen(
            [*NAMESPACE, "bash", "-c", DAEMONS],
            cwd=folder,
            env={**OUTSIDE, "SLURM_CONF": f"{folder}/slurm.conf"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        # The controller does not answer at once.
        idle = "sinfo --noheader --Node --states=idle --format=%N 2> /dev/null || true"
        wait_until(lambda: slurm.run(["bash", "-c", idle]).split() == ["n1", "n2"], 30, "two idle nodes")
        yield slurm
    finally:
        daemons.kill()
        daemons.wait()
        print((folder / "log").read_text(errors="replace"))


def _configure(folder: Path) -> None:
    """Make the folders, the MUNGE key and slurm.conf."""
    for name in ("munge", "state", "n1", "n2"):
        (folder / name).mkdir(mode=0o700)
    key = folder / "munge" / "key"
    key.touch(mode=0o600)  # munged refuses a key that others can read
    key.write_bytes(secrets.token_bytes(64))
    values = {name: free_port() for name in ("port", "port_1", "port_2")}
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder, user=os.geteuid(), **values))
