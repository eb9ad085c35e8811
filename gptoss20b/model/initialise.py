"""Initial weights as a function of the seed, the parameter's name and the expert's number, and of nothing else.

Megatron-Core draws weights from per-rank random streams, so another expert, tensor or pipeline layout starts from other
weights. Here every tensor has a generator of its own, keyed by a hash of its name, and each rank draws (and cuts out)
what it holds. Names are the same for both layer back ends. Drawn on the CPU, where torch's generator is specified.
"""

from __future__ import annotations

import hashlib
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
from .build import scaled_std

Rule = Literal["ones", "zeros", "normal", "scaled"]

# Of one process: a node has at least as many cores for each of its GPUs.
DRAWING_THREADS = 8

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
# One tensor per local expert: Transformer Engine numbers the tensor, Megatron-Core's local spec the module.
_TE_EXPERT = re.compile(r"(\.experts\.linear_fc[12]\.(?:weight|bias))(\d+)$")
_LOCAL_EXPERT = re.compile(r"\.local_experts\.(\d+)(?=\.linear_fc[12]\.)")


def rule(name: str) -> Rule:
    """How the parameter of this name starts.

    Norms start at one and biases at zero. All matrices, the router's bias and the attention sinks are normal with
    init_method_std; what writes into the residual stream is scaled down by sqrt(2 x layers).
    """
    if "layernorm" in name or "layer_norm" in name:
        return "ones"
    if name.endswith("bias") and not name.endswith("router.bias"):
        return "zeros"
    if name.endswith(("self_attention.linear_proj.weight", "experts.linear_fc2.weight")):
        return "scaled"
    return "normal"


def canonical(name: str) -> tuple[str, int | None]:
    """A parameter's name whatever the back end, and the local expert's number if the tensor is a single expert's.

    >>> canonical("decoder.layers.0.mlp.experts.linear_fc1.weight3")
    ('decoder.layers.0.mlp.experts.linear_fc1.weight', 3)
    >>> canonical("decoder.layers.0.mlp.experts.local_experts.3.linear_fc1.weight")
    ('decoder.layers.0.mlp.experts.linear_fc1.weight', 3)
    """
    if match := _TE_EXPERT.search(name):
        return _TE_EXPERT.sub(r"\1", name), int(match.group(2))
    if match := _LOCAL_EXPERT.search(name):
        return _LOCAL_EXPERT.sub("", name), int(match.group(1))
    return name, None


def draw(seed: int, name: str, expert: int | None, shape: torch.Size, std: float) -> Tensor:
    """The normal tensor, fp32 on the CPU, that belongs to this seed, name and (global) expert number."""
    key = f"{seed}/{name}/{'' if expert is None else expert}".encode()
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1)
    return torch.empty(shape, dtype=torch.float32, device="cpu").normal_(0.0, std, generator=generator)


def held(model: GPTModel, config: Config) -> Iterator[tuple[str, int | range | None, Parameter]]:
    """This rank's parameters: name in the whole model, which of all experts it is of (None: of none), parameter."""
    layers = {str(i): layer.layer_number - 1 for i, layer in enumerate(model.decoder.layers)}
    local_experts = config.model.num_experts // config.parallel.expert
    first_expert = parallel_state.get_expert_model_parallel_rank() * local_experts
    for local_name, parameter in model.named_parameters():
        # Pipeline stages count their layers from zero, the whole model's names over all stages.
        name = _LAYER.sub(lambda match: f"decoder.layers.{layers[match.group(1)]}.", local_name)
        name, local_expert = canonical(name)
        if local_expert is not None:
            yield name, first_expert + local_expert, parameter
        elif ".experts." in name:
            yield name, range(first_expert, first_expert + local_experts), parameter
        else:
            yield name, None, parameter


def initialise(model: GPTModel, config: Config, seed: int) -> None:
    """Fill the weights of this rank's part of the model, in place."""
    stds = {"normal": config.fixed.init_method_std, "scaled": scaled_std(config)}

    @torch.no_grad()
    def fill(name: str, expert: int | None, part: Tensor) -> None:
        how = rule(name)
        if how in ("ones", "zeros"):
            part.fill_(1.0 if how == "ones" else 0.0)
        elif expert is not None:
            part.copy_(draw(seed, name, expert, part.shape, stds[how]))
        else:
            part.copy_(_draw_sharded(seed, name, part, stds[how]))

    # One thread draws one tensor, and there are thousands.
    with ThreadPoolExecutor(DRAWING_THREADS) as threads:
        filling = []
        for name, experts, parameter in held(model, config):
            if isinstance(experts, range):
                for expert, part in zip(experts, parameter.detach(), strict=True):
                    filling.append(threads.submit(fill, name, expert, part))
            else:
                filling.append(threads.submit(fill, name, experts, parameter))
        for filled in filling:
            filled.result()


def _draw_sharded(seed: int, name: str, parameter: Tensor, std: float) -> Tensor:
    """This tensor-parallel rank's slice of the whole tensor."""
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    sinks = name.endswith("softmax_offset")  # cut by head, though Megatron marks no partition on it
    if ranks == 1 or not (sinks or getattr(parameter, "tensor_model_parallel", False)):
        return draw(seed, name, None, parameter.shape, std)
    dim = 0 if sinks else int(parameter.partition_dim)  # type: ignore[attr-defined]
    whole = list(parameter.shape)
    whole[dim] *= ranks
    slices = draw(seed, name, None, torch.Size(whole), std).chunk(ranks, dim)
    return slices[int(parallel_state.get_tensor_model_parallel_rank())]
