"""Rules on the description of a run: each fires alone on a log that breaks it."""

from __future__ import annotations

import math

import pytest

from compliance.findings import Severity, Status
from compliance.rules import description
from compliance.run import Machine
from tests.support.judging import (
    LAST,
    assert_fires_alone,
    drop_rates,
    findings_of,
    fired,
    judged,
    judged_after,
    line_number,
    rule_ids,
    set_value,
)  # fmt: skip
from tests.support.made_logs import compliant_log, learning_rate

EIGHT = Machine(8, "systems/x.json")
COUNTS = (
    "global_batch_size", "gradient_accumulation_steps", "micro_batch_size", "tensor_parallelism",
    "pipeline_parallelism", "context_parallelism", "expert_parallelism", "max_sequence_length", "train_samples",
    "eval_samples", "max_steps", "opt_learning_rate_decay_steps", "init_checkpoint_step",
)  # fmt: skip
REALS = (
    "opt_base_learning_rate", "opt_adamw_epsilon", "opt_gradient_clip_norm", "target_accuracy",
    "opt_end_learning_rate", "opt_adamw_beta_1", "opt_adamw_beta_2", "opt_adamw_weight_decay",
)  # fmt: skip
MAY_BE_ZERO = COUNTS[-2:] + REALS[-4:]

BREAKS: dict[str, list[tuple[str, object]]] = {
    "submission-benchmark": [("submission_benchmark", "gpt-oss-20b"), ("submission_benchmark", "llama31_8b")],
    "submission-division": [("submission_division", "Closed"), ("submission_division", "../../evil")],
    "submission-identity": [
        ("submission_org", ""), ("submission_platform", None), ("submission_org", " \t"), ("submission_platform", 8),
        ("config_filename", ""),
    ],
    "hyperparameter-number": [
        ("train_samples", -1), ("train_samples", 0), ("tensor_parallelism", 1.5), ("init_checkpoint_step", -1),
        ("global_batch_size", 0), ("global_batch_size", -16), ("global_batch_size", 10**400), ("micro_batch_size", 0),
        ("gradient_accumulation_steps", 0), ("tensor_parallelism", 0), ("pipeline_parallelism", 0),
        ("expert_parallelism", 0), ("context_parallelism", -2), ("opt_end_learning_rate", math.inf),
    ],
    "hyperparameter-fixed": [
        ("opt_adamw_epsilon", 1e-8), ("opt_adamw_beta_1", 0), ("opt_adamw_beta_2", 0.999),
        ("opt_gradient_clip_norm", 0.5), ("opt_adamw_weight_decay", 0), ("opt_name", "adam"), ("opt_name", 5),
        ("max_sequence_length", 4096), ("opt_learning_rate_decay_schedule", "cosine"), ("target_accuracy", 3.4),
        ("opt_learning_rate_decay_steps", 1_200_000), ("max_steps", 1_200_001), ("max_steps", 10**300),
    ],
    "hyperparameter-warmup": [("opt_learning_rate_warmup_steps", steps) for steps in (-1, 1_200_001, 0.5, "128")],
    "init-checkpoint": [("init_checkpoint_step", 100), ("init_checkpoint_step", 1)],
    "batch-arithmetic": [
        ("gradient_accumulation_steps", 5), ("micro_batch_size", 3), ("gradient_accumulation_steps", 16),
    ],
    "precision-name": [
        ("lowest_numerical_precision_in_linear", "bf16"), ("lowest_numerical_precision_in_comm", "FP8"),
        ("lowest_numerical_precision_in_attn", ["fp8"]),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("rule", "key", "value"), [(rule, *each) for rule, all_ in BREAKS.items() for each in all_])
def test_exactly_this_rule_fires(rule: str, key: str, value: object) -> None:
    assert_fires_alone(rule, set_value(key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [("expert_parallelism", 3), ("tensor_parallelism", 16), ("tensor_parallelism", 3), ("pipeline_parallelism", 32)],
)
def test_sizes_that_do_not_fit_the_model_are_warnings(key: str, value: int) -> None:
    assert_fires_alone("parallel-sizes", set_value(key, value), Severity.WARNING)


@pytest.mark.parametrize(
    "value", ["SUBMISSION_ORG_PLACEHOLDER", "TODO: name", "example", "Your Example Company", "<org>"]
)
def test_placeholders_are_warnings(value: str) -> None:
    for key in ("submission_org", "submission_platform"):
        assert_fires_alone("submission-placeholder", set_value(key, value), Severity.WARNING)


def test_a_status_off_the_official_list_is_a_warning() -> None:
    change = set_value("submission_status", "Available on-premise")
    assert_fires_alone("submission-status", change, Severity.WARNING)


def test_every_rule_is_tested() -> None:
    assert {
        *BREAKS,
        "hyperparameter-end-rate",
        "open-division",
        "parallel-sizes",
        "submission-placeholder",
        "submission-status",
    } == rule_ids(description)


@pytest.mark.parametrize(
    ("rule", "key", "value", "expected"),
    [
        ("hyperparameter-fixed", "opt_adamw_epsilon", 1e-8, "1e-05"),
        ("hyperparameter-warmup", "opt_learning_rate_warmup_steps", -1, "0 to 1200000"),
        ("batch-arithmetic", "micro_batch_size", 3, "a multiple of 3"),
        ("hyperparameter-number", "opt_base_learning_rate", -1, "a positive number"),
        ("hyperparameter-number", "opt_end_learning_rate", -1, "a non-negative number"),
        ("hyperparameter-number", "micro_batch_size", 0, "a whole number >= 1"),
    ],
)
def test_a_wrong_value_is_quoted_with_its_line(rule: str, key: str, value: float, expected: str) -> None:
    (finding,) = findings_of(set_value(key, value), rule)
    line, got = (key, str(value)) if rule != "batch-arithmetic" else ("global_batch_size", "16")
    assert (finding.line, finding.expected, finding.got) == (line_number(compliant_log(), line), expected, got)


def test_an_empty_submission_status_is_a_warning() -> None:
    for value in ("", None, 5):
        (finding,) = findings_of(set_value("submission_status", value), "submission-identity")
        assert finding.severity is Severity.WARNING
    assert judged_after(set_value("submission_status", "")).summary.status is Status.CONVERGED


@pytest.mark.parametrize("key", COUNTS + REALS)
def test_numbers_have_a_type_and_a_range(key: str) -> None:
    for value in ("many", None, True, [1], math.nan, -math.inf):
        assert fired(judged_after(set_value(key, value), gbs=64).findings) == {"hyperparameter-number"}, value
    for value in [-1, 1.5] if key in COUNTS else [-0.1]:
        assert findings_of(set_value(key, value), "hyperparameter-number", gbs=64), value
    assert bool(findings_of(set_value(key, 0), "hyperparameter-number", gbs=64)) is (key not in MAY_BE_ZERO)


@pytest.mark.parametrize("key", COUNTS)
def test_a_whole_number_may_be_written_as_a_float(key: str) -> None:
    found = judged_after(lambda log: log.set(key, float(log.find(key)["value"])), gbs=64)
    assert found.findings == ()
    assert found.summary.global_batch_size == 64


@pytest.mark.parametrize("value", [2**63, 10**300, 10**400, -(2**70)], ids=["2^63", "10^300", "10^400", "-2^70"])
def test_huge_integers_raise_no_exception(value: int) -> None:
    for key in (*COUNTS, "opt_learning_rate_warmup_steps"):
        found = judged(compliant_log(64).set(key, value), machine=EIGHT)
        is_valid = key == "train_samples" and 0 < value < 10**400
        assert found.summary.status is (Status.CONVERGED if is_valid else Status.INVALID), key


@pytest.mark.parametrize(("warmup", "decay"), [(0, 1_200_000), (1, 1_199_999), (1_200_000, 0)])
def test_the_warm_up_may_be_empty_or_the_whole_run(warmup: int, decay: int) -> None:
    log = compliant_log(warmup_steps=warmup)
    assert log.find("opt_learning_rate_decay_steps")["value"] == decay
    if warmup == 0:
        log.find("train_loss")["metadata"]["lr"] = 4e-4  # the first step is at the peak
    assert judged(log).findings == ()
    log.set("opt_learning_rate_decay_steps", decay + 1)
    assert fired(judged(log).findings) == {"hyperparameter-fixed"}
    log.set("opt_learning_rate_decay_steps", decay)
    log.find("train_loss", 9)["metadata"]["lr"] *= 1.01
    assert fired(judged(log).findings) == {"schedule-rate"}


def test_the_warm_up_ends_within_the_logged_steps() -> None:
    log = compliant_log(division="open").set("max_steps", 5000).set("opt_learning_rate_warmup_steps", 6000)
    (finding,) = (each for each in judged(log).findings if each.rule == "hyperparameter-warmup")
    assert (finding.expected, finding.got) == ("0 to 5000", "6000")


@pytest.mark.parametrize(
    ("base", "end", "is_valid"),
    [
        (8e-4, 4e-5, False),
        (4e-4, 0.0, False),
        (4e-4, 4e-5 * (1 + 5e-7), True),
        (4e-4, 4e-5 * (1 - 5e-7), True),
        (4e-4, 4e-5 * (1 + 2e-6), False),
        (4e-4, 4e-5 * (1 - 2e-6), False),
    ],
)
def test_the_end_rate_is_a_tenth_to_a_millionth(base: float, end: float, is_valid: bool) -> None:
    found = judged(compliant_log(learning_rate=base, end_learning_rate=end)).findings
    assert fired(found) == (set() if is_valid else {"hyperparameter-end-rate"})


def test_without_a_base_rate_the_end_rate_is_not_compared() -> None:
    assert findings_of(set_value("opt_base_learning_rate", 0), "hyperparameter-end-rate") == []


def test_a_system_description_determines_the_batch_arithmetic() -> None:
    log = compliant_log(32)  # micro batch 2, accumulation 2, on 8 accelerators
    (finding,) = judged(log, machine=Machine(16, "systems/x.json")).findings
    assert (finding.rule, finding.expected, finding.got) == ("batch-arithmetic", "64", "32")
    assert "16 accelerators" in finding.message and "systems/x.json" in finding.message
    split = compliant_log(32).set("tensor_parallelism", 8)
    assert fired(judged(split, machine=Machine(12, "systems/x.json")).findings) == {"parallel-sizes"}


@pytest.mark.parametrize(
    ("gbs", "changes", "accelerators", "wrong"),
    [
        (32, {}, 8, set()),
        (32, {"micro_batch_size": 1}, 8, {"batch-arithmetic"}),  # 16 of 32
        (32, {"gradient_accumulation_steps": 4}, 8, {"batch-arithmetic"}),  # 64 of 32
        (32, {"context_parallelism": 2}, 16, set()),
        (32, {"tensor_parallelism": 2}, 16, set()),
        (32, {"pipeline_parallelism": 2}, 16, set()),
        (32, {"context_parallelism": 3}, 8, {"parallel-sizes"}),
        (32, {"pipeline_parallelism": 3}, 8, {"parallel-sizes"}),
        (32, {"tensor_parallelism": 2, "context_parallelism": 2, "pipeline_parallelism": 4}, 8, {"parallel-sizes"}),
        # Experts are distributed over data x tensor x context ranks: 4 x 2 are enough for EP 8.
        (16, {"tensor_parallelism": 2, "gradient_accumulation_steps": 2}, 8, set()),
        (16, {"context_parallelism": 2, "gradient_accumulation_steps": 2}, 8, set()),
        # 4 ranks of one stage of two are not enough, and 12 are no multiple.
        (16, {"pipeline_parallelism": 2, "gradient_accumulation_steps": 2}, 8, {"parallel-sizes"}),
        (48, {"gradient_accumulation_steps": 2}, 12, {"parallel-sizes"}),
    ],
)  # fmt: skip
def test_sizes_fit_the_machine(gbs: int, changes: dict[str, int], accelerators: int, wrong: set[str]) -> None:
    log = compliant_log(gbs)
    for key, value in changes.items():
        log.set(key, value)
    machine = Machine(accelerators, "systems/x.json")
    assert fired(judged(log, machine=machine).findings, Severity.ERROR) == wrong
    # Ruleset 6.0.0 requires no parallel sizes.
    earlier = judged(log, machine=machine, ruleset="6.0.0").findings
    assert fired(earlier, Severity.ERROR) == wrong - {"parallel-sizes"} and fired(earlier) == wrong


@pytest.mark.parametrize(
    ("division", "key", "value", "is_valid"),
    [
        ("closed", "tensor_parallelism", 8, True), ("open", "tensor_parallelism", 16, True),
        ("closed", "pipeline_parallelism", 5, True), ("closed", "pipeline_parallelism", 24, True),
        ("closed", "pipeline_parallelism", 25, False), ("open", "pipeline_parallelism", 32, True),
        ("closed", "expert_parallelism", 4, True), ("closed", "expert_parallelism", 1, True),
    ],
)  # fmt: skip
def test_sizes_fit_the_model_of_the_closed_division(division: str, key: str, value: int, is_valid: bool) -> None:
    found = judged_after(set_value(key, value), division=division).findings
    assert fired(found) == (set() if is_valid else {"parallel-sizes"})


def test_ranks_implied_by_batch_sizes_only_warn() -> None:
    log = compliant_log(32).set("expert_parallelism", 16)  # 32 = 2 x 2 x 8
    assert fired(judged(log).findings) == fired(judged(log).findings, Severity.WARNING) == {"parallel-sizes"}
    assert fired(judged(log, machine=EIGHT).findings, Severity.ERROR) == {"parallel-sizes"}


@pytest.mark.parametrize("division", ["Open", "open ", None, "network"])
def test_an_unknown_division_is_judged_as_closed(division: object) -> None:
    log = compliant_log().set("submission_division", division).set("eval_samples", 2048)
    assert fired(judged(log).findings) == {"submission-division", "eval-size"}


# --- the open division


def test_the_open_division_declares_its_own_settings() -> None:
    log = drop_rates(compliant_log(division="open"))
    for key, value in {"eval_samples": 512, "opt_adamw_epsilon": 1e-8, "opt_end_learning_rate": 1e-6}.items():
        log.set(key, value)
    assert fired(judged(log).findings) == set()
    assert fired(judged(log.set("cache_clear", False)).findings, Severity.WARNING) == {"cache-clear"}
    assert fired(judged(log).findings, Severity.ERROR) == set()


def test_the_open_division_declares_its_own_schedule() -> None:
    log = compliant_log(division="open").set("max_steps", 50_000).set("opt_learning_rate_decay_steps", 49_872)
    for record in log.all("train_loss"):
        step = record["metadata"]["samples_count"] // 16
        record["metadata"]["lr"] = learning_rate(step - 1, 4e-4, 4e-5, 128, 50_000)
    assert judged(log).findings == ()
    log.set("opt_learning_rate_decay_schedule", "constant")
    for record in log.all("train_loss"):
        record["metadata"]["lr"] = 4e-4
    assert judged(log).findings == ()


@pytest.mark.parametrize(("key", "value"), [("max_sequence_length", 4096), ("opt_name", "lion")])
def test_values_that_the_open_division_fixes(key: str, value: object) -> None:
    assert fired(judged_after(set_value(key, value), division="open").findings) == {"open-division"}


def test_the_open_division_reaches_3_34_whatever_target_it_declares() -> None:
    log = compliant_log(division="open").set("target_accuracy", 3.345).set("eval_accuracy", 3.342, LAST)
    assert fired(judged(log).findings) == {"open-division"}
    assert judged(log).summary.target == 3.345
    log.set("eval_accuracy", -1.0, 2)  # not a loss, however low
    found = judged(log).findings
    assert fired(found) == {"open-division", "eval-loss"}
    (finding,) = (each for each in found if each.rule == "open-division")
    assert (finding.line, finding.got) == (line_number(log, "eval_accuracy", LAST), "3.342")
    assert judged(compliant_log(division="open", converged=False)).findings == ()
