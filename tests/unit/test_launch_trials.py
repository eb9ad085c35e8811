"""What all launchers share, seen through run_local.sh: seeds, results, failures, second starts, refusals, signals."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.launch_stubs import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_trials_have_consecutive_seeds_results_and_their_whole_output(place: Place) -> None:
    done = place.run(NEXP="3", SEED_BASE="5")
    assert done.returncode == 0, done.stderr
    assert place.seeds == [5, 6, 7]
    assert [place.result(i) for i in (1, 2, 3)] == [f"log of seed {seed}\n" for seed in (5, 6, 7)]
    assert place.journal == [["1", "5", "0"], ["2", "6", "0"], ["3", "7", "0"]]
    for i, seed in ((1, 5), (2, 6), (3, 7)):
        assert place.trial(seed)["LOGDIR"] == str(place.set / f"trial_{i}")
        output = (place.set / f"trial_{i}" / "output.log").read_text()
        assert output.startswith(f"trial {i} of 3: seed {seed}, started at ")
        for words in (f"the log of seed {seed}\n", f"words of seed {seed}\n"):
            assert words in output
            assert words in done.stdout
    assert place.calls() == [
        ["stub-python", "-m", "gptoss20b", "train", "--dry-run"],
        ["stub-python", "-m", "gptoss20b", "result", "--trials", "3", str(place.set)],
        ["stub-python", "-m", "compliance", "check-set", "--runs", "3", str(place.set)],
    ]
    assert done.stderr.endswith("the table\nthe verdict\n")
    assert (place.set / "summary.txt").read_text() == "the table\n"
    assert (place.set / "compliance.txt").read_text() == "the verdict\n"


def test_the_configuration_and_the_data_reach_every_trial(place: Place) -> None:
    place.run(NEXP="1", SEED_BASE="5", LEARNING_RATE="1e-3")
    environment = place.trial(5)
    assert environment["LEARNING_RATE"] == "1e-3"
    assert environment["DGXSYSTEM"] == "CPU_1x2"
    assert environment["DATADIR"] == str(place.scripts / "data" / "sample")
    assert environment["CLEAR_CACHES"] == "0"


def test_ten_trials_are_the_default_and_seeds_come_from_the_system(place: Place) -> None:
    assert place.run().returncode == 0
    first = place.seeds
    assert len(first) == 10
    assert first == list(range(first[0], first[0] + 10))
    assert place.run(LOGDIR=str(place.folder / "other")).returncode == 0
    second = [seed for seed in place.seeds if seed not in first]
    assert len(second) == 10  # one chance in 200 million that the two overlap


@pytest.mark.parametrize(("count", "runs"), [("2", None), ("3", "3"), ("10", "10"), ("12", "10")])
def test_the_set_is_judged_as_a_result_as_far_as_it_can_be(place: Place, count: str, runs: str | None) -> None:
    done = place.run(NEXP=count)
    asked = [call[5] for call in place.calls() if "check-set" in call]
    assert asked == ([runs] if runs else [])
    assert ("not judged" in done.stderr) == (runs is None)


def test_a_set_without_a_result_has_a_folder_of_its_own_under_results(place: Place) -> None:
    assert place.run(NEXP="1", SEED_BASE="5", LOGDIR="").returncode == 0
    folder = Path(place.trial(5)["LOGDIR"]).parent
    assert folder.parent == place.scripts / "results"
    assert folder.name.startswith("CPU_1x2_")
    assert (place.scripts / "results" / "latest").resolve() == folder


def test_where_cd_looks_is_not_asked(place: Place) -> None:
    assert place.run(NEXP="1", SEED_BASE="5", LOGDIR="results/ten", CDPATH=".:/tmp").returncode == 0
    assert place.trial(5)["LOGDIR"] == str(place.scripts / "results" / "ten" / "trial_1")


def test_the_newest_set_can_be_named_by_its_link(place: Place) -> None:
    place.run(NEXP="1", SEED_BASE="5", LOGDIR="")
    folder = Path(place.trial(5)["LOGDIR"]).parent
    assert place.run(NEXP="2", LOGDIR="results/latest").returncode == 0
    assert place.trial(6)["LOGDIR"] == str(folder / "trial_2")
    assert (place.scripts / "results" / "latest").resolve() == folder


@pytest.mark.parametrize("elsewhere", [True, False])
def test_latest_is_ours_alone_and_nothing_fails_for_it(place: Place, elsewhere: bool) -> None:
    results = (place.folder if elsewhere else place.scripts) / "results"
    (results / "latest").mkdir(parents=True)
    done = place.run(NEXP="1", LOGDIR=str(results / "set"))
    assert done.returncode == 0
    assert ("warning: results/latest could not be pointed" in done.stderr) == (not elsewhere)
    assert sorted(path.name for path in results.iterdir()) == ["latest", "set"]


# --- failures


@pytest.mark.parametrize("status", [1, 3, 4, 5, 137])
def test_a_failed_trial_is_recorded_and_the_next_one_started(place: Place, status: int) -> None:
    place.tell("status_6", str(status))
    place.tell("outcome", "3")
    done = place.run(NEXP="3", SEED_BASE="5")
    assert done.returncode == 3  # what the summary says of all
    assert place.journal == [["1", "5", "0"], ["2", "6", str(status)], ["3", "7", "0"]]
    # How training ended is a result. A trial that was cut short has none.
    assert (place.result(2) is not None) == (status in (3, 4, 5))
    assert place.result(3) is not None


def test_stop_on_failure(place: Place) -> None:
    place.tell("status_6", "3")
    place.tell("outcome", "1")
    done = place.run(NEXP="3", SEED_BASE="5", STOP_ON_FAILURE="1")
    assert done.returncode == 1
    assert place.seeds == [5, 6]
    assert "the table" in done.stderr
    assert "the verdict" not in done.stderr
    assert "not judged: a trial failed" in done.stderr


def test_what_refuses_one_trial_refuses_all(place: Place) -> None:
    place.tell("status_5", "2")
    place.tell("outcome", "1")
    assert place.run(NEXP="3", SEED_BASE="5").returncode == 1
    assert place.seeds == [5]


@pytest.mark.parametrize(("outcome", "verdict", "status"), [(0, 1, 5), (0, 3, 5), (3, 0, 3), (3, 1, 3), (5, 1, 5)])
def test_the_exit_status_is_the_trials_and_then_the_sets(place: Place, outcome: int, verdict: int, status: int) -> None:
    place.tell("outcome", str(outcome))
    place.tell("verdict", str(verdict))
    done = place.run(NEXP="3")
    assert done.returncode == status
    assert "the verdict" in done.stderr


def test_the_check_can_be_left_out(place: Place) -> None:
    place.tell("verdict", "1")
    assert place.run(NEXP="3", CHECK_COMPLIANCE="0", SEED_BASE="5").returncode == 0
    assert not any("check-set" in call for call in place.calls())
    assert place.trial(5)["CHECK_COMPLIANCE"] == "0"


# --- a second start


def test_a_second_start_runs_what_is_missing_with_the_same_seeds(place: Place) -> None:
    place.tell("status_6", "1")
    place.tell("status_7", "4")
    place.run(NEXP="3", SEED_BASE="5")
    for seed in (5, 6, 7):
        (place.folder / "stub" / f"trial_{seed}.env").unlink()
    place.tell("status_6", "0")
    done = place.run(NEXP="4")
    assert done.returncode == 0
    assert place.seeds == [6, 8]
    assert [place.result(i) for i in (1, 2, 3, 4)] == [f"log of seed {seed}\n" for seed in (5, 6, 7, 8)]
    assert place.journal[3:] == [["2", "6", "0"], ["4", "8", "0"]]
    # What the first attempt left is kept.
    assert (place.set / "trial_2_attempt_1" / "result_0.txt").read_text() == "log of seed 6\n"
    assert (place.set / "trial_2_attempt_1" / "output.log").exists()


@pytest.mark.parametrize(
    ("resume", "checkpoint", "goes_on"),
    [
        ("1", "step_00000012", True),
        ("True", "step_00000012", True),
        ("t", "step_00000012", True),
        ("YES", "step_00000012", True),
        ("y", "step_00000012", True),
        ("on", "step_00000012", True),
        ("true", ".step_00000012.part", False),
        ("0", "step_00000012", False),
        ("off", "step_00000012", False),
        ("", "step_00000012", False),
    ],
)
def test_a_trial_goes_on_from_its_checkpoint_if_asked(
    place: Place, resume: str, checkpoint: str, goes_on: bool
) -> None:
    place.tell("status_5", "1")
    place.run(NEXP="1", SEED_BASE="5")
    (place.set / "trial_1" / "checkpoints" / checkpoint).mkdir(parents=True)
    place.run(NEXP="1", RESUME=resume)
    assert (place.set / "trial_1" / "checkpoints").exists() == goes_on
    assert (place.set / "trial_1_attempt_1").exists() == (not goes_on)
    assert place.trial(5).get("RESUME", "") == resume  # the trial itself is told; the settings of the set are as before
    assert [row[0] for row in place.journal] == ["1", "1"]


@pytest.mark.parametrize("says", [0, 3, 4])
def test_a_trial_that_failed_after_its_log_had_ended_begins_anew(place: Place, says: int) -> None:
    """The run would refuse to go on with that log, at every further start."""
    place.tell("status_5", "1")
    place.run(NEXP="1", SEED_BASE="5")
    (place.set / "trial_1" / "checkpoints" / "step_00000012").mkdir(parents=True)
    place.tell("log", str(says))
    place.tell("status_5", "0")
    assert place.run(NEXP="1", RESUME="1").returncode == 0
    assert place.journal == [["1", "5", "1"], ["1", "5", "0"]]
    assert (place.set / "trial_1_attempt_1" / "checkpoints").exists()
    assert not (place.set / "trial_1" / "checkpoints").exists()
    assert place.result(1) == "log of seed 5\n"


def test_what_one_trials_log_says_is_not_the_next_ones(place: Place) -> None:
    """The first failed after its log had ended, the second was cut short."""
    place.replace("../bin/stub-python", '"$STUB/log"', '"$STUB/log_of_${4##*/}"')
    place.tell("status_5", "1")
    place.tell("status_6", "1")
    place.run(NEXP="2", SEED_BASE="5")
    for i in (1, 2):
        (place.set / f"trial_{i}" / "checkpoints" / "step_00000012").mkdir(parents=True)
    place.tell("log_of_trial_1", "0")
    place.run(NEXP="2", RESUME="1")
    assert sorted(path.name for path in place.set.glob("trial_*")) == ["trial_1", "trial_1_attempt_1", "trial_2"]


def test_every_attempt_is_kept(place: Place) -> None:
    place.tell("status_5", "1")
    for _ in range(3):
        place.run(NEXP="1", SEED_BASE="5")
    assert sorted(path.name for path in place.set.glob("trial_1*")) == [
        "trial_1",
        "trial_1_attempt_1",
        "trial_1_attempt_2",
    ]


@pytest.mark.parametrize("says", [0, 3, 4, 1, 143])
def test_a_log_that_says_how_training_ended_is_never_repeated(place: Place, says: int) -> None:
    """The launcher was killed before it could keep the log as the trial's result."""
    place.run(NEXP="1", SEED_BASE="5")
    (place.set / "result_1.txt").unlink()
    (place.folder / "stub" / "trial_5.env").unlink()
    place.tell("log", str(says))
    done = place.run(NEXP="2")
    assert done.returncode == 0
    assert ["stub-python", "-m", "gptoss20b", "result", str(place.set / "trial_1")] in place.calls()
    assert place.result(1) == "log of seed 5\n"
    if says in (0, 3, 4):
        assert place.seeds == [6]
        assert place.journal == [["1", "5", "0"], ["1", "5", str(says)], ["2", "6", "0"]]
        assert "trial 1 of 2: its log in" in done.stderr
        assert (["stub-python", "-m", "mlperf_logging.compliance_checker"] in [call[:3] for call in place.calls()]) == (
            says == 0
        )
    else:
        assert place.seeds == [5, 6]
        assert place.journal == [["1", "5", "0"], ["1", "5", "0"], ["2", "6", "0"]]


def test_an_adopted_log_is_checked(place: Place) -> None:
    place.run(NEXP="1", SEED_BASE="5")
    (place.set / "result_1.txt").unlink()
    place.tell("log", "0")
    place.tell("check", "1")
    place.run(NEXP="1")
    assert place.journal == [["1", "5", "0"], ["1", "5", "5"]]
    checked = next(call for call in place.calls() if "mlperf_logging.compliance_checker" in call)
    assert checked[-1] == str(place.set / "trial_1" / "result_0.txt")


def test_a_failure_that_the_log_did_not_see_stays_one(place: Place) -> None:
    place.tell("status_5", "1")
    place.run(NEXP="1", SEED_BASE="5")
    place.tell("log", "0")
    place.tell("status_5", "0")
    assert place.run(NEXP="1").returncode == 0
    assert place.journal == [["1", "5", "1"], ["1", "5", "0"]]
    assert (place.set / "trial_1_attempt_1").exists()


def test_a_signal_while_a_log_is_read_starts_no_trial(place: Place) -> None:
    place.run(NEXP="1", SEED_BASE="5")
    (place.set / "result_1.txt").unlink()
    place.tell("log_sleeps")
    process = place.start("run_local.sh", NEXP="1")
    place.wait_for("reading", process)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert place.journal == [["1", "5", "0"]]
    assert not (place.set / "trial_1_attempt_1").exists()
    (place.folder / "stub" / "log_sleeps").unlink()
    place.tell("log", "0")
    assert place.run(NEXP="1").returncode == 0
    assert place.seeds == [5]


def test_a_log_that_cannot_be_read_is_not_trained_again(place: Place) -> None:
    place.run(NEXP="1", SEED_BASE="5")
    (place.set / "result_1.txt").unlink()
    place.tell("log", "137")
    refused(place.run(NEXP="1"), "LOGDIR", "trial_1/result_0.txt", "could not be read", "137")


def test_a_line_that_was_cut_short_spoils_no_other(place: Place) -> None:
    place.run(NEXP="1", SEED_BASE="5")
    with (place.set / "trials.tsv").open("a") as rows:
        rows.write("2\t6\t20")
    assert place.run(NEXP="2").returncode == 0
    lines = (place.set / "trials.tsv").read_text().splitlines()
    assert lines[2] == "2\t6\t20"
    assert lines[3].startswith("2\t6\t")
    assert lines[3].endswith("\t0")


def test_a_finished_set_is_only_summed_up_again(place: Place) -> None:
    place.run(NEXP="3", SEED_BASE="5")
    before = place.journal
    done = place.run(NEXP="3")
    assert done.returncode == 0
    assert place.journal == before
    assert done.stderr.endswith("the table\nthe verdict\n")


def test_a_second_start_with_other_seeds_is_refused(place: Place) -> None:
    place.run(NEXP="1", SEED_BASE="5")
    refused(place.run(NEXP="2", SEED_BASE="6"), "SEED_BASE", "got 6", "begun with 5", "another LOGDIR")
    assert place.run(NEXP="2", SEED_BASE="5").returncode == 0


OTHER_RATE = ["<LEARNING_RATE = 1e-3, ", ">LEARNING_RATE = 2e-3, "]


def differences(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line[0] + line[2:24] for line in done.stderr.splitlines()[:2]]


@pytest.mark.parametrize(
    "start", [{"NEXP": "2"}, {"NEXP": "2", "RESUME": "1"}, {"NEXP": "1"}, {"NEXP": "1", "RESUME": "0"}]
)
def test_a_second_start_with_other_settings_is_refused_and_says_which(place: Place, start: dict[str, str]) -> None:
    place.tell("status_5", "1")
    place.run(NEXP="1", SEED_BASE="5", LEARNING_RATE="1e-3")
    kept = (place.set / "settings.txt").read_text()
    place.forget()
    done = place.run(LEARNING_RATE="2e-3", **start)
    refused(done, "LOGDIR", "other settings", "Restore them")
    assert differences(done) == OTHER_RATE
    assert len(place.calls()) == 1
    assert (place.set / "settings.txt").read_text() == kept


def test_a_single_trial_goes_on_with_other_settings_and_says_which(place: Place) -> None:
    place.tell("status_5", "1")
    place.run(NEXP="1", SEED_BASE="5", LEARNING_RATE="1e-3")
    (place.set / "trial_1" / "checkpoints" / "step_00000012").mkdir(parents=True)
    done = place.run(NEXP="1", RESUME="1", LEARNING_RATE="2e-3")
    assert done.returncode == 0, done.stderr  # as the stub sums up
    assert differences(done) == OTHER_RATE
    assert (
        done.stderr.splitlines()[2] == f"warning: LOGDIR: '{place.set}' was begun with other settings (<) than now (>)"
    )
    assert place.trial(5)["LEARNING_RATE"] == "2e-3"
    assert (place.set / "trial_1" / "checkpoints").exists()
    assert "LEARNING_RATE = 2e-3, " in (place.set / "settings.txt").read_text()
    # It has them from now on.
    assert "other settings" not in place.run(NEXP="1", RESUME="1", LEARNING_RATE="2e-3").stderr


def test_a_set_with_a_result_keeps_its_settings(place: Place) -> None:
    place.run(NEXP="1", SEED_BASE="5", LEARNING_RATE="1e-3")
    refused(place.run(NEXP="1", RESUME="1", LEARNING_RATE="2e-3"), "LOGDIR", "other settings", "Restore them")
    assert "LEARNING_RATE = 1e-3, " in (place.set / "settings.txt").read_text()


# --- what is refused before any trial


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert all(part in last for part in parts), last


@pytest.mark.parametrize("value", ["0", "-1", "ten", "3.0", "010", "1001", "99999999999999999999"])
def test_a_number_of_trials_that_is_none(place: Place, value: str) -> None:
    refused(place.run(NEXP=value), "NEXP", f"'{value}'", "from 1 to 1000")
    assert not place.set.exists()
    assert place.calls() == []


def test_an_exported_seed_is_no_seed_for_several_trials(place: Place) -> None:
    refused(place.run(NEXP="2", SEED="7"), "SEED", "7 is exported", "all 2 trials", "SEED_BASE=7")
    assert place.run(NEXP="1", SEED="7").returncode == 0
    assert place.seeds == [7]


def test_two_seeds_for_one_trial(place: Place) -> None:
    refused(place.run(NEXP="1", SEED="7", SEED_BASE="8"), "SEED")


@pytest.mark.parametrize("value", ["-1", "x", "1e3", "08", "999999999999999999"])
def test_a_first_seed_that_is_none(place: Place, value: str) -> None:
    refused(place.run(NEXP="2", SEED_BASE=value), "SEED_BASE", f"'{value}'")


@pytest.mark.parametrize("kept", ["abc", "\n", "-1"])
def test_a_first_seed_that_was_damaged(place: Place, kept: str) -> None:
    place.set.mkdir()
    (place.set / "seed_base").write_text(kept)
    refused(place.run(NEXP="1"), "LOGDIR", "seed_base", "expected the seed")


def test_checkpoints_of_several_trials_would_mix(place: Place) -> None:
    refused(place.run(NEXP="1", SAVE_DIR="/c"), "SAVE_DIR", "'/c'", "LOGDIR/trial_<i>/checkpoints", "Unset it")
    assert place.calls() == []


@pytest.mark.parametrize("asked", ["1", "true", "Y"])
def test_nothing_to_go_on_from(place: Place, asked: str) -> None:
    done = place.run(NEXP="1", RESUME=asked, LOGDIR="")
    refused(done, "RESUME: there is nothing to go on from without the LOGDIR of the run. Name it")
    assert place.calls() == []
    assert not (place.scripts / "results").exists()
    assert place.run(NEXP="1", RESUME="0", LOGDIR="").returncode == 0


def test_a_number_of_nodes_that_is_none(place: Place) -> None:
    refused(place.run(DGXNNODES="two"), "DGXNNODES", "'two'", "whole number")


def test_a_model_that_is_not_there(place: Place) -> None:
    refused(place.run(MODELDIR="no/such"), "MODELDIR", "no folder 'no/such'")


def test_a_system_without_a_configuration(place: Place) -> None:
    refused(place.run(DGXSYSTEM="B300_1x8"), "DGXSYSTEM", "'B300_1x8'", "config_B300_1x8.sh", "config_CPU_1x2.sh")


def test_data_that_are_not_there(place: Place) -> None:
    refused(place.run(DATADIR="/no/such"), "DATADIR", "'/no/such'", "data_scripts/download_dataset.sh")


@pytest.mark.parametrize("name", ["STOP_ON_FAILURE", "CHECK_COMPLIANCE", "CLEAR_CACHES"])
def test_a_switch_that_is_neither_on_nor_off(place: Place, name: str) -> None:
    refused(place.run(**{name: "yes"}), name, "'yes'", "0 1")


def test_a_folder_that_cannot_be_written(place: Place) -> None:
    (place.folder / "file").write_text("")
    refused(place.run(LOGDIR=str(place.folder / "file" / "set")), "LOGDIR", "cannot write", "file/set")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_file_system(place: Place) -> None:
    place.set.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", place.set], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this sandbox does not mount")
    try:
        refused(place.run(), "LOGDIR", "cannot write")
    finally:
        subprocess.run(["umount", place.set], check=True)
    assert place.seeds == []


def test_a_bad_configuration(place: Place) -> None:
    place.tell("dry_run")
    done = place.run()
    assert done.returncode == 2
    assert done.stderr == "error: 1 problem\n"
    assert place.seeds == []


# --- several nodes


@pytest.mark.parametrize("missing", ["NODE_RANK", "MASTER_ADDR", "LOGDIR"])
def test_a_variable_of_several_nodes_is_missing(place: Place, missing: str) -> None:
    given = {"NODE_RANK": "0", "MASTER_ADDR": "first", "LOGDIR": str(place.set)} | {missing: ""}
    refused(place.run(DGXNNODES="2", **given), missing, "not set")


BOTH = {"DGXNNODES": "2", "MASTER_ADDR": "first", "NEXP": "2", "MASTER_PORT": "4000"}


def until(condition: Callable[[], bool], *processes: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < end
        time.sleep(0.05)


@contextlib.contextmanager
def started(place: Place, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A run_local.sh that does not outlive the test."""
    process = place.start("run_local.sh", **environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def test_nodes_share_the_first_ones_seeds_and_end_with_it(place: Place) -> None:
    place.tell("sleep")
    with started(place, NODE_RANK="1", **BOTH) as second:
        time.sleep(1)
        assert place.seeds == []  # it waits for the first
        with started(place, NODE_RANK="0", SEED_BASE="5", **BOTH) as first:
            place.wait_for("running", first)
            (place.folder / "stub" / "sleep").unlink()
            until((place.set / "node_1" / "trial_1.log").exists, first, second)
            assert place.trial(5)["MASTER_PORT"] == "4000"
            time.sleep(1.5)
            assert second.poll() is None  # its part of the trial has ended, and it waits for the first's
            first.send_signal(signal.SIGTERM)
            first.communicate(timeout=30)
            assert first.returncode == 143
        assert second.wait(timeout=30) in (0, 143)
    assert place.seeds == [5]
    assert "seed 5" in (place.set / "node_1" / "trial_1.log").read_text()
    assert not (place.set / "current").exists()


def test_another_node_does_the_trials_that_the_first_does(place: Place) -> None:
    place.set.mkdir()
    (place.set / "seed_base").write_text("5\n")
    with started(place, NODE_RANK="1", **BOTH) as second:
        for number, seed in ((2, 6), (1, 5)):
            (place.set / "current").write_text(f"{number} 77_1\n")
            until((place.folder / "stub" / f"trial_{seed}.env").exists, second)
            assert place.trial(seed)["MASTER_PORT"] == str(3999 + number)
        (place.set / "current").unlink()
        assert second.wait(timeout=30) == 0
    assert place.calls() == []
    assert not (place.set / "result_1.txt").exists()


def test_another_node_leaves_a_trial_that_the_first_has_left(place: Place) -> None:
    """As after a kill of the first, which could not take the number back."""
    place.replace("launch/trials.sh", "leaving_seconds=30", "leaving_seconds=2")
    place.set.mkdir()
    (place.set / "seed_base").write_text("5\n")
    (place.set / "current").write_text("2 77_1\n")
    place.tell("sleep")
    with started(place, NODE_RANK="1", **BOTH) as second:
        place.wait_for("running", second)
        time.sleep(3.5)
        assert place.told("signals") is None
        (place.folder / "stub" / "sleep").unlink()
        (place.set / "current").write_text("1 77_1\n")
        until((place.folder / "stub" / "trial_5.env").exists, second)
        assert place.told("signals") == "TERM\n"
        (place.set / "current").unlink()
        assert second.wait(timeout=30) == 1  # nobody signalled it
    assert place.seeds == [5, 6]


def test_a_node_joins_a_trial_that_the_first_starts_again(place: Place) -> None:
    """The first was killed and started again before the second noticed: the same number, another start."""
    place.set.mkdir()
    (place.set / "seed_base").write_text("5\n")
    (place.set / "current").write_text("1 77_1\n")
    with started(place, NODE_RANK="1", **BOTH) as second:
        until((place.folder / "stub" / "trial_5.env").exists, second)
        (place.folder / "stub" / "trial_5.env").unlink()
        (place.set / "current").write_text("1 78_1\n")
        until((place.folder / "stub" / "trial_5.env").exists, second)
        (place.set / "current").unlink()
        assert second.wait(timeout=30) == 0


def test_two_launchers_of_one_node_never_share_a_folder(place: Place) -> None:
    with started(place, NODE_RANK="1", **BOTH):
        until((place.set / ".lock_1").exists)
        refused(place.run(NODE_RANK="1", **BOTH), "LOGDIR", "trials are running")


def test_stopping_on_failure_stops_all_nodes(place: Place) -> None:
    place.tell("status_5", "3")
    place.tell("sleep")
    both = BOTH | {"STOP_ON_FAILURE": "1", "SEED_BASE": "5"}
    with started(place, NODE_RANK="0", **both) as first:
        place.wait_for("running", first)
        (place.folder / "stub" / "sleep").unlink()
        with started(place, NODE_RANK="1", **both) as second:
            until((place.set / "node_1" / "trial_1.log").exists, first, second)
            os.kill(int(place.told("running") or ""), signal.SIGUSR1)
            assert first.wait(timeout=30) == 0  # as the stub sums up
            assert second.wait(timeout=30) == 3
    assert place.seeds == [5]


def test_another_node_has_nothing_to_do_in_a_finished_set(place: Place) -> None:
    place.run(NEXP="2", SEED_BASE="5")
    place.forget()
    done = place.run(NODE_RANK="1", **BOTH)
    assert done.returncode == 0
    assert "nothing to do: results 1 to 2 are in" in done.stderr
    assert place.calls() == []


def test_ports_of_trials(place: Place) -> None:
    place.run(NEXP="2", SEED_BASE="5", DGXNNODES="2", NODE_RANK="0", MASTER_ADDR="first", MASTER_PORT="4000")
    assert [place.trial(seed)["MASTER_PORT"] for seed in (5, 6)] == ["4000", "4001"]
    refused(place.run(NEXP="2", MASTER_PORT="65535"), "MASTER_PORT", "1 to 65534")


def test_a_node_that_does_not_see_the_firsts_folder(place: Place) -> None:
    place.replace("launch/trials.sh", "meeting_seconds=600", "meeting_seconds=1")
    done = place.run(DGXNNODES="2", NODE_RANK="1", MASTER_ADDR="first")
    refused(done, "LOGDIR", "begins no trial", "shared folder")


# --- signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_a_signal_ends_the_trial_and_the_set_goes_on_at_the_next_start(
    place: Place, number: signal.Signals, status: int
) -> None:
    place.tell("sleep")
    process = place.start("run_local.sh", NEXP="3", SEED_BASE="5")
    place.wait_for("running", process)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert place.told("signals") == "TERM\n"
    assert place.seeds == [5]
    assert place.journal == [["1", "5", "143"]]
    assert place.result(1) is None
    assert err.endswith("the table\n")
    (place.folder / "stub" / "sleep").unlink()
    assert place.run(NEXP="3").returncode == 0
    assert place.seeds == [5, 6, 7]


def test_a_launcher_that_is_killed_takes_its_trial_with_it(place: Place) -> None:
    place.tell("sleep")
    process = place.start("run_local.sh", NEXP="3", SEED_BASE="5")
    trial = int(place.wait_for("running", process))
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while Path(f"/proc/{trial}").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert place.told("signals") == "TERM\n"
    assert place.journal == []


def test_two_launchers_never_share_a_folder(place: Place) -> None:
    place.tell("sleep")
    process = place.start("run_local.sh", NEXP="1", SEED_BASE="5")
    try:
        place.wait_for("running", process)
        refused(place.run(NEXP="1"), "LOGDIR", "trials are running", "another folder")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_away_costs_nothing(place: Place, stream: str) -> None:
    process = place.start("run_local.sh", NEXP="2", SEED_BASE="5")
    getattr(process, stream).close()
    assert process.wait(timeout=30) == 0
    assert (place.set / "summary.txt").read_text() == "the table\n"
    assert "words of seed 6" in (place.set / "trial_2" / "output.log").read_text()
