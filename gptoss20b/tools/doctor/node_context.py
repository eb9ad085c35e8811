"""This node's place in a run, from the launchers' variables that `run_and_time.sh` reads beside the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...config import Config

DEFAULT_PORT = "29500"  # run_and_time.sh's
GPU_MASKS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
# Files that exist while a driver of NVIDIA or AMD is loaded.
_DRIVER_FILES = ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/kfd")


@dataclass(frozen=True)
class NodeContext:
    """This node in the run, as the launchers' variables give it. Node 0 is the leader, at the master's address.

    ``gpus_hidden``: a variable hides every GPU from this process, which asks for a run on CPUs.
    """

    node_rank: str | None = None
    master_address: str | None = None
    master_port: str = DEFAULT_PORT
    clear_caches: str = "0"
    gpus_hidden: bool = False


def read_node_context(environment: Mapping[str, str]) -> NodeContext:
    """Read the launchers' variables, Slurm's number of the node, and the variables that hide GPUs."""
    return NodeContext(
        node_rank=environment.get("NODE_RANK") or environment.get("SLURM_NODEID") or None,
        master_address=environment.get("MASTER_ADDR") or None,
        master_port=environment.get("MASTER_PORT") or DEFAULT_PORT,
        clear_caches=environment.get("CLEAR_CACHES") or "0",
        gpus_hidden=any(environment.get(name, "0").strip() in ("", "-1") for name in GPU_MASKS),
    )


def should_use_gpus(config: Config, node: NodeContext, root: Path = Path("/")) -> bool:
    """Return True unless GPUs are hidden, or the model is the small one and no driver is loaded."""
    if node.gpus_hidden:
        return False
    return config.model.variant != "tiny" or is_driver_loaded(root)


def is_driver_loaded(root: Path = Path("/")) -> bool:
    """Return True if a driver of NVIDIA or AMD is loaded, and this container sees it."""
    return any((root / name).exists() for name in _DRIVER_FILES)
