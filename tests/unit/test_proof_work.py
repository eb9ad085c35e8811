"""Test the count of FLOPs and bytes: operators on the meta device, and a small model's modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss20b.hardware import SYSTEMS
from gptoss20b.model.size import _mean_keys
from gptoss20b.proof.accounting import Accountant
from gptoss20b.proof.modules import name_modules
from gptoss20b.proof.result import Work
from gptoss20b.proof.roofline import roofline_seconds, sum_by_part
from gptoss20b.proof.work import count_bytes, count_flops, kernel_bytes

FP32 = 4


class _Recorder(TorchDispatchMode):
    """Sums FLOPs and bytes of every operator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.flops += count_flops(func, args, kwargs, out)
        self.bytes += count_bytes(func, func.name(), args, kwargs, out)
        return out


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def indices(*shape: int) -> Tensor:
    return numbers(*shape, dtype=torch.int64)


def adam_step() -> None:
    lists = [[numbers(100)] for _ in range(4)]
    torch.ops.aten._fused_adamw_(
        *lists, [], [numbers(1)],
        lr=1.0, beta1=0.9, beta2=0.9, weight_decay=0.1, eps=1e-5, amsgrad=False, maximize=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("operation", "flops", "elements"),
    [
        (lambda: numbers(3, 5) @ numbers(5, 7), 2 * 3 * 5 * 7, 3 * 5 + 5 * 7 + 3 * 7),
        (lambda: numbers(3, 5).T.view(5, 3)[1:], 0, 0),
        (lambda: numbers(3, 5) + numbers(3, 1).expand(3, 5), 0, 15 + 3 + 15),
        (lambda: numbers(3, 5).add_(1), 0, 2 * 15),
        (lambda: numbers(3, 5).zero_(), 0, 15),
        (lambda: torch.zeros(3, 5, device="meta"), 0, 15),
        (lambda: numbers(3, 5).copy_(numbers(5)), 0, 5 + 15),
        # Two rows of a table of 100, by two indices of 8 bytes.
        (lambda: F.embedding(indices(2), numbers(100, 5)), 0, 2 * 2 + 2 * 10),
        (lambda: numbers(100, 5)[indices(2)], 0, 2 * 2 + 2 * 10),
        (lambda: torch._foreach_mul_([numbers(3), numbers(5)], 2.0), 0, 2 * 8),
        # Weights and moments are read and written; gradients and the count of steps are read.
        (adam_step, 0, 100 * 7 + 1),
    ],
)
def test_an_operator_reads_its_inputs_and_writes_its_outputs(
    operation: Callable[[], Any], flops: int, elements: int
) -> None:
    with _Recorder() as recorder:
        operation()
    assert (recorder.flops, recorder.bytes) == (flops, elements * FP32)


def test_grouped_products_count_every_row_once() -> None:
    rows, weights, offsets = (
        numbers(64, 16, dtype=torch.bfloat16), numbers(4, 16, 32, dtype=torch.bfloat16), numbers(4, dtype=torch.int32)
    )  # fmt: skip
    with _Recorder() as recorder:
        F.grouped_mm(rows, weights, offs=offsets)
    assert recorder.flops == 2 * 64 * 16 * 32
    with _Recorder() as recorder:
        F.grouped_mm(rows.T, numbers(64, 32, dtype=torch.bfloat16), offs=offsets)
    assert recorder.flops == 2 * 64 * 16 * 32


def test_attention_counts_the_pairs_that_its_mask_admits() -> None:
    length, window = 256, 32
    query = numbers(1, 2, length, 16, dtype=torch.bfloat16)
    pair_flops = 4 * 2 * 16  # of one pair: two products, two heads, 16 columns

    def in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key <= window)

    causal = torch.ops.aten._scaled_dot_product_flash_attention.default
    with _Recorder() as recorder:
        causal(query, query, query, 0.0, True)
    assert recorder.flops == pair_flops * length * _mean_keys(length, length)
    from torch._higher_order_ops.flex_attention import flex_attention

    args = (query, query, query, None, (length, length, in_window))
    assert count_flops(flex_attention, args, {}, None) == pair_flops * length * _mean_keys(length, window)


def test_a_fused_kernel_counts_inputs_and_outputs_once() -> None:
    given, product, result = numbers(10), numbers(20), numbers(30)
    counted = {product.untyped_storage()._cdata}
    # A result that is an argument, and what a product inside has moved already, count once.
    assert kernel_bytes([given, product], [given, result], [], counted) == FP32 * (10 + 30)
    assert kernel_bytes([given], [], [given], set()) == FP32 * 20


@contextmanager
def traced(model: nn.Module) -> Iterator[Accountant]:
    accountant = Accountant()
    with accountant, name_modules(accountant, model):
        yield accountant


def test_work_belongs_to_the_module_forward_and_backward() -> None:
    model = nn.ModuleDict({"first": nn.Linear(16, 8, bias=False), "second": nn.Linear(8, 4, bias=False)})

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = self.parts["first"](x)
            out: Tensor = self.parts["second"](hidden @ hidden.T @ hidden)
            return out

    whole = Model()
    with traced(whole) as accountant:
        whole(torch.ones(32, 16)).sum().backward()
        torch.ones(3, 3) @ torch.ones(3, 3)
    flops = {
        (module, phase): flops for (module, phase, _, _), (_, flops, _) in accountant.account.work.items() if flops
    }
    own = 2 * 32 * 32 * 8 * 2
    assert flops == {
        ("parts.first", "forward"): 2 * 32 * 16 * 8,
        ("parts.first", "backward"): 2 * 32 * 16 * 8,  # the input needs no gradient
        ("parts.second", "forward"): 2 * 32 * 8 * 4,
        ("parts.second", "backward"): 2 * 2 * 32 * 8 * 4,
        ("model", "forward"): own,
        ("model", "backward"): 2 * own,
        ("", "update"): 2 * 3**3,
    }


def test_a_kernel_takes_the_longer_of_compute_and_memory() -> None:
    def work(module: str, operator: str, flops: float, moved: float, dtype: str = "bfloat16") -> Work:
        return Work(
            module=module, phase="forward", operator=operator, dtype=dtype, count=1, flops=int(flops), bytes=int(moved)
        )

    h200 = SYSTEMS["H200"]
    assert roofline_seconds(work("", "mm", 990e12, 1), h200) == pytest.approx(1)
    assert roofline_seconds(work("", "mm", 67e12, 1, "float32"), h200) == pytest.approx(1)
    assert roofline_seconds(work("", "add", 1, 9.6e12), h200) == pytest.approx(2)
    layer = "decoder.layers"
    rows = [
        work(f"{layer}.self_attention.core_attention", "flex_attention", 990e12, 0),
        work(f"{layer}.self_attention", "flex_attention", 990e12, 0),  # of a compiled layer
        work(f"{layer}.self_attention", "mm", 1, 0),
        work(f"{layer}.self_attention.linear_qkv", "mm", 1, 0),
        work(f"{layer}.self_attention", "split_qkv_rope", 0, 4.8e12),
        work(f"{layer}.mlp.experts.linear_fc1", "_grouped_mm", 1, 0),
        work(f"{layer}.mlp", "index.Tensor", 0, 1),
        work(layer, "add.Tensor", 0, 1),
        work("", "_fused_adamw_", 0, 1),
    ]
    parts = {each.part: each for each in sum_by_part(rows, h200)}
    assert list(parts) == [
        "attention scores", "attention projections", "QK norms and rotation", "experts", "dispatch", "residuals",
        "optimizer and gradients",
    ]  # fmt: skip
    assert parts["attention scores"].roofline_seconds == pytest.approx(2)
    assert parts["attention projections"].flops == 2


def test_every_known_gpu_has_an_fp32_peak() -> None:
    assert all(system.fp32_tflops for system in SYSTEMS.values())
