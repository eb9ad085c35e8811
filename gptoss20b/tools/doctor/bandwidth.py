"""Bandwidth between the ranks of this node, for the transfers of the configured layout.

`check_bandwidth` starts the ranks. Each of them, a `collective`, calls `measure`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, TypeAdapter

from ...config import Config
from ...hardware import System, system_of_device
from .finding import Finding, judged, skipped
from .ranks import judge_ranks, run_ranks

if TYPE_CHECKING:
    import torch

# Megatron-Core's default bucket of gradients, in numbers, up to 40 data-parallel ranks; gradients are fp32.
_BUCKET, _GRADIENT_BYTES = 40_000_000, 4
_WARMUP, _GPU_REPEATS, _CPU_REPEATS = 2, 20, 5
# A transfer within a node starts in some 10 us, and libraries reach 60 to 90 % of the links' rate with large messages.
# PCIe instead of NVLink, or a link that is down, costs far more than this.
_LATENCY_S, _SLOWDOWN = 100e-6, 4.0


class Transfer(BaseModel):
    """A collective in groups of consecutive ranks; all groups transfer at once. ``size``: bytes on each rank."""

    name: str
    collective: Literal["all-reduce", "all-to-all"]
    size: int
    group: int

    @property
    def bus_factor(self) -> float:
        """Bus bandwidth / algorithm bandwidth, as nccl-tests define both.

        Algorithm bandwidth is size / time. The factor makes it comparable with a link's rate, whatever the number of
        ranks n: 2 (n - 1) / n for an all-reduce, (n - 1) / n for an all-to-all.
        """
        return (2 if self.collective == "all-reduce" else 1) * (self.group - 1) / self.group


class Measured(BaseModel):
    """Median seconds of each transfer, and the name of rank 0's GPU; empty for a CPU."""

    seconds: list[float]
    device: str


TRANSFERS = TypeAdapter(list[Transfer])


def check_bandwidth(config: Config, backend: str, limit_s: float) -> list[Finding]:
    """Run the ranks of this node: the check of the collectives, and a measurement of each transfer."""
    transfers = plan_transfers(config)
    run = run_ranks(config.parallel.gpus_per_node, backend, limit_s, TRANSFERS.dump_json(transfers).decode())
    if run.failure or not transfers:
        reason = "the ranks cannot communicate" if run.failure else "one rank"
        return [judge_ranks(run), skipped("bandwidth", reason)]
    # Libraries may print after it, e.g. NCCL with NCCL_DEBUG=INFO.
    answer = next(line for line in reversed(run.printed[0]) if line.startswith("{"))
    measured = Measured.model_validate_json(answer)
    system = system_of_device(measured.device)
    judged_transfers = [judge_transfer(*each, system) for each in zip(transfers, measured.seconds, strict=True)]
    return [judge_ranks(run), *judged_transfers]


def plan_transfers(config: Config) -> list[Transfer]:
    """Return the transfers of this layout within a node; none for a single rank."""
    model, parallel, ranks = config.model, config.parallel, config.parallel.gpus_per_node
    if ranks == 1:
        return []
    bucket = _BUCKET * _GRADIENT_BYTES
    # The largest gradient of a run, and its own bucket: the LM head's or the embedding's.
    head = model.vocab_size * model.hidden_size // parallel.tensor * _GRADIENT_BYTES
    transfers = [
        Transfer(name="gradient bucket", collective="all-reduce", size=bucket, group=ranks),
        Transfer(name="LM head gradient", collective="all-reduce", size=head, group=ranks),
    ]
    if parallel.expert > 1:
        tokens = config.execution.micro_batch_size * config.fixed.sequence_length // parallel.context
        sent = tokens * model.router_topk * model.hidden_size * (2 if config.execution.bf16_weights else 4)
        # An expert-parallel group of several nodes fills the node.
        group = min(parallel.expert, ranks)
        transfers.append(Transfer(name="MoE dispatch", collective="all-to-all", size=sent, group=group))
    return transfers


def judge_transfer(transfer: Transfer, seconds: float, system: System | None) -> Finding:
    """Return the bandwidths of a transfer, and a warning if the links of this GPU should be far faster."""
    algorithm = transfer.size / seconds
    bus = algorithm * transfer.bus_factor
    found = (
        f"{transfer.name}, {transfer.collective} of {transfer.size / 1e6:,.1f} MB in groups of {transfer.group}: "
        f"{seconds * 1e3:,.2f} ms, {algorithm / 1e9:,.2f} GB/s, bus bandwidth {bus / 1e9:,.2f} GB/s"
    )
    if system is None:
        return judged("bandwidth", found, "")
    ideal = transfer.size * transfer.bus_factor / (system.link_gbs * 1e9) + _LATENCY_S
    found += f" (links of {system.name}: {system.link_gbs:g} GB/s)"
    fix = (
        "look for a link that is down (nvidia-smi nvlink -s, amd-smi topology), and unset NCCL_P2P_DISABLE and the like"
    )
    return judged("bandwidth", found, fix, warns=seconds > _SLOWDOWN * ideal)


def measure(transfers: list[Transfer], device: torch.device) -> Measured:
    """Measure all transfers, together with the other ranks. A transfer takes as long as on its slowest rank."""
    import torch
    import torch.distributed as dist

    on_gpu, seconds = device.type == "cuda", []
    for transfer in transfers:
        call = _prepare(transfer, device)
        times = [_time_once(call, on_gpu) for _ in range(_WARMUP + (_GPU_REPEATS if on_gpu else _CPU_REPEATS))]
        slowest = torch.tensor(times[_WARMUP:], device=device)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        seconds.append(median(slowest.tolist()))
    return Measured(seconds=seconds, device=torch.cuda.get_device_name(device) if on_gpu else "")


def _prepare(transfer: Transfer, device: torch.device) -> Callable[[], object]:
    """Return the call that transfers this rank's bytes once."""
    import torch
    import torch.distributed as dist

    ranks = range(dist.get_world_size())
    # Every rank has to make every group. The last one is smaller if the node's ranks do not divide by the group's.
    groups = [dist.new_group(list(ranks[first : first + transfer.group])) for first in ranks[:: transfer.group]]
    group = groups[dist.get_rank() // transfer.group]
    peers = dist.get_world_size(group)
    sent = torch.zeros(max(transfer.size // 4 // peers, 1) * peers, device=device)
    if transfer.collective == "all-reduce":
        return partial(dist.all_reduce, sent, group=group)
    return partial(dist.all_to_all_single, torch.empty_like(sent), sent, group=group)


def _time_once(call: Callable[[], object], on_gpu: bool) -> float:
    import torch
    import torch.distributed as dist

    dist.barrier()
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began
