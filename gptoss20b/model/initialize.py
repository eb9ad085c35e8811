"""Initial weights that depend on the seed, the parameter's name and the expert's number only.

Megatron-Core draws weights from per-rank random streams, so another expert, tensor or pipeline layout starts from other
weights. Here every tensor has its own generator, keyed by a hash of its name. Each rank draws the tensors it holds and
cuts out its part. Both layer back ends use the same names. Tensors are drawn on the CPU, where torch specifies the
generator.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor
from torch.nn import Parameter

from ..config import Config

InitMethod = Literal["ones", "zeros", "normal", "scaled_normal"]

# Per process. A node has at least this many cores for each of its GPUs.
INIT_THREADS = 8

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
# One tensor per local expert: Transformer Engine numbers the tensor, Megatron-Core's local spec the module.
_TE_EXPERT = re.compile(r"(\.experts\.linear_fc[12]\.(?:weight|bias))(\d+)$")
_LOCAL_EXPERT = re.compile(r"\.local_experts\.(\d+)(?=\.linear_fc[12]\.)")


def init_method(name: str) -> InitMethod:
    """Return the initialization of the parameter with this canonical name.

    Norms start at one and biases at zero. All matrices, the router's bias and the attention sinks are normal with
    init_method_std. Projections that write into the residual stream are scaled down by sqrt(2 x layers).
    """
    if "layernorm" in name or "layer_norm" in name:
        return "ones"
    if name.endswith("bias") and not name.endswith("router.bias"):
        return "zeros"
    if name.endswith(("self_attention.linear_proj.weight", "experts.linear_fc2.weight")):
        return "scaled_normal"
    return "normal"


def canonical_name(name: str) -> tuple[str, int | None]:
    """Return a parameter's name in any back end, and the local expert's number if the tensor is one expert's.

    >>> canonical_name("decoder.layers.0.mlp.experts.linear_fc1.weight3")
    ('decoder.layers.0.mlp.experts.linear_fc1.weight', 3)
    >>> canonical_name("decoder.layers.0.mlp.experts.local_experts.3.linear_fc1.weight")
    ('decoder.layers.0.mlp.experts.linear_fc1.weight', 3)
    """
    if match := _TE_EXPERT.search(name):
        return _TE_EXPERT.sub(r"\1", name), int(match.group(2))
    if match := _LOCAL_EXPERT.search(name):
        return _LOCAL_EXPERT.sub("", name), int(match.group(1))
    return name, None


def draw_normal(seed: int, name: str, expert: int | None, shape: torch.Size, std: float) -> Tensor:
    """Draw the fp32 CPU tensor that belongs to this seed, canonical name and global expert number."""
    key = f"{seed}/{name}/{'' if expert is None else expert}".encode()
    # manual_seed takes a signed 64-bit number: drop the lowest bit.
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1)
    return torch.empty(shape, dtype=torch.float32, device="cpu").normal_(0.0, std, generator=generator)


def initial_tensor(config: Config, seed: int, name: str, expert: int | None, shape: torch.Size) -> Tensor:
    """Return the initial value of a whole tensor, or of one expert's part: fp32 on the CPU."""
    method = init_method(name)
    if method in ("ones", "zeros"):
        return torch.full(shape, 1.0 if method == "ones" else 0.0, device="cpu")
    std = config.fixed.init_method_std
    if method == "scaled_normal":
        std /= math.sqrt(2 * config.model.num_layers)
    return draw_normal(seed, name, expert, shape, std)


def local_parameters(model: GPTModel, config: Config) -> Iterator[tuple[str, int | range | None, Parameter]]:
    """Yield this rank's parameters with their canonical names in the whole model.

    Yields:
        Name, global expert number (one expert's tensor), range of them (a tensor of all local experts) or None, and
        the parameter.
    """
    layer_indices = {str(i): layer.layer_number - 1 for i, layer in enumerate(model.decoder.layers)}
    num_local_experts = config.model.num_experts // config.parallel.expert
    first_expert = parallel_state.get_expert_model_parallel_rank() * num_local_experts
    for local_name, parameter in model.named_parameters():
        # Each pipeline stage numbers its layers from zero; canonical names number them over all stages.
        name = _LAYER.sub(lambda match: f"decoder.layers.{layer_indices[match.group(1)]}.", local_name)
        name, local_expert = canonical_name(name)
        if local_expert is not None:
            yield name, first_expert + local_expert, parameter
        elif ".experts." in name:
            yield name, range(first_expert, first_expert + num_local_experts), parameter
        else:
            yield name, None, parameter


def initialize_weights(model: GPTModel, config: Config, seed: int) -> None:
    """Fill the weights of this rank's model shard in place."""

    @torch.no_grad()
    def fill(name: str, expert: int | None, parameter: Tensor) -> None:
        dim = None if expert is not None else _tensor_parallel_dim(name, parameter)
        if dim is None:
            parameter.copy_(initial_tensor(config, seed, name, expert, parameter.shape))
            return
        ranks = parallel_state.get_tensor_model_parallel_world_size()
        shape = list(parameter.shape)
        shape[dim] *= ranks
        slices = initial_tensor(config, seed, name, expert, torch.Size(shape)).chunk(ranks, dim)
        parameter.copy_(slices[int(parallel_state.get_tensor_model_parallel_rank())])

    # A generator is drawn from by one thread, and there are thousands of tensors.
    with ThreadPoolExecutor(INIT_THREADS) as threads:
        jobs = []
        for name, experts, parameter in local_parameters(model, config):
            if isinstance(experts, range):
                for expert, part in zip(experts, parameter.detach(), strict=True):
                    jobs.append(threads.submit(fill, name, expert, part))
            else:
                jobs.append(threads.submit(fill, name, experts, parameter))
        for job in jobs:
            job.result()


def _tensor_parallel_dim(name: str, parameter: Tensor) -> int | None:
    """Return the dimension along which tensor-parallel ranks split a parameter, or None for a whole one."""
    if parallel_state.get_tensor_model_parallel_world_size() == 1:
        return None
    if name.endswith("softmax_offset"):
        return 0  # split by head, though Megatron-Core sets no partition attributes on attention sinks
    if getattr(parameter, "tensor_model_parallel", False):
        return int(parameter.partition_dim)  # type: ignore[attr-defined]
    return None
