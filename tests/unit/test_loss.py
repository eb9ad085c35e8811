"""The fused loss against the plain one in fp64: values, gradients, chunk edges, masks, and its memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gptoss20b.model import loss
from gptoss20b.model.loss import chunk_size, linear_cross_entropy
from tests.support.loss_cases import check_loss, make_inputs
from tests.support.tensor_checks import RecordOperators

CPU = torch.device("cpu")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@given(
    tokens=st.integers(1, 70),
    width=st.integers(1, 40),
    vocabulary=st.integers(1, 300),
    chunk=st.integers(1, 80),
    masked=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
@example(tokens=64, width=8, vocabulary=257, chunk=16, masked=0.3, seed=0)
@example(tokens=65, width=8, vocabulary=257, chunk=16, masked=0.3, seed=0)
@example(tokens=63, width=8, vocabulary=257, chunk=64, masked=0.3, seed=0)
@hypothesis_settings(max_examples=60)
def test_values_and_gradients(
    dtype: torch.dtype, tolerance: float, tokens: int, width: int, vocabulary: int, chunk: int, masked: float, seed: int
) -> None:
    check_loss(CPU, dtype, tolerance, tokens, width, vocabulary, chunk, masked, seed)


def test_large_logits_neither_overflow_nor_vanish() -> None:
    hidden, weight, labels, mask = make_inputs(CPU, torch.float32, 9, 4, 11, 0.0, 3)
    hidden = (hidden * 1e4).detach().requires_grad_()
    total = linear_cross_entropy(hidden, weight, labels, mask, 4)
    expected = F.cross_entropy(hidden.double() @ weight.double().T, labels, reduction="sum")
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    total.backward()
    assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_masked_tokens_have_no_gradient() -> None:
    hidden, weight, labels, _ = make_inputs(CPU, torch.float32, 9, 4, 11, 0.0, 3)
    mask = torch.ones(9)
    mask[4] = 0
    linear_cross_entropy(hidden, weight, labels, mask, 4).backward()
    assert hidden.grad is not None
    assert (hidden.grad == 0).all(dim=1).nonzero().flatten().tolist() == [4]


def matrix_products(recorded: RecordOperators) -> int:
    return sum("mm" in name for name in recorded.names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_holds_all_logits_and_backward_multiplies_no_matrices(dtype: torch.dtype) -> None:
    tokens, width, vocabulary, chunk = 96, 8, 320, 16
    hidden, weight, labels, mask = make_inputs(CPU, dtype, tokens, width, vocabulary, 0.3, 1)
    with RecordOperators() as forward:
        total = linear_cross_entropy(hidden, weight, labels, mask, chunk)
    with RecordOperators() as backward:
        total.backward()
    assert chunk * vocabulary <= forward.largest < 2 * chunk * vocabulary
    assert backward.largest == weight.numel()
    # Logits and both gradients, once per chunk.
    assert matrix_products(forward) == 3 * tokens // chunk
    assert matrix_products(backward) == 0


def test_evaluation_computes_no_gradients() -> None:
    hidden, weight, labels, mask = make_inputs(CPU, torch.float32, 96, 8, 320, 0.3, 1)
    trained = linear_cross_entropy(hidden, weight, labels, mask, 16)
    with torch.no_grad(), RecordOperators() as evaluation:
        total = linear_cross_entropy(hidden, weight, labels, mask, 16)
    assert torch.equal(total, trained.detach()) and total.dtype == torch.float64
    assert matrix_products(evaluation) == 6
    assert evaluation.largest == 16 * 320


def test_chunks_are_equal_and_within_their_bytes() -> None:
    assert chunk_size(16_384, 128_256) == 2048
    assert chunk_size(8192, 201_088) == 1171  # 7 of at most 1,334
    assert chunk_size(5, 256) == 5
    assert chunk_size(7, 2**40) == 1
    for tokens in (1, 2093, 2094, 10_000):
        assert 4 * 128_256 * chunk_size(tokens, 128_256) <= loss.MAX_LOGITS_BYTES


@pytest.mark.slow
def test_compiled_kernels_equal_eager_ones() -> None:
    hidden, weight, labels, mask = make_inputs(CPU, torch.bfloat16, 33, 8, 300, 0.3, 5)
    logits = (hidden @ weight.T).detach()
    for function in (loss._chunk_losses, loss._chunk_losses_and_grad):
        torch.testing.assert_close(function.compiled(logits, labels, mask), function.eager(logits, labels, mask))
