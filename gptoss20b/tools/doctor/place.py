"""What the launchers' variables say of this node, beside the settings: the ones that `run_and_time.sh` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...config import Config

DEFAULT_PORT = "29500"  # run_and_time.sh's
_HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
# What the drivers of NVIDIA and AMD show of themselves.
_DRIVERS = ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/kfd")


@dataclass(frozen=True)
class Place:
    """This node in the run.

    Attributes:
        node_rank: number of the node as given, None if nothing gives it.
        master_address, master_port: where the nodes meet, as given.
        clear_caches: 0, 1 or "done", as `run_and_time.sh` reads it.
        gpus_hidden: every GPU is hidden from this process: a run on processors was asked for.
    """

    node_rank: str | None = None
    master_address: str | None = None
    master_port: str = DEFAULT_PORT
    clear_caches: str = "0"
    gpus_hidden: bool = False


def read_node_context(environment: Mapping[str, str]) -> Place:
    """The node's place, from the launchers' variables, Slurm's number of the node, and what hides GPUs."""
    return Place(
        node_rank=environment.get("NODE_RANK") or environment.get("SLURM_NODEID") or None,
        master_address=environment.get("MASTER_ADDR") or None,
        master_port=environment.get("MASTER_PORT") or DEFAULT_PORT,
        clear_caches=environment.get("CLEAR_CACHES") or "0",
        gpus_hidden=any(environment.get(name, "0").strip() in ("", "-1") for name in _HIDING),
    )


def runs_on_gpus(config: Config, place: Place, root: Path = Path("/")) -> bool:
    """Whether this run is meant for GPUs: they are not hidden, and there is a driver or the model is not the small one.

    Args:
        config: of the run.
        place: of the node.
        root: folder that holds `proc` and `dev`.
    """
    if place.gpus_hidden:
        return False
    return config.model.variant != "tiny" or any((root / name).exists() for name in _DRIVERS)
