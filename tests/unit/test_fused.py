"""Functions that are compiled where their tensors are on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gptoss20b.model.fused import FusedFunction, fused


@fused()
def doubled_sum(x: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """Twice."""
    return x * 2 * scale if bias is None else x * 2 * scale + bias


def test_on_a_cpu_the_function_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", None)
    assert doubled_sum(torch.ones(3), 2.0).tolist() == [4.0, 4.0, 4.0]
    assert (doubled_sum.__name__, doubled_sum.__doc__) == ("doubled_sum", "Twice.")


@pytest.mark.parametrize("dynamic", [None, False, True])
def test_any_tensor_on_a_gpu_compiles_it_once(dynamic: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_(function: object, **options: object) -> object:
        compiled.append((function, options))
        return lambda *_, **__: "compiled"

    monkeypatch.setattr(torch, "compile", compile_)
    function = fused(dynamic)(doubled_sum.eager)
    assert isinstance(function, FusedFunction)
    # Tensors of a GPU that is not there; a test before this one may have told torch to read it as the CPU.
    with FakeTensorMode(), torch._C.DisableTorchFunction():
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert function(there, 1.0) == "compiled"
        assert function(here, 1.0, there) == "compiled"
        assert function(here, 1.0, bias=there) == "compiled"
        assert isinstance(function(here, 1.0), Tensor)
    assert compiled == [(doubled_sum.eager, {"fullgraph": True, "dynamic": dynamic})]


@pytest.mark.slow
def test_what_is_no_single_graph_is_refused() -> None:
    @fused()
    def reads(x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x

    with pytest.raises(Exception, match=r"(?i)item|data-dependent|graph break"):
        reads.compiled(torch.ones(3))
