"""Experts and dispatcher on a GPU: the cases of the CPU, through torch.compile, and that the host waits for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from gptoss20b.config import resolve
from gptoss20b.process_groups import single_process
from tests.support import dispatch_cases, expert_cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm GPU"),
]
GPU = torch.device("cuda")


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("openai", [False, True])
@pytest.mark.parametrize("counts", [[8, 0, 24, 16], [0, 900, 0], [1], [300, 5, 0, 129], [0, 0]])
def test_experts(counts: list[int], openai: bool) -> None:
    expert_cases.compare(counts, openai, torch.bfloat16, 1e-2, GPU)


@pytest.mark.parametrize("openai", [False, True])
def test_recomputing_the_activation_changes_no_bit(openai: bool) -> None:
    counts = [200, 0, 312]
    kept, again = (
        expert_cases.gradients(
            expert_cases.make(3, openai, torch.bfloat16, GPU, recompute=recompute), counts, device=GPU
        )
        for recompute in (False, True)
    )
    for name, gradient in kept.items():
        assert torch.equal(gradient, again[name]), name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "lean"),
    [(64, 32, 4, 0.0), (333, 8, 4, 9.0), (1, 8, 4, 0.0), (7, 4, 4, 0.0), (40, 8, 1, 9.0)],
)
def test_dispatcher(dtype: torch.dtype, tolerance: float, tokens: int, experts: int, top_k: int, lean: float) -> None:
    dispatch_cases.check(GPU, dtype, tolerance, tokens, experts, top_k, lean)


def test_a_layer_waits_for_nothing_and_is_the_same_every_time() -> None:
    from gptoss20b.model.build import build_model

    config = resolve({"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open", "PRECISION": "bf16"})
    with single_process():
        model = build_model(config, "torch", on_gpu=True)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.1)
        layer = model.decoder.layers[0].mlp
        x = torch.randn(512, 2, 64, device=GPU, dtype=torch.bfloat16, requires_grad=True)

        def gradients() -> list[torch.Tensor]:
            out, _ = layer(x)
            return [out, *torch.autograd.grad(out, [x, *layer.parameters()], torch.ones_like(out))]

        first = gradients()  # compiles
        with no_waiting():
            second = gradients()
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one, other)
