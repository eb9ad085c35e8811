"""The fused loss on a GPU: the same cases as on a CPU, through torch.compile, and the memory it takes."""

from __future__ import annotations

import pytest
import torch

from gptoss20b.model.loss import MAX_LOGITS_BYTES, linear_cross_entropy
from tests.support.loss_cases import check, inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm GPU"),
]
GPU = torch.device("cuda")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(
    ("tokens", "width", "vocabulary", "chunk", "masked"),
    [
        (64, 8, 256, 16, 0.3),
        (65, 16, 264, 16, 0.3),
        (1, 8, 8, 4, 0.0),
        (70, 64, 1000, 80, 1.0),
        (300, 64, 8192, 128, 0.3),
    ],
)
def test_values_and_gradients(
    dtype: torch.dtype, tolerance: float, tokens: int, width: int, vocabulary: int, chunk: int, masked: float
) -> None:
    check(GPU, dtype, tolerance, tokens, width, vocabulary, chunk, masked, seed=0)


def test_a_micro_batch_of_the_real_size_takes_little_memory_and_waits_for_nothing() -> None:
    tokens, width, vocabulary = 16_384, 2880, 128_256
    hidden, weight, labels, mask = inputs(GPU, torch.bfloat16, tokens, width, vocabulary, 0.0, 0)
    linear_cross_entropy(hidden, weight, labels, mask).backward()  # compiles
    hidden.grad = weight.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        total = linear_cross_entropy(hidden, weight, labels, mask)
        total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    taken = torch.cuda.max_memory_allocated() - before
    # A chunk's logits and their gradient in bf16, the weight's gradient in fp32 and rounded, the hidden states' twice.
    assert taken < MAX_LOGITS_BYTES + 6 * vocabulary * width + 4 * tokens * width + 2**28
    assert taken < 2 * tokens * vocabulary, "less than the logits alone"
