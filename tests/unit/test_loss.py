"""The fused loss against the plain one in fp64: values, gradients, chunk edges, masks, and the memory it takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss20b.model import loss as module
from gptoss20b.model.loss import chunk_size, linear_cross_entropy
from tests.support.loss_cases import check, inputs

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
    check(CPU, dtype, tolerance, tokens, width, vocabulary, chunk, masked, seed)


def test_large_logits_neither_overflow_nor_vanish() -> None:
    hidden, weight, labels, mask = inputs(CPU, torch.float32, 9, 4, 11, 0.0, 3)
    hidden = (hidden * 1e4).detach().requires_grad_()
    total = linear_cross_entropy(hidden, weight, labels, mask, 4)
    plain = torch.nn.functional.cross_entropy(hidden.double() @ weight.double().T, labels, reduction="sum")
    assert float(total) == pytest.approx(float(plain), rel=1e-5)
    total.backward()
    assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_what_is_masked_has_no_gradient() -> None:
    hidden, weight, labels, _ = inputs(CPU, torch.float32, 9, 4, 11, 0.0, 3)
    mask = torch.ones(9)
    mask[4] = 0
    linear_cross_entropy(hidden, weight, labels, mask, 4).backward()
    assert hidden.grad is not None
    assert (hidden.grad == 0).all(dim=1).nonzero().flatten().tolist() == [4]


class _Sizes(TorchDispatchMode):
    """The number of elements of every tensor that an operator makes, and the operators."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.operators = 0, list[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.operators.append(str(func))
        for each in out if isinstance(out, tuple | list) else [out]:
            if torch.is_tensor(each):
                self.largest = max(self.largest, each.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_holds_all_logits_and_backward_multiplies_no_matrices(dtype: torch.dtype) -> None:
    tokens, width, vocabulary, chunk = 96, 8, 320, 16
    hidden, weight, labels, mask = inputs(CPU, dtype, tokens, width, vocabulary, 0.3, 1)
    with _Sizes() as forward:
        total = linear_cross_entropy(hidden, weight, labels, mask, chunk)
    with _Sizes() as backward:
        total.backward()
    assert chunk * vocabulary <= forward.largest < 2 * chunk * vocabulary
    assert backward.largest == weight.numel()
    # Logits and both gradients, once a chunk: 3 of the forward's cost in matrix products, none again.
    assert sum("mm" in name for name in forward.operators) == 3 * tokens // chunk
    assert not any("mm" in name for name in backward.operators)


def test_evaluation_computes_no_gradients() -> None:
    hidden, weight, labels, mask = inputs(CPU, torch.float32, 96, 8, 320, 0.3, 1)
    trained = linear_cross_entropy(hidden, weight, labels, mask, 16)
    with torch.no_grad(), _Sizes() as evaluation:
        total = linear_cross_entropy(hidden, weight, labels, mask, 16)
    assert float(total) == float(trained) and total.dtype == torch.float64
    assert sum("mm" in name for name in evaluation.operators) == 6
    assert evaluation.largest == 16 * 320


def test_chunks_are_equal_and_within_their_bytes() -> None:
    assert chunk_size(16_384, 128_256) == 2048
    assert chunk_size(8192, 201_088) == 1171  # 7 of at most 1,334
    assert chunk_size(5, 256) == 5
    assert chunk_size(7, 2**40) == 1
    for tokens in (1, 2093, 2094, 10_000):
        assert 4 * 128_256 * chunk_size(tokens, 128_256) <= module.MAX_LOGITS_BYTES


@pytest.mark.slow
def test_the_compiled_pieces_are_the_eager_ones() -> None:
    hidden, weight, labels, mask = inputs(CPU, torch.bfloat16, 33, 8, 300, 0.3, 5)
    logits = (hidden @ weight.T).detach()
    torch.testing.assert_close(
        module._chunk_losses.compiled(logits, labels, mask), module._chunk_losses.eager(logits, labels, mask)
    )
    compiled = module._chunk_losses_and_grad.compiled(logits, labels, mask)
    torch.testing.assert_close(compiled, module._chunk_losses_and_grad.eager(logits, labels, mask))
