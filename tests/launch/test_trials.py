"""The trials of a set: seeds, results, failures and restarts, and what a worker does."""

from __future__ import annotations

import errno
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from launch.trial_set import TrialSet
from tests.support.launch_stubs import Done, Sandbox, assert_refused, cases, read_pairs


def start(sandbox: Sandbox, given: str = "", **controls: object) -> Done:
    """Run a set whose first seed is 5 in this process."""
    sandbox.control(**controls)
    return sandbox.run(SEED_BASE="5", **read_pairs(given))


def test_the_defaults_are_ten_trials_and_random_seeds(sandbox: Sandbox) -> None:
    assert sandbox.run().returncode == 0
    first = sandbox.seeds
    assert first == list(range(first[0], first[0] + 10))
    assert sandbox.run(LOGDIR=str(sandbox.folder / "other")).returncode == 0
    assert len(sandbox.seeds) == 20  # they overlap with a probability of 1 in 200 million


def test_one_trial_takes_its_seed_from_seed_and_ignores_a_false_resume(sandbox: Sandbox) -> None:
    for given in ("SEED=7 RESUME=0 LOGDIR=", "SEED=7", "SEED_BASE=7"):  # the same settings
        assert sandbox.run(NEXP="1", **read_pairs(given)).returncode == 0
    assert sandbox.seeds == [7]


# A set is checked from three runs on, of which ten count.
@cases("""
given                     | controls            | status | runs      | last
NEXP=2                    | verdict=1           | 0      |         | set not checked: an olympic mean
NEXP=3                    | verdict=0           | 0      | --runs 3  | the verdict
NEXP=3                    | verdict=1           | 5      | --runs 3  | the verdict
NEXP=12                   | verdict=1           | 5      | --runs 10 | the verdict
NEXP=3 CHECK_COMPLIANCE=0 | verdict=1           | 0      |           | the table
NEXP=3                    | verdict=1 outcome=3 | 3      | --runs 3  | the verdict
NEXP=3                    | verdict=1 outcome=5 | 5      | --runs 3  | the verdict
NEXP=3                    | verdict=0 outcome=1 | 1      |           | set not checked: a trial failed
""")
def test_the_end_of_a_set(sandbox: Sandbox, given: str, controls: str, status: str, runs: str, last: str) -> None:
    done = start(sandbox, given, **read_pairs(controls))
    assert str(done.returncode) == status
    assert done.stderr.splitlines()[-1].startswith(last) and "\nthe table\n" in done.stderr
    checked = [f"compliance check-set {runs} {sandbox.set}"] if runs else []
    assert sandbox.asked()[2:] == checked
    assert sandbox.trial(5)["CHECK_COMPLIANCE"] == ("0" if "CHECK" in given else "1")


@pytest.mark.parametrize(
    ("status", "stop", "seeds"),
    [*((status, "0", [5, 6, 7]) for status in (1, 3, 4, 5, 137)), (3, "1", [5, 6]), (2, "0", [5, 6])],
)
def test_a_failed_trial_is_recorded_and_ends_the_set_on_request_or_if_it_was_refused(
    sandbox: Sandbox, status: int, stop: str, seeds: list[int]
) -> None:
    done = start(sandbox, f"NEXP=3 STOP_ON_FAILURE={stop}", status_6=status, outcome=3)
    assert (done.returncode, sandbox.seeds) == (3, seeds)  # the exit status of the summary
    assert sandbox.rows == ["1 5 0", f"2 6 {status}", "3 7 0"][: len(seeds)]
    # Only a trial whose training ended has a result.
    assert (sandbox.result(2) is not None) == (status in (3, 4, 5))


# --- restarts


def test_a_restart_runs_the_missing_trials_with_the_same_seeds(sandbox: Sandbox) -> None:
    start(sandbox, "NEXP=3", status_6=1, status_7=4)
    sandbox.clear("trial_5.env", "trial_6.env", "trial_7.env", "status_6")
    with (sandbox.set / "trials.tsv").open("a") as table:
        table.write("2\t6\tthe disk was full\t0\t")  # the next row is complete
    assert sandbox.run(NEXP="4").returncode == 0
    assert sandbox.seeds == [6, 8]
    assert [sandbox.result(i) for i in (1, 2, 3, 4)] == [f"log of seed {seed}\n" for seed in (5, 6, 7, 8)]
    assert sandbox.rows[3:] == ["2 6 ", "2 6 0", "4 8 0"]
    previous = sandbox.set / "trial_2_attempt_1"
    assert (previous / "result_0.txt").read_text() == "log of seed 6\n" and (previous / "output.log").exists()
    # A finished set is only reported again.
    done = sandbox.run(NEXP="4")
    assert (done.returncode, len(sandbox.rows), done.stderr) == (0, 6, "the table\nthe verdict\n")


# Only an interrupted trial resumes. One that failed after the end of its training has no result, and would be refused.
@cases("""
resume | checkpoint          | log | resumed
1      | step_00000012       | 1   | yes
True   | step_00000012       | 1   | yes
on     | step_00000012       | 1   | yes
0      | step_00000012       | 1   |
       | step_00000012       | 1   |
1      | .step_00000012.part | 1   |
1      | step_00000012.old   | 1   |
1      | step_00000012       | 0   |
1      | step_00000012       | 4   |
""")
def test_an_interrupted_trial_resumes_from_its_checkpoint_if_asked(
    sandbox: Sandbox, resume: str, checkpoint: str, log: str, resumed: str
) -> None:
    start(sandbox, "NEXP=1", status_5=1, log=log)
    (sandbox.set / "trial_1" / "checkpoints" / checkpoint).mkdir(parents=True)
    for _ in range(2):
        sandbox.run(NEXP="1", RESUME=resume)
    # RESUME reaches the trial, but is no setting of the set, which would differ from its first start.
    assert sandbox.trial(5).get("RESUME", "") == resume and sandbox.rows == ["1 5 1"] * 3
    folders = ["trial_1"] if resumed else ["trial_1", "trial_1_attempt_1", "trial_1_attempt_2"]
    assert sorted(path.name for path in sandbox.set.glob("trial_*")) == folders


@pytest.mark.parametrize(("log", "check", "row"), [(0, 0, 0), (0, 1, 5), (3, 0, 3), (4, 0, 4), (1, 0, None)])
def test_a_killed_launchers_result_is_recovered_and_checked_or_its_trial_repeated(
    sandbox: Sandbox, log: int, check: int, row: int | None
) -> None:
    start(sandbox, "NEXP=1")
    (sandbox.set / "result_1.txt").unlink()
    sandbox.clear("trial_5.env")
    # Python itself fails: the log may be a valid result.
    assert_refused(start(sandbox, "NEXP=2", log=137), "LOGDIR.*trial_1/result_0.txt'.* 137")
    assert sandbox.seeds == [] and sandbox.asked()[-1] == f"gptoss20b result {sandbox.set}/trial_1"
    assert start(sandbox, "NEXP=2", log=log, check=check).returncode == 0
    assert sandbox.result(1) == "log of seed 5\n"
    assert sandbox.seeds == ([5, 6] if row is None else [6])
    assert sandbox.rows == ["1 5 0", f"1 5 {row or 0}", "2 6 0"]
    checked = [call.split()[-1] for call in sandbox.asked() if "compliance_checker" in call]
    assert checked == ([f"{sandbox.set}/trial_1/result_0.txt"] if log == 0 else [])


def test_a_restart_shows_other_settings_and_only_a_resumed_trial_accepts_them(sandbox: Sandbox) -> None:
    start(sandbox, "NEXP=1 LEARNING_RATE=1e-3", status_5=1)
    # The last restart is accepted, and gives the trial its result. These are the settings of the set from then on.
    for restart in ("NEXP=2 RESUME=1", "NEXP=1 RESUME=0", "NEXP=1 RESUME=1"):
        sandbox.clear("calls")
        done = start(sandbox, f"LEARNING_RATE=2e-3 {restart}", status_5=0)
        shown = done.stderr.splitlines()
        assert [line[0] + line[2:24] for line in shown[:2]] == ["<LEARNING_RATE = 1e-3, ", ">LEARNING_RATE = 2e-3, "]
        accepted = restart == "NEXP=1 RESUME=1"
        assert f"LEARNING_RATE = {'2e-3' if accepted else '1e-3'}, " in (sandbox.set / "settings.txt").read_text()
        if not accepted:
            assert_refused(done, "LOGDIR.*other settings.*Restore")
            assert sandbox.asked() == ["gptoss20b preflight"]
    assert done.returncode == 0 and shown[2].startswith(f"warning: LOGDIR: '{sandbox.set}' ")
    assert sandbox.trial(5)["LEARNING_RATE"] == "2e-3"
    assert "other settings" not in start(sandbox, f"LEARNING_RATE=2e-3 {restart}").stderr
    assert_refused(start(sandbox, f"LEARNING_RATE=3e-3 {restart}"), "LOGDIR.*other settings.*Restore")


def test_a_restart_with_another_or_a_damaged_seed_is_refused(sandbox: Sandbox) -> None:
    start(sandbox, "NEXP=1")
    assert_refused(sandbox.run(NEXP="2", SEED_BASE="6"), "SEED_BASE: got 6, .*started with 5.*another LOGDIR")
    assert sandbox.run(NEXP="2", SEED_BASE="5").returncode == 0
    for content in (b"abc", b"\n", b"-1", b"\xff"):
        (sandbox.set / "seed_base").write_bytes(content)
        shown = content.strip().decode(errors="replace")
        assert_refused(sandbox.run(NEXP="1"), f"LOGDIR.*seed_base' contains '{shown}'")


# --- files


def test_a_file_system_without_hard_links_gets_a_copy(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", Mock(side_effect=OSError(errno.EPERM, "no links")))
    start(sandbox, "NEXP=1")
    assert [path.read_text() for path in sandbox.set.glob("result_*")] == ["log of seed 5\n"]


def test_without_logdir_a_set_has_a_new_folder_and_latest_points_to_it(sandbox: Sandbox) -> None:
    latest = sandbox.scripts / "results" / "latest"
    assert start(sandbox, "NEXP=1 LOGDIR=").returncode == 0
    folder = latest.resolve()
    assert folder == Path(sandbox.trial(5)["LOGDIR"]).parent and folder.name.startswith("CPU_1x2_")
    # The link can name the set at the next start. A set elsewhere does not change it.
    for logdir in (latest, sandbox.folder / "results" / "set"):
        assert start(sandbox, f"NEXP=2 LOGDIR={logdir}").returncode == 0
        assert latest.resolve() == folder
    assert sorted(path.name for path in folder.glob("result_*")) == ["result_1.txt", "result_2.txt"]
    # A failure is a warning.
    latest.unlink()
    latest.mkdir()
    done = start(sandbox, f"NEXP=1 LOGDIR={latest.parent}/set")
    assert done.returncode == 0 and re.search("warning: .*results/latest", done.stderr)
    assert sorted(path.name for path in latest.parent.iterdir()) == [folder.name, "latest", "set"]


# --- workers: a hook of the trial acts as the leader


@pytest.fixture
def worker(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the variables of a worker whose seconds are a hundredth as long."""
    monkeypatch.setattr("launch.trials.time", SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 100)))
    sandbox.set.mkdir()
    (sandbox.set / "seed_base").write_text("5\n")
    return read_pairs("DGXNNODES=2 MASTER_ADDR=leader NODE_RANK=1 NEXP=2 MASTER_PORT=4000")


def announce(sandbox: Sandbox, first: str, *others: str) -> None:
    """Announce a trial, and each time that a trial starts the next one. At last the leader ends."""
    (sandbox.set / "current").write_text(f"{first}\n")
    (sandbox.set / "next").write_text("".join(f"{trial}\n" for trial in others))
    sandbox.control(
        hook=f"""cd '{sandbox.set}'; echo "$SEED $MASTER_PORT" >> "$STUB/started"
        if read -r trial < next; then echo "$trial" > current; sed -i 1d next; else rm -f current; fi"""
    )


# At first, the leader is killed and restarted before the worker notices: the same trial, another id.
@cases("""
others         | status_6 | started                | worst
1 77_1, 1 78_1 | 0        | 6 4001, 5 4000, 5 4000 | 0
1 77_1         | 1        | 6 4001, 5 4000         | 1
1 77_1         | 137      | 6 4001, 5 4000         | 1
1 77_1         | 3        | 6 4001, 5 4000         | 0
1 77_1         | 2        | 6 4001                 | 2
""")
def test_a_worker_runs_the_trials_that_the_leader_announces_and_returns_its_worst_status(
    sandbox: Sandbox, worker: dict[str, str], others: str, status_6: str, started: str, worst: str
) -> None:
    sandbox.control(status_6=status_6)
    announce(sandbox, "2 77_1", *others.split(", "))
    assert str(sandbox.run(**worker).returncode) == worst
    assert sandbox.record("started").splitlines() == started.split(", ")
    assert "stdout of seed 6" in (sandbox.set / "node_1" / "trial_2.log").read_text()
    assert sandbox.calls() == [] and not (sandbox.set / "result_1.txt").exists()
    assert (sandbox.set / "refused_1").exists() == (status_6 == "2")


def test_each_start_of_a_trial_is_announced_with_another_id(tmp_path: Path) -> None:
    files = TrialSet(tmp_path, 1)
    files.announce(1)
    first = files.current()
    files.announce(1)
    assert first != files.current() and first.startswith("1 ")


def test_a_worker_that_is_refused_ends_the_leaders_wait(sandbox: Sandbox) -> None:
    sandbox.control(hook='touch "${LOGDIR%/*}/refused_1"', sleep="", outcome=1)
    two_nodes = {"DGXNNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "leader"}
    done = sandbox.run(NEXP="2", SEED_BASE="5", **two_nodes)
    assert done.returncode == 1
    assert (sandbox.seeds, sandbox.rows) == ([5], ["1 5 2"])
    assert "error: NODE_RANK=1: this worker was refused" in done.stderr


def test_nodes_stop_together_on_failure(
    sandbox: Sandbox, worker: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RENDEZVOUS_TIMEOUT", "LEAVE_GRACE"):
        monkeypatch.setattr(f"launch.trials.{name}", 6000)
    # Each part of a trial waits for the other.
    sandbox.control(hook='echo x >> "$STUB/$SEED"; until [[ $(wc -l < "$STUB/$SEED") == 2 ]]; do sleep 0.02; done')
    sandbox.control(status_6=3, outcome=3)
    given = worker | {"NEXP": "3", "STOP_ON_FAILURE": "1"}
    leader = sandbox.start(**given | {"NODE_RANK": "0"})
    assert sandbox.run(**given).returncode == 0
    assert sandbox.finish(leader).returncode == 3
    assert (sandbox.seeds, sandbox.rows) == ([5, 6], ["1 5 0", "2 6 3"])
    assert not (sandbox.set / "current").exists()


def test_a_worker_stops_a_trial_that_the_leader_has_left(sandbox: Sandbox, worker: dict[str, str]) -> None:
    """A killed leader leaves its announcement behind until it starts another trial."""
    announce(sandbox, "2 77_1", "1 77_1")
    hook = sandbox.record("hook")
    sandbox.control(hook=f"[[ $SEED == 6 ]] || rm '{sandbox.folder}/stub/sleep'\nsleep 0.5\n{hook}", sleep="")
    assert sandbox.run(**worker).returncode == 1  # a failure: the worker itself got no signal
    assert sandbox.record("signals") == "TERM\n"
    assert sandbox.record("started") == "6 4001\n5 4000\n"


def test_a_worker_without_work_ends_and_one_without_a_leader_is_refused(
    sandbox: Sandbox, worker: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.trials.RENDEZVOUS_TIMEOUT", 7)
    assert_refused(sandbox.run(**worker), f"LOGDIR.*'{sandbox.set}' within 7 s.*shared folder")
    for i in (1, 2):
        (sandbox.set / f"result_{i}.txt").touch()
    assert sandbox.run(**worker).returncode == 0
    # Another folder of this name, or one that is not shared yet.
    announce(sandbox, "1 77_1")
    (sandbox.set / "seed_base").unlink()
    assert_refused(sandbox.run(**worker), "LOGDIR: cannot read '.*/seed_base'")
    assert sandbox.seeds == []
