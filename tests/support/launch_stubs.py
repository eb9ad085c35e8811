"""A copy of the scripts in a folder of its own, with stubs on PATH that write down how they are called.

Every stub appends its name and arguments to one list. A trial is `run_and_time.sh`, whose stand-in writes a log and
ends as `status_<seed>` says; `docker run` and `srun` do the trial where they are asked to run it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

_NOTE = '{ printf "%s\\x1f" "${0##*/}" "$@"; echo; } >> "$STUB/calls"\n'

_TRIAL = """#!/usr/bin/env bash
# Stands in for one run: says its environment, writes a log where the trial's folder is, and ends as it is told.
folder=${TRIAL_FOLDER:-$LOGDIR}
env -0 > "$STUB/trial_$SEED.$$" && mv "$STUB/trial_$SEED.$$" "$STUB/trial_$SEED.env"
echo "the log of seed $SEED"
echo "words of seed $SEED" >&2
if [[ -e "$STUB/sleep" ]]; then
    trap 'echo TERM >> "$STUB/signals"; sleep 0.3; kill "$sleeper"; exit 143' TERM
    sleep 60 &
    sleeper=$!
    trap 'kill "$sleeper"' USR1
    echo "$$" > "$STUB/running"
    wait
fi
status=0
[[ ! -e "$STUB/status_$SEED" ]] || status=$(< "$STUB/status_$SEED")
[[ "$status" == 2 ]] || echo "log of seed $SEED" > "$folder/result_0.txt"
[[ "$status" != 137 ]] || kill -KILL $$
exit "$status"
"""

_PYTHON = """#!/usr/bin/env bash
NOTE
case "$*" in
*"gptoss20b train --dry-run")
    [[ ! -e "$STUB/dry_run" ]] || { echo "error: 1 problem" >&2; exit 2; }
    echo "LEARNING_RATE = ${LEARNING_RATE:-}, LOGDIR = ${LOGDIR:-}, SEED = ${SEED:-}, DATADIR = $DATADIR" ;;
*"gptoss20b result --trials "*) echo "the table"; exit "$(cat "$STUB/outcome" 2> /dev/null || echo 0)" ;;
*mlperf_logging.compliance_checker*) exit "$(cat "$STUB/check" 2> /dev/null || echo 0)" ;;
*"gptoss20b result "*)
    if [[ -e "$STUB/log_sleeps" ]]; then
        trap 'kill "$sleeper"; exit 130' INT
        sleep 60 &
        sleeper=$!
        echo x > "$STUB/reading"
        wait
    fi
    exit "$(cat "$STUB/log" 2> /dev/null || echo 1)" ;;
*"compliance check-set "*) echo "the verdict"; exit "$(cat "$STUB/verdict" 2> /dev/null || echo 0)" ;;
*) echo "unexpected: $*" >&2; exit 99 ;;
esac
"""

_DOCKER = """#!/usr/bin/env bash
NOTE
case "$1" in
image) [[ ! -e "$STUB/no_image" ]] ;;
stop) exit 1 ;;
run)
    env -0 > "$STUB/docker.env"
    for argument in "$@"; do
        case "$argument" in --volume=*:/results) results=${argument#--volume=}; results=${results%:/results} ;; esac
    done
    while [[ "$1" != gptoss20b* ]]; do shift; done
    shift
    case "$1" in
    python3) shift; exec "$STUB/../bin/stub-python" "$@" ;;
    *) TRIAL_FOLDER="$results/${LOGDIR##*/}" exec "$STUB/../bin/stub-trial" ;;
    esac ;;
esac
"""

_SRUN = """#!/usr/bin/env bash
NOTE
if [[ "$1" == --help ]]; then
    [[ ! -e "$STUB/pyxis" ]] || echo "  --container-image=[USER@][REGISTRY#]IMAGE[:TAG]"
    exit 0
fi
while [[ "$1" == --* ]]; do
    case "$1" in --container-mounts=*) results=${1#*,}; results=${results%%:*} ;; esac
    shift
done
case "$*" in
"bash launch/clear_caches.sh")
    [[ ! -e "$STUB/clear" ]] || { echo $$ > "$STUB/running"; exec sleep 60; }
    exit "$(cat "$STUB/caches" 2> /dev/null || echo 0)" ;;
"bash launch/slurm_task.sh") TRIAL_FOLDER="${results:+$results/${LOGDIR##*/}}" exec "$STUB/../bin/stub-trial" ;;
*) while [[ "$1" != -m ]]; do shift; done; exec "$STUB/../bin/stub-python" "$@" ;;
esac
"""

_SCONTROL = """#!/usr/bin/env bash
NOTE
case "$*" in
"show hostnames n[1-2]") printf 'n1\\nn2\\n' ;;
"--oneliner show node n1")
    [[ -e "$STUB/no_address" ]] || echo "NodeName=n1 Arch=x86_64 NodeAddr=10.1.2.3 NodeHostName=n1 Version=22.05.8" ;;
*) exit 1 ;;
esac
"""

# A tool that finds something only where the test says so.
_FOUND = """#!/usr/bin/env bash
NOTE
[[ -e "$STUB/${0##*/}" ]]
"""

_STUBS = {
    "stub-python": _PYTHON,
    "stub-trial": _TRIAL,
    "docker": _DOCKER,
    "srun": _SRUN,
    "scontrol": _SCONTROL,
    "scancel": '#!/usr/bin/env bash\nNOTE\nkill -TERM $(cat "$STUB/running")\n',
    "sbatch": "#!/usr/bin/env bash\nNOTE\n",
    "nvidia-smi": _FOUND,
    "rocm-smi": _FOUND,
    "amd-smi": _FOUND,
    "sudo": "#!/usr/bin/env bash\nexit 1\n",
    "sync": "#!/usr/bin/env bash\n",
}


def copy_scripts(folder: Path, drop_caches: Path) -> None:
    """The scripts in ``folder``, with an empty data folder. The caches of the machine are the file ``drop_caches``."""
    (folder / "data" / "sample").mkdir(parents=True)
    for script in (*ROOT.glob("*.sh"), ROOT / "run.sub"):
        shutil.copy(script, folder)
    shutil.copytree(ROOT / "launch", folder / "launch")
    replace(folder / "launch" / "clear_caches.sh", "/proc/sys/vm/drop_caches", str(drop_caches))


def replace(script: Path, old: str, new: str) -> None:
    text = script.read_text()
    assert text.count(old) == 1, (script, old)
    script.write_text(text.replace(old, new))


def make_tools(folder: Path, bodies: dict[str, str]) -> None:
    """An executable of each name."""
    folder.mkdir()
    for name, body in bodies.items():
        (folder / name).write_text(body)
        (folder / name).chmod(0o755)


def start_bash(command: str, folder: Path, cwd: Path) -> subprocess.Popen[str]:
    """Start it with the tools of ``folder/bin``, which write into ``folder/stub``."""
    return subprocess.Popen(
        ["bash", "--norc", "-c", command],
        cwd=cwd,
        env={
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "STUB": str(folder / "stub"),
            "PYTHON": str(folder / "bin" / "stub-python"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@dataclass
class Place:
    """The copy: `scripts/`, stubs in `bin/`, what they are told and write in `stub/`, results in `set/`."""

    folder: Path

    def __post_init__(self) -> None:
        for name in ("stub", "dev"):
            (self.folder / name).mkdir()
        copy_scripts(self.scripts, self.folder / "drop_caches" / "file")
        # Its devices are the test's.
        devices = self.folder / "dev"
        self.replace("run_with_docker.sh", "[[ ! -d /dev/infiniband ]]", f"[[ ! -d {devices}/infiniband ]]")
        self.replace("run_with_docker.sh", "%g /dev/kfd /dev/dri/renderD*", f"%g {devices}/kfd")
        make_tools(self.folder / "bin", {name: body.replace("NOTE\n", _NOTE) for name, body in _STUBS.items()})
        (self.scripts / "run_and_time.sh").unlink()
        (self.scripts / "run_and_time.sh").symlink_to(self.folder / "bin" / "stub-trial")

    @property
    def scripts(self) -> Path:
        return self.folder / "scripts"

    @property
    def set(self) -> Path:
        """The set's folder."""
        return self.folder / "set"

    def replace(self, script: str, old: str, new: str) -> None:
        replace(self.scripts / script, old, new)

    def tell(self, name: str, text: str = "") -> None:
        """Leave a word for the stubs."""
        (self.folder / "stub" / name).write_text(text)

    def told(self, name: str) -> str | None:
        """What a stub wrote, or None."""
        path = self.folder / "stub" / name
        return path.read_text() if path.exists() else None

    def calls(self, *names: str) -> list[list[str]]:
        """Calls of the named stubs so far, in order: name and arguments."""
        lines = (self.told("calls") or "").splitlines()
        return [call for call in (line.split("\x1f")[:-1] for line in lines) if not names or call[0] in names]

    def forget(self) -> None:
        (self.folder / "stub" / "calls").unlink(missing_ok=True)

    def trial(self, seed: int) -> dict[str, str]:
        """Environment of the trial with this seed."""
        text = self.told(f"trial_{seed}.env")
        assert text is not None, f"no trial had seed {seed}"
        return dict(line.split("=", 1) for line in text.split("\0") if line)

    @property
    def seeds(self) -> list[int]:
        """Seeds of the trials that were started, in order of number."""
        return sorted(int(path.stem.removeprefix("trial_")) for path in (self.folder / "stub").glob("trial_*.env"))

    def result(self, number: int) -> str | None:
        path = self.set / f"result_{number}.txt"
        return path.read_text() if path.exists() else None

    @property
    def journal(self) -> list[list[str]]:
        """Lines of trials.tsv without its head: trial, seed, status."""
        lines = (self.set / "trials.tsv").read_text().splitlines()
        assert lines[0].split("\t") == ["trial", "seed", "started", "seconds", "status"]
        rows = [line.split("\t") for line in lines[1:]]
        assert all(len(row) == 5 for row in rows)
        return [[row[0], row[1], row[4]] for row in rows]

    def start(self, script: str, config: str = "config_CPU_1x2.sh", **environment: str) -> subprocess.Popen[str]:
        given = {"LOGDIR": str(self.set)} | environment
        exports = "".join(f"export {name}='{value}'; " for name, value in given.items())
        source = f"source {self.scripts}/{config}; {exports}"
        return start_bash(f"{source}exec bash {self.scripts}/{script}", self.folder, self.scripts)

    def run(
        self, script: str = "run_local.sh", config: str = "config_CPU_1x2.sh", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(script, config, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def wait_for(self, name: str, process: subprocess.Popen[str]) -> str:
        """What a stub of a started script writes, as soon as it is there."""
        end = time.monotonic() + 30
        while not self.told(name):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        return self.told(name) or ""
