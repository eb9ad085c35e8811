"""Process groups of a run: torch.distributed, the device of this rank, and Megatron-Core's parallel groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from . import determinism, megatron_cpu
from .config import Config
from .config.environment import Launch, LaunchError, hides_gpus, read_launch
from .stacks import record_collectives


@dataclass(frozen=True, kw_only=True)
class Rank(Launch):
    """This process in the run, with its device: a GPU, or the CPU."""

    device: torch.device

    @property
    def is_rank_zero(self) -> bool:
        """True on the rank that writes the log."""
        return self.rank == 0


def read_rank(config: Config) -> Rank:
    """Return this process's rank as the launcher's environment variables give it.

    Raises:
        LaunchError: the number of processes differs from the configuration's, or a large model would train on CPUs.
    """
    launch = read_launch()
    if launch.world_size != config.parallel.world_size:
        raise LaunchError(
            f"WORLD_SIZE: the launcher started {launch.world_size} processes, but DGXNNODES {config.parallel.nodes} x "
            f"DGXNGPU {config.parallel.gpus_per_node} = {config.parallel.world_size}. Start that many, e.g. with "
            f"torchrun --nproc_per_node={config.parallel.gpus_per_node} -m gptoss20b train, or use run_and_time.sh."
        )
    device = torch.device("cuda", launch.local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu" and config.model.variant != "tiny" and not hides_gpus():
        raise LaunchError(
            f"MODEL_VARIANT: {config.model.variant} trains on GPUs, and torch sees none here. Run python -m gptoss20b "
            "doctor to find out why, or set CUDA_VISIBLE_DEVICES=-1 to train on the CPU."
        )
    return Rank(**asdict(launch), device=device)


@contextmanager
def distributed_session(config: Config, rank: Rank) -> Iterator[None]:
    """Create the process groups of torch.distributed and of Megatron-Core, and destroy them after a normal end.

    Raises:
        LaunchError: the rendezvous failed.
    """
    timeout = timedelta(seconds=config.execution.timeout_seconds)
    if config.execution.deterministic:
        determinism.enforce()
    if rank.device.type == "cuda":
        torch.cuda.set_device(rank.device)
        record_collectives(config.logging.directory)
        backend = "nccl"
    else:
        torch.set_num_threads(config.execution.cpu_threads)
        megatron_cpu.enable()
        backend = "gloo"
    # A single process without a launcher has no rendezvous address, and needs none.
    store = HashStore() if rank.standalone else None
    try:
        dist.init_process_group(backend, timeout=timeout, rank=rank.rank, world_size=rank.world_size, store=store)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise LaunchError(
            f"MASTER_ADDR, MASTER_PORT: the rendezvous failed: {str(error).splitlines()[0]}. End the process that uses "
            "this port, e.g. of an earlier run, or set another MASTER_PORT"
        ) from error
    create_process_groups(config)
    yield
    # To the launcher, a rank that exits before the others looks like a failed one.
    dist.barrier()
    # Not in a finally: after an error this would wait for peers that may be gone. The process ends anyway.
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def create_process_groups(config: Config) -> None:
    """Create Megatron-Core's process groups for the configured layout."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.parallel.tensor,
        pipeline_model_parallel_size=config.parallel.pipeline,
        context_parallel_size=config.parallel.context,
        expert_model_parallel_size=config.parallel.expert,
        expert_tensor_parallel_size=1,
        distributed_timeout_minutes=config.execution.timeout_seconds / 60,
    )
    # Megatron requires this random stream. Nothing depends on it: dropout is 0 and weights are drawn by name.
    model_parallel_cuda_manual_seed(config.seed or 0)


@contextmanager
def single_process() -> Iterator[None]:
    """Create process groups of size one, to build the whole model in this process. Needs no network and no GPU."""
    from megatron.core import parallel_state

    if not torch.cuda.is_available():
        megatron_cpu.enable()
    dist.init_process_group("gloo", rank=0, world_size=1, store=HashStore())
    try:
        parallel_state.initialize_model_parallel()
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
