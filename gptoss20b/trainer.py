"""One optimizer step and one evaluation pass, on Megatron-Core's schedule, DDP and distributed optimizer.

Nothing here reads a value back from the device: losses and norms stay tensors until somebody logs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from .config import Config
from .model.build import Backend, build_model, compile_layers, params_dtype
from .model.initialise import initialise


@dataclass(frozen=True)
class DeviceBatch:
    """One micro batch on this rank's device: tokens and labels int64 [b, S], loss_mask fp32 [b, S]."""

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind, on the device: `loss` is the mean over the global batch, `grad_norm` before clipping.

    `learning_rate` is the rate that this step used.
    """

    loss_sum: Tensor
    tokens: Tensor
    grad_norm: Tensor
    learning_rate: float

    def loss(self) -> float:
        """Mean loss of the global batch in nats per token. Synchronises and communicates: call it on every rank."""
        return mean_loss(self.loss_sum, self.tokens)


def mean_loss(loss_sum: Tensor, tokens: Tensor) -> float:
    """Sum of losses over sum of counted tokens, over all ranks, in fp64: never a mean of means."""
    totals = torch.stack([loss_sum.double(), tokens.double()])
    # Only the last pipeline stage has a loss; the other stages contribute zeros.
    dist.all_reduce(totals, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    dist.all_reduce(totals, group=parallel_state.get_pipeline_model_parallel_group())
    return float(totals[0] / totals[1])


def build_and_initialize(
    config: Config, backend: Backend, device: torch.device, seed: int
) -> tuple[GPTModel, torch.nn.Module]:
    """This rank's part of the model with its initial weights, and the module to call, which casts what goes in."""
    gpt = build_model(config, backend, on_gpu=device.type == "cuda")
    # Megatron-Core leaves norms and routers where torch makes new tensors by default.
    gpt.to(device)
    initialise(gpt, config, seed)
    module = Float16Module(gpt.config, gpt) if config.execution.bf16_weights else gpt
    _count_in_fp32(gpt)
    if config.execution.compile_mode == "layers":
        compile_layers(gpt)
    return gpt, module


class Trainer:
    """The model, its optimizer and its schedule on this rank.

    Args:
        config: the resolved configuration.
        backend: layer back end, from `choose_backend`.
        device: this rank's device; its process groups must exist.
        seed: seed of the initial weights.
        overlap: gather the weights that other ranks updated during the next forward pass instead of before it; None
            does so on a GPU, unless layers are compiled: they must not hold the hooks that wait for the weights.
    """

    def __init__(
        self, config: Config, backend: Backend, device: torch.device, seed: int, overlap: bool | None = None
    ) -> None:
        self.config, self.device = config, device
        on_gpu = device.type == "cuda"
        self.overlap_param_gather = (
            on_gpu and config.execution.compile_mode == "kernels" if overlap is None else overlap
        )
        gpt, module = build_and_initialize(config, backend, device, seed)
        self.gpt = gpt
        ddp = DistributedDataParallelConfig(
            use_distributed_optimizer=True,
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=True,
            overlap_param_gather=self.overlap_param_gather,
        )
        self.model = DistributedDataParallel(config=gpt.config, ddp_config=ddp, module=module)
        self.optimizer = get_megatron_optimizer(_optimizer_config(config, self.overlap_param_gather), [self.model])
        for part in optimizer_parts(self.optimizer):
            if isinstance(part.optimizer, torch.optim.Adam):
                fuse_adam(part.optimizer, on_gpu)
        self._weights_behind = False
        self.scheduler = build_scheduler(config, self.optimizer)
        # Megatron's schedule calls these hooks; the model's config object is where it looks for them.
        gpt.config.no_sync_func = self.model.no_sync
        gpt.config.finalize_model_grads_func = finalize_gradients
        self._positions = torch.arange(config.fixed.sequence_length, device=device)[None]
        self.model.train()

    def step(self, batches: Iterator[DeviceBatch]) -> StepResult:
        """One optimizer step over ``accumulation_steps`` micro batches of this rank."""
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        loss_sum, tokens = self._run(batches, self.config.accumulation_steps, forward_only=False)
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.prepare_grads()
        grad_norm = clip_gradients(self.optimizer, self.config.fixed.gradient_clip, self.device)
        self.optimizer.step_with_ready_grads()
        self._weights_behind = self.overlap_param_gather
        self.scheduler.step(1)
        return StepResult(loss_sum, tokens, grad_norm, learning_rate)

    @torch.no_grad()
    def evaluate(self, batches: Iterator[DeviceBatch], count: int) -> float:
        """Mean loss over ``count`` micro batches on every rank, in nats per token; the same number on every rank."""
        self.sync_params()
        self.model.eval()
        loss_sum, tokens = self._run(batches, count, forward_only=True)
        self.model.train()
        return mean_loss(loss_sum, tokens)

    def sync_params(self) -> None:
        """Bring here what other ranks updated in the last step, which the next step does by itself. On every rank."""
        if self._weights_behind:
            self.model.start_param_sync(force_sync=True)
            self._weights_behind = False

    def synchronize(self) -> None:
        """Wait until the device has done all that it was given and the weights are whole. Call it on every rank."""
        self.sync_params()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def parameter_counts(self) -> dict[str, int]:
        """Parameters of the whole model, each counted once over all ranks. Communicates: call it on every rank."""
        p, model = self.config.parallel, self.config.model
        counts = torch.zeros(2, dtype=torch.float64, device=self.device)
        for name, parameter in self.model.named_parameters():
            expert = ".experts." in name
            sharded = getattr(parameter, "tensor_model_parallel", False)
            copies = p.expert_data if expert else p.data * p.context * (1 if sharded else p.tensor)
            counts[0] += parameter.numel() / copies
            if expert:
                counts[1] += parameter.numel() / copies
        dist.all_reduce(counts)
        total, experts = (round(float(count)) for count in counts)
        embedding = model.vocab_size * model.hidden_size
        idle = experts - experts * model.router_topk // model.num_experts
        return {"total_parameters": total, "active_parameters": total - embedding - idle}

    def _run(self, batches: Iterator[DeviceBatch], count: int, forward_only: bool) -> tuple[Tensor, Tensor]:
        losses = get_forward_backward_func()(
            forward_step_func=self._forward,
            data_iterator=batches,
            model=[self.model],
            num_microbatches=count,
            seq_length=self.config.fixed.sequence_length,
            micro_batch_size=self.config.execution.micro_batch_size,
            forward_only=forward_only,
        )
        if not losses:
            return torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        return (
            torch.stack([loss_sum for loss_sum, _ in losses]).sum(),
            torch.stack([tokens for _, tokens in losses]).sum(),
        )

    def _forward(self, batches: Iterator[DeviceBatch], model: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
        batch = next(batches)
        part = {"tokens": batch.tokens, "labels": batch.labels, "loss_mask": batch.loss_mask}
        part["positions"] = self._positions.expand_as(batch.tokens)
        if self.config.parallel.context > 1:
            rank = parallel_state.get_context_parallel_rank()
            part = {name: shard_for_context_parallel(x, rank, self.config.parallel.context) for name, x in part.items()}
        # Megatron's name for tokens that its load-balancing loss leaves out; they are routed all the same.
        uncounted = {"padding_mask": part["loss_mask"] == 0} if self.config.fixed.aux_loss_coefficient else {}
        out = model(
            input_ids=part["tokens"],
            position_ids=part["positions"],
            attention_mask=None,
            labels=part["labels"],
            loss_mask=part["loss_mask"],
            **uncounted,
        )
        return out, partial(_sum_loss, loss_mask=part["loss_mask"])


def _count_in_fp32(gpt: torch.nn.Module) -> None:
    """Undo Float16Module's rounding of the rows that each expert got, which bf16 counts exactly only up to 256."""
    for module in gpt.modules():
        if getattr(module, "local_tokens_per_expert", None) is not None:
            module.local_tokens_per_expert = module.local_tokens_per_expert.float()


def shard_for_context_parallel(sequences: Tensor, rank: int, ranks: int) -> Tensor:
    """What a context-parallel rank holds of sequences [b, S]: of 2 x ranks chunks, number rank from either end.

    Causal attention costs more the later the query; an early and a late chunk on each rank balance it. Transformer
    Engine expects this cut, and Megatron-Core cuts the rotary embedding in the same way.
    """
    chunks = sequences.chunk(2 * ranks, dim=1)
    return torch.cat([chunks[rank], chunks[2 * ranks - 1 - rank]], dim=1)


def _sum_loss(losses: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Losses [b, S], or their masked sum -> (sum to differentiate, counted tokens, (both in fp64, to report))."""
    total = losses if losses.ndim == 0 else (losses.float() * loss_mask).double().sum()
    tokens = loss_mask.sum()
    return total, tokens.int(), (total.detach(), tokens.double())


def finalize_gradients(model: list[Any], num_tokens: Tensor | None = None, **groups: Any) -> None:
    """Megatron's gradient finalisation, then the division by the tokens counted in the whole global batch.

    Megatron's own division asks the host whether the count is positive, which waits for the device at every step.
    """
    finalize_model_grads(model, None, **groups)
    assert num_tokens is not None, "calculate_per_token_loss is set, so the schedule passes the count"
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    dist.broadcast(num_tokens, src=parallel_state.get_pipeline_model_parallel_last_rank(), group=pipeline)
    dist.all_reduce(num_tokens, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    for chunk in model:
        chunk.scale_gradients(1.0 / num_tokens.clamp(min=1))


def optimizer_parts(optimizer: Any) -> list[Any]:
    """The optimizers that a chained one of Megatron-Core's is made of, or the one that it is."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


@torch.no_grad()
def clip_gradients(optimizer: Any, max_norm: float, device: torch.device) -> Tensor:
    """Scale all gradients so that their global norm is at most ``max_norm``; returns the norm before, fp32 scalar.

    The same arithmetic as Megatron's clip_grad_norm (coefficient max_norm / (norm + 1e-6)), whose norm is a Python
    float and so waits for the device at every step.
    """
    parts = optimizer_parts(optimizer)
    square = torch.zeros((), device=device)
    for part in parts:
        # Renamed in 0.19.
        own = getattr(part, "get_grads_for_grad_norm", None) or part.get_main_grads_for_grad_norm
        grads = own()
        total = torch.nn.utils.get_total_norm(grads).square().float() if grads else torch.zeros((), device=device)
        # Each part of a distributed optimizer says over which ranks its gradients are spread.
        dist.all_reduce(total, group=part.get_grad_stats_parallel_group())
        square = square + total
    norm = square.sqrt()
    coefficient = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for part in parts:
        grads = [parameter.grad for parameter in part.get_parameters() if parameter.grad is not None]
        if grads:
            torch._foreach_mul_(grads, coefficient)
    return norm


def fuse_adam(adam: torch.optim.Adam, fused: bool) -> None:
    """Let torch's Adam update all of its parameters in one kernel, now and after its state has been loaded.

    Megatron-Core makes it without this option. The state is the same but for the place of each parameter's step count,
    which the kernel wants beside the parameter.
    """

    def choose(_: torch.optim.Optimizer) -> None:
        for group in adam.param_groups:
            group["fused"] = fused or None
        if fused:
            for parameter, state in adam.state.items():
                if "step" in state:
                    state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)

    choose(adam)
    # Loaded groups bring the option of the machine that saved them.
    adam.register_load_state_dict_post_hook(choose)


def _optimizer_config(config: Config, overlap: bool) -> OptimizerConfig:
    rules = config.fixed
    return OptimizerConfig(
        optimizer="adam",
        lr=config.free.learning_rate,
        min_lr=config.end_learning_rate,
        weight_decay=rules.weight_decay,
        adam_beta1=rules.adam_beta1,
        adam_beta2=rules.adam_beta2,
        adam_eps=rules.adam_epsilon,
        decoupled_weight_decay=True,
        clip_grad=0.0,  # `clip_gradients` does it
        use_distributed_optimizer=True,
        overlap_param_gather=overlap,
        bf16=config.execution.bf16_weights,
        params_dtype=params_dtype(config),
    )


def build_scheduler(config: Config, optimizer: Any) -> OptimizerParamScheduler:
    """Megatron's schedule: linear from 0 over warmup_steps, cosine to the end rate at max_steps; constant decay.

    The first update uses rate 0: the scheduler counts finished steps.
    """
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.free.learning_rate,
        min_lr=config.end_learning_rate,
        lr_warmup_steps=config.free.warmup_steps,
        lr_decay_steps=config.fixed.max_steps,
        lr_decay_style="cosine",
        start_wd=config.fixed.weight_decay,
        end_wd=config.fixed.weight_decay,
        wd_incr_steps=config.fixed.max_steps,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )
