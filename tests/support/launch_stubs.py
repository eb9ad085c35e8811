"""A copy of the launchers in a temporary folder, with stubs on PATH that record how they are called.

Every stub appends its name and arguments to one list. A trial is `run_and_time.sh`, whose stub writes a log and exits
with the status in the control file `status_<seed>`. The stubs of `docker run` and `srun` execute the stub of the trial.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest

from gptoss20b.config import settings
from launch import trial_set
from launch.__main__ import main
from tests.support.configs import load_config, read_environment
from tests.support.paths import ROOT
from tests.support.waiting import wait_until

Done = subprocess.CompletedProcess[str]
SCRIPTS = {"run_and_time.sh": "run", "run_local.sh": "local", "run_with_docker.sh": "docker", "run.sub": "slurm"}

# One program with many names. \x1f separates recorded arguments, so that they may contain spaces.
_STUB = r"""#!/usr/bin/env bash
name=${0##*/}
[[ $name != python ]] || name=stub-python
[[ $name != stub-python || "$1 $2" != "-m launch" || -e "$STUB/block_launch" ]] || exec REAL_PYTHON "$@"
control() { cat "$STUB/$1" 2> /dev/null || echo "$2"; }
exists() { [[ -e "$STUB/$1" ]]; }
# The sleeper holds the locks too: a stub that has ended must leave none behind.
stop_sleeper() { kill $!; wait $!; }
# Wait for a signal, record it, run the command, and exit with the status.
block() {
    for sent in TERM INT; do
        trap "trap '' INT TERM; echo $sent >> '$STUB/signals'; sleep 0.2; ${2:-:} ${3:-}; stop_sleeper; exit $1" $sent
    done
    sleep 60 &> /dev/null &
    echo $$ > "$STUB/running"
    wait
}

# Record the environment, write a log in the trial's folder, and exit with the status of the control file.
run_and_time.sh() {
    folder=${TRIAL_FOLDER:-$LOGDIR}
    env -0 > "$STUB/trial_$SEED.$$" && mv "$STUB/trial_$SEED.$$" "$STUB/trial_$SEED.env"
    echo "stdout of seed $SEED"
    echo "stderr of seed $SEED" >&2
    ! exists hook || source "$STUB/hook"
    ! exists sleep || block 143
    status=$(control "status_$SEED" 0)
    [[ "$status" == 2 ]] || echo "log of seed $SEED" > "$folder/result_0.txt"
    [[ "$status" != 137 ]] || kill -KILL $$
    exit "$status"
}

write_log() { exists no_log || { mkdir -p "$LOGDIR" && echo "$1" > "$LOGDIR/result_0.txt"; }; }

stub-python() {
    for word in "$@"; do ! exists "block_${word##*/}" || block 130; done
    case "$*" in
    *"gptoss20b preflight")
        ! exists preflight_fails || { echo "error: 1 problem" >&2; exit 2; }
        echo "LEARNING_RATE = ${LEARNING_RATE:-}, LOGDIR = ${LOGDIR:-}, SEED = ${SEED:-}, DATADIR = $DATADIR" ;;
    *"gptoss20b settings") control settings "" ;;
    *gptoss20b.launch*)
        env -0 > "$STUB/torchrun.env"
        ! exists sleep || block 1 write_log aborted
        write_log ended
        exit "$(control torchrun 0)" ;;
    *"gptoss20b result --trials "*) echo "the table"; exit "$(control outcome 0)" ;;
    *mlperf_logging.compliance_checker*) exit "$(control check 0)" ;;
    *"gptoss20b result "*) echo "the result"; exit "$(control "log_${4##*/}" "$(control log 1)")" ;;
    *"import compliance.render."*) exists report ;;
    *"compliance report "*) echo "the cause"; exit "$(control report 0)" ;;
    *"compliance check-set "*) echo "the verdict"; exit "$(control verdict 0)" ;;
    *) echo "unexpected: $*" >&2; exit 99 ;;
    esac
}

docker() {
    case "$1" in
    image) ! exists no_image ;;
    stop) exit 1 ;;
    run)
        results=$(printf "%s\n" "$@" | sed -n 's,^--volume=\(.*\):/results$,\1,p')
        while [[ "$1" != gptoss20b* ]]; do shift; done
        [[ "$2" != python3 ]] || exec "$BIN/stub-python" "${@:3}"
        TRIAL_FOLDER="$results/${LOGDIR##*/}" exec "$BIN/run_and_time.sh" ;;
    esac
}

srun() {
    [[ "$1" != --help ]] || { ! exists pyxis || echo "  --container-image=[USER@][REGISTRY#]IMAGE[:TAG]"; exit 0; }
    while [[ "$1" == --* ]]; do
        case "$1" in --container-mounts=*) results=${1#*,}; results=${results%%:*} ;; esac
        shift
    done
    case "$*" in
    "bash launch/clear_caches.sh")
        ! exists clearing_sleeps || { echo $$ > "$STUB/running"; exec sleep 60; }
        exit "$(control clearing_status 0)" ;;
    "bash run_and_time.sh --slurm-task")
        TRIAL_FOLDER="${results:+$results/${LOGDIR##*/}}" exec "$BIN/run_and_time.sh" ;;
    *) while [[ "$1" != -m ]]; do shift; done; exec "$BIN/stub-python" "$@" ;;
    esac
}

BIN="$STUB/../bin"
[[ $name == run_and_time.sh || $name == sync ]] || { printf "%s\x1f" "$name" "$@"; echo; } >> "$STUB/calls"
case "$name $*" in
*-smi*) exists "$name" ;;  # a tool finds GPUs
sudo*) exit "$(control sudo_status 1)" ;;
sync*) ;;
# Reaches the trial at the n-th call of control file `deaf`.
scancel*) [[ $(grep -c ^scancel "$STUB/calls") -lt $(control deaf 1) ]] || kill -TERM $(cat "$STUB/running") ;;
"scontrol show hostnames n[1-2]") printf 'n1\nn2\n' ;;
"scontrol --oneliner show node n1") exists no_address || echo "NodeName=n1 NodeAddr=10.1.2.3 Version=22" ;;
*) "$name" "$@" ;;
esac
"""
_NAMES = "stub-python docker srun scontrol scancel nvidia-smi rocm-smi amd-smi sudo sync run_and_time.sh"


def assert_refused(done: Done, facts: str) -> None:
    """Assert exit status 2, and that the last line is an error in which the regular expression is found."""
    assert done.returncode == 2, done.stderr
    assert re.search(f"^error: .*{facts}", done.stderr.splitlines()[-1]), done.stderr


def read_pairs(text: str) -> dict[str, str]:
    """Return the variables of "NAME=value NAME=value"."""
    return dict(word.split("=", 1) for word in text.split())


def cases(text: str) -> pytest.MarkDecorator:
    """Parametrize a test by a table of texts: a line of names, then one of each case, with cells separated by "|"."""
    names, *rows = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    return pytest.mark.parametrize(names, rows)


_exports = cache(load_config)


class Sandbox:
    """Folders `scripts/` (the copy), `bin/` (stubs), `stub/` (control files and records), `set/` (results) and `data/`.

    Attributes:
        drop_caches: stands for the kernel's file. Its folder does not exist, so that it cannot be written.
        stderr: of `start`.
    """

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.scripts, self.set, self._stub = (folder, *map(folder.joinpath, ("scripts", "set", "stub")))
        self.drop_caches = folder / "kernel" / "drop_caches"
        self.stderr = subprocess.PIPE
        self._capfd = capfd
        self._started: list[subprocess.Popen[str]] = []
        for name in ("stub", "dev", "data", "scripts/data/sample", "bin"):
            (folder / name).mkdir(parents=True)
        for script in (*ROOT.glob("*.sh"), ROOT / "run.sub"):
            shutil.copy(script, self.scripts)
        ignored = shutil.ignore_patterns("__pycache__", "kubernetes")
        shutil.copytree(ROOT / "launch", self.scripts / "launch", ignore=ignored)
        self.edit("launch/clear_caches.sh", "/proc/sys/vm/drop_caches", str(self.drop_caches))
        stub = folder / "stub-program"
        stub.write_text(_STUB.replace("REAL_PYTHON", sys.executable))
        stub.chmod(0o755)
        for name in _NAMES.split():
            (folder / "bin" / name).symlink_to(stub)
        (self.scripts / "run_and_time.sh").rename(self.scripts / "real_run_and_time.sh")
        (self.scripts / "run_and_time.sh").symlink_to(stub)
        self.control(settings="\n".join(settings()))
        path = f"{folder}/bin:{os.environ['PATH']}"
        self._base = {"PATH": path, "STUB": str(self._stub), "PYTHON": f"{folder}/bin/stub-python"}

    def edit(self, script: str, old: str, new: str) -> None:
        """Replace the only occurrence of a text in a script."""
        before, after = (self.scripts / script).read_text().split(old)
        (self.scripts / script).write_text(f"{before}{new}{after}")

    def control(self, **values: object) -> None:
        """Write control files, which the stubs read."""
        for name, value in values.items():
            (self._stub / name).write_text(str(value))

    def clear(self, *names: str) -> None:
        """Remove control files or records."""
        for name in names:
            (self._stub / name).unlink()

    def record(self, name: str) -> str:
        """Return what a stub has recorded under this name, or ""."""
        path = self._stub / name
        return path.read_text() if path.exists() else ""

    def calls(self, *names: str) -> list[list[str]]:
        """Return the calls of the named stubs, by default of all, in order: name and arguments."""
        calls = [line.split("\x1f")[:-1] for line in self.record("calls").splitlines()]
        return [call for call in calls if not names or call[0] in names]

    def asked(self) -> list[str]:
        """Return the arguments of each call of Python."""
        return [" ".join(call[2:]) for call in self.calls("stub-python")]

    def trial(self, seed: int) -> dict[str, str]:
        """Return the environment of the trial with this seed."""
        assert seed in self.seeds
        return read_environment(self.record(f"trial_{seed}.env"))

    @property
    def seeds(self) -> list[int]:
        """Return the seeds of the trials that were started, sorted."""
        return sorted(int(path.stem.removeprefix("trial_")) for path in self._stub.glob("trial_*.env"))

    def result(self, number: int) -> str | None:
        path = self.set / f"result_{number}.txt"
        return path.read_text() if path.exists() else None

    @property
    def rows(self) -> list[str]:
        """Return "trial seed status" of each row of trials.tsv."""
        header, *rows = [line.split("\t") for line in (self.set / "trials.tsv").read_text().splitlines()]
        assert header == ["trial", "seed", "started", "seconds", "status"] and {len(row) for row in rows} <= {5}
        return [f"{row[0]} {row[1]} {row[4]}" for row in rows]

    def one_trial(self, given: str = "", config: str = "config_CPU_1x2.sh") -> dict[str, str]:
        """Return the variables of one trial with seed 5 and of its Slurm job, replaced by those of "NAME=value ..."."""
        job = f"SLURM_JOB_ID=77 SLURM_JOB_NUM_NODES={_exports(config)['DGXNNODES']} SLURM_JOB_NODELIST=n[1-2]"
        trial = f"DATADIR={self.folder}/data CLEAR_CACHES=0 NEXP=1 SEED_BASE=5 SLURM_SUBMIT_DIR={self.scripts}"
        return read_pairs(f"{job} SLURM_NODEID=0 {trial} {given}")

    def run(self, script: str = "run_local.sh", config: str = "config_CPU_1x2.sh", *options: str, **given: str) -> Done:
        """Run what a script starts, in this process: with the variables of a configuration and the given ones."""
        exports = {name: value.replace(str(ROOT), str(self.scripts)) for name, value in _exports(config).items()}
        variables = {**self._base, **exports, "LOGDIR": str(self.set), **given}
        argv = ["launch", SCRIPTS[script], "--from", str(self.folder), *options]
        self._capfd.readouterr()
        with contextlib.ExitStack() as stack:

            def lock_until_the_end(file: Path, busy: str) -> int:
                descriptor = trial_set.lock(file, busy)
                stack.callback(os.close, descriptor)
                return descriptor

            for name in ("trials.lock", "one_run.lock"):
                stack.enter_context(patch(f"launch.{name}", lock_until_the_end))
            stack.enter_context(patch("launch.docker.DEVICES", self.folder / "dev"))
            stack.enter_context(patch("sys.argv", argv))
            stack.enter_context(patch.dict(os.environ, variables, clear=True))
            stack.enter_context(contextlib.chdir(self.scripts))
            status = main()
        return Done(argv, status, *self._capfd.readouterr())

    def start(self, script: str = "run_local.sh", **environment: str) -> subprocess.Popen[str]:
        """Source the CPU's configuration, and start a script with the variables, from another folder than its own."""
        path = self.scripts / script.replace("run_and_time", "real_run_and_time")
        given = [f"{name}={value}" for name, value in ({"LOGDIR": str(self.set)} | environment).items()]
        process = subprocess.Popen(
            [
                "bash",
                "--norc",
                "-c",
                f'source {self.scripts}/config_CPU_1x2.sh; exec env "$@" bash {path}',
                "-",
                *given,
            ],
            cwd=self.folder,
            env=self._base,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str]) -> Done:
        """Wait for the end of a script."""
        output = process.communicate(timeout=60)
        return Done(process.args, process.returncode, *output)

    def interrupt(self, process: subprocess.Popen[str], number: int = signal.SIGTERM) -> Done:
        """Send a signal to a script when its stub has blocked, and wait for its end."""
        self.wait_for("running")
        process.send_signal(number)
        return self.finish(process)

    def wait_for(self, record: str) -> str:
        """Wait until a stub has recorded something, or all scripts have ended, and return it."""
        wait_until(lambda: self.record(record) or all(run.poll() is not None for run in self._started), 30, record)
        assert self.record(record), self._started[-1].communicate()
        return self.record(record)

    def end(self) -> None:
        """Kill what is left of all scripts."""
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
