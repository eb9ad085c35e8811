"""The scripts themselves, as a user starts them: sets, signals, kills, locks and closed streams."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.launch_stubs import Sandbox, assert_refused, cases, read_pairs
from tests.support.local_runs import mounted
from tests.support.waiting import is_gone, wait_until

TWO_NODES = {"DGXNNODES": "2", "MASTER_ADDR": "leader"}


def test_trials_have_their_configuration_consecutive_seeds_results_and_complete_output(sandbox: Sandbox) -> None:
    done = sandbox.finish(
        sandbox.start(NEXP="3", SEED_BASE="5", LEARNING_RATE="1e-3", MASTER_PORT="4000", LOGDIR="set", CDPATH=".:/tmp")
    )
    assert done.returncode == 0, done.stderr
    assert sandbox.seeds == [5, 6, 7]
    given = {"LEARNING_RATE": "1e-3", "MASTER_PORT": "4001", "DGXSYSTEM": "CPU_1x2", "CLEAR_CACHES": "0"}
    assert (given | {"DATADIR": str(sandbox.scripts / "data" / "sample")}).items() <= sandbox.trial(6).items()
    assert [sandbox.result(i) for i in (1, 2, 3)] == [f"log of seed {seed}\n" for seed in (5, 6, 7)]
    assert sandbox.rows == ["1 5 0", "2 6 0", "3 7 0"]
    for i, seed in ((1, 5), (2, 6), (3, 7)):
        assert sandbox.trial(seed)["LOGDIR"] == str(sandbox.set / f"trial_{i}")
        output = (sandbox.set / f"trial_{i}" / "output.log").read_text()
        assert output.startswith(f"trial {i} of 3: seed {seed}, started at ")
        for line in (f"stdout of seed {seed}\n", f"stderr of seed {seed}\n"):
            assert line in output and line in done.stdout
    assert done.stderr.endswith("the table\nthe verdict\n")
    for file, text in (("summary.txt", "the table\n"), ("compliance.txt", "the verdict\n")):
        assert (sandbox.set / file).read_text() == text


def test_python_is_the_users_or_that_of_make_run_and_not_too_old(sandbox: Sandbox) -> None:
    assert_refused(sandbox.finish(sandbox.start(PYTHON="/no/such/python")), "PYTHON: got '/no/such/python'")
    (sandbox.scripts / ".venv" / "bin").mkdir(parents=True)
    (sandbox.scripts / ".venv" / "bin" / "python").symlink_to(sandbox.folder / "bin" / "stub-python")
    assert sandbox.finish(sandbox.start(**sandbox.one_trial("PYTHON="))).returncode == 0
    assert sandbox.trial(5)["PYTHON"] == ".venv/bin/python"
    # Refused before the code is read.
    code = "import sys; sys.version_info = (3, 8, 1); sys.argv = ['launch', 'run']; import launch"
    done = subprocess.run([sys.executable, "-c", code], cwd=sandbox.scripts, stderr=-1, text=True, check=False)
    assert_refused(done, r"PYTHON.*3\.8.*3\.9")


# --- signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_a_signal_ends_the_trial_and_a_restart_continues_the_set(
    sandbox: Sandbox, number: signal.Signals, status: int
) -> None:
    sandbox.control(sleep="")
    process = sandbox.start(NEXP="3", SEED_BASE="5")
    sandbox.wait_for("running")
    os.killpg(process.pid, number)  # as a terminal does, although the trial gets it only from the launcher
    sandbox.wait_for("signals")
    process.send_signal(signal.SIGTERM if number == signal.SIGINT else signal.SIGINT)  # only the first counts
    done = sandbox.finish(process)
    assert done.returncode == status
    assert sandbox.record("signals") == ("INT\n" if number == signal.SIGINT else "TERM\n")
    assert sandbox.seeds == [5] and sandbox.rows == ["1 5 143"]
    assert sandbox.result(1) is None
    assert "the table\n" in done.stderr and f"LOGDIR={sandbox.set}" in done.stderr.splitlines()[-1]
    sandbox.clear("sleep")
    assert sandbox.run(NEXP="3").returncode == 0
    assert sandbox.seeds == [5, 6, 7]


# The script waits for torchrun, which writes the log, and then reports it.
@cases("""
number | status | controls | node                                  | end
TERM   | 143    | log=1    |                                       | the result
INT    | 130    | log=1    |                                       | the result
INT    | 130    | no_log=1 |                                       | before it wrote a log
TERM   | 143    | no_log=1 | DGXNNODES=2 NODE_RANK=1 MASTER_ADDR=a | s
""")
def test_a_signal_reaches_torchrun_and_is_the_exit_status(
    sandbox: Sandbox, number: str, status: str, controls: str, node: str, end: str
) -> None:
    sandbox.control(sleep="", **read_pairs(controls))
    done = sandbox.interrupt(sandbox.start("run_and_time.sh", **read_pairs(node)), signal.Signals[f"SIG{number}"])
    assert (str(done.returncode), sandbox.record("signals")) == (status, f"{number}\n")
    assert is_gone(int(sandbox.record("running")))
    assert done.stderr.endswith(f"{end}\n") and "compliance_checker" not in str(sandbox.asked())


@cases("""
script       | moment          | rows
run_local.sh | block_preflight | 1 5 0
run_local.sh | block_trial_1   | 1 5 0
run.sub      | clearing_sleeps | 1 5 0, 1 5 143
""")
def test_a_signal_before_a_trial_starts_none(sandbox: Sandbox, script: str, moment: str, rows: str) -> None:
    given = sandbox.one_trial("CLEAR_CACHES=1")
    sandbox.run(script, **given)
    (sandbox.set / "result_1.txt").unlink()
    sandbox.clear("trial_5.env")
    sandbox.control(**{moment: ""})
    assert sandbox.interrupt(sandbox.start(script, **given)).returncode == 143
    assert (", ".join(sandbox.rows), sandbox.seeds) == (rows, [])


@pytest.mark.parametrize("script", ["run_with_docker.sh", "run.sub"])
def test_a_signal_stops_our_container_or_step_and_no_other(sandbox: Sandbox, script: str) -> None:
    """A signal goes through Slurm and not to srun, which would kill its tasks. It is repeated until the step ends."""
    sandbox.edit("launch/slurm.py", "REPEAT_SECONDS = 20.0", "REPEAT_SECONDS = 0.2")
    sandbox.control(sleep="", deaf=3)
    assert sandbox.interrupt(sandbox.start(script, **sandbox.one_trial("NEXP=2"))).returncode == 143
    assert sandbox.record("signals") == "TERM\n" and sandbox.seeds == [5]
    ended = sandbox.calls("scancel")
    time.sleep(0.4)
    if script == "run.sub":
        # One may have been on its way, but there is none after the end.
        assert len(ended) >= 3 and all(call == ["scancel", "--signal=TERM", "77"] for call in ended)
        assert len(sandbox.calls("scancel")) <= len(ended) + 1
    else:
        (name,) = [word[7:] for call in sandbox.calls("docker") for word in call if word.startswith("--name=")]
        stops = [call for call in sandbox.calls("docker") if call[1] not in ("run", "image")]
        assert stops and all(call == ["docker", "stop", "--time=120", name] for call in stops)
    # Nothing holds the lock of the set.
    sandbox.clear("sleep")
    assert sandbox.finish(sandbox.start(script, **sandbox.one_trial("NEXP=2"))).returncode == 0
    assert sandbox.seeds == [5, 6] and sandbox.result(2) == "log of seed 6\n"


# --- kills and locks


# Before the lock, before and during the trial, before its log is published, and while the set is reported.
@cases("""
moment          | hook                                                          | again
block_launch    |                                                               | yes
block_preflight |                                                               | yes
sleep           |                                                               | yes
unused          | echo "log of seed $SEED" > "$LOGDIR/result_0.txt"; block 143  |
block_--trials  |                                                               |
""")
def test_a_killed_launcher_takes_its_child_with_it_and_a_restart_continues(
    sandbox: Sandbox, moment: str, hook: str, again: str
) -> None:
    sandbox.control(**{moment: "", "hook": hook})
    process = sandbox.start(NEXP="1", SEED_BASE="5")
    child = int(sandbox.wait_for("running"))
    process.kill()
    process.wait()
    wait_until(lambda: is_gone(child), 10, "the end of its child")
    assert moment == "block_launch" or sandbox.record("signals") == "TERM\n"
    sandbox.clear(moment, "hook", *(["trial_5.env"] if sandbox.seeds else []))
    sandbox.control(log=0)
    done = sandbox.run(NEXP="1", SEED_BASE="5")
    assert (done.returncode, sandbox.rows, sandbox.result(1)) == (0, ["1 5 0"], "log of seed 5\n")
    assert sandbox.seeds == ([5] if again else [])
    assert (sandbox.set / "trial_1_attempt_1").exists() == (moment == "sleep")


def test_two_launchers_never_share_a_folder(sandbox: Sandbox) -> None:
    sandbox.control(
        hook='trap "" TERM; echo $$ > "$STUB/running"; for _ in {1..200}; do ! exists go || break; sleep 0.05; done'
    )
    leader = sandbox.start(NEXP="1", SEED_BASE="5")
    trial = int(sandbox.wait_for("running"))
    assert_refused(sandbox.run(NEXP="1"), "LOGDIR.*already running.*another folder")
    # The trial of a killed launcher holds its lock.
    leader.kill()
    leader.wait()
    assert_refused(sandbox.run(NEXP="1"), "LOGDIR.*already running.*another folder")
    sandbox.control(go="")
    wait_until(lambda: is_gone(trial), 30, "the end of the trial")
    worker = TWO_NODES | {"NODE_RANK": "1", "LOGDIR": str(sandbox.folder / "other")}
    sandbox.start(**worker)
    wait_until((sandbox.folder / "other" / ".lock_1").exists, 30, "the worker's lock")
    assert_refused(sandbox.run(**worker), "LOGDIR.*already running")


def test_of_two_runs_that_start_together_one_is_refused_at_once(sandbox: Sandbox) -> None:
    sandbox.control(sleep="", log=0)
    runs = [sandbox.start("run_and_time.sh") for _ in range(2)]
    wait_until(lambda: any(run.poll() is not None for run in runs), 30, "the end of one")
    loser, winner = sorted(runs, key=lambda run: run.poll() is None)
    done = sandbox.finish(loser)
    assert_refused(done, "LOGDIR: another run is writing")
    assert "the result" not in done.stderr and "run of" not in done.stderr
    # The winner's ranks hold its lock: they may outlive it.
    ranks = Path("/proc", sandbox.wait_for("running").strip(), "fd")
    assert sandbox.set / ".lock" in [file.readlink() for file in ranks.iterdir()]
    assert sandbox.interrupt(winner).returncode == 143


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_stream_does_not_end_the_set(sandbox: Sandbox, stream: str) -> None:
    process = sandbox.start(NEXP="2", SEED_BASE="5")
    getattr(process, stream).close()
    assert process.wait(timeout=30) == 0
    assert (sandbox.set / "summary.txt").read_text() == "the table\n"
    assert "stderr of seed 6" in (sandbox.set / "trial_2" / "output.log").read_text()


@pytest.mark.parametrize("script", ["run_and_time.sh", "run_local.sh"])
def test_a_full_disk_is_the_last_line_and_a_restart_with_more_space_continues(sandbox: Sandbox, script: str) -> None:
    fill = 'cat /dev/zero > "$LOGDIR/fill" || :'
    sandbox.control(log=1, torchrun=1, status_5=1, status_6=1, outcome=1, hook=fill)
    with mounted(sandbox.set, "size=64k"):
        for full in (True, False):
            done = sandbox.run(script, NEXP="2", SEED_BASE="5", RESUME="1")
            assert done.returncode == 1
            assert bool(re.match("error: LOGDIR: .* is full", done.stderr.splitlines()[-1])) == full
            subprocess.run(["mount", "-o", "remount,size=4m", str(sandbox.set)], check=True)
            sandbox.control(hook="")
        tried = [path.name for path in sandbox.set.glob("trial_?_attempt_1")]
        assert "trial_1_attempt_1" in tried or script == "run_and_time.sh"
        assert sandbox.seeds == ([5, 6] if script == "run_local.sh" else [])
