"""The kernels that a GPU runs: chosen by setting, vendor and compute capability, and named at the start of a run."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gptoss20b.config import resolve
from gptoss20b.model.attention import TorchCoreAttention
from gptoss20b.model.backend import BackendError, choose_backend
from gptoss20b.model.grouped_gemm import allow_rocm_kernel, loops_on_host
from gptoss20b.model.kernels import attention_kernels, describe_kernels
from gptoss20b.tools.doctor.software import check_backend
from gptoss20b.train import _show_start
from tests.support.expert_cases import make_experts

pytestmark = pytest.mark.usefixtures("no_settings")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
VARIABLE = "ROCM_ALLOW_GROUP_GEMM_CK"
TORCH = {"BACKEND": "torch", "SUBMISSION_DIVISION": "open"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that pretends a GPU: its compute capability, or "rocm"."""

    def pretend(what: tuple[int, int] | str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.version, "hip", "7.1" if what == "rocm" else None)
        # AMD numbers its GPUs otherwise: gfx950 has 9.5, and others may have 10.
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (10, 0) if what == "rocm" else what)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: CPU)

    monkeypatch.setenv(VARIABLE, "")  # so that the end of the test restores it
    monkeypatch.delenv(VARIABLE)
    return pretend


@pytest.mark.parametrize(
    ("what", "heads", "expected"),
    [
        ((9, 0), 8, ("cudnn", "flash")),
        ((9, 0), 2, ("cudnn", "flash")),
        ((10, 0), 8, ("cudnn", "flash")),
        ((10, 0), 7, ("flash",)),
        ((10, 3), 4, ("flash",)),
        ((12, 0), 4, ("cudnn", "flash")),
        ("rocm", 8, ("flash",)),
    ],
)
def test_auto_avoids_cudnn_where_it_has_been_wrong(
    gpu: Any, what: tuple[int, int] | str, heads: int, expected: tuple[str, ...]
) -> None:
    gpu(what)
    assert attention_kernels("auto", heads) == expected
    for setting in ("cudnn", "flash", "flex"):
        assert attention_kernels(setting, heads) == (setting,)


@pytest.mark.parametrize(("setting", "expected"), [("auto", ("flash",)), ("cudnn", ("cudnn",)), ("flex", ("flex",))])
def test_a_layer_takes_the_kernels_of_its_own_heads(gpu: Any, setting: str, expected: tuple[str, ...]) -> None:
    gpu((10, 0))
    config = SimpleNamespace(
        **{"context_parallel_size": 1, "kv_channels": 64, "window_size": None, "window_attn_skip_freq": None},
        **{"num_query_groups": 8, "tensor_model_parallel_size": 2, "use_cpu_initialization": False},
        **{"softmax_type": "vanilla", "attention_kernel": setting},
    )
    assert TorchCoreAttention(config, layer_number=1).kernels == expected


def test_cudnn_is_refused_on_amd_gpus(gpu: Any) -> None:
    gpu("rocm")
    with pytest.raises(BackendError, match=r"^ATTENTION_KERNEL: got cudnn.* Set ATTENTION_KERNEL=auto"):
        choose_backend(resolve(TORCH | {"ATTENTION_KERNEL": "cudnn"}))
    assert choose_backend(resolve(TORCH | {"ATTENTION_KERNEL": "flash"})) == "torch"


def test_the_grouped_kernel_is_allowed_on_rocm_only_and_the_users_value_stays(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu((9, 0))
    allow_rocm_kernel()
    assert VARIABLE not in os.environ
    gpu("rocm")
    make_experts(2, openai=False)
    assert os.environ[VARIABLE] == "1"
    monkeypatch.setenv(VARIABLE, "0")
    allow_rocm_kernel()
    assert os.environ[VARIABLE] == "0"


@pytest.fixture
def sync_modes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list of the modes set for operators that wait for the GPU."""
    modes: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    return modes


def test_a_grouped_gemm_that_waits_for_the_gpu_is_found(
    gpu: Any, sync_modes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu("rocm")
    product = F.grouped_mm

    def loop(*arguments: Any, **options: Any) -> Any:
        if os.environ.get(VARIABLE) != "1" and sync_modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return product(*arguments, **options)

    monkeypatch.setattr(F, "grouped_mm", loop)
    assert not loops_on_host(CPU)
    monkeypatch.setenv(VARIABLE, "0")
    assert loops_on_host(CPU)
    assert sync_modes == ["error", 1, "error", 1]


def test_another_error_of_a_grouped_gemm_is_not_taken_for_a_wait(
    sync_modes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(F, "grouped_mm", fail)
    with pytest.raises(RuntimeError, match="no kernel image"):
        loops_on_host(CPU)
    assert sync_modes[-1] == 1


def test_the_kernels_are_named_at_the_start_and_by_doctor(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu((10, 0))
    config, shown = resolve(TORCH), []
    for loops, expected in ((False, "one kernel"), (True, "a loop that waits for the GPU")):
        monkeypatch.setattr("gptoss20b.model.kernels.loops_on_host", lambda _, loops=loops: loops)
        kernels = describe_kernels(config, "torch", GPU)
        assert kernels == {"attention": "cudnn or flash, windowed layers flex", "grouped_gemm": expected}
    progress = SimpleNamespace(start=lambda facts, line: shown.extend([facts["kernels"], line]))
    rank, log = SimpleNamespace(device=GPU), SimpleNamespace(path=None)
    context: Any = SimpleNamespace(config=config, rank=rank, log=log, progress=progress, backend="torch")
    _show_start(context, 1, kernels)
    for text in shown:
        assert "attention: cudnn or flash, windowed layers flex; grouped gemm: a loop that waits for the GPU" in text
    assert kernels["attention"] in check_backend(config).found
    assert describe_kernels(config, "torch", CPU) == describe_kernels(config, "transformer_engine", GPU) == {}


def test_sinks_leave_flex_alone(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu((9, 0))
    monkeypatch.setattr("gptoss20b.model.kernels.loops_on_host", lambda _: False)
    openai = resolve(TORCH | {"MODEL_VARIANT": "openai"})
    assert describe_kernels(openai, "torch", GPU)["attention"] == "flex"
