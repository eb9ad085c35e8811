"""Compile every fused function for the GPUs of the shipped configurations, and compare with the record."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from doc_tools.kernel_budget import compile_shipped
from gptoss20b.config import resolve
from gptoss20b.model import experts, flex, grouped_gemm, loss, rotary, rows
from gptoss20b.model.fused import FusedFunction
from gptoss20b.proof.guard import ProofError
from gptoss20b.proof.kernel_report import KernelReport, budgets, exceeded, read_budget
from gptoss20b.proof.kernels import run
from gptoss20b.proof.targets import TARGETS
from gptoss20b.proof.triton_stand_ins import ENVIRONMENT
from tests.support.configs import BARE
from tests.support.paths import ROOT

needs_compilers = pytest.mark.skipif(
    shutil.which("g++") is None or torch.version.hip is not None or importlib.util.find_spec("triton") is None,
    reason="compiling kernels needs g++, a build of torch for CPUs or CUDA, and Triton (make gpu-proof)",
)
pytestmark = [pytest.mark.slow, pytest.mark.proof]

TINY = {
    **{"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open", "PRECISION": "bf16", "BACKEND": "torch"},
    **{"DGXNGPU": "2", "EXPERT_PARALLEL": "2", "MICRO_BATCH_SIZE": "1", "GLOBAL_BATCH_SIZE": "2"},
}


@pytest.fixture(scope="module")
def shipped() -> list[KernelReport]:
    return compile_shipped()


@needs_compilers
def test_kernels_of_shipped_configurations_stay_within_the_record(shipped: list[KernelReport]) -> None:
    compiled = [row for report in shipped for row in budgets(report)]
    assert list(exceeded(read_budget(), compiled)) == []
    assert {report.target for report in shipped} == set(TARGETS)


@needs_compilers
def test_every_fused_function_is_compiled(shipped: list[KernelReport]) -> None:
    modules = (experts, flex, grouped_gemm, loss, rotary, rows)
    functions = {value.eager.__name__ for module in modules for value in vars(module).values() if is_fused(value)}
    assert len(functions) >= 9
    for target in TARGETS:
        compiled = {kernel.function for report in shipped if report.target == target for kernel in report.kernels}
        assert compiled == functions


def is_fused(value: object) -> bool:
    return isinstance(value, FusedFunction)


@needs_compilers
def test_the_command_prints_the_kernels(tmp_path: Path) -> None:
    environment = BARE | TINY | {"HOME": str(tmp_path), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "gptoss20b", "kernels", "--target=sm_90", "--json"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    report = KernelReport.model_validate(json.loads(done.stdout))
    assert report.shared_limit_bytes == 227 * 1024
    assert all(kernel.resources.registers > 0 for kernel in report.kernels)


# Tiles of 128 queries, keys and values with heads of 512 numbers: 128 KiB each. torch may make less stages of them, but
# no smaller tiles.
TOO_LARGE = """
from gptoss20b.config.presets import PRESETS
from gptoss20b.model import flex
PRESETS["tiny"]["model"]["head_dim"] = 512
flex.kernel_options = lambda query: {"fwd_BLOCK_M": 128, "fwd_BLOCK_N": 128, "fwd_num_stages": 1}
"""
SCRIPT = """
import json, sys
from gptoss20b.config import resolve
from gptoss20b.megatron_cpu import import_megatron
import_megatron()
from gptoss20b.proof.kernels import compile_kernels
from gptoss20b.proof.targets import TARGETS
change, environment, target = json.loads(sys.argv[1])
exec(change)
print(compile_kernels(resolve(environment), TARGETS[target]).model_dump_json())
"""


@needs_compilers
def test_a_fused_function_that_needs_more_shared_memory_than_exists_is_an_error(tmp_path: Path) -> None:
    caches = {"TORCHINDUCTOR_CACHE_DIR": f"{tmp_path}/inductor", "TRITON_CACHE_DIR": f"{tmp_path}/triton"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([TOO_LARGE, TINY, "sm_90"])],
        cwd=ROOT, env=BARE | ENVIRONMENT | caches, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "ProofError: _flex_with_sink, forward" in done.stderr and "shared memory" in done.stderr


@pytest.mark.parametrize(
    ("changes", "target", "fact"),
    [({"PRECISION": "fp32"}, "sm_90", "PRECISION"), ({}, "sm_70", "'sm_70'"), ({}, None, "DGXSYSTEM")],
)
def test_a_configuration_without_kernels_is_refused(changes: dict[str, str], target: str | None, fact: str) -> None:
    with pytest.raises(ProofError, match=fact):
        run(resolve(TINY | changes), target)
