"""Numbers that the rules fix: MLPerf Training, benchmark gpt_oss_20b, mostly the closed division.

The rule files of mlperf-logging (`compliance_checker/training_6.x.0/closed_gpt_oss_20b.yaml`) hold the same
values. A test compares them.
"""

from __future__ import annotations

from enum import StrEnum

NAME = "gpt_oss_20b"
# The package of the official tools, and the version whose rule files and verdicts count.
OFFICIAL_PACKAGE, OFFICIAL_VERSION = "mlperf-logging", "4.1.68"
# The other benchmarks of MLPerf Training (`mlperf_logging/benchmark_meta.py`). Their logs are not judged.
OTHERS = frozenset(
    {
        "bert", "dlrm", "dlrm_dcnv2", "dlrmv4", "deepseekv3_671b", "flux1", "gnmt", "gnn", "gpt3", "llama2_70b_lora",
        "llama31_405b", "llama31_8b", "maskrcnn", "minigo", "ncf", "qwen35_397b_grpo", "resnet", "retinanet", "rgat",
        "rnnt", "ssd", "stable_diffusion", "transformer", "unet3d",
    }
)  # fmt: skip


class Ruleset(StrEnum):
    """Version of the rules: the round of MLPerf Training."""

    V6_0_0 = "6.0.0"
    V6_1_0 = "6.1.0"


RULESETS = tuple(ruleset.value for ruleset in Ruleset)
RUNS = 10
TARGET_LOSS = 3.34
EVAL_SAMPLES = 1024
EVAL_INTERVAL_SAMPLES = 12_288
SEQUENCE_LENGTH = 8192
MAX_STEPS = 1_200_000
END_LR_RATIO = 0.1
# The reference code ended at 4e-5 whatever the base rate. Round 6.0 tolerates this bug, round 6.1 does not.
LEGACY_END_LR = 4e-5
INIT_LIMIT_MINUTES = {"closed": 30, "open": 240}
NUM_LAYERS, NUM_QUERY_GROUPS, NUM_EXPERTS = 24, 8, 32

# Hyperparameters with one value in the closed division.
FIXED: dict[str, float | str] = {
    "max_sequence_length": SEQUENCE_LENGTH,
    "opt_name": "adamw",
    "opt_adamw_beta_1": 0.9,
    "opt_adamw_beta_2": 0.95,
    "opt_adamw_epsilon": 1e-5,
    "opt_adamw_weight_decay": 0.1,
    "opt_gradient_clip_norm": 1.0,
    "opt_learning_rate_decay_schedule": "cosine with linear warmup",
    "max_steps": MAX_STEPS,
}

PRECISIONS = frozenset(
    {
        "fp64", "fp32", "tf32", "fp16", "fp8", "nvfp4", "mxfp4", "bfloat16", "Graphcore FLOAT 16.16",
        "int8", "uint8", "int4", "uint4",
    }
)  # fmt: skip
PRECISIONS_ADDED = {"6.0.0": frozenset[str](), "6.1.0": frozenset({"mxfp6"})}

# Keys that describe a run, each logged once. Both rulesets require the first group, only 6.1.0 the second.
DESCRIPTION = (
    "submission_benchmark", "submission_division", "submission_org", "submission_platform", "submission_status",
    "seed", "global_batch_size", "gradient_accumulation_steps", "max_sequence_length", "train_samples", "eval_samples",
    "init_checkpoint_step", "max_steps", "opt_name", "opt_base_learning_rate", "opt_end_learning_rate",
    "opt_learning_rate_warmup_steps", "opt_learning_rate_decay_steps", "opt_learning_rate_decay_schedule",
    "opt_adamw_beta_1", "opt_adamw_beta_2", "opt_adamw_epsilon", "opt_adamw_weight_decay", "opt_gradient_clip_norm",
)  # fmt: skip
DISCLOSURE = (
    "lowest_numerical_precision_in_linear", "lowest_numerical_precision_in_attn", "lowest_numerical_precision_in_comm",
    "tensor_parallelism", "pipeline_parallelism", "context_parallelism", "expert_parallelism", "micro_batch_size",
    "config_filename",
)  # fmt: skip
SETTING_KEYS = (*DESCRIPTION, *DISCLOSURE, "target_accuracy", "git_commit", "eval_tokens_sha256")
MILESTONES = ("cache_clear", "init_start", "init_stop", "run_start", "run_stop")
# Start and stop keys of the intervals that repeat between run_start and run_stop.
INTERVALS = {"block_start": "block_stop", "epoch_start": "epoch_stop", "eval_start": "eval_stop"}
INTERVAL_KEYS = (*INTERVALS, *INTERVALS.values(), "eval_accuracy")
# Keys of power logs.
POWER_KEYS = (
    "power_measurement_start", "power_measurement_stop", "power_reading", "conversion_eff", "interconnect_power_est",
)  # fmt: skip
JUDGED_KEYS = frozenset({*SETTING_KEYS, *MILESTONES, *INTERVAL_KEYS, *POWER_KEYS, "resumed"})


def eval_interval_samples(global_batch_size: int) -> int:
    """Return the training samples between evaluations: CEIL(12288 / GBS) optimizer steps.

    >>> eval_interval_samples(32), eval_interval_samples(48), eval_interval_samples(100)
    (12288, 12288, 12300)
    """
    return -(-EVAL_INTERVAL_SAMPLES // global_batch_size) * global_batch_size
