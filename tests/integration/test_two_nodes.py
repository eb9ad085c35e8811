"""Test two nodes on loopback, each started by its own run_local.sh, against one node with the same number of ranks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.local_runs import launched, records, values
from tests.support.paths import ROOT
from tests.support.ranks import free_port, run_ranks

pytestmark = pytest.mark.slow

# Generous: both nodes and other tests share the cores.
LIMIT_S = 150.0


@pytest.fixture
def short(tiny: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Return the settings of a trial of 4 steps and 2 evaluations that does not reach its target."""
    return tiny | {
        "NEXP": "1",
        "SEED_BASE": "1234",
        "EXPERT_PARALLEL": "2",
        "MAX_STEPS": "4",
        "EVAL_INTERVAL_SAMPLES": "16",
        "TARGET_LOSS": "0.01",
        "LOGDIR": str(tmp_path / "set"),
    }


def two_nodes(
    settings: dict[str, str], scripts: tuple[Path, Path] = (ROOT, ROOT), **worker: str
) -> list[tuple[int, str]]:
    """Run both nodes, and return exit status and output of each. ``worker`` are settings of the second node only."""
    both = settings | {"DGXNNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with (
        launched(both | {"NODE_RANK": "0"}, scripts[0]) as leader,
        launched(both | {"NODE_RANK": "1"} | worker, scripts[1]) as second,
    ):
        return [leader.wait(LIMIT_S), second.wait(LIMIT_S)]


def scripts_whose_clearing_ends_with(status: int, folder: Path) -> Path:
    """Copy the scripts, link the packages, and replace the script that would clear this machine's caches."""
    shutil.copytree(ROOT / "launch", folder / "launch")
    for script in ROOT.glob("*.sh"):
        shutil.copy(script, folder)
    for package in ("gptoss20b", "compliance", "system_info"):
        (folder / package).symlink_to(ROOT / package)
    (folder / "launch" / "clear_caches.sh").write_text(f"#!/bin/sh\nexit {status}\n")
    return folder


def losses(log: Path) -> dict[str, list[Any]]:
    return {key: values(log, key) for key in ("train_loss", "eval_accuracy")}


def assert_one_node_has_the_same_losses(settings: dict[str, str], ranks: int, alone: Path) -> None:
    """Run one node without launcher and torchrun, and compare the losses bit by bit."""
    one_node = {"DGXNGPU": str(ranks), "SEED": settings["SEED_BASE"], "LOGDIR": str(alone)}
    for code, output in run_ranks("train", ranks, variables=settings | one_node):
        assert code == 3, output
    expected = losses(alone / "result_0.txt")
    assert [len(values) for values in expected.values()] == [4, 2]
    assert len(set(expected["train_loss"])) == 4
    assert losses(Path(settings["LOGDIR"]) / "result_1.txt") == expected


def test_two_nodes_of_two_ranks_have_the_losses_of_one_node(short: dict[str, str], tmp_path: Path) -> None:
    (first, output), (second, second_output) = two_nodes(short | {"DGXNGPU": "2"})
    assert first == 3, output
    # The second node has no log, and torchrun returns 1 for any failure.
    assert second == 1, second_output
    assert (tmp_path / "set" / "seed_base").read_text() == "1234\n"
    assert "trial 1 of 1: seed 1234" in (tmp_path / "set" / "node_1" / "trial_1.log").read_text()
    assert_one_node_has_the_same_losses(short, 4, tmp_path / "alone")


def test_different_learning_rates_end_the_trial_on_both_nodes(short: dict[str, str], tmp_path: Path) -> None:
    difference = "LEARNING_RATE: 0.006 on rank 0, 0.007 on rank 1"
    for rank, (status, output) in enumerate(two_nodes(short | {"DGXNGPU": "1"}, LEARNING_RATE="0.007")):
        assert status == 1, output
        assert f"rank {rank} aborted: LaunchError: ranks were started with different settings: {difference}" in output
    stop = records(tmp_path / "set" / "trial_1" / "result_0.txt")[-1]
    assert stop["key"] == "run_stop"
    assert stop["metadata"]["status"] == "aborted"
    assert difference in stop["metadata"]["reason"]
    assert not (tmp_path / "set" / "result_1.txt").exists()


def test_caches_cleared_on_one_of_two_nodes_are_logged_as_not_cleared(short: dict[str, str], tmp_path: Path) -> None:
    nodes = (
        scripts_whose_clearing_ends_with(0, tmp_path / "leader"),
        scripts_whose_clearing_ends_with(1, tmp_path / "worker"),
    )
    (status, output), _ = two_nodes(short | {"DGXNGPU": "1", "CLEAR_CACHES": "1"}, nodes)
    assert status == 3, output
    assert values(tmp_path / "set" / "result_1.txt", "cache_clear") == [True, False]
    assert "warning: the page cache of rank 1's node was not dropped" in output
    assert_one_node_has_the_same_losses(short, 2, tmp_path / "alone")
