"""The self-test at the start of a run, on the CPU: right kernels pass, wrong ones are replaced or end the run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from gptoss20b.config import Config
from gptoss20b.model import attention, experts, grouped_gemm, loss, rotary, rows
from gptoss20b.selftest import pieces, plan
from gptoss20b.selftest.run import Outcome, measure, run_self_test
from gptoss20b.stopping import ExitCode, SelfTestError, exit_code_for
from tests.support.expert_cases import LeaveGarbage
from tests.support.jobs import configure

pytestmark = pytest.mark.usefixtures("no_settings")
CPU = torch.device("cpu")
OPENAI = {"like openai": "yes"}


def make_config(**changes: str) -> Config:
    tiny = {"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open", "PRECISION": "fp32", "SELF_TEST": "1"}
    return configure(tiny | changes)


def measure_piece(name: str, **changes: str) -> Outcome:
    config = make_config(**changes)
    found = plan.list_pieces(config, "torch", plan.make_subject(config, CPU), "auto")
    (outcome,) = measure([piece for piece in found if piece.name == name]).values()
    return outcome


@pytest.mark.parametrize(("changes", "bound"), [({"PRECISION": "bf16"}, 1e-2), (OPENAI, 1e-6)])
def test_right_kernels_pass_and_leave_no_trace(changes: dict[str, str], bound: float) -> None:
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    config = make_config(**changes)
    tested = run_self_test(config, "torch", CPU)
    assert tested.config == config and not tested.warnings
    assert len(tested.outcomes) == 11
    for name, outcome in tested.outcomes.items():
        assert outcome.failure is None, name
        assert 0 < outcome.worst < bound, name
    record = tested.record()["self_test"]
    assert record["errors"].keys() == tested.outcomes.keys() and record["seconds"] > 0
    assert torch.equal(torch.get_rng_state(), random) and torch.get_num_threads() == threads


def test_a_cpu_run_skips_it_unless_asked_and_a_gpu_run_may(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def note(_config: Config, device: torch.device) -> None:
        ran.append(device.type)

    monkeypatch.setattr(plan, "make_subject", note)
    monkeypatch.setattr(plan, "list_pieces", lambda *_: [])
    monkeypatch.setattr(plan, "attention_settings", lambda *_: ["auto"])
    monkeypatch.setattr("gptoss20b.selftest.run._restore_state", lambda _: contextlib.nullcontext())
    gpu = torch.device("cuda", 0)
    for setting, devices in (("", ["cuda"]), ("0", []), ("1", ["cpu", "cuda"])):
        config = make_config(SELF_TEST=setting)
        assert [run_self_test(config, "torch", device).record() for device in (CPU, gpu)] == [{}, {}]
        assert ran == devices
        ran.clear()


@pytest.mark.parametrize(
    ("capability", "tensor", "expected"),
    [
        ((9, 0), 2, ["auto", "flash", "flex"]),
        ((10, 0), 1, ["auto", "flash", "flex"]),
        ((10, 0), 2, ["auto", "flex"]),  # auto is FlashAttention there
    ],
)
def test_no_kernel_is_tried_twice(
    capability: tuple[int, int], tensor: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    config = make_config()
    model = config.model.model_copy(update={"num_query_groups": 8, "num_attention_heads": 16})
    parallel = config.parallel.model_copy(update={"tensor": tensor})
    config = config.model_copy(update={"model": model, "parallel": parallel})
    subject = plan.make_subject(config, torch.device("cuda", 0))
    assert plan.attention_settings(config, subject) == expected


def test_transformer_engine_s_kernels_are_its_own() -> None:
    outcomes = run_self_test(make_config(), "transformer_engine", CPU).outcomes
    assert list(outcomes) == ["loss", "fp32 sum of products"]


def scaled(function: Callable[..., Any], factor: float = 1.1) -> Callable[..., Any]:
    """Return the function with a wrong first result."""

    def wrong(*arguments: Any) -> Any:
        results = function(*arguments)
        return (results[0] * factor, *results[1:]) if isinstance(results, tuple) else results * factor

    return wrong


def drop_a_row(x: Tensor, index: Tensor) -> Tensor:
    return x[index[:, 1:]].sum(1)


def no_sink_gradient(query: Tensor, key: Tensor, value: Tensor, sink: Tensor, scale: float) -> Any:
    return prepend_sink_key(query, key, value, sink.detach(), scale)


def rounded_sum(total: Tensor, left: Tensor, right: Tensor) -> None:
    total += (left @ right).to(torch.float8_e4m3fn).float()


prepend_sink_key = attention._prepend_sink_key
BREAKS: list[tuple[str, Any, str, Any, str, dict[str, str]]] = [
    ("weighted activation", pieces, "weighted_swiglu", scaled(experts.weighted_swiglu), "output", {}),
    ("weighted activation", pieces, "weighted_swiglu_backward", scaled(experts.weighted_swiglu_backward), "gate", {}),
    ("experts", experts, "_add_weighted_bias", scaled(experts._add_weighted_bias), "output", OPENAI),
    ("experts", experts, "_bias_probs_grad", scaled(experts._bias_probs_grad), "probabilities", OPENAI),
    ("copies and sums of tokens' rows", rows, "_sum_rows", drop_a_row, "gradient of the tokens", {}),
    ("rows between ranks", rows, "_pack", scaled(rows._pack), "output 0", {}),
    ("norm and rotation", rotary, "rms_norm_rope", scaled(rotary.rms_norm_rope), "queries' norm", {}),
    ("attention of full layers", attention, "sdpa_causal", scaled(attention.sdpa_causal), "values", {}),
    ("attention of full layers", attention, "_prepend_sink_key", no_sink_gradient, "sinks", OPENAI),
    ("attention of windowed layers", attention, "_prepend_sink_key", no_sink_gradient, "sinks", OPENAI),
    ("attention of windowed layers", attention, "sdpa_sliding_window", scaled(attention.sdpa_sliding_window), "", {}),
    ("loss", loss, "_chunk_losses_and_grad", scaled(loss._chunk_losses_and_grad), "output", {}),
    ("loss", loss, "_chunk_losses", scaled(loss._chunk_losses), "evaluation", {}),
    ("loss", loss, "accumulate_product", rounded_sum, "gradient of the weight", {}),
    ("fp32 sum of products", pieces, "accumulate_product", rounded_sum, "output", {}),
]


@pytest.mark.parametrize(("piece", "module", "function", "broken", "comparison", "changes"), BREAKS)
def test_a_wrong_kernel_is_found(
    piece: str,
    module: Any,
    function: str,
    broken: Any,
    comparison: str,
    changes: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, function, broken)
    failure = measure_piece(piece, **changes).failure
    assert failure is not None and comparison in failure


@pytest.mark.parametrize("piece", ["grouped GEMM", "sums of rows by expert", "experts"])
def test_garbage_of_experts_without_rows_is_masked_or_found(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with LeaveGarbage(math.nan) as mode:
        assert measure_piece(piece, **OPENAI).failure is None
    assert mode.filled >= 3
    monkeypatch.setattr(grouped_gemm, "zero_unused", lambda *_: None)
    with LeaveGarbage(math.nan):
        outcome = measure_piece(piece, **OPENAI)
    assert math.isnan(outcome.worst)
    assert outcome.failure is not None


def break_attention(monkeypatch: pytest.MonkeyPatch, broken: Sequence[str], crash: bool = False) -> None:
    """Let full layers go wrong with these values of ATTENTION_KERNEL. Other pieces are left out, to save time."""
    right = attention.dot_product_attention
    monkeypatch.setattr(plan, "list_pieces", lambda config, _, *rest: [plan.full_attention(config, *rest)])

    def wrong(*arguments: Any) -> Tensor:
        if arguments[-1] and arguments[-1][0] in broken:
            if crash:
                raise RuntimeError("No available kernel. Aborting execution.\nMore lines")
            return right(*arguments) * 1.1
        return right(*arguments)

    monkeypatch.setattr(attention, "dot_product_attention", wrong)


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize(("broken", "setting"), [(["auto"], "flash"), (["auto", "flash"], "flex")])
def test_wrong_attention_switches_to_the_next_kernel(
    broken: list[str], setting: str, crash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_attention(monkeypatch, broken, crash)
    config = make_config()
    tested = run_self_test(config, "torch", CPU)
    assert tested.config.execution.attention_kernel == setting
    assert config.execution.attention_kernel == "auto"
    assert len(tested.warnings) == len(broken)
    assert plan.FULL_ATTENTION in tested.warnings[-1] and f"ATTENTION_KERNEL={setting}" in tested.warnings[-1]
    assert ("No available kernel" in tested.warnings[0]) == crash
    assert "More lines" not in tested.warnings[0]
    assert tested.outcomes[plan.FULL_ATTENTION].failure is None
    assert tested.record()["self_test"]["warnings"] == tested.warnings


@pytest.mark.parametrize(
    ("broken", "changes", "fix"),
    [
        (["auto", "flash", "flex"], {}, "BACKEND=transformer_engine"),
        (["cudnn"], {"ATTENTION_KERNEL": "cudnn"}, "ATTENTION_KERNEL=auto"),
    ],
)
def test_a_wrong_kernel_without_another_refuses_to_start(
    broken: list[str], changes: dict[str, str], fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_attention(monkeypatch, broken)
    with pytest.raises(SelfTestError) as caught:
        run_self_test(make_config(**changes), "torch", CPU)
    message = str(caught.value)
    for part in (plan.FULL_ATTENTION, "0.1", "expected at most 0.0001", "SELF_TEST=0" if fix[0] == "B" else "", fix):
        assert part in message
    assert exit_code_for("aborted", f"SelfTestError: {message}") is ExitCode.BAD_CONFIGURATION


def test_every_wrong_piece_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "accumulate_product", rounded_sum)
    monkeypatch.setattr(loss, "_chunk_losses", scaled(loss._chunk_losses))
    with pytest.raises(SelfTestError) as caught:
        run_self_test(make_config(), "transformer_engine", CPU)
    named = [part.split(":")[0] for part in str(caught.value).split("; ") if "relative error" in part]
    assert named == ["loss", "fp32 sum of products"]
