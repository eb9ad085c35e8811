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
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from .batches import DeviceBatch, shard_for_context_parallel
from .config import Config
from .hf.load import load_weights
from .model.backend import Backend
from .model.build import build_model, compile_layers
from .model.initialize import initialize_weights
from .optimizer import build_optimizer, build_scheduler, clip_gradients, finalize_gradients, skip_update
from .stopping import NonFiniteGradientError


@dataclass(frozen=True)
class StepResult:
    """Results of one optimizer step, still on the device.

    Attributes:
        loss_sum: sum of this rank's token losses in nats, fp64 scalar.
        tokens: counted tokens of this rank, fp64 scalar.
        grad_norm: global gradient norm before clipping, fp32 scalar.
        nonfinite_gradients: number of gradients that hold NaN or infinity, as `clip_gradients` counts, fp32 scalar. If
            there is one, or the norm is not finite, the step has updated nothing.
        learning_rate: rate of this step's update.
    """

    loss_sum: Tensor
    tokens: Tensor
    grad_norm: Tensor
    nonfinite_gradients: Tensor
    learning_rate: float

    def loss(self) -> float:
        """Return the global batch's mean loss in nats per token. A collective that waits for the device."""
        return mean_loss(self.loss_sum, self.tokens)


def mean_loss(loss_sum: Tensor, tokens: Tensor) -> float:
    """Return the sum of losses over the sum of counted tokens, over all ranks, in fp64: never a mean of means."""
    totals = torch.stack([loss_sum.double(), tokens.double()])
    # Only the last pipeline stage has a loss; the other stages contribute zeros.
    dist.all_reduce(totals, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    dist.all_reduce(totals, group=parallel_state.get_pipeline_model_parallel_group())
    return float(totals[0] / totals[1])


def build_and_initialize(
    config: Config, backend: Backend, device: torch.device, seed: int
) -> tuple[GPTModel, torch.nn.Module]:
    """Build this rank's model shard, with the weights of the seed or of INIT_FROM.

    Returns:
        The GPTModel, and the module to call: a Float16Module around it, which casts inputs, or the GPTModel in fp32.
    """
    gpt = build_model(config, backend, on_gpu=device.type == "cuda")
    # Megatron-Core creates norms and routers on torch's default device.
    gpt.to(device)
    if config.init_from is None:
        initialize_weights(gpt, config, seed)
    else:
        load_weights(gpt, config.init_from, config)
    module = Float16Module(gpt.config, gpt) if config.execution.bf16_weights else gpt
    _count_experts_in_fp32(gpt)
    if config.execution.compile_mode == "layers":
        compile_layers(gpt)
    return gpt, module


class Trainer:
    """Model, optimizer and schedule of this rank. Needs Megatron-Core's process groups.

    ``overlap`` gathers the weights that other ranks updated during the next forward pass instead of before it. None
    overlaps on a GPU, unless layers are compiled: a compiled layer drops the hooks that wait for the weights.

    Attributes:
        latest: result of the last step.
    """

    latest: StepResult

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
        self.optimizer = build_optimizer(config, self.model)
        self._params_stale = False
        # Of the first step that updated nothing: its number, norm and non-finite gradients; zeros until then.
        self.first_skipped = torch.zeros(3, device=device)
        self.scheduler = build_scheduler(config, self.optimizer)
        # Megatron's schedule looks for these hooks in the model's config object.
        gpt.config.no_sync_func = self.model.no_sync
        gpt.config.finalize_model_grads_func = finalize_gradients
        self._position_ids = torch.arange(config.fixed.sequence_length, device=device)[None]
        self.model.train()

    def step(self, batches: Iterator[DeviceBatch]) -> StepResult:
        """Take one optimizer step over ``accumulation_steps`` micro batches of this rank.

        If a gradient of any rank is NaN or infinite, weights and moments stay as they are; see `check_finite`.
        """
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        loss_sum, tokens = self._run(batches, self.config.accumulation_steps, forward_only=False)
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.prepare_grads()
        grad_norm, nonfinite = clip_gradients(self.optimizer, self.config.fixed.gradient_clip, self.device)
        is_finite = grad_norm.isfinite()
        skip_update(self.optimizer, (~is_finite).float())
        self.optimizer.step_with_ready_grads()
        step = torch.full_like(grad_norm, self.scheduler.num_steps + 1)
        is_first = ~is_finite & (self.first_skipped[0] == 0)
        self.first_skipped = torch.where(is_first, torch.stack([step, grad_norm, nonfinite]), self.first_skipped)
        self._params_stale = self.overlap_param_gather
        self.scheduler.step(1)
        self.latest = StepResult(loss_sum, tokens, grad_norm, nonfinite, learning_rate)
        return self.latest

    def check_finite(self) -> None:
        """Wait for the device, and check that every step so far has updated the weights.

        Raises:
            NonFiniteGradientError: on all ranks: a gradient was NaN or infinite. The weights are finite, and no longer
                those of a run that the rules allow.
        """
        step, norm, gradients = self.first_skipped.tolist()
        if step:
            raise NonFiniteGradientError(
                f"gradient norm at step {step:.0f} is {norm}; gradients that are not finite: {gradients:.0f}"
            )

    def allocate_moments(self) -> None:
        """Take an optimizer step that updates nothing: it leaves moments of zero, as the first step otherwise would."""
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        self.optimizer.prepare_grads()
        skip_update(self.optimizer, torch.ones((), device=self.device))
        self.optimizer.step_with_ready_grads()
        self._params_stale = self.overlap_param_gather

    @torch.no_grad()
    def evaluate(self, batches: Iterator[DeviceBatch], count: int) -> float:
        """Return the mean loss over ``count`` micro batches of every rank, in nats per token, equal on all ranks."""
        self.sync_params()
        self.model.eval()
        loss_sum, tokens = self._run(batches, count, forward_only=True)
        self.model.train()
        return mean_loss(loss_sum, tokens)

    def sync_params(self) -> None:
        """Gather the weights that other ranks updated in the last step. A collective; the next step does it anyway."""
        if self._params_stale:
            self.model.start_param_sync(force_sync=True)
            self._params_stale = False

    def synchronize(self) -> None:
        """Wait until the device is idle and this rank's weights are up to date. A collective."""
        self.sync_params()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def parameter_counts(self) -> dict[str, int]:
        """Count the whole model's parameters, each once over all ranks. A collective."""
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
        inactive = experts - experts * model.router_topk // model.num_experts
        return {"total_parameters": total, "active_parameters": total - embedding - inactive}

    def _run(self, batches: Iterator[DeviceBatch], count: int, forward_only: bool) -> tuple[Tensor, Tensor]:
        """Run ``count`` micro batches through Megatron's schedule; return their loss sum and counted tokens."""
        losses = get_forward_backward_func()(
            forward_step_func=self._forward,
            data_iterator=batches,
            model=[self.model],
            num_microbatches=count,
            seq_length=self.config.fixed.sequence_length,
            micro_batch_size=self.config.execution.micro_batch_size,
            forward_only=forward_only,
        )
        if not losses:  # a pipeline stage before the last
            return torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        return (
            torch.stack([loss_sum for loss_sum, _ in losses]).sum(),
            torch.stack([tokens for _, tokens in losses]).sum(),
        )

    def _forward(self, batches: Iterator[DeviceBatch], model: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
        batch = next(batches)
        inputs = {"tokens": batch.tokens, "labels": batch.labels, "loss_mask": batch.loss_mask}
        inputs["position_ids"] = self._position_ids.expand_as(batch.tokens)
        if self.config.parallel.context > 1:
            rank = parallel_state.get_context_parallel_rank()
            ranks = self.config.parallel.context
            inputs = {name: shard_for_context_parallel(x, rank, ranks) for name, x in inputs.items()}
        # Megatron's name for tokens that its load-balancing loss leaves out; they are routed all the same.
        padding = {"padding_mask": inputs["loss_mask"] == 0} if self.config.fixed.aux_loss_coefficient else {}
        out = model(
            input_ids=inputs["tokens"],
            position_ids=inputs["position_ids"],
            attention_mask=None,
            labels=inputs["labels"],
            loss_mask=inputs["loss_mask"],
            **padding,
        )
        return out, partial(_sum_loss, loss_mask=inputs["loss_mask"])


def _count_experts_in_fp32(gpt: torch.nn.Module) -> None:
    """Undo Float16Module's cast of the counts of rows per expert: bf16 counts exactly only up to 256."""
    for module in gpt.modules():
        if getattr(module, "local_tokens_per_expert", None) is not None:
            module.local_tokens_per_expert = module.local_tokens_per_expert.float()


def _sum_loss(losses: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Sum the masked losses of a micro batch.

    Args:
        losses: token losses [b, S], or their masked sum where the fused loss has summed them already.
        loss_mask: fp32 [b, S].

    Returns:
        The sum to differentiate, the counted tokens, and both in fp64 to report.
    """
    total = losses if losses.ndim == 0 else (losses.float() * loss_mask).double().sum()
    tokens = loss_mask.sum()
    return total, tokens.int(), (total.detach(), tokens.double())
