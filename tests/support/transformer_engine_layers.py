"""Build the Transformer Engine layers of configurations on a CPU: a program that prints JSON.

``python -m tests.support.transformer_engine_layers CASES``, where CASES is JSON: settings by name of the case, of those
to "build" and of those to "compare" by their gradients.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from tests.support.transformer_engine_import import MODE

# Transformer Engine first: Megatron-Core looks for it when it is imported.
# isort: split
from gptoss20b.config import Config
from gptoss20b.megatron_cpu import enable
from gptoss20b.model.backend import Backend
from gptoss20b.model.build import build_model
from gptoss20b.model.initialize import canonical_name, initialize_weights
from gptoss20b.process_groups import create_process_groups, single_process
from tests.support.jobs import configure
from tests.support.transformer_engine_forward import plain_torch

BACKENDS: tuple[Backend, ...] = ("torch", "transformer_engine")
# Transformer Engine keeps the norm before a projection inside of the projection's module.
_SAME = {"self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight"}
_MODULES = ("DotProductAttention", "Linear", "LayerNormLinear", "GroupedLinear", "RMSNorm")


@contextmanager
def pretend_gpu() -> Iterator[None]:
    """Let constructors find a B200: they refuse to start without a device, and choose recipes by its capability."""
    properties = SimpleNamespace(major=10, minor=0, multi_processor_count=148, total_memory=180 * 10**9, name="B200")
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: (10, 0),
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        yield


@contextmanager
def process_groups(config: Config) -> Iterator[None]:
    """Be rank 0 of the configuration in torch's fake process group."""
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    new_group = dist.new_group

    def new_fake_group(*arguments: Any, **options: Any) -> Any:
        return new_group(*arguments, **{**options, "backend": "fake", "pg_options": None})

    dist.init_process_group("fake", rank=0, world_size=config.parallel.world_size, store=FakeStore())
    with patch.object(dist, "new_group", new_fake_group):
        create_process_groups(config)
        yield
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


@contextmanager
def record_options() -> Iterator[list[dict[str, Any]]]:
    """Record the options of each module of Transformer Engine that is built, by the names of its signature."""
    engine = importlib.import_module("transformer_engine.pytorch")
    built: list[dict[str, Any]] = []

    def recording(kind: str, original: Any) -> Any:
        signature = inspect.signature(original)

        def init(self: Any, *arguments: Any, **options: Any) -> None:
            bound = signature.bind(self, *arguments, **options)
            unknown = {
                name
                for parameter in signature.parameters.values()
                if parameter.kind is inspect.Parameter.VAR_KEYWORD
                for name in bound.arguments.get(parameter.name, {})
            }
            values = {name: _as_json(value) for name, value in bound.arguments.items() if name != "self"}
            built.append({"kind": kind, "options": values, "unknown": sorted(unknown)})
            original(self, *arguments, **options)

        return init

    with ExitStack() as stack:
        for kind in _MODULES:
            module = getattr(engine, kind)
            stack.enter_context(patch.object(module, "__init__", recording(kind, module.__init__)))
        yield built


def _as_json(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_as_json(each) for each in value]
    return value if isinstance(value, int | float | str | None) else str(value)


def describe_weights(model: Any, digests: bool) -> dict[str, Any]:
    """Return shape and dtype of each weight by its name in any back end, and a digest of its values or None.

    The tensor of all experts, and those of each, are described as the list of each.
    """
    found: dict[str, Any] = {}
    for local_name, parameter in model.named_parameters():
        name, expert = whole_model_name(local_name)
        whole = ".experts." in name and expert is None
        for part in parameter if whole else [parameter]:
            fact = [list(part.shape), str(part.dtype), _digest(part) if digests else None]
            if ".experts." in name:
                found.setdefault(name, []).append(fact)
            else:
                found[name] = fact
    return found


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().float().contiguous().numpy().tobytes()).hexdigest()


def describe_case(variables: dict[str, str]) -> dict[str, Any]:
    """Build both back ends' models of a configuration. Return their weights, and how the layers were built.

    The variable "values" asks for initial weights, and is for small models.
    """
    from megatron.core.extensions import transformer_engine as extension
    from megatron.core.fp8_utils import get_fp8_recipe
    from megatron.core.transformer.module import Float16Module

    digests = bool(variables.pop("values", ""))
    config = configure(variables)
    found: dict[str, Any] = {}
    with process_groups(config), pretend_gpu():
        for backend in BACKENDS:
            with record_options() as built:
                model = build_model(config, backend, on_gpu=False)
            if digests:
                initialize_weights(model, config, seed=1)
            if config.execution.bf16_weights:
                Float16Module(model.config, model)
            found[backend] = describe_weights(model, digests)
        found["built"] = built
        recipe = get_fp8_recipe(model.config) if model.config.fp8 else None
        found["recipe"] = recipe and [type(recipe).__name__, recipe.fp8_format.name]
        functions = {
            "moe_permute_fusion": (
                "fused_permute_with_probs",
                "fused_unpermute",
                "fused_sort_chunks_by_index_with_probs",
            ),
            "apply_rope_fusion": ("fused_apply_rotary_pos_emb",),
            "moe_router_fusion": ("fused_topk_with_score_function",),
        }
        found["missing"] = [
            name
            for flag, names in functions.items()
            for name in names
            if getattr(model.config, flag) and getattr(extension, name, None) is None
        ]
        found["fusions"] = {flag: getattr(model.config, flag) for flag in functions}
    return found


def compare_gradients(variables: dict[str, str]) -> dict[str, Any]:
    """Return each back end's loss, the relative error of each gradient, and what Transformer Engine was called for."""
    config = configure(variables)
    losses, gradients = [], []
    with single_process():
        for backend in BACKENDS:
            with pretend_gpu():
                model = build_model(config, backend, on_gpu=False)
            initialize_weights(model, config, seed=1)
            with plain_torch() as called:
                found = _sum_of_losses(model, config)
                found.backward()
            losses.append(float(found))
            gradients.append(describe_gradients(model))
    ours, theirs = gradients
    errors = {name: float((theirs[name] - grad).norm() / grad.norm()) for name, grad in ours.items()}
    return {"losses": losses, "errors": errors, "called": sorted(called)}


def _sum_of_losses(model: Any, config: Config) -> Tensor:
    tokens = torch.randint(
        config.model.vocab_size, (2, config.fixed.sequence_length + 1), generator=torch.Generator().manual_seed(3)
    )
    positions = torch.arange(config.fixed.sequence_length)[None].expand(2, -1)
    inputs = {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:], "position_ids": positions, "attention_mask": None}
    losses: Tensor = model(**inputs)
    return losses.sum()


def describe_gradients(model: Any) -> dict[str, Tensor]:
    """Return the gradient of each weight by its name in any back end, with those of all experts in one tensor."""
    found: dict[str, Tensor] = {}
    for local_name, parameter in model.named_parameters():
        name, expert = whole_model_name(local_name)
        grad = parameter.grad if expert is None else parameter.grad[None]
        found[name] = grad if name not in found else torch.cat([found[name], grad])
    return found


def whole_model_name(local_name: str) -> tuple[str, int | None]:
    """Return a weight's name in our back end, and the expert's number if it is one expert's."""
    name, expert = canonical_name(local_name)
    for theirs, ours in _SAME.items():
        name = name.replace(theirs, ours)
    return name, expert


if __name__ == "__main__":
    enable()
    asked = json.loads(sys.argv[1])
    built = {name: describe_case(case) for name, case in asked["build"].items()}
    compared = {name: compare_gradients(case) for name, case in asked["compare"].items()}
    print(json.dumps({"mode": MODE, "build": built, "compare": compared}))
