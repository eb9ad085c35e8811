"""This process's rank, and the check that the launcher started as many processes as configured."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from gptoss20b.config import resolve
from gptoss20b.config.environment import LaunchError
from gptoss20b.process_groups import Rank, distributed_session, read_rank
from tests.support.config_cases import ONE_RANK

pytestmark = pytest.mark.usefixtures("no_settings")


def test_a_process_without_a_launcher_is_rank_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(LaunchError, match="MODEL_VARIANT"):  # no GPU for the large model
        read_rank(resolve(ONE_RANK))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    rank = read_rank(resolve(ONE_RANK))
    assert (rank.rank, rank.world_size, rank.device.type, rank.standalone) == (0, 1, "cpu", True)
    assert rank.is_rank_zero
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert not read_rank(resolve(ONE_RANK | {"DGXNGPU": "2"})).is_rank_zero


def test_another_number_of_processes_than_configured_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(LaunchError, match=r"^WORLD_SIZE: .* 3 processes, but DGXNNODES 1 x DGXNGPU 1 = 1\."):
        read_rank(resolve(ONE_RANK))


def test_the_flight_recorder_is_configured_before_the_groups_of_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, str] = {}

    def create_groups(*_: object, **__: object) -> None:
        seen.update(os.environ)
        raise dist.DistNetworkError("none here")

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(dist, "init_process_group", create_groups)
    rank = Rank(rank=0, local_rank=0, world_size=1, standalone=True, device=torch.device("cuda", 0))
    with pytest.raises(LaunchError), distributed_session(resolve(ONE_RANK | {"LOGDIR": str(tmp_path)}), rank):
        pass
    assert seen["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert seen["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"].startswith(str(tmp_path))
