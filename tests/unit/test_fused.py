"""Functions that are compiled where their tensors are on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gptoss20b.model.fused import fused


@fused()
def doubled(x: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """Double."""
    return x * 2 * scale if bias is None else x * 2 * scale + bias


def test_on_a_cpu_the_function_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", None)
    assert doubled(torch.ones(3), 2.0).tolist() == [4.0, 4.0, 4.0]
    assert (vars(doubled)["__name__"], doubled.__doc__) == ("doubled", "Double.")


@pytest.mark.parametrize("dynamic", [None, False, True])
def test_any_tensor_on_a_gpu_compiles_it_once(dynamic: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_(function: object, **settings: object) -> object:
        compiled.append((function, settings))
        return lambda *_, **__: "compiled"

    monkeypatch.setattr(torch, "compile", compile_)
    options = {"realize_reads_threshold": 64}
    function = fused(dynamic, options)(doubled.eager)
    # Tensors of a GPU that is not there; a test before this one may have told torch to read it as the CPU.
    with FakeTensorMode(), torch._C.DisableTorchFunction():
        on_cpu, on_gpu = torch.ones(3), torch.ones(3, device="cuda")
        results: list[object] = [
            function(on_gpu, 1.0),
            function(on_cpu, 1.0, on_gpu),
            function(on_cpu, 1.0, bias=on_gpu),
        ]
        assert results == ["compiled"] * 3
        assert isinstance(function(on_cpu, 1.0), Tensor)
    assert compiled == [(doubled.eager, {"fullgraph": True, "dynamic": dynamic, "options": options})]


def test_in_a_compiled_caller_it_is_a_part_of_the_callers_graph() -> None:
    function = fused()(doubled.eager)
    caller = torch.compile(lambda x: function(x, 3.0) + 1, backend="eager", fullgraph=True)
    with FakeTensorMode(), torch._C.DisableTorchFunction():
        assert caller(torch.ones(3, device="cuda")).is_cuda
    assert "compiled" not in vars(function)


@pytest.mark.slow
def test_a_graph_break_is_an_error() -> None:
    @fused()
    def reads_a_value(x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x

    with pytest.raises(Exception, match=r"(?i)item|data-dependent|graph break"):
        reads_a_value.compiled(torch.ones(3))
