"""The self-test's pieces on fake GPU tensors, at the width of the 20B model: devices, dtypes, waits and versions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.support.configs import BARE
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.proof,
    pytest.mark.skipif(
        shutil.which("g++") is None or torch.version.cuda is not None or torch.version.hip is not None,
        reason="the trace needs g++ and a CPU build of torch",
    ),
]

SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from gptoss20b.megatron_cpu import import_megatron
import_megatron()
import torch
from gptoss20b.config import resolve
from gptoss20b.proof.fake_cuda import DEVICE
from gptoss20b.proof.stand_ins import fake_gpu
from gptoss20b.selftest import plan

config = resolve({"MODEL_VARIANT": sys.argv[1], "SUBMISSION_DIVISION": "open", "BACKEND": "torch"})
with fake_gpu(config) as gpu:
    before, results = gpu.accountant.live_bytes, {}
    for piece in plan.list_pieces(config, "torch", plan.make_subject(config, DEVICE), "auto"):
        gpu.accountant.reset()
        comparisons = list(piece.check())
        errors = torch.stack([each.relative_error() for each in comparisons])
        assert all(each.got.device == each.expected.device == DEVICE for each in comparisons), piece.name
        assert (errors.device, errors.dtype) == (DEVICE, torch.float64), piece.name
        results[piece.name] = {
            "dtypes": sorted({str(each.got.dtype) for each in comparisons}),
            "waits": list(gpu.accountant.account.waits),
            "peak": gpu.accountant.peak_bytes,
        }
        del comparisons, errors
    print(json.dumps({"pieces": results, "versions": gpu.versions, "kept": gpu.accountant.live_bytes - before}))
"""


@pytest.mark.parametrize("variant", ["reference", "openai"])
def test_every_piece_runs_on_a_gpu_that_does_not_exist(variant: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, variant], cwd=ROOT, env=BARE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    pieces = found["pieces"]
    assert len(pieces) > 9
    assert all("torch.bfloat16" in piece["dtypes"] for name, piece in pieces.items() if "sum of products" not in name)
    assert pieces["fp32 sum of products"]["dtypes"] == ["torch.float32"]
    # Inputs are drawn on the CPU. Nothing else waits: errors are read once per piece, outside.
    waits = {place for piece in pieces.values() for place in piece["waits"]}
    assert all(place.startswith("copy cpu to cuda in gptoss20b/selftest/") for place in waits), waits
    # The fewer versions, the sooner the run starts. Masks of three shapes, rows with and without probabilities, and
    # attention of two kinds of layers.
    more = {"zero_unused": 3, "_sum_rows": 2, "_flex_with_sink": 2}
    assert {name for name, count in found["versions"].items() if count > more.get(name, 1)} == set()
    assert max(piece["peak"] for piece in pieces.values()) < 6 * 2**30
