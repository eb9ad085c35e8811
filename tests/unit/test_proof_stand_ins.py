"""Compare each stand-in of the GPU proof with the real thing, and see that the places it replaces are still there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from gptoss20b.config import resolve
from gptoss20b.megatron_cpu import import_megatron

import_megatron()

from gptoss20b.proof.accounting import Accountant  # noqa: E402 - after Megatron-Core
from gptoss20b.proof.fake_cuda import difference, fake_cuda, replace  # noqa: E402
from gptoss20b.proof.guard import ProofError  # noqa: E402
from gptoss20b.proof.stand_ins import (  # noqa: E402
    Routing,
    apply_to_parameters,
    fake_kernels,
    fake_process_groups,
    fake_rms_norm,
    fake_routing,
    fake_tensors,
    flash_attention,
    gather_from_all,
)
from gptoss20b.proof.targets import DeviceProperties  # noqa: E402
from tests.support.config_cases import run_python  # noqa: E402


def test_everything_that_is_replaced_is_there_and_is_called_the_same_way() -> None:
    """Here a new torch or Megatron-Core is seen first: `replace` names what has moved."""
    # In its own process: other tests leave the stand-ins for CPU runs in torch.cuda.
    done = run_python("-c", f"from {__name__} import replace_everything; replace_everything()")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def replace_everything() -> None:
    before = nn.Module._apply, torch.cuda.synchronize, dist.new_group
    config = resolve({"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open"})
    with ExitStack() as stack:
        accountant = Accountant()
        fake_cuda(stack, accountant, DeviceProperties())
        fake_process_groups(stack, config, rank=0)
        fake_tensors(stack)
        fake_kernels(stack, accountant)
        fake_routing(stack, accountant, config, Routing(1.0))
        assert torch.cuda.is_available() and dist.get_world_size() == 2
        torch.cuda.synchronize()
        assert sum(accountant.account.waits.values()) == 1
    assert (nn.Module._apply, torch.cuda.synchronize, dist.new_group) == before
    print("done")


class Original:
    """What a stand-in takes the place of."""

    def method(self, first: int, *, second: int = 0) -> None: ...


@pytest.mark.parametrize(
    ("name", "stand_in", "fact"),
    [
        ("gone", lambda _self: None, "Original.gone: not found"),
        ("method", lambda _self: None, "first"),
        ("method", lambda _self, first: first, "second"),
        ("method", lambda *_args, **_options: None, None),
    ],
)
def test_a_place_that_has_moved_is_named(name: str, stand_in: Callable[..., Any], fact: str | None) -> None:
    with ExitStack() as stack:
        if fact is None:
            replace(stack, Original, name, stand_in)
        else:
            with pytest.raises(ProofError, match=fact):
                replace(stack, Original, name, stand_in)
    assert difference(Original, type("StandIn", (), {"other": lambda _self: None})) == "has no other"


@pytest.mark.parametrize("change", [lambda x: x.bfloat16(), lambda x: x.double() if x.is_floating_point() else x])
def test_a_module_is_cast_as_by_torch(change: Callable[[Tensor], Tensor]) -> None:
    def build() -> nn.Module:
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
        first = next(module.parameters())
        first.requires_grad_(False)
        vars(first)["sequence_parallel"] = True
        module.register_parameter("none", None)
        return module

    real, ours = build(), build()
    nn.Module._apply(real, change)
    assert apply_to_parameters(ours, change) is ours
    assert real.state_dict().keys() == ours.state_dict().keys()
    for name, tensor in real.state_dict().items():
        found = ours.state_dict()[name]
        assert found.dtype == tensor.dtype and torch.equal(found, tensor)
    for real_parameter, parameter in zip(real.parameters(), ours.parameters(), strict=True):
        assert vars(real_parameter) == vars(parameter)
        assert real_parameter.requires_grad == parameter.requires_grad


def test_rms_norm_keeps_what_torch_s_fused_kernel_returns() -> None:
    x = torch.randn(4, 2, 8, dtype=torch.bfloat16, requires_grad=True)
    norm = nn.RMSNorm(8, dtype=torch.bfloat16)
    forward = fake_rms_norm(Accountant())
    out = forward(norm, x)
    expected, inverse_norms = torch.ops.aten._fused_rms_norm(x, [8], norm.weight, 1e-5)
    saved = out.grad_fn.saved_tensors  # type: ignore[union-attr]
    for found, real in ((out, expected), (saved[0], x), (saved[1], norm.weight), (saved[2], inverse_norms)):
        assert (found.shape, found.dtype) == (real.shape, real.dtype)
    out.sum().backward()
    assert x.grad is not None and norm.weight.grad is not None
    assert (x.grad.dtype, norm.weight.grad.shape) == (x.dtype, norm.weight.shape)
    with pytest.raises(TypeError, match="float32"):
        forward(norm, x.float())


def test_attention_has_the_arguments_and_the_result_of_torch_s() -> None:
    query, key, value = (torch.randn(2, heads, 16, 8, dtype=torch.bfloat16) for heads in (4, 2, 2))
    options: dict[str, Any] = {"is_causal": True, "scale": 0.5, "enable_gqa": True}
    real = F.scaled_dot_product_attention(query, key, value, **options)
    found = flash_attention(query.to("meta"), key.to("meta"), value.to("meta"), **options)
    assert (found.shape, found.dtype) == (real.shape, real.dtype)


def test_objects_are_gathered_as_by_torch() -> None:
    dist.init_process_group("gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    try:
        real: list[Any] = [None]
        dist.all_gather_object(real, {"a": 1})
    finally:
        dist.destroy_process_group()
    ours: list[Any] = [None]
    gather_from_all(ours, {"a": 1})
    assert ours == real


@pytest.mark.skipif(not hasattr(torch._C, "_CudaDeviceProperties"), reason="only CUDA builds have the class")
def test_a_device_s_properties_are_torch_s() -> None:
    real = set(dir(torch._C._CudaDeviceProperties))
    assert {field.name for field in dataclasses.fields(DeviceProperties)} <= real
