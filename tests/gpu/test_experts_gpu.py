"""Experts and dispatcher on a GPU: the cases of the CPU through torch.compile, without waiting for the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gptoss20b.config import resolve
from gptoss20b.model.build import build_model
from gptoss20b.model.grouped_gemm import loops_on_host
from gptoss20b.process_groups import single_process
from tests.support.dispatch_cases import check_dispatcher
from tests.support.expert_cases import check_experts, compute_gradients, make_experts
from tests.support.tensor_checks import forbid_gpu_sync

GPU = torch.device("cuda")


@pytest.mark.parametrize("openai", [False, True])
@pytest.mark.parametrize("counts", [[8, 0, 24, 16], [0, 900, 0], [1], [300, 5, 0, 129], [0, 0]])
def test_experts(counts: list[int], openai: bool) -> None:
    for _ in range(2):
        # What a kernel does not write then holds NaN: the allocator hands out the same memory again.
        freed = [
            torch.full((size,), float("nan"), device=GPU) for size in (64, 256, 1024, 4096, 2**20) for _ in range(8)
        ]
        del freed
        check_experts(counts, openai, torch.bfloat16, 1e-2, GPU)


@pytest.mark.skipif(
    torch.version.hip is None and torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0),
    reason="torch has the kernel from compute capability 9.0 on",
)
def test_grouped_gemms_run_in_one_kernel() -> None:
    assert not loops_on_host(GPU)


@pytest.mark.parametrize("openai", [False, True])
def test_recomputing_the_activation_is_bit_exact(openai: bool) -> None:
    kept, recomputed = (
        compute_gradients(make_experts(3, openai, torch.bfloat16, GPU, recompute=recompute), [200, 0, 312], GPU)
        for recompute in (False, True)
    )
    for name, gradient in kept.items():
        assert torch.equal(gradient, recomputed[name]), name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(
    ("tokens", "experts", "topk", "skew"),
    [(64, 32, 4, 0.0), (333, 8, 4, 9.0), (1, 8, 4, 0.0), (7, 4, 4, 0.0), (40, 8, 1, 9.0)],
)
def test_dispatcher(dtype: torch.dtype, tolerance: float, tokens: int, experts: int, topk: int, skew: float) -> None:
    check_dispatcher(GPU, dtype, tolerance, tokens, experts, topk, skew)


def test_a_layer_is_deterministic_and_the_host_does_not_wait() -> None:
    config = resolve({"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open", "PRECISION": "bf16"})
    with single_process():
        model = build_model(config, "torch", on_gpu=True)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.1)
        layer = model.decoder.layers[0].mlp
        x = torch.randn(512, 2, 64, device=GPU, dtype=torch.bfloat16, requires_grad=True)

        def gradients() -> list[Tensor]:
            out, _ = layer(x)
            return [out, *torch.autograd.grad(out, [x, *layer.parameters()], torch.ones_like(out))]

        first = gradients()  # compiles
        with forbid_gpu_sync():
            second = gradients()
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one, other)
