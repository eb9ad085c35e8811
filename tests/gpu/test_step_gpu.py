"""A whole step on a GPU: the host does not wait, and faster ways train alike, on either back end."""

from __future__ import annotations

import functools
import importlib.util
import math
from contextlib import nullcontext

import pytest
import torch

from gptoss20b.batches import synthetic_batches
from gptoss20b.model.backend import Backend
from gptoss20b.optimizer import optimizer_parts
from gptoss20b.process_groups import Rank, distributed_session
from gptoss20b.trainer import Trainer
from tests.support.jobs import configure
from tests.support.step_jobs import differentiated
from tests.support.tensor_checks import forbid_gpu_sync

SMALL = {
    "MODEL_VARIANT": "tiny",
    "SUBMISSION_DIVISION": "open",
    "PRECISION": "bf16",
    "DGXNGPU": "1",
    "EXPERT_PARALLEL": "1",
    "MICRO_BATCH_SIZE": "1",
    "GLOBAL_BATCH_SIZE": "2",
    "SEQUENCE_LENGTH": "512",
    "WARMUP_STEPS": "1",
}
TRANSFORMER_ENGINE = importlib.util.find_spec("transformer_engine") is not None
needs_transformer_engine = pytest.mark.skipif(not TRANSFORMER_ENGINE, reason="needs Transformer Engine")
each_backend = pytest.mark.parametrize(
    "backend", ["torch", pytest.param("transformer_engine", marks=needs_transformer_engine)]
)


def train_losses(settings: dict[str, str], backend: Backend = "torch", forbid_sync: bool = False) -> list[float]:
    """Return the losses of four steps and an evaluation, in process groups of this process alone."""
    config = configure(SMALL | {"BACKEND": backend} | settings)
    device = torch.device("cuda", torch.cuda.current_device())
    with distributed_session(config, Rank(rank=0, local_rank=0, world_size=1, standalone=True, device=device)):
        trainer = Trainer(config, backend, device, seed=1)
        assert trainer.overlap_param_gather == (config.execution.compile_mode == "kernels")
        torch_adams = [
            o.optimizer for o in optimizer_parts(trainer.optimizer) if isinstance(o.optimizer, torch.optim.Adam)
        ]
        # Megatron-Core prefers the Adam of Transformer Engine or Apex, which is one kernel already.
        assert torch_adams or TRANSFORMER_ENGINE or importlib.util.find_spec("apex")
        assert all(group["fused"] for adam in torch_adams for group in adam.param_groups)
        results = [trainer.step(synthetic_batches(config, device, 2)) for _ in range(3)]
        last = list(synthetic_batches(config, device, 2))
        with forbid_gpu_sync() if forbid_sync else nullcontext():
            results.append(trainer.step(iter(last)))
        evaluation = trainer.evaluate(synthetic_batches(config, device, 2), 2)
        return [*(result.loss() for result in results), evaluation]


@functools.cache
def default_losses(backend: Backend) -> list[float]:
    """Return the losses without further settings, for comparison."""
    return train_losses({}, backend)


@each_backend
@pytest.mark.parametrize("variant", [{}, {"like openai": "yes"}])
def test_the_host_does_not_wait_in_a_step(variant: dict[str, str], backend: Backend) -> None:
    # Megatron-Core's dispatcher and grouped experts read the tokens per expert back to the host.
    losses = train_losses(variant, backend, forbid_sync=backend == "torch")
    assert all(0 < loss < math.inf for loss in losses)


@each_backend
@pytest.mark.parametrize("level", ["moe_act", "moe", "layers"])
def test_recomputation_trains_alike(backend: Backend, level: str) -> None:
    assert train_losses({"RECOMPUTE": level}, backend) == pytest.approx(default_losses(backend), rel=1e-3)


def test_compiled_layers_train_alike() -> None:
    assert train_losses({"COMPILE": "layers"}) == pytest.approx(default_losses("torch"), rel=1e-2)


@pytest.mark.parametrize("peer", [pytest.param("transformer_engine", marks=needs_transformer_engine), "megatron_local"])
def test_back_ends_have_the_same_gradients(peer: Backend) -> None:
    # As many experts as each token takes: a choice that rounding tips gives two experts another token each, and
    # gradients that differ by more than rounding. The local spec keeps S x S scores: a short sequence, past the window.
    settings = SMALL | {"SEQUENCE_LENGTH": "256", "window": "20"}
    results = {}
    for backend in ("torch", peer):
        # Runs cannot choose megatron_local: it is configured as torch is.
        chosen = "transformer_engine" if backend == "transformer_engine" else "torch"
        config = configure(settings | {"BACKEND": chosen})
        model = config.model.model_copy(update={"num_experts": config.model.router_topk})
        config = config.model_copy(update={"model": model})
        device = torch.device("cuda", torch.cuda.current_device())
        with distributed_session(config, Rank(rank=0, local_rank=0, world_size=1, standalone=True, device=device)):
            results[backend] = differentiated(config, backend, device)
    ours, theirs = results["torch"], results[peer]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-2)
    assert ours["norm"] == pytest.approx(theirs["norm"], rel=2e-2)
    assert ours["gradients"].keys() == theirs["gradients"].keys()
    for name, gradient in theirs["gradients"].items():
        assert gradient.norm() > 0, name
        assert (ours["gradients"][name] - gradient).norm() <= 2e-2 * gradient.norm(), name


@needs_transformer_engine
@pytest.mark.skipif(
    torch.cuda.is_available() and torch.version.hip is None and torch.cuda.get_device_capability() < (8, 9),
    reason="needs a GPU that multiplies 8-bit numbers",
)
def test_steps_in_fp8_are_finite() -> None:
    losses = train_losses({"PRECISION": "fp8"}, "transformer_engine")
    assert all(0 < loss < math.inf for loss in losses)
    assert losses == pytest.approx(default_losses("transformer_engine"), rel=0.1)
