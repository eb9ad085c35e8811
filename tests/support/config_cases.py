"""Settings for tests of the configuration and of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptoss20b.config import ConfigError, Problem, resolve, settings
from tests.support.paths import ROOT

ONE_RANK = {"DGXNGPU": "1", "EXPERT_PARALLEL": "1", "MICRO_BATCH_SIZE": "1"}
OPEN = {"SUBMISSION_DIVISION": "open"}

# One valid open-division run in which no setting has its default: text given, value expected in the tree.
EVERY_SETTING: dict[str, tuple[str, Any]] = {
    "SEED": ("7", 7),
    "DGXSYSTEM": ("box", "box"),
    "SUBMISSION_ORG": ("Somebody", "Somebody"),
    "SUBMISSION_PLATFORM": ("Some platform", "Some platform"),
    "SUBMISSION_DIVISION": ("OPEN", "open"),
    "SUBMISSION_STATUS": ("Research", "research"),
    "CONFIG_FILENAME": ("config_other.sh", "config_other.sh"),
    "GIT_COMMIT": ("abc123", "abc123"),
    "CACHE_CLEARED": ("1", True),
    "MODEL_VARIANT": ("openai", "openai"),
    "VOCAB_SIZE": ("128512", 128_512),
    "SEQUENCE_LENGTH": ("4096", 4096),
    "MAX_STEPS": ("1000", 1000),
    "END_LR_RATIO": ("0.2", 0.2),
    "ADAM_BETA1": ("0.8", 0.8),
    "ADAM_BETA2": ("0.99", 0.99),
    "ADAM_EPSILON": ("1e-8", 1e-8),
    "WEIGHT_DECAY": ("0", 0.0),
    "GRADIENT_CLIP": ("0.5", 0.5),
    "INIT_METHOD_STD": ("0.02", 0.02),
    "EVAL_SAMPLES": ("64", 64),
    "EVAL_INTERVAL_SAMPLES": ("256", 256),
    "TARGET_LOSS": ("4", 4.0),
    "AUX_LOSS_COEFF": ("0", 0.0),  # context parallel and expert biases exclude it
    "EXPERT_BIAS_RATE": ("1e-3", 1e-3),
    "GLOBAL_BATCH_SIZE": ("48", 48),
    "LEARNING_RATE": ("1e-3", 1e-3),
    "WARMUP_STEPS": ("10", 10),
    "DGXNNODES": ("3", 3),
    "DGXNGPU": ("16", 16),
    "EXPERT_PARALLEL": ("4", 4),
    "TENSOR_PARALLEL": ("1", 1),  # expert parallel excludes it
    "PIPELINE_PARALLEL": ("2", 2),
    "CONTEXT_PARALLEL": ("2", 2),
    "MICRO_BATCH_SIZE": ("4", 4),
    "PRECISION": ("FP32", "fp32"),
    "BACKEND": ("transformer_engine", "transformer_engine"),
    "RECOMPUTE": ("MoE", "moe"),
    "COMPILE": ("kernels", "kernels"),  # Transformer Engine excludes "layers"
    "ATTENTION_KERNEL": ("Auto", "auto"),  # Transformer Engine excludes the others
    "WARMUP_PASSES": ("0", 0),
    "SELF_TEST": ("0", False),
    "COLLECTIVE_TIMEOUT": ("60", 60),
    "DETERMINISTIC": ("1", True),
    "NUMA_BINDING": ("None", "none"),
    "CPU_THREADS": ("3", 3),
    "DATADIR": ("/some/data", Path("/some/data")),
    "EOD_TOKEN": ("5", 5),
    "SKIP_SAMPLES": ("96", 96),
    "INIT_FROM": ("", None),  # Transformer Engine excludes it
    "LOGDIR": ("/some/log", Path("/some/log")),
    "LOG_INTERVAL": ("3", 3),
    "MLLOG_STDOUT": ("0", False),
    "TELEMETRY": ("1", True),
    "TELEMETRY_INTERVAL": ("0.5", 0.5),
    "SAVE_INTERVAL": ("30min", "30min"),
    "SAVE_KEEP": ("3", 3),
    "SAVE_DIR": ("/saves", Path("/saves")),
    "SAVE_ASYNC": ("0", False),
    "RESUME": ("1", True),
}
EVERY_TEXT = {name: text for name, (text, _) in EVERY_SETTING.items()}


def without_settings(environment: dict[str, str]) -> dict[str, str]:
    """Return an environment without any setting, under its own name or an alias."""
    names = {prefix + name for name in settings() for prefix in ("", "MLPERF_", "MLLOG_")}
    return {name: value for name, value in environment.items() if name not in names}


def refused(**options: str) -> list[Problem]:
    """Return the problems of a configuration that must be rejected."""
    with pytest.raises(ConfigError) as caught:
        resolve(options)
    return caught.value.problems


def run_cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m gptoss20b`` with these settings alone."""
    return run_python("-m", "gptoss20b", *arguments, **environment)


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository with these settings alone."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**without_settings(dict(os.environ)), "COLUMNS": "200", "TERM": "dumb", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
