"""A whole step on a GPU: it waits for nothing, and is the same whatever makes it faster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from jobs import configure

from gptoss20b.feed import synthetic
from gptoss20b.process_groups import Rank, joined
from gptoss20b.training import Trainer, optimizer_parts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm GPU"),
]
SMALL = {
    "MODEL_VARIANT": "tiny",
    "SUBMISSION_DIVISION": "open",
    "PRECISION": "bf16",
    "BACKEND": "torch",
    "DGXNGPU": "1",
    "EXPERT_PARALLEL": "1",
    "MICRO_BATCH_SIZE": "1",
    "GLOBAL_BATCH_SIZE": "2",
    "SEQUENCE_LENGTH": "512",
    "WARMUP_STEPS": "1",
}


def losses(settings: dict[str, str], forbid_waiting: bool = False) -> list[float]:
    """Four steps' losses and an evaluation's, in process groups of this process alone."""
    config = configure(SMALL | settings)
    device = torch.device("cuda", torch.cuda.current_device())
    with joined(config, Rank(0, 1, device, alone=True)):
        trainer = Trainer(config, "torch", device, seed=1)
        assert trainer.overlaps == (config.execution.compiled == "kernels")
        torch_adams = [
            o.optimizer for o in optimizer_parts(trainer.optimizer) if isinstance(o.optimizer, torch.optim.Adam)
        ]
        assert all(group["fused"] for adam in torch_adams for group in adam.param_groups)
        batches = synthetic(config, device)
        results = [trainer.step(batches(2)) for _ in range(3)]
        ready = list(batches(2))
        torch.cuda.synchronize()
        if forbid_waiting:
            torch.cuda.set_sync_debug_mode("error")
        try:
            results.append(trainer.step(iter(ready)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return [*(result.loss() for result in results), trainer.evaluate(batches(2), 2)]


@pytest.fixture(scope="module")
def plain() -> Iterator[list[float]]:
    yield losses({})


@pytest.mark.parametrize("variant", [{}, {"like openai": "yes"}])
def test_a_step_waits_for_nothing(variant: dict[str, str]) -> None:
    assert all(loss > 0 for loss in losses(variant, forbid_waiting=True))


@pytest.mark.parametrize("level", ["moe_act", "moe", "layers"])
def test_recomputation_trains_alike(plain: list[float], level: str) -> None:
    assert losses({"RECOMPUTE": level}) == pytest.approx(plain, rel=1e-3)


def test_compiled_layers_train_alike(plain: list[float]) -> None:
    assert losses({"COMPILE": "layers"}) == pytest.approx(plain, rel=1e-2)
