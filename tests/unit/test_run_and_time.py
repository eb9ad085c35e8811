"""Test run_and_time.sh: what it launches, refuses and reports, and how it handles signals."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.configs import load_config, read_environment
from tests.support.launch_stubs import Sandbox, assert_refused
from tests.support.paths import ROOT
from tests.support.waiting import wait_until

TWO_NODES = {"DGXNNODES": "2", "MASTER_ADDR": "leader"}


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    made = Sandbox(tmp_path, stub_trials=False)
    made.control(log_status=0)
    return made


def run(
    sandbox: Sandbox, config: str | None = "config_CPU_1x2.sh", **environment: str
) -> subprocess.CompletedProcess[str]:
    given = {"LOGDIR": ""} | environment
    if config != "config_CPU_1x2.sh":
        given = {"DATADIR": str(sandbox.folder / "data")} | given
    return sandbox.run("run_and_time.sh", config, **given)


def python_calls(sandbox: Sandbox) -> list[list[str]]:
    return [call[1:] for call in sandbox.calls("stub-python")]


def was_checked(sandbox: Sandbox) -> bool:
    return any("mlperf_logging.compliance_checker" in call for call in python_calls(sandbox))


def torchrun_environment(sandbox: Sandbox) -> dict[str, str]:
    return read_environment(sandbox.record("torchrun.env") or "")


def test_one_node_is_launched_with_exactly_these_arguments(sandbox: Sandbox) -> None:
    done = run(sandbox, LOGDIR="results/one")
    assert done.returncode == 0, done.stderr
    assert python_calls(sandbox) == [
        ["-m", "gptoss20b", "train", "--dry-run"],
        ["-m", "gptoss20b.launch", "--nproc_per_node=2", "--standalone", "-m", "gptoss20b", "train"],
        ["-m", "gptoss20b", "result", "results/one"],
        [
            *["-m", "mlperf_logging.compliance_checker", "--usage", "training", "--ruleset", "6.1.0"],
            *["--log_output", "results/one/compliance_checker.log", "results/one/result_0.txt"],
        ],
        ["-c", "import compliance.render.report_file"],
    ]
    assert done.stdout == ""  # reserved for the log's records
    assert "run of CPU_1x2 started at " in done.stderr
    assert re.search(r"run of CPU_1x2 ended after \d+ s\n", done.stderr)
    assert "compliance checker (6.1.0): passed\n" in done.stderr
    assert done.stderr.endswith("the result\n")


@pytest.mark.parametrize(("port", "expected"), [("", "29500"), ("1234", "1234")])
def test_two_nodes_are_launched_with_exactly_these_arguments(sandbox: Sandbox, port: str, expected: str) -> None:
    done = run(sandbox, "config_B200_1x8.sh", NODE_RANK="0", MASTER_PORT=port, **TWO_NODES)
    assert done.returncode == 0, done.stderr
    assert python_calls(sandbox)[1] == [
        *["-m", "gptoss20b.launch", "--nproc_per_node=8", "--nnodes=2", "--node_rank=0"],
        *["--master_addr=leader", f"--master_port={expected}", "-m", "gptoss20b", "train"],
    ]
    assert len(python_calls(sandbox)) == 5


@pytest.mark.parametrize("rank", ["NODE_RANK", "SLURM_NODEID"])
@pytest.mark.parametrize("status", [0, 1, 3])
def test_a_worker_has_no_log_and_returns_the_status_of_torchrun(sandbox: Sandbox, rank: str, status: int) -> None:
    sandbox.control(no_log="", torchrun_status=status)
    done = run(sandbox, "config_B200_1x8.sh", **{rank: "1"}, **TWO_NODES)
    assert done.returncode == status
    assert "--node_rank=1" in python_calls(sandbox)[1]
    assert len(python_calls(sandbox)) == 2


def test_the_run_gets_the_configuration_that_was_checked_and_paths_may_contain_spaces(sandbox: Sandbox) -> None:
    data, logdir = sandbox.folder / "my data", sandbox.folder / "my log"
    data.mkdir()
    given = {"SEED": "7", "SAVE_DIR": "/checkpoints", "DATADIR": str(data), "LOGDIR": str(logdir)}
    done = run(sandbox, **given)
    assert done.returncode == 0, done.stderr
    assert (load_config("config_CPU_1x2.sh") | given).items() <= torchrun_environment(sandbox).items()
    assert python_calls(sandbox)[2][-1] == str(logdir)


def test_the_default_result_is_a_new_folder(sandbox: Sandbox) -> None:
    run(sandbox, RESUME="0")  # which is no request to resume, and may come without LOGDIR
    folder = torchrun_environment(sandbox)["LOGDIR"]
    assert re.fullmatch(r"results/CPU_1x2_\d{8}_\d{6}_\d+", folder)
    assert (sandbox.scripts / folder / "result_0.txt").exists()
    assert python_calls(sandbox)[2][-1] == folder


# torchrun returns 0 or 1. The log gives the rest, but a failure that is not in the log stays a failure.
@pytest.mark.parametrize(
    ("torchrun", "log", "expected"),
    [(0, 0, 0), (1, 1, 1), (1, 3, 3), (0, 3, 3), (1, 4, 4), (1, 0, 1), (137, 0, 1), (0, 1, 1), (1, 143, 1)],
)
def test_the_exit_status_is_the_runs(sandbox: Sandbox, torchrun: int, log: int, expected: int) -> None:
    sandbox.control(torchrun_status=torchrun, log_status=log)
    done = run(sandbox)
    assert done.returncode == expected
    assert done.stderr.endswith("the result\n")
    assert was_checked(sandbox) == (expected == 0)  # a failed run has no compliant log


@pytest.mark.parametrize(("check", "expected"), [("1", 5), ("0", 0)])
def test_a_log_that_fails_the_check_fails_the_run(sandbox: Sandbox, check: str, expected: int) -> None:
    sandbox.control(check_status=1)
    done = run(sandbox, LOGDIR="results/one", CHECK_COMPLIANCE=check)
    assert done.returncode == expected
    assert was_checked(sandbox) == (check == "1")
    assert ("results/one/compliance_checker.log" in done.stderr) == (check == "1")


# Status 1 is a report of a log that violates a rule.
@pytest.mark.parametrize(("status", "drawn"), [(0, True), (1, True), (2, False)])
@pytest.mark.parametrize("log", [0, 3])
def test_a_report_is_drawn_at_the_end_and_a_failure_to_draw_changes_no_status(
    sandbox: Sandbox, status: int, drawn: bool, log: int
) -> None:
    sandbox.control(report_status=status, log_status=log)
    done = run(sandbox, LOGDIR="results/one")
    assert done.returncode == log
    files = ["--out", "results/one/report.html", "--curve", "results/one/loss_curve.svg", "results/one/result_0.txt"]
    assert python_calls(sandbox)[-1] == ["-m", "compliance", "report", *files]
    assert ("report: results/one/report.html" in done.stderr, "the cause" in done.stderr) == (drawn, not drawn)


@pytest.mark.parametrize(("log", "shown_by_the_run"), [(0, True), (4, True), (143, True), (1, False)])
def test_on_a_terminal_the_run_has_shown_its_expected_end(sandbox: Sandbox, log: int, shown_by_the_run: bool) -> None:
    sandbox.control(log_status=log)
    leader, sandbox.stderr = pty.openpty()
    run(sandbox, LOGDIR="results/one")
    os.close(sandbox.stderr)
    seen = b"".join(iter(lambda: read_terminal(leader), b"")).decode()
    os.close(leader)
    assert ("the result" in seen, "./run_local.sh" in seen) == (not shown_by_the_run, log == 0)


def read_terminal(leader: int) -> bytes:
    try:
        return os.read(leader, 65_536)
    except OSError:  # how Linux says that the other side is closed
        return b""


@pytest.mark.parametrize(("torchrun", "expected"), [(1, 1), (2, 2), (0, 1)])
def test_a_run_without_a_log_is_never_a_success(sandbox: Sandbox, torchrun: int, expected: int) -> None:
    sandbox.control(no_log="", torchrun_status=torchrun)
    done = run(sandbox)
    assert done.returncode == expected
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert f"status {torchrun} " in done.stderr
    assert len(python_calls(sandbox)) == 2


# --- refusals before any launch


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        *[({name: ""}, (name, "not set", "source")) for name in ("DGXSYSTEM", "DGXNGPU", "DATADIR")],
        ({**TWO_NODES, "NODE_RANK": ""}, ("NODE_RANK", "not set")),
        ({"DGXNNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": ""}, ("MASTER_ADDR", "not set")),
        *[
            ({**TWO_NODES, "NODE_RANK": rank}, ("NODE_RANK", f"'{rank}'", "0 to 1"))
            for rank in ("2", "-1", "one", "01")
        ],
        ({"DGXSYSTEM": "B300_1x8"}, ("DGXSYSTEM", "config_B300_1x8.sh", "config_B200_1x8.sh")),
        ({"CLEAR_CACHES": "yes"}, ("CLEAR_CACHES", "'yes'", "0 1 done")),
        ({"CHECK_COMPLIANCE": "true"}, ("CHECK_COMPLIANCE", "'true'", "0 1")),
        ({"DATADIR": "/no/such/folder"}, ("DATADIR", "'/no/such/folder'", "data_scripts.make_sample_data")),
        ({"LOGDIR": "/dev/null/results"}, ("LOGDIR", "'/dev/null/results'", "writable")),
        ({"PYTHON": "/no/such/python"}, ("PYTHON", "'/no/such/python'")),
        ({"RESUME": "1"}, ("RESUME", "LOGDIR")),
    ],
)
def test_a_bad_value_is_refused(sandbox: Sandbox, given: dict[str, str], facts: tuple[str, ...]) -> None:
    assert_refused(run(sandbox, **given), *facts)
    assert not any("gptoss20b.launch" in call for call in python_calls(sandbox))


def test_no_configuration_sourced(sandbox: Sandbox) -> None:
    assert_refused(run(sandbox, config=None), "DGXSYSTEM", "source config_CPU_1x2.sh")


def test_a_bad_configuration_is_refused(sandbox: Sandbox) -> None:
    sandbox.control(dry_run_fails="")
    assert_refused(run(sandbox), "1 problem")
    assert len(python_calls(sandbox)) == 1


def test_the_real_check_refuses_a_bad_configuration(sandbox: Sandbox) -> None:
    for package in ("gptoss20b", "system_info"):
        (sandbox.scripts / package).symlink_to(ROOT / package)
    done = run(sandbox, PYTHON=sys.executable, GLOBAL_BATCH_SIZE="3", TARGET_LOSS="none")
    assert done.returncode == 2
    problems = [line.split(":")[0] for line in done.stderr.splitlines()]
    assert problems == ["error", "  TARGET_LOSS", "  GLOBAL_BATCH_SIZE"]


def test_a_result_is_never_overwritten(sandbox: Sandbox) -> None:
    log = sandbox.set / "result_0.txt"
    sandbox.set.mkdir()
    log.write_text("precious")
    sandbox.control(no_log="")
    for resume in ("", "0", "no", "False"):
        assert_refused(run(sandbox, LOGDIR=str(sandbox.set), RESUME=resume), "LOGDIR", str(log), "never overwritten")
    # The leader may have created the log a second before a worker starts.
    worker = run(sandbox, LOGDIR=str(sandbox.set), NODE_RANK="1", **TWO_NODES)
    assert worker.returncode == 0, worker.stderr
    # A resumed run has a log. The run itself checks whether it can be continued.
    for resume in ("1", "true", "T", "yes", "Y", "On"):
        assert run(sandbox, LOGDIR=str(sandbox.set), RESUME=resume).returncode == 0
    assert log.read_text() == "precious"


# --- caches


@pytest.mark.parametrize("clear", ["0", "1", "done"])
@pytest.mark.parametrize("possible", [True, False])
@pytest.mark.parametrize("claimed", ["0", "1"])
def test_cache_cleared_is_what_happened(sandbox: Sandbox, clear: str, possible: bool, claimed: str) -> None:
    if possible:
        sandbox.drop_caches.parent.mkdir()
    done = run(sandbox, CLEAR_CACHES=clear, CACHE_CLEARED=claimed)
    assert done.returncode == 0
    cleared = clear == "done" or (clear == "1" and possible)
    assert torchrun_environment(sandbox)["CACHE_CLEARED"] == str(int(cleared))
    # "done": a launcher has cleared them, and they must not be cleared again.
    assert sandbox.drop_caches.exists() == (clear == "1" and possible)
    if sandbox.drop_caches.exists():
        assert sandbox.drop_caches.read_text() == "3\n"
    assert ("warning: could not drop the page cache" in done.stderr) == (clear == "1" and not possible)
    assert "No such file" not in done.stderr


def test_sudo_without_a_password_clears_the_caches(sandbox: Sandbox) -> None:
    sandbox.control(sudo_status=0)
    assert run(sandbox, CLEAR_CACHES="1").returncode == 0
    assert torchrun_environment(sandbox)["CACHE_CLEARED"] == "1"
    assert sandbox.calls("sudo") == [["sudo", "-n", "/sbin/sysctl", "--quiet", "--write", "vm.drop_caches=3"]]


# --- signals


def processes_of_session(session: int) -> list[psutil.Process]:
    """Return the processes of a session that are not zombies."""
    alive = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):  # it has ended in the meantime
            if os.getsid(process.pid) == session and process.cmdline():  # empty for a zombie
                alive.append(process)
    return alive


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    ("controls", "node", "end"),
    [
        # The script waits for torchrun, which writes the log, and then reports it.
        ({"log_status": 1}, {}, "the result\n"),
        ({"no_log": ""}, {}, "before it wrote a log\n"),
        ({"no_log": ""}, {"NODE_RANK": "1", **TWO_NODES}, " s\n"),
    ],
    ids=["log", "no log", "worker"],
)
def test_a_signal_reaches_torchrun_and_is_the_exit_status(
    sandbox: Sandbox, number: signal.Signals, status: int, controls: dict[str, str], node: dict[str, str], end: str
) -> None:
    sandbox.control(sleep="", **controls)
    with sandbox.running("run_and_time.sh", **node) as process:
        sandbox.wait_for("running", process)
        wait_until(lambda: len(processes_of_session(process.pid)) == 3, 5, "script, launcher and its child")
        process.send_signal(number)
        _, err = process.communicate(timeout=10)
        assert processes_of_session(process.pid) == []
    assert process.returncode == status
    assert sandbox.record("signals") == "TERM\n"
    assert err.endswith(end)
    assert not was_checked(sandbox)
