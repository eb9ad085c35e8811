"""The doctor's check of the kernels, on the CPU's."""

from __future__ import annotations

import pytest
import torch

from gptoss20b.config import resolve
from gptoss20b.model import attention
from gptoss20b.selftest import run as selftest
from gptoss20b.tools.doctor.checks import Check, run_checks
from gptoss20b.tools.doctor.finding import Finding, Verdict
from gptoss20b.tools.doctor.kernels import check_kernels
from tests.support.findings import assert_finding

pytestmark = pytest.mark.usefixtures("no_settings")
TINY = {"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open", "PRECISION": "bf16"}


def check(**changes: str) -> Finding:
    """Check in its own process, as the doctor does."""
    config = resolve(TINY | changes)
    (found,) = run_checks([Check("kernels", lambda: [check_kernels(config, on_gpu=False)], 60, "")])
    return found


def test_without_a_gpu_it_is_skipped_unless_asked() -> None:
    assert check().verdict is check(SELF_TEST="0").verdict is Verdict.SKIPPED
    found = check(SELF_TEST="1")
    assert_finding(found, Verdict.PASS, " right in ")
    # Also the kernels that the run does not use.
    assert all(f"{kernel}: error 0.00" in found.found for kernel in ("cudnn", "flash", "flex"))


def test_a_wrong_kernel_fails_with_its_name_and_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "dot_product_attention", lambda *arguments: arguments[0] * 1.0)
    found = check(SELF_TEST="1")
    assert_finding(found, Verdict.FAIL, "attention of windowed layers")
    assert "BACKEND=transformer_engine" in found.found and found.fix


def test_a_wrong_kernel_that_the_run_does_not_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention.dot_product_attention
    monkeypatch.setattr(
        attention,
        "dot_product_attention",
        lambda *arguments: right(*arguments) * (2 if arguments[6] == ("flash",) else 1),
    )
    assert_finding(check(SELF_TEST="1"), Verdict.PASS, "flash: relative error of output 1")


def test_a_kernel_that_was_replaced_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def replaced(config: object, *_: object) -> selftest.SelfTest:
        return selftest.SelfTest(resolve(TINY), {}, ["cudnn is wrong"])

    monkeypatch.setattr(selftest, "run_self_test", replaced)
    monkeypatch.setattr(selftest, "compare_attention", lambda *_: {})
    assert_finding(check(SELF_TEST="1"), Verdict.WARN, "cudnn is wrong")


def test_a_grouped_gemm_that_waits_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "run_self_test", lambda config, *_: selftest.SelfTest(config))
    monkeypatch.setattr(selftest, "compare_attention", lambda *_: {})
    monkeypatch.setattr("gptoss20b.model.kernels.loops_on_host", lambda _: True)
    monkeypatch.setattr("gptoss20b.model.kernels.describe_attention", lambda _: "flash")
    monkeypatch.setattr(torch, "device", lambda *_: type("Gpu", (), {"type": "cuda"}))
    found = check(SELF_TEST="1")
    assert_finding(found, Verdict.WARN, "waits for the GPU")
    assert "ROCM_ALLOW_GROUP_GEMM_CK" in found.fix
