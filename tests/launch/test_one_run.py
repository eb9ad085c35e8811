"""A single run: what it starts, refuses and reports."""

from __future__ import annotations

import os
import pty
import re
from pathlib import Path

import pytest

from tests.support.configs import load_config, read_environment
from tests.support.launch_stubs import Done, Sandbox

TWO_NODES = {"DGXNNODES": "2", "MASTER_ADDR": "leader"}


@pytest.fixture
def sandbox(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Sandbox:
    made = Sandbox(tmp_path, capfd)
    made.control(log_status=0)
    return made


def run(sandbox: Sandbox, config: str | None = "config_CPU_1x2.sh", *options: str, **given: str) -> Done:
    return sandbox.run("run_and_time.sh", config, *options, **{"DATADIR": str(sandbox.folder / "data"), **given})


def python_calls(sandbox: Sandbox) -> list[list[str]]:
    return [call[1:] for call in sandbox.calls("stub-python")]


def was_checked(sandbox: Sandbox) -> bool:
    return any("mlperf_logging.compliance_checker" in call for call in python_calls(sandbox))


def torchrun_environment(sandbox: Sandbox) -> dict[str, str]:
    return read_environment(sandbox.record("torchrun.env") or "")


def test_one_node_is_launched_with_exactly_these_arguments(sandbox: Sandbox) -> None:
    done = run(sandbox)
    assert done.returncode == 0, done.stderr
    log = f"{sandbox.set}/result_0.txt"
    assert python_calls(sandbox) == [
        ["-m", "gptoss20b", "preflight"],
        ["-m", "gptoss20b.launch", "--nproc_per_node=2", "--standalone", "-m", "gptoss20b", "train"],
        ["-m", "gptoss20b", "result", str(sandbox.set)],
        [
            *["-m", "mlperf_logging.compliance_checker", "--usage", "training", "--ruleset", "6.1.0"],
            *["--log_output", f"{sandbox.set}/compliance_checker.log", log],
        ],
        ["-c", "import compliance.render.report_file"],
    ]
    assert done.stdout == ""  # reserved for the log's records
    assert re.search(r"run of CPU_1x2 started at .*\nrun of CPU_1x2 ended after \d+ s\n", done.stderr)
    assert "compliance checker (6.1.0): passed\n" in done.stderr


@pytest.mark.parametrize(("port", "expected"), [("", "29500"), ("1234", "1234")])
def test_two_nodes_are_launched_with_exactly_these_arguments(sandbox: Sandbox, port: str, expected: str) -> None:
    assert run(sandbox, "config_B200_1x8.sh", NODE_RANK="0", MASTER_PORT=port, **TWO_NODES).returncode == 0
    assert python_calls(sandbox)[1] == [
        *["-m", "gptoss20b.launch", "--nproc_per_node=8", "--nnodes=2", "--node_rank=0"],
        *["--master_addr=leader", f"--master_port={expected}", "-m", "gptoss20b", "train"],
    ]
    assert len(python_calls(sandbox)) == 5


def test_a_command_binds_each_rank(sandbox: Sandbox) -> None:
    assert run(sandbox, BINDCMD="env -u 'A B'").returncode == 0
    python = str(sandbox.folder / "bin" / "stub-python")
    ranks = ["--no-python", "env", "-u", "A B", python, "-u", "-m", "gptoss20b", "train"]
    assert python_calls(sandbox)[1][-len(ranks) :] == ranks


@pytest.mark.parametrize("rank", ["NODE_RANK", "SLURM_NODEID"])
@pytest.mark.parametrize("status", [0, 1, 3])
def test_a_worker_has_no_log_and_returns_the_status_of_torchrun(sandbox: Sandbox, rank: str, status: int) -> None:
    sandbox.control(no_log="", torchrun_status=status)
    assert run(sandbox, "config_B200_1x8.sh", **{rank: "1"}, **TWO_NODES).returncode == status
    assert "--node_rank=1" in python_calls(sandbox)[1]
    assert len(python_calls(sandbox)) == 2


@pytest.mark.parametrize(
    ("node", "status", "expected"), [(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 0), (1, 143, 0), (1, 2, 2), (0, 2, 2)]
)
def test_only_a_task_that_cannot_start_ends_the_leader(sandbox: Sandbox, node: int, status: int, expected: int) -> None:
    sandbox.control(no_log="", torchrun_status=status or 0, log_status=status)
    if not node:
        sandbox.clear("no_log")
    given = TWO_NODES | {"SLURM_NODEID": str(node)}
    assert run(sandbox, "config_B200_1x8.sh", "--slurm-task", **given).returncode == expected


def test_the_run_gets_the_configuration_that_was_checked_and_paths_may_contain_spaces(sandbox: Sandbox) -> None:
    data, logdir = sandbox.folder / "my data", sandbox.folder / "my log"
    data.mkdir()
    given = {"SEED": "7", "SAVE_DIR": "/checkpoints", "DATADIR": str(data), "LOGDIR": str(logdir)}
    assert run(sandbox, **given).returncode == 0
    expected = {name: value for name, value in load_config("config_CPU_1x2.sh").items() if name != "CONFIG_DIR"}
    assert (expected | given).items() <= torchrun_environment(sandbox).items()
    assert python_calls(sandbox)[2][-1] == str(logdir)


def test_the_default_result_is_a_new_folder(sandbox: Sandbox) -> None:
    run(sandbox, RESUME="0", LOGDIR="")  # which is no request to resume, and may come without LOGDIR
    folder = torchrun_environment(sandbox)["LOGDIR"]
    assert re.fullmatch(r"results/CPU_1x2_\d{8}_\d{6}_\d+", folder)
    assert (sandbox.scripts / folder / "result_0.txt").exists()


# torchrun returns 0 or 1. The log gives the rest, but a failure that is not in the log stays a failure.
@pytest.mark.parametrize(
    ("torchrun", "log", "expected"),
    [(0, 0, 0), (1, 1, 1), (1, 3, 3), (0, 3, 3), (1, 4, 4), (1, 0, 1), (137, 0, 1), (0, 1, 1), (1, 143, 1)],
)
def test_the_exit_status_is_the_runs(sandbox: Sandbox, torchrun: int, log: int, expected: int) -> None:
    sandbox.control(torchrun_status=torchrun, log_status=log)
    done = run(sandbox)
    assert done.returncode == expected
    assert ("the result" in done.stderr) == (log == 1)  # the run itself shows how it ended, unless it failed
    assert was_checked(sandbox) == (expected == 0)  # a failed run has no compliant log


@pytest.mark.parametrize(("check", "expected"), [("1", 5), ("0", 0)])
def test_a_log_that_fails_the_check_fails_the_run(sandbox: Sandbox, check: str, expected: int) -> None:
    sandbox.control(check_status=1)
    done = run(sandbox, CHECK_COMPLIANCE=check)
    assert done.returncode == expected
    assert was_checked(sandbox) == ("set/compliance_checker.log" in done.stderr) == (check == "1")


# Status 1 is a report of a log that violates a rule.
@pytest.mark.parametrize(("status", "drawn"), [(0, True), (1, True), (2, False)])
@pytest.mark.parametrize("log", [0, 3])
def test_a_report_is_drawn_at_the_end_and_a_failure_to_draw_changes_no_status(
    sandbox: Sandbox, status: int, drawn: bool, log: int
) -> None:
    sandbox.control(report_status=status, log_status=log)
    done = run(sandbox)
    assert done.returncode == log
    page, curve, text = (f"{sandbox.set}/{name}" for name in ("report.html", "loss_curve.svg", "result_0.txt"))
    assert python_calls(sandbox)[-1] == ["-m", "compliance", "report", "--out", page, "--curve", curve, text]
    assert (f"report: {page}" in done.stderr, "the cause" in done.stderr) == (drawn, not drawn)


@pytest.mark.parametrize(("torchrun", "expected"), [(1, 1), (2, 2), (0, 1)])
def test_a_run_without_a_log_is_never_a_success(sandbox: Sandbox, torchrun: int, expected: int) -> None:
    sandbox.control(no_log="", torchrun_status=torchrun)
    done = run(sandbox)
    assert done.returncode == expected
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and f"status {torchrun} " in last
    assert len(python_calls(sandbox)) == 2


def test_on_a_terminal_a_first_success_names_the_next_step(sandbox: Sandbox) -> None:
    assert "./run_local.sh" not in run(sandbox).stderr  # the log may be of a set
    leader, sandbox.stderr = pty.openpty()
    sandbox.finish(sandbox.start("run_and_time.sh", LOGDIR=""))
    os.close(sandbox.stderr)
    seen = b"".join(iter(lambda: read_terminal(leader), b"")).decode()
    os.close(leader)
    assert "./run_local.sh" in seen


def read_terminal(leader: int) -> bytes:
    try:
        return os.read(leader, 65_536)
    except OSError:  # how Linux says that the other side is closed
        return b""


# --- caches


@pytest.mark.parametrize("clear", ["0", "1", "done"])
@pytest.mark.parametrize("possible", [True, False])
@pytest.mark.parametrize("claimed", ["0", "1"])
def test_cache_cleared_is_what_happened(sandbox: Sandbox, clear: str, possible: bool, claimed: str) -> None:
    if possible:
        sandbox.drop_caches.parent.mkdir()
    done = run(sandbox, CLEAR_CACHES=clear, CACHE_CLEARED=claimed)
    cleared = clear == "done" or (clear == "1" and possible)
    assert torchrun_environment(sandbox)["CACHE_CLEARED"] == str(int(cleared))
    # "done": a launcher has cleared them, and they must not be cleared again.
    assert sandbox.drop_caches.exists() == (clear == "1" and possible)
    assert not sandbox.drop_caches.exists() or sandbox.drop_caches.read_text() == "3\n"
    assert ("warning: could not drop the page cache" in done.stderr) == (clear == "1" and not possible)
    assert "No such file" not in done.stderr and done.returncode == 0


def test_sudo_without_a_password_clears_the_caches(sandbox: Sandbox) -> None:
    sandbox.control(sudo_status=0)
    assert run(sandbox, CLEAR_CACHES="1").returncode == 0
    assert torchrun_environment(sandbox)["CACHE_CLEARED"] == "1"
    assert sandbox.calls("sudo") == [["sudo", "-n", "/sbin/sysctl", "--quiet", "--write", "vm.drop_caches=3"]]
