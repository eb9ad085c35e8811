"""Two nodes on loopback, each started by its own run_local.sh: the numbers of one node with as many ranks."""

from __future__ import annotations

import contextlib
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.local_runs import launched, records, values
from tests.support.paths import ROOT
from tests.support.ranks import free_port, run_ranks

# Both nodes, their ranks and whatever else runs share the cores.
LIMIT_S = 150.0


def two_free_ports() -> int:
    """The first of two ports in a row."""
    while True:
        port = free_port()
        with contextlib.closing(socket.socket()) as second, contextlib.suppress(OSError):
            second.bind(("127.0.0.1", port + 1))
            return port


@pytest.fixture
def short(tiny: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """One trial of 4 steps and 2 evaluations that ends without its target; nodes and ranks are up to the test."""
    return tiny | {
        "NEXP": "1",
        "SEED_BASE": "1234",
        "EXPERT_PARALLEL": "2",
        "MAX_STEPS": "4",
        "EVAL_INTERVAL_SAMPLES": "16",
        "TARGET_LOSS": "0.01",
        "LOGDIR": str(tmp_path / "set"),
    }


def node(settings: dict[str, str], rank: int, port: int, **own: str) -> dict[str, str]:
    together = {"DGXNNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(rank)}
    return settings | together | own


def two_nodes(
    settings: dict[str, str], scripts: tuple[Path, Path] = (ROOT, ROOT), **second: str
) -> list[tuple[int, str]]:
    """Run both to their ends: exit status and output of each. ``second`` is what only the second node is told."""
    port = two_free_ports()
    with (
        launched(node(settings, 0, port), scripts[0]) as first_node,
        launched(node(settings, 1, port, **second), scripts[1]) as second_node,
    ):
        return [first_node.wait(LIMIT_S), second_node.wait(LIMIT_S)]


def copy_of_scripts(folder: Path) -> Path:
    """The scripts, for a test that changes them, beside the packages as they are."""
    shutil.copytree(ROOT / "launch", folder / "launch")
    for script in ROOT.glob("*.sh"):
        shutil.copy(script, folder)
    for package in ("gptoss20b", "compliance", "system_info"):
        (folder / package).symlink_to(ROOT / package)
    return folder


def losses(log: Path) -> dict[str, list[Any]]:
    return {key: values(log, key) for key in ("train_loss", "eval_accuracy")}


def assert_one_node_has_the_same_losses(settings: dict[str, str], ranks: int, alone: Path) -> None:
    """To the last bit; the one node's ranks are forked, with neither launcher nor torchrun."""
    own = {"DGXNGPU": str(ranks), "SEED": settings["SEED_BASE"], "LOGDIR": str(alone)}
    for code, shown in run_ranks("train", ranks, variables=settings | own):
        assert code == 3, shown
    together, apart = losses(Path(settings["LOGDIR"]) / "result_1.txt"), losses(alone / "result_0.txt")
    assert [len(found) for found in apart.values()] == [4, 2]
    assert len(set(apart["train_loss"])) == 4
    assert together == apart


@pytest.mark.slow
def test_two_nodes_of_two_ranks_have_the_losses_of_one_node(short: dict[str, str], tmp_path: Path) -> None:
    (first, shown), (second, shown_by_second) = two_nodes(short | {"DGXNGPU": "2"})
    assert first == 3, shown
    # The second node has no log; what torchrun knows of any failure is 1.
    assert second == 1, shown_by_second
    assert (tmp_path / "set" / "seed_base").read_text() == "1234\n"
    assert "trial 1 of 1: seed 1234" in (tmp_path / "set" / "node_1" / "trial_1.log").read_text()
    assert_one_node_has_the_same_losses(short, 4, tmp_path / "alone")


@pytest.mark.slow
def test_a_node_with_another_learning_rate_ends_the_trial_on_both(short: dict[str, str], tmp_path: Path) -> None:
    told = "LEARNING_RATE: 0.006 on rank 0, 0.007 on rank 1"
    for rank, (status, shown) in enumerate(two_nodes(short | {"DGXNGPU": "1"}, LEARNING_RATE="0.007")):
        assert status == 1, shown
        assert f"rank {rank} aborted: LaunchError: ranks were started with different settings: {told}" in shown
    stop = records(tmp_path / "set" / "trial_1" / "result_0.txt")[-1]
    assert stop["key"] == "run_stop"
    assert stop["metadata"]["status"] == "aborted"
    assert told in stop["metadata"]["reason"]
    assert not (tmp_path / "set" / "result_1.txt").exists()


@pytest.mark.slow
def test_two_nodes_of_one_rank_of_which_only_the_first_could_clear_its_caches(
    short: dict[str, str], tmp_path: Path
) -> None:
    """The log says that the caches were not cleared, and the losses are one node's."""
    nodes = (copy_of_scripts(tmp_path / "first"), copy_of_scripts(tmp_path / "second"))
    for scripts, status in zip(nodes, (0, 1), strict=True):
        # Not the caches of the machine that tests.
        (scripts / "launch" / "clear_caches.sh").write_text(f"#!/bin/sh\nexit {status}\n")
    (status, shown), _ = two_nodes(short | {"DGXNGPU": "1", "CLEAR_CACHES": "1"}, nodes)
    assert status == 3, shown
    assert values(tmp_path / "set" / "result_1.txt", "cache_clear") == [True, False]
    assert "warning: the page cache of rank 1's node was not dropped" in shown
    assert_one_node_has_the_same_losses(short, 2, tmp_path / "alone")


def test_a_node_that_does_not_see_the_shared_folder_is_refused(short: dict[str, str], tmp_path: Path) -> None:
    scripts, own = copy_of_scripts(tmp_path / "scripts"), tmp_path / "own"
    trials = scripts / "launch" / "worker_node.sh"
    wait = "rendezvous_timeout=600\n"
    assert trials.read_text().count(wait) == 1
    trials.write_text(trials.read_text().replace(wait, "rendezvous_timeout=2\n"))
    # As on the first node's folder; the second has its own in its place.
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "seed_base").write_text("1234\n")

    with launched(node(short, 1, two_free_ports(), LOGDIR=str(own)), scripts) as second:
        status, shown = second.wait(30)
    assert status == 2
    assert shown == (
        f"error: LOGDIR: the first node begins no trial in '{own}' within 2 s. All nodes need one shared folder, "
        "and the first must be running\n"
    )
