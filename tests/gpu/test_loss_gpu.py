"""The fused loss on a GPU: the cases of the CPU through torch.compile, and its memory."""

from __future__ import annotations

import pytest
import torch

from gptoss20b.model.loss import MAX_LOGITS_BYTES, linear_cross_entropy
from tests.support.loss_cases import check_loss, make_inputs
from tests.support.tensor_checks import forbid_gpu_sync

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
    check_loss(GPU, dtype, tolerance, tokens, width, vocabulary, chunk, masked, seed=0)


def test_a_real_micro_batch_takes_little_memory_and_the_host_does_not_wait() -> None:
    tokens, width, vocabulary = 16_384, 2880, 128_256
    hidden, weight, labels, mask = make_inputs(GPU, torch.bfloat16, tokens, width, vocabulary, 0.0, 0)
    linear_cross_entropy(hidden, weight, labels, mask).backward()  # compiles
    hidden.grad = weight.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with forbid_gpu_sync():
        linear_cross_entropy(hidden, weight, labels, mask).backward()
    peak_bytes = torch.cuda.max_memory_allocated() - before
    # A chunk's logits and their gradient in bf16, the weight's gradient in fp32 and rounded, the hidden states' twice.
    assert peak_bytes < MAX_LOGITS_BYTES + 6 * vocabulary * width + 4 * tokens * width + 2**28
    assert peak_bytes < 2 * tokens * vocabulary, "less than the logits alone"
