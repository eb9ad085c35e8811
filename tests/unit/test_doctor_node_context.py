"""This node in a run, from the launchers' variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptoss20b.config import resolve
from gptoss20b.tools.doctor.node_context import NodeContext, read_node_context, should_use_gpus


@pytest.mark.parametrize(
    ("environment", "node"),
    [
        ({}, NodeContext(None, None, "29500", "0", False)),
        ({"NODE_RANK": "1", "SLURM_NODEID": "2"}, NodeContext(node_rank="1")),
        ({"NODE_RANK": "", "SLURM_NODEID": "2"}, NodeContext(node_rank="2")),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "7"}, NodeContext(master_address="a", master_port="7")),
        ({"CLEAR_CACHES": "1"}, NodeContext(clear_caches="1")),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, NodeContext(gpus_hidden=True)),
        ({"CUDA_VISIBLE_DEVICES": ""}, NodeContext(gpus_hidden=True)),
        ({"HIP_VISIBLE_DEVICES": "-1"}, NodeContext(gpus_hidden=True)),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, NodeContext()),
    ],
)
def test_the_launchers_variables(environment: dict[str, str], node: NodeContext) -> None:
    assert read_node_context(environment) == node


def test_a_run_is_meant_for_gpus_unless_they_are_hidden_or_the_model_is_small(tmp_path: Path) -> None:
    tiny = resolve({"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open"})
    assert should_use_gpus(resolve({}), NodeContext(), tmp_path)
    assert not should_use_gpus(resolve({}), NodeContext(gpus_hidden=True), tmp_path)
    assert not should_use_gpus(tiny, NodeContext(), tmp_path)
    for driver in ("dev/kfd", "proc/driver/nvidia/version"):
        root = tmp_path / driver.replace("/", "-")
        (root / driver).parent.mkdir(parents=True)
        (root / driver).touch()
        assert should_use_gpus(tiny, NodeContext(), root)
        assert not should_use_gpus(tiny, NodeContext(gpus_hidden=True), root)
