"""From accumulated gradients to updated weights: normalisation, clipping, AdamW and the learning-rate schedule.

Nothing here reads a value back from the device, because the host would wait for the device at every step.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from megatron.core import optimizer as megatron_optimizer
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from torch import Tensor

from .config import Config
from .model.megatron_config import params_dtype


def build_optimizer(config: Config, model: DistributedDataParallel) -> Any:
    """Build Megatron-Core's distributed optimizer around torch's AdamW, whose one kernel updates all parameters.

    Megatron-Core would take Transformer Engine's or Apex's AdamW where one is installed. Neither can leave out an
    update by a flag on the device, as `skip_update` needs.
    """
    fixed = config.fixed
    with patch.object(megatron_optimizer, "USING_PYTORCH_OPTIMIZER", True):
        optimizer = megatron_optimizer.get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam",
                lr=config.free.learning_rate,
                min_lr=config.end_learning_rate,
                weight_decay=fixed.weight_decay,
                adam_beta1=fixed.adam_beta1,
                adam_beta2=fixed.adam_beta2,
                adam_eps=fixed.adam_epsilon,
                decoupled_weight_decay=True,
                clip_grad=0.0,  # `clip_gradients` clips
                use_distributed_optimizer=True,
                overlap_param_gather=model.ddp_config.overlap_param_gather,
                bf16=config.execution.bf16_weights,
                params_dtype=params_dtype(config),
            ),
            [model],
        )
    for adam in adams(optimizer):
        _fuse(adam)
    return optimizer


def build_scheduler(config: Config, optimizer: Any) -> OptimizerParamScheduler:
    """Build Megatron's schedule: linear from 0 over warmup_steps, then cosine to the end rate at max_steps.

    The first update uses rate 0, because the scheduler counts finished steps. Weight decay is constant.
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


def optimizer_parts(optimizer: Any) -> list[Any]:
    """Return the parts of Megatron-Core's chained optimizer, or the optimizer alone in a list."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def adams(optimizer: Any) -> list[torch.optim.AdamW]:
    """Return torch's optimizers inside Megatron-Core's. A rank may own no parameter of a part."""
    return [part.optimizer for part in optimizer_parts(optimizer) if part.optimizer is not None]


def finalize_gradients(model: list[Any], num_tokens: Tensor | None = None, **groups: Any) -> None:
    """Reduce gradients as Megatron-Core does, then divide them by the tokens counted in the global batch.

    Megatron's own division asks the host whether the count is positive, which waits for the device at every step.
    """
    finalize_model_grads(model, None, **groups)
    assert num_tokens is not None, "calculate_per_token_loss is set, so the schedule passes the count"
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    # Only the last pipeline stage computes the loss and knows the count.
    dist.broadcast(num_tokens, src=parallel_state.get_pipeline_model_parallel_last_rank(), group=pipeline)
    dist.all_reduce(num_tokens, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    for chunk in model:
        chunk.scale_gradients(1.0 / num_tokens.clamp(min=1))


@torch.no_grad()
def clip_gradients(optimizer: Any, max_norm: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale all gradients so that their global norm is at most ``max_norm``.

    The arithmetic is that of Megatron's clip_grad_norm, coefficient max_norm / (norm + 1e-6). Megatron's norm is a
    Python float and so waits for the device at every step.

    Returns:
        The norm before clipping, and the number of gradients that hold NaN or infinity, over all ranks: fp32 scalars on
        the device. A rank's part of a parameter's gradient counts as one.
    """
    parts = optimizer_parts(optimizer)
    totals = torch.zeros(2, device=device)  # the square of the norm, and the count
    for part in parts:
        # Megatron-Core 0.19 renamed get_main_grads_for_grad_norm.
        get_grads = getattr(part, "get_grads_for_grad_norm", None) or part.get_main_grads_for_grad_norm
        grads = get_grads()
        found = torch.zeros(2, device=device)
        if grads:
            norms = torch.stack(torch._foreach_norm(grads))
            found = torch.stack([torch.linalg.vector_norm(norms).square(), (~norms.isfinite()).sum()]).float()
        # Each part of a distributed optimizer shards its gradients over its own group: experts over fewer ranks.
        dist.all_reduce(found, group=part.get_grad_stats_parallel_group())
        totals = totals + found
    norm, nonfinite = totals[0].sqrt(), totals[1]
    coefficient = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for part in parts:
        grads = [parameter.grad for parameter in part.get_parameters() if parameter.grad is not None]
        if grads:
            torch._foreach_mul_(grads, coefficient)
    return norm, nonfinite


@torch.no_grad()
def parameter_norm(optimizer: Any, device: torch.device) -> Tensor:
    """Return the norm of all parameters over all ranks, of the fp32 main weights: an fp64 scalar. Collective."""
    square = torch.zeros((), dtype=torch.float64, device=device)
    for part in optimizer_parts(optimizer):
        parameters = [x for x in part.get_parameters() if x.numel() and param_is_not_tensor_parallel_duplicate(x)]
        found = torch.zeros_like(square)
        if parameters:
            found = torch.stack(torch._foreach_norm(parameters)).double().square().sum()
        dist.all_reduce(found, group=part.get_grad_stats_parallel_group())
        square = square + found
    return square.sqrt()


def skip_update(optimizer: Any, skip: Tensor) -> None:
    """Make the next update leave weights, moments and step counts as they are if ``skip`` is 1, an fp32 scalar.

    The device decides, so the host does not wait: torch's fused kernel has the flag for gradient scaling.
    """
    for adam in adams(optimizer):
        vars(adam).update(grad_scale=None, found_inf=skip)


def _fuse(adam: torch.optim.Adam) -> None:
    """Make torch's Adam update all of its parameters in one kernel, now and after its state has been loaded.

    Megatron-Core builds it without this option. The kernel wants each parameter's step count on the parameter's device.
    """

    def apply(_: torch.optim.Optimizer) -> None:
        for group in adam.param_groups:
            group["fused"] = True
        for parameter, state in adam.state.items():
            if "step" in state:
                state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)

    apply(adam)
    # Loaded parameter groups bring the option with which they were saved.
    adam.register_load_state_dict_post_hook(apply)
