"""Test nodes that differ, and two nodes on loopback, each started by its own run_local.sh, against one node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.local_runs import launched, records, values
from tests.support.ranks import free_port, run_ranks

pytestmark = pytest.mark.slow

# Generous: both nodes and other tests share the cores.
LIMIT_S = 150.0


def losses(log: Path) -> dict[str, list[Any]]:
    return {key: values(log, key) for key in ("train_loss", "eval_accuracy")}


def test_two_nodes_of_two_ranks_have_the_losses_of_one_node(short: dict[str, str], tmp_path: Path) -> None:
    nodes = {"DGXNNODES": "2", "DGXNGPU": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with (
        launched(short | nodes | {"NODE_RANK": "0"}) as leader,
        launched(short | nodes | {"NODE_RANK": "1"}) as worker,
    ):
        status, output = leader.wait(LIMIT_S)
        assert status == 3, output
        # The leader's log has the outcome.
        status, output = worker.wait(LIMIT_S)
        assert status == 0, output
    assert (tmp_path / "set" / "seed_base").read_text() == "1234\n"
    assert "trial 1 of 1: seed 1234" in (tmp_path / "set" / "node_1" / "trial_1.log").read_text()

    # One node, without launcher and torchrun.
    one_node = {"DGXNGPU": "4", "SEED": "1234", "LOGDIR": str(tmp_path / "alone")}
    for status, output in run_ranks("train", 4, variables=short | one_node):
        assert status == 3, output
    expected = losses(tmp_path / "alone" / "result_0.txt")
    assert [len(values) for values in expected.values()] == [4, 2]
    assert len(set(expected["train_loss"])) == 4
    assert losses(tmp_path / "set" / "result_1.txt") == expected


def test_different_learning_rates_end_all_ranks(short: dict[str, str], tmp_path: Path) -> None:
    difference = "LEARNING_RATE: 0.006 on rank 0, 0.007 on rank 1"
    ended = run_ranks("train", 2, variables=short | {"DGXNGPU": "2"}, rank_1={"LEARNING_RATE": "0.007"})
    for rank, (status, output) in enumerate(ended):
        assert status == 1, output
        assert f"rank {rank} aborted: LaunchError: " in output
        assert difference in output
    stop = records(tmp_path / "set" / "result_0.txt")[-1]
    assert (stop["key"], stop["metadata"]["status"]) == ("run_stop", "aborted")
    assert difference in stop["metadata"]["reason"]


def test_caches_cleared_on_one_of_two_nodes_are_logged_as_not_cleared(short: dict[str, str], tmp_path: Path) -> None:
    nodes = {"DGXNNODES": "2", "DGXNGPU": "1", "CACHE_CLEARED": "1"}
    (status, output), _ = run_ranks("train", 2, variables=short | nodes, rank_1={"CACHE_CLEARED": "0"})
    assert status == 3, output
    assert values(tmp_path / "set" / "result_0.txt", "cache_clear") == [True, False]
    assert "warning: the page cache of rank 1's node was not dropped" in output
