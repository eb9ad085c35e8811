"""The self-test of a run on a GPU, at the width of the 20B model: it passes, every attention kernel too, in seconds."""

from __future__ import annotations

import pytest
import torch

from gptoss20b.config import resolve
from gptoss20b.selftest.plan import full_attention, make_subject
from gptoss20b.selftest.run import measure, run_self_test

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("variant", ["reference", "openai"])
def test_all_pieces_pass_in_ten_seconds_once_they_are_compiled(variant: str) -> None:
    config = resolve({"MODEL_VARIANT": variant, "SUBMISSION_DIVISION": "open", "BACKEND": "torch"})
    random = torch.cuda.get_rng_state()
    tested = [run_self_test(config, "torch", GPU) for _ in range(2)]
    assert [each.warnings for each in tested] == [[], []]
    assert tested[1].seconds < 10
    assert torch.equal(torch.cuda.get_rng_state(), random)
    assert torch.cuda.memory_allocated() == 0


@pytest.mark.parametrize("setting", ["cudnn", "flash", "flex"])
def test_each_attention_kernel_agrees_with_fp64(setting: str) -> None:
    if setting == "cudnn" and torch.version.hip is not None:
        pytest.skip("cuDNN is NVIDIA's")
    config = resolve({"BACKEND": "torch", "ATTENTION_KERNEL": setting})
    (outcome,) = measure([full_attention(config, make_subject(config, GPU), setting)]).values()
    assert outcome.failure is None
