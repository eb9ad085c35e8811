"""The files of a set: settings, seeds, rows, results, and the link to the latest."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support.launch_stubs import Done, Sandbox, assert_refused

OTHER_RATE = ["<LEARNING_RATE = 1e-3, ", ">LEARNING_RATE = 2e-3, "]


def differences(done: Done) -> list[str]:
    return [line[0] + line[2:24] for line in done.stderr.splitlines()[:2]]


@pytest.mark.parametrize(
    ("status", "restart", "accepted"),
    [
        (1, {"NEXP": "2"}, False),
        (1, {"NEXP": "2", "RESUME": "1"}, False),
        (1, {"NEXP": "1"}, False),
        (1, {"NEXP": "1", "RESUME": "0"}, False),
        (0, {"NEXP": "1", "RESUME": "1"}, False),  # the trial has a result
        (1, {"NEXP": "1", "RESUME": "1"}, True),
    ],
)
def test_a_restart_shows_other_settings_and_only_a_resumed_trial_accepts_them(
    sandbox: Sandbox, status: int, restart: dict[str, str], accepted: bool
) -> None:
    sandbox.control(status_5=status)
    sandbox.run(NEXP="1", SEED_BASE="5", LEARNING_RATE="1e-3")
    sandbox.clear("calls")
    done = sandbox.run(LEARNING_RATE="2e-3", **restart)
    assert differences(done) == OTHER_RATE
    rate = "2e-3" if accepted else "1e-3"
    assert f"LEARNING_RATE = {rate}, " in (sandbox.set / "settings.txt").read_text()
    assert sandbox.trial(5)["LEARNING_RATE"] == rate
    if accepted:
        assert done.returncode == 0  # the exit status of the summary
        assert done.stderr.splitlines()[2].startswith(f"warning: LOGDIR: '{sandbox.set}' ")
        # These are the settings of the set from now on.
        assert "other settings" not in sandbox.run(LEARNING_RATE="2e-3", **restart).stderr
    else:
        assert_refused(done, "LOGDIR", "other settings", "Restore")
        assert len(sandbox.calls()) == 1


def test_a_restart_with_another_seed_is_refused(sandbox: Sandbox) -> None:
    sandbox.run(NEXP="1", SEED_BASE="5")
    assert_refused(sandbox.run(NEXP="2", SEED_BASE="6"), "SEED_BASE: got 6", "started with 5", "another LOGDIR")
    assert sandbox.run(NEXP="2", SEED_BASE="5").returncode == 0


@pytest.mark.parametrize("content", ["abc", "\n", "-1"])
def test_a_damaged_first_seed_is_refused(sandbox: Sandbox, content: str) -> None:
    sandbox.set.mkdir()
    (sandbox.set / "seed_base").write_text(content)
    assert_refused(sandbox.run(NEXP="1"), "LOGDIR", "seed_base", f"'{content.strip()}'")


def test_a_truncated_row_does_not_damage_the_next(sandbox: Sandbox) -> None:
    sandbox.run(NEXP="1", SEED_BASE="5")
    with (sandbox.set / "trials.tsv").open("a") as rows:
        rows.write("2\t6\t20")
    assert sandbox.run(NEXP="2").returncode == 0
    lines = (sandbox.set / "trials.tsv").read_text().splitlines()
    assert lines[2] == "2\t6\t20"
    assert lines[3].startswith("2\t6\t") and lines[3].endswith("\t0")


def test_a_file_system_without_hard_links_gets_a_copy(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", refuse)
    sandbox.run(NEXP="1", SEED_BASE="5")
    assert sandbox.result(1) == "log of seed 5\n"
    assert sorted(path.name for path in sandbox.set.glob("result_*")) == ["result_1.txt"]


def test_without_logdir_a_set_has_a_new_folder_and_latest_points_to_it(sandbox: Sandbox) -> None:
    assert sandbox.run(NEXP="1", SEED_BASE="5", LOGDIR="").returncode == 0
    folder = Path(sandbox.trial(5)["LOGDIR"]).parent
    results = sandbox.scripts / "results"
    assert folder.parent == results and folder.name.startswith("CPU_1x2_")
    assert (results / "latest").resolve() == folder
    # The link can name the set at the next start.
    assert sandbox.run(NEXP="2", LOGDIR="scripts/results/latest").returncode == 0
    assert sandbox.trial(6)["LOGDIR"] == str(folder / "trial_2")
    assert (results / "latest").resolve() == folder


@pytest.mark.parametrize("elsewhere", [True, False])
def test_only_a_link_in_our_results_is_updated_and_a_failure_is_a_warning(sandbox: Sandbox, elsewhere: bool) -> None:
    results = (sandbox.folder if elsewhere else sandbox.scripts) / "results"
    (results / "latest").mkdir(parents=True)
    done = sandbox.run(NEXP="1", LOGDIR=str(results / "set"))
    assert done.returncode == 0
    assert ("warning:" in done.stderr and "results/latest" in done.stderr) == (not elsewhere)
    assert sorted(path.name for path in results.iterdir()) == ["latest", "set"]
