"""Each rule on runs fires, alone, when a log that keeps all of them breaks that one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from judging import fired, judged
from made_logs import END, MadeLog, compliant_log, event

from compliance.findings import Severity, Status
from compliance.rules import ALONE_RULES, RUN_RULES
from compliance.run import Machine

Break = Callable[[MadeLog], object]
HUNDRED_MINUTES = 6_000_000


def last_line(log: MadeLog) -> int:
    return log.events[-1]["time_ms"]


def description(key: str, value: Any) -> Break:
    return lambda log: log.set(key, value)


def again(key: str, value: object, later_ms: int = 0) -> Break:
    """The same key once more, right after the first."""
    return lambda log: log.insert_after(
        key, 0, {**log.find(key), "value": value, "time_ms": log.find(key)["time_ms"] + later_ms}
    )


def appended(key: str, later_ms: int = 0) -> Break:
    """The last record of a key once more, at the end."""
    return lambda log: log.events.append({**log.find(key, LAST), "time_ms": last_line(log) + later_ms})


def wrong_rate(log: MadeLog) -> None:
    log.find("train_loss", 20)["metadata"]["lr"] *= 1.001


def constant_rate(log: MadeLog) -> None:
    for record in log.all("train_loss"):
        record["metadata"]["lr"] = 4e-4


def without_evaluation(log: MadeLog, n: int = 3) -> None:
    for key in ("block_stop", "eval_start", "eval_accuracy", "eval_stop"):
        log.drop(key, n)
    log.drop("block_start", n + 1)


def extra_evaluation(log: MadeLog) -> None:
    """One more evaluation in the middle of the fourth block."""
    place = log.index("eval_stop", 2)
    now = log.events[place]["time_ms"]
    at = {"samples_count": log.events[place]["metadata"]["samples_count"] + 4096}
    block = log.index("block_start", 3) + 3
    keys = ("block_stop", "eval_start", "eval_accuracy", "eval_stop", "block_start")
    now = log.events[block]["time_ms"]
    log.events[block:block] = [event(key, 3.9 if key == "eval_accuracy" else None, now, at) for key in keys]


def evaluation_at_zero(log: MadeLog) -> None:
    """An evaluation of the untrained model, on the clock."""
    now = log.find("block_start")["time_ms"]
    for key in ("eval_start", "eval_accuracy", "eval_stop"):
        log.insert_before("block_start", 0, event(key, 11.8, now, {"samples_count": 0}))


def samples_of(key: str, n: int, value: Any) -> Break:
    return lambda log: log.find(key, n)["metadata"].update(samples_count=value)


def missing_end(log: MadeLog) -> None:
    """An aborted run that trained on for two more intervals without an evaluation."""
    log.find("run_stop")["metadata"]["samples_count"] += 2 * 12_288


def train_on(log: MadeLog) -> None:
    """Another block, with training, after the evaluation that passes."""
    passing = log.find("eval_accuracy", -1)
    samples, now = passing["metadata"]["samples_count"], log.events[-1]["time_ms"]
    loss = event(
        "train_loss", 3.3, now, {"samples_count": samples + 16, "lr": log.find("train_loss", -1)["metadata"]["lr"]}
    )
    log.insert_before("run_stop", 0, event("block_start", None, now, {"samples_count": samples}))
    log.insert_before("run_stop", 0, loss)
    log.insert_before("run_stop", 0, event("block_stop", None, now, {"samples_count": samples}, END))


def swap(log: MadeLog, first: int, second: int) -> None:
    events = log.events
    events[first], events[second] = events[second], events[first]
    events[first]["time_ms"], events[second]["time_ms"] = events[second]["time_ms"], events[first]["time_ms"]


def late_start(log: MadeLog) -> None:
    """run_start only after the first training records."""
    start = log.events.pop(log.index("run_start"))
    after = log.find("train_loss", 3)
    start["time_ms"] = after["time_ms"]
    log.insert_after("train_loss", 3, start)


def late_cache_clear(log: MadeLog) -> None:
    log.drop("cache_clear").insert_after("run_start", 0, event("cache_clear", True, log.find("run_start")["time_ms"]))


def long_gap_before_run_start(log: MadeLog) -> None:
    """init_stop after 5 minutes, as the official checker wants; run_start after 35."""
    log.shift(log.index("run_start"), 30 * 60_000)


def set_time(key: str, n: int, change: int) -> Break:
    def move(log: MadeLog) -> None:
        log.find(key, n)["time_ms"] += change

    return move


def cut(log: MadeLog) -> bytes:
    """The writer died within a record that no rule needs."""
    lines = log.text().splitlines(keepends=True)
    place = log.index("tracked_stats", 4)
    lines[place] = lines[place][:70] + "\n"
    return "".join(lines).encode()


def in_seconds(log: MadeLog) -> None:
    for record in log.events:
        record["time_ms"] //= 1000


def nan_train_loss(log: MadeLog) -> None:
    log.set("train_loss", math.nan, 7)


LAST = -1
BREAKS: list[tuple[str, str, Any]] = [
    ("file-empty", "no bytes", lambda log: b""),
    ("file-empty", "no records", lambda log: b"Traceback (most recent call last):\n  nothing here\n"),
    ("file-encoding", "UTF-16", lambda log: log.text().encode("utf-16")),
    ("file-encoding", "UTF-16 without its mark", lambda log: log.text().encode("utf-16-le")),
    ("record-corrupt", "cut short", cut),
    ("record-corrupt", "no metadata", lambda log: log.find("tracked_stats", 2).pop("metadata")),
    ("record-corrupt", "no time", lambda log: log.find("tracked_stats", 2).update(time_ms="soon")),
    ("record-corrupt", "not an object", lambda log: log.text().encode() + b":::MLLOG [1, 2]\n"),
    ("record-required", "a hyperparameter", lambda log: log.drop("opt_adamw_beta_2")),
    ("record-required", "the seed", lambda log: log.drop("seed")),
    ("record-required", "a disclosure of 6.1.0", lambda log: log.drop("lowest_numerical_precision_in_comm")),
    ("record-required", "cache_clear", lambda log: log.drop("cache_clear")),
    ("record-required", "run_stop", lambda log: log.drop("run_stop")),
    ("record-conflict", "two batch sizes", again("global_batch_size", 32)),
    ("record-conflict", "two seeds", again("seed", 1)),
    ("record-metadata", "block_start", lambda log: log.find("block_start", 2)["metadata"].pop("samples_count")),
    ("record-metadata", "status", lambda log: log.find("run_stop")["metadata"].pop("status")),
    ("time-unit", "seconds", in_seconds),
    ("train-loss-value", "NaN", nan_train_loss),
    ("train-loss-value", "a string", lambda log: log.set("train_loss", "low", 7)),
    ("train-loss-value", "negative", lambda log: log.set("train_loss", -1.0, 7)),
    ("train-loss-value", "lr is null... a list", lambda log: log.find("train_loss", 7)["metadata"].update(lr=[1])),
    ("seed", "a string", description("seed", "12345")),
    ("seed", "a fraction", description("seed", 1.5)),
    ("submission-benchmark", "hyphens", description("submission_benchmark", "gpt-oss-20b")),
    ("submission-benchmark", "another", description("submission_benchmark", "llama31_8b")),
    ("submission-division", "another", description("submission_division", "Closed")),
    ("submission-division", "a path", description("submission_division", "../../evil")),
    ("submission-identity", "empty", description("submission_org", "")),
    ("submission-identity", "null", description("submission_platform", None)),
    ("hyperparameter-number", "a string", description("opt_adamw_beta_1", "0.9")),
    ("hyperparameter-number", "NaN", description("opt_adamw_weight_decay", math.nan)),
    ("hyperparameter-number", "infinite", description("opt_gradient_clip_norm", math.inf)),
    ("hyperparameter-number", "negative", description("train_samples", -1)),
    ("hyperparameter-number", "true", description("micro_batch_size", True)),
    ("hyperparameter-number", "a fraction", description("tensor_parallelism", 1.5)),
    ("hyperparameter-number", "base rate NaN", description("opt_base_learning_rate", math.nan)),
    ("hyperparameter-fixed", "epsilon", description("opt_adamw_epsilon", 1e-8)),
    ("hyperparameter-fixed", "beta", description("opt_adamw_beta_2", 0.999)),
    ("hyperparameter-fixed", "clip", description("opt_gradient_clip_norm", 0.5)),
    ("hyperparameter-fixed", "optimizer", description("opt_name", "adam")),
    ("hyperparameter-fixed", "sequence length", description("max_sequence_length", 4096)),
    ("hyperparameter-fixed", "schedule", description("opt_learning_rate_decay_schedule", "cosine")),
    ("hyperparameter-fixed", "decay steps", description("opt_learning_rate_decay_steps", 1_200_000)),
    ("hyperparameter-fixed", "target", description("target_accuracy", 3.4)),
    ("init-checkpoint", "of step 100", description("init_checkpoint_step", 100)),
    ("batch-arithmetic", "accumulation", description("gradient_accumulation_steps", 5)),
    ("parallel-sizes", "experts", description("expert_parallelism", 3)),
    ("parallel-sizes", "tensor", description("tensor_parallelism", 16)),
    ("parallel-sizes", "pipeline", description("pipeline_parallelism", 32)),
    ("parallel-sizes", "experts and ranks", description("expert_parallelism", 16)),
    ("precision-name", "unknown", description("lowest_numerical_precision_in_linear", "bf16")),
    ("precision-name", "not a name", description("lowest_numerical_precision_in_attn", ["fp8"])),
    ("eval-cadence", "one missing", without_evaluation),
    ("eval-cadence", "the first missing", lambda log: without_evaluation(log, 0)),
    ("eval-cadence", "one extra", extra_evaluation),
    ("eval-cadence", "off the grid", samples_of("eval_accuracy", 2, 12_288 * 3 + 16)),
    ("eval-cadence", "before training", evaluation_at_zero),
    ("eval-size", "2,048", description("eval_samples", 2048)),
    ("eval-size", "of one evaluation", lambda log: log.find("eval_start", 2)["metadata"].update(eval_samples=512)),
    ("eval-balance", "no eval_stop", lambda log: log.drop("eval_stop", 2)),
    ("eval-balance", "no eval_start", lambda log: log.drop("eval_start", 2)),
    ("eval-balance", "no block_stop", lambda log: log.drop("block_stop", 2)),
    ("eval-balance", "the last block open", lambda log: log.drop("block_stop", LAST)),
    ("eval-loss", "NaN", lambda log: log.set("eval_accuracy", math.nan, 2)),
    ("eval-loss", "infinite", lambda log: log.set("eval_accuracy", math.inf, 2)),
    ("eval-loss", "null", lambda log: log.set("eval_accuracy", None, 2)),
    ("eval-loss", "a string", lambda log: log.set("eval_accuracy", "3.9", 2)),
    ("eval-loss", "zero", lambda log: log.set("eval_accuracy", 0.0, 2)),
    ("eval-loss", "negative", lambda log: log.set("eval_accuracy", -3.0, 2)),
    ("eval-after-target", "training", train_on),
    ("eval-after-target", "an early pass", lambda log: log.set("eval_accuracy", 3.34, 5)),
    ("eval-target", "the last does not pass", lambda log: log.set("eval_accuracy", 3.3400001, LAST)),
    ("samples-count", "again", samples_of("eval_accuracy", 2, 12_288 * 2)),
    ("samples-count", "backwards", samples_of("eval_accuracy", 2, 12_288)),
    ("samples-count", "a fraction", samples_of("eval_accuracy", 2, 12_288 * 3 + 0.5)),
    ("samples-count", "a string", samples_of("eval_accuracy", 2, "36864")),
    ("samples-count", "run_stop", samples_of("run_stop", 0, 12_288)),
    ("schedule-rate", "one record", wrong_rate),
    ("schedule-rate", "a constant", constant_rate),
    ("cache-clear", "false", description("cache_clear", False)),
    ("cache-clear", "a word", description("cache_clear", "true")),
    ("cache-clear", "late", late_cache_clear),
    ("clock-order", "init_stop first", lambda log: swap(log, log.index("init_start"), log.index("init_stop"))),
    ("clock-init-limit", "35 minutes", long_gap_before_run_start),
    ("clock-run-start", "late", late_start),
    ("clock-run-start", "again", again("run_start", None, later_ms=700)),
    ("clock-run-stop", "before the pass", set_time("run_stop", 0, -30_000)),
    ("clock-run-stop", "before run_start", set_time("run_stop", 0, -100_000_000)),
    ("clock-run-stop", "again", appended("run_stop", later_ms=5000)),
    ("clock-after-stop", "a record", appended("tracked_stats")),
    ("clock-after-stop", "a loss", appended("train_loss")),
    ("clock-stop-late", "61 seconds", set_time("run_stop", 0, 61_000)),
    ("clock-backwards", "five seconds", set_time("train_loss", 30, -HUNDRED_MINUTES)),
    ("clock-backwards", "an evaluation", set_time("eval_stop", 3, -5_000)),
    ("run-status", "unknown", lambda log: log.find("run_stop")["metadata"].update(status="converged")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "change"),
    [(rule, change) for rule, _, change in BREAKS],
    ids=[f"{rule}: {name}" for rule, name, _ in BREAKS],
)
def test_exactly_this_rule_fires(rule: str, change: Callable[[MadeLog], object]) -> None:
    log = compliant_log()
    changed = change(log)
    found = judged(changed if isinstance(changed, bytes) else log)
    assert fired(found.findings) == {rule}
    assert all(finding.message and finding.citation and finding.file == "result_0.txt" for finding in found.findings)


# Rules whose log has to be made otherwise, because what they judge shows in several records.
MADE: list[tuple[str, dict[str, Any]]] = [
    ("hyperparameter-end-rate", {"end_learning_rate": 4e-5, "learning_rate": 8e-4}),
    ("hyperparameter-end-rate", {"end_learning_rate": 0.0}),
]


@pytest.mark.parametrize(("rule", "options"), MADE)
def test_exactly_this_rule_fires_on_a_log_made_so(rule: str, options: dict[str, Any]) -> None:
    assert fired(judged(compliant_log(**options)).findings) == {rule}


@pytest.mark.parametrize("steps", [-1, 1_200_001, 0.5, "128"])
def test_a_warm_up_out_of_bounds_is_one_finding(steps: object) -> None:
    assert fired(judged(compliant_log().set("opt_learning_rate_warmup_steps", steps)).findings) == {
        "hyperparameter-warmup"
    }


def test_every_rule_on_runs_has_a_log_that_it_fires_on_alone() -> None:
    covered = {rule for rule, _, _ in BREAKS} | {rule for rule, _ in MADE}
    covered |= {"hyperparameter-warmup", "open-division", "run-not-converged"}  # in tests of their own
    assert {rule.id for rule in (*RUN_RULES, *ALONE_RULES)} == covered


@pytest.mark.parametrize("ruleset", ["6.0.0", "6.1.0"])
@pytest.mark.parametrize("gbs", [16, 24, 32, 48, 64])
@pytest.mark.parametrize("options", [{}, {"convention": "before"}, {"division": "open"}], ids=str)
def test_a_compliant_log_breaks_none(ruleset: str, gbs: int, options: dict[str, Any]) -> None:
    found = judged(compliant_log(gbs, ruleset=ruleset, **options), ruleset=ruleset, in_set=False)
    assert found.findings == ()
    assert found.summary.status is Status.CONVERGED


def test_what_6_0_tolerates_and_6_1_does_not() -> None:
    old = compliant_log(ruleset="6.0.0", learning_rate=8e-4, end_learning_rate=4e-5, disclosures=False)
    assert fired(judged(old, ruleset="6.0.0").findings) == set()
    assert fired(judged(old, ruleset="6.1.0").findings) == {"hyperparameter-end-rate", "record-required"}
    newer = compliant_log().set("lowest_numerical_precision_in_linear", "mxfp6")
    assert fired(judged(newer, ruleset="6.1.0").findings) == set()
    assert fired(judged(newer, ruleset="6.0.0").findings) == {"precision-name"}


def test_the_machine_settles_the_batch_arithmetic() -> None:
    log = compliant_log(32)  # micro batch 2, accumulation 2, on 8 accelerators
    assert fired(judged(log, machine=Machine(8, "systems/x.json")).findings) == set()
    found = judged(log, machine=Machine(16, "systems/x.json")).findings
    assert fired(found) == {"batch-arithmetic"}
    assert (found[0].expected, found[0].got) == ("64", "32")
    split = compliant_log(32).set("tensor_parallelism", 8)
    assert fired(judged(split, machine=Machine(12, "systems/x.json")).findings) == {"parallel-sizes"}


def test_the_open_division_is_judged_by_what_its_log_declares() -> None:
    log = compliant_log(division="open")
    for key, value in {"eval_samples": 512, "opt_adamw_epsilon": 1e-8, "opt_end_learning_rate": 1e-6}.items():
        log.set(key, value)
    for record in log.all("train_loss"):
        del record["metadata"]["lr"]
    assert fired(judged(log).findings) == set()
    assert fired(judged(log.set("cache_clear", False)).findings, Severity.WARNING) == {"cache-clear"}
    assert fired(judged(log).findings, Severity.ERROR) == set()
    long = compliant_log(division="open").shift(0, 0)
    long_gap_before_run_start(long)
    assert fired(judged(long).findings) == set()
    long.shift(long.index("run_start"), 4 * 3_600_000)
    assert fired(judged(long).findings) == {"clock-init-limit"}


def test_the_open_division_sets_its_own_interval_and_keeps_it() -> None:
    log = compliant_log(32, division="open").set("global_batch_size", 40)
    log.set("micro_batch_size", 1).set("gradient_accumulation_steps", 5)
    for record in log.all("train_loss"):
        del record["metadata"]["lr"]
    assert fired(judged(log).findings) == set()
    without_evaluation(log)
    assert fired(judged(log).findings) == {"eval-cadence"}


@pytest.mark.parametrize(("key", "value"), [("max_sequence_length", 4096), ("opt_name", "lion")])
def test_what_even_the_open_division_keeps(key: str, value: object) -> None:
    assert fired(judged(compliant_log(division="open").set(key, value)).findings) == {"open-division"}


def test_the_open_division_reaches_3_34_whatever_target_it_declares() -> None:
    log = compliant_log(division="open").set("target_accuracy", 3.345).set("eval_accuracy", 3.342, LAST)
    assert fired(judged(log).findings) == {"open-division"}
    assert judged(log).summary.target == 3.345


def test_a_run_that_did_not_converge_fails_alone_and_may_pass_in_a_set() -> None:
    log = compliant_log(converged=False)
    alone, in_set = judged(log, in_set=False), judged(log)
    assert fired(alone.findings) == {"run-not-converged"}
    assert fired(in_set.findings) == set()
    assert in_set.summary.status is Status.NOT_CONVERGED
    assert in_set.summary.samples_to_target is None


def test_an_evaluation_missing_at_the_end_of_an_aborted_run_is_missed() -> None:
    log = compliant_log(converged=False)
    log.find("run_stop")["metadata"]["samples_count"] += 2 * 12_288
    assert fired(judged(log).findings) == {"eval-cadence"}


def test_a_run_without_logged_rates_is_not_verifiable_there() -> None:
    log = compliant_log()
    for record in log.all("train_loss"):
        del record["metadata"]["lr"]
    found = judged(log).findings
    assert fired(found) == set()
    assert fired(found, Severity.UNVERIFIABLE) == {"schedule-rate"}


def test_a_seed_logged_by_every_rank_is_one_seed() -> None:
    log = compliant_log()
    for _ in range(7):
        log.insert_after("seed", 0, dict(log.find("seed")))
    assert judged(log).findings == ()


def test_what_only_describes_may_follow_run_stop_with_a_warning() -> None:
    log = compliant_log()
    log.events.append({**log.find("train_samples"), "time_ms": last_line(log) + 1})
    log.drop("train_samples")
    found = judged(log).findings
    assert [(finding.rule, finding.severity) for finding in found] == [("clock-after-stop", Severity.WARNING)]


@pytest.mark.parametrize("minutes", [24.0, 24.99])
def test_init_may_take_thirty_minutes(minutes: float) -> None:
    log = compliant_log()
    log.shift(log.index("run_start"), int(minutes * 60_000))
    init = (log.find("run_start")["time_ms"] - log.find("init_start")["time_ms"]) / 60_000
    assert fired(judged(log).findings) == (set() if init <= 30 else {"clock-init-limit"})


def test_the_summary_holds_what_the_log_says() -> None:
    log = compliant_log(32, run=3)
    summary = judged(log).summary
    stop, start = log.find("run_stop"), log.find("run_start")
    assert summary.seed == log.find("seed")["value"]
    assert summary.samples_to_target == stop["metadata"]["samples_count"]
    assert summary.minutes == pytest.approx((stop["time_ms"] - start["time_ms"]) / 60_000)
    assert summary.final_eval_loss == log.find("eval_accuracy", LAST)["value"]
    assert [each.samples for each in summary.evaluations] == [
        record["metadata"]["samples_count"] for record in log.all("eval_accuracy")
    ]
    assert summary.rates_logged.values == pytest.approx(summary.rates_expected.values, rel=1e-9)
    assert {phase.name for phase in summary.phases} == {"init", "training", "evaluation"}
