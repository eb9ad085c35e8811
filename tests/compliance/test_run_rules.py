"""Each rule on runs fires, alone, when a log that keeps all of them breaks that one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from compliance.findings import Finding, Severity, Status
from compliance.rules import ALONE_RULES, RUN_RULES, clock
from compliance.run import Machine
from tests.support.judging import fired, judged
from tests.support.made_logs import END, MadeLog, compliant_log, event, learning_rate, line

Break = Callable[[MadeLog], object]
HUNDRED_MINUTES = 6_000_000


def block_after_target(log: MadeLog) -> None:
    """A block of training after the evaluation that passes, of which no loss is logged."""
    samples, now = log.find("run_stop")["metadata"]["samples_count"], log.find("run_stop")["time_ms"]
    for key, count in (("block_start", samples), ("block_stop", samples + 12_288)):
        log.insert_before("run_stop", 0, event(key, None, now, {"samples_count": count}))


def loss_after_target(log: MadeLog) -> None:
    log.insert_before("run_stop", 0, event("train_loss", 3.3, log.find("run_stop")["time_ms"]))


def silent_evaluation(log: MadeLog) -> None:
    """An evaluation in the middle of a block whose loss is not logged."""
    now = log.find("train_loss", 30)["time_ms"]
    samples = log.find("train_loss", 30)["metadata"]["samples_count"]
    for key in ("eval_stop", "eval_start"):
        log.insert_after("train_loss", 30, event(key, None, now, {"samples_count": samples}))


def cache_clear_by_its_time(log: MadeLog) -> None:
    record = {**log.find("cache_clear"), "time_ms": log.find("run_start")["time_ms"] + 1_400}
    log.drop("cache_clear").insert_before("run_start", 0, record)


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


def train_on_unevaluated(log: MadeLog) -> None:
    """Two whole intervals of training after the evaluation that passes, and no evaluation of them."""
    train_on(log)
    samples = log.find("run_stop")["metadata"]["samples_count"] + 2 * 12_288
    log.find("train_loss", LAST)["metadata"] = {"samples_count": samples}
    log.find("block_stop", LAST)["metadata"]["samples_count"] = samples


def no_evaluation_but_a_loss(log: MadeLog) -> None:
    log.drop("eval_start", 2).drop("eval_stop", 2)


def second_init(log: MadeLog) -> None:
    """The first init_start is 35 minutes before run_start, the second 5."""
    log.find("cache_clear")["time_ms"] -= 30 * 60_000
    first = {**log.find("init_start"), "time_ms": log.find("init_start")["time_ms"] - 30 * 60_000}
    log.insert_before("init_start", 0, first)


def creeping_back(log: MadeLog) -> None:
    """Each record is less than a second before the one above it, the third more than that before the first."""
    place = log.index("tracked_stats", 3)
    now = log.events[place - 1]["time_ms"]
    for number, record in enumerate(log.events[place : place + 3], 1):
        record["time_ms"] = now - 600 * number


def before_the_clock(key: str, early_ms: int = 0) -> Break:
    """A record moved up before run_start, at its time or earlier."""

    def move(log: MadeLog) -> None:
        record = log.events.pop(log.index(key))
        record["time_ms"] = log.find("run_start")["time_ms"] - early_ms
        log.insert_before("run_start", 0, record)

    return move


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


def metadata(key: str, n: int, **changes: Any) -> Break:
    """Changes of a record's metadata; None removes a name."""

    def change(log: MadeLog) -> None:
        about = log.find(key, n)["metadata"]
        about.update(changes)
        for name in [name for name, value in changes.items() if value is None]:
            del about[name]

    return change


def drop_all(log: MadeLog, *keys: str) -> MadeLog:
    log.events[:] = [record for record in log.events if record["key"] not in keys]
    return log


def losses_alone(log: MadeLog) -> None:
    log.events[:] = log.all("train_loss")


def in_seconds_but(n: int) -> Break:
    def change(log: MadeLog) -> None:
        in_seconds(log)
        log.events[n]["time_ms"] *= 1000

    return change


def repeated(log: MadeLog, key: str, n: int, later_ms: int, **changes: Any) -> MadeLog:
    """The n-th record of a key once more, right after it, at another time."""
    record = copy.deepcopy(log.find(key, n))
    record["metadata"].update(changes)
    return log.insert_after(key, n, {**record, "time_ms": record["time_ms"] + later_ms})


def halved(log: MadeLog) -> None:
    """Every evaluation at two thirds of where it belongs."""
    for key in ("eval_start", "eval_accuracy", "eval_stop", "run_stop"):
        for record in log.all(key):
            record["metadata"]["samples_count"] = record["metadata"]["samples_count"] * 2 // 3


def stop_at_the_pass(log: MadeLog, later_ms: int = 0) -> MadeLog:
    """run_stop so many milliseconds after the evaluation that passes."""
    passed = log.find("eval_accuracy", LAST)["time_ms"]
    log.find("eval_stop", LAST)["time_ms"] = passed
    log.find("run_stop")["time_ms"] = passed + later_ms
    return log


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
    ("record-required", "neither blocks nor epochs", lambda log: drop_all(log, "block_start", "block_stop")),
    ("record-required", "no evaluation starts or stops", lambda log: drop_all(log, "eval_start", "eval_stop")),
    ("record-required", "losses alone", losses_alone),
    ("record-conflict", "two batch sizes", again("global_batch_size", 32)),
    ("record-conflict", "two seeds", again("seed", 1)),
    ("record-conflict", "two precisions", again("lowest_numerical_precision_in_comm", "fp8")),
    ("record-conflict", "two checksums", again("eval_tokens_sha256", "0" * 64)),
    ("record-metadata", "block_start", lambda log: log.find("block_start", 2)["metadata"].pop("samples_count")),
    ("record-metadata", "block_stop", metadata("block_stop", 2, samples_count=None)),
    ("record-metadata", "eval_start", metadata("eval_start", 2, samples_count=None)),
    ("record-metadata", "eval_stop", metadata("eval_stop", 2, samples_count=None)),
    ("record-metadata", "eval_accuracy", metadata("eval_accuracy", 2, samples_count=None)),
    ("record-metadata", "eval_accuracy by epoch", metadata("eval_accuracy", 2, samples_count=None, epoch_num=1)),
    ("record-metadata", "eval_start by first epoch", metadata("eval_start", 2, samples_count=None, first_epoch_num=1)),
    ("record-metadata", "status", lambda log: log.find("run_stop")["metadata"].pop("status")),
    ("time-unit", "seconds", in_seconds),
    ("time-unit", "one in seconds", lambda log: log.find("init_start").update(time_ms=1_790_000_000)),
    ("time-unit", "all but the first in seconds", in_seconds_but(0)),
    ("time-unit", "all but the last in seconds", in_seconds_but(-1)),
    ("train-loss-value", "NaN", nan_train_loss),
    ("train-loss-value", "a string", lambda log: log.set("train_loss", "low", 7)),
    ("train-loss-value", "negative", lambda log: log.set("train_loss", -1.0, 7)),
    ("train-loss-value", "zero", lambda log: log.set("train_loss", 0.0, 7)),
    ("train-loss-value", "infinite", lambda log: log.set("train_loss", math.inf, 7)),
    ("train-loss-value", "null", lambda log: log.set("train_loss", None, 7)),
    ("train-loss-value", "lr is NaN", metadata("train_loss", 7, lr=math.nan)),
    ("train-loss-value", "lr is a string", metadata("train_loss", 7, lr="4e-4")),
    ("train-loss-value", "samples are a string", metadata("train_loss", 7, samples_count="many")),
    ("train-loss-value", "samples are infinite", metadata("train_loss", 7, samples_count=math.inf)),
    ("train-loss-value", "lr is null... a list", lambda log: log.find("train_loss", 7)["metadata"].update(lr=[1])),
    ("seed", "a string", description("seed", "12345")),
    ("seed", "a fraction", description("seed", 1.5)),
    ("seed", "true", description("seed", True)),
    ("seed", "null", description("seed", None)),
    ("seed", "beyond all numbers", description("seed", 10**400)),
    ("submission-benchmark", "hyphens", description("submission_benchmark", "gpt-oss-20b")),
    ("submission-benchmark", "another", description("submission_benchmark", "llama31_8b")),
    ("submission-division", "another", description("submission_division", "Closed")),
    ("submission-division", "a path", description("submission_division", "../../evil")),
    ("submission-identity", "empty", description("submission_org", "")),
    ("submission-identity", "null", description("submission_platform", None)),
    ("submission-identity", "blanks", description("submission_org", " \t")),
    ("submission-identity", "a number", description("submission_platform", 8)),
    ("submission-identity", "no configuration", description("config_filename", "")),
    ("hyperparameter-number", "a string", description("opt_adamw_beta_1", "0.9")),
    ("hyperparameter-number", "NaN", description("opt_adamw_weight_decay", math.nan)),
    ("hyperparameter-number", "infinite", description("opt_gradient_clip_norm", math.inf)),
    ("hyperparameter-number", "negative", description("train_samples", -1)),
    ("hyperparameter-number", "true", description("micro_batch_size", True)),
    ("hyperparameter-number", "a fraction", description("tensor_parallelism", 1.5)),
    ("hyperparameter-number", "base rate NaN", description("opt_base_learning_rate", math.nan)),
    ("hyperparameter-number", "no batch", description("global_batch_size", 0)),
    ("hyperparameter-number", "a negative batch", description("global_batch_size", -16)),
    ("hyperparameter-number", "beyond all numbers", description("global_batch_size", 10**400)),
    ("hyperparameter-number", "no micro batch", description("micro_batch_size", 0)),
    ("hyperparameter-number", "no accumulation", description("gradient_accumulation_steps", 0)),
    ("hyperparameter-number", "no ranks", description("tensor_parallelism", 0)),
    ("hyperparameter-number", "no stages", description("pipeline_parallelism", 0)),
    ("hyperparameter-number", "no experts", description("expert_parallelism", 0)),
    ("hyperparameter-number", "negative ranks", description("context_parallelism", -2)),
    ("hyperparameter-number", "no samples", description("train_samples", 0)),
    ("hyperparameter-number", "checkpoint before the first", description("init_checkpoint_step", -1)),
    ("hyperparameter-number", "an infinite end rate", description("opt_end_learning_rate", math.inf)),
    ("hyperparameter-fixed", "epsilon", description("opt_adamw_epsilon", 1e-8)),
    ("hyperparameter-fixed", "beta", description("opt_adamw_beta_2", 0.999)),
    ("hyperparameter-fixed", "clip", description("opt_gradient_clip_norm", 0.5)),
    ("hyperparameter-fixed", "optimizer", description("opt_name", "adam")),
    ("hyperparameter-fixed", "sequence length", description("max_sequence_length", 4096)),
    ("hyperparameter-fixed", "schedule", description("opt_learning_rate_decay_schedule", "cosine")),
    ("hyperparameter-fixed", "decay steps", description("opt_learning_rate_decay_steps", 1_200_000)),
    ("hyperparameter-fixed", "target", description("target_accuracy", 3.4)),
    ("hyperparameter-fixed", "max_steps", description("max_steps", 1_200_001)),
    ("hyperparameter-fixed", "weight decay", description("opt_adamw_weight_decay", 0)),
    ("hyperparameter-fixed", "first beta", description("opt_adamw_beta_1", 0)),
    ("hyperparameter-fixed", "an optimizer that is no name", description("opt_name", 5)),
    ("hyperparameter-fixed", "beyond all but floats", description("max_steps", 10**300)),
    ("init-checkpoint", "of step 100", description("init_checkpoint_step", 100)),
    ("init-checkpoint", "of step 1", description("init_checkpoint_step", 1)),
    ("batch-arithmetic", "accumulation", description("gradient_accumulation_steps", 5)),
    ("batch-arithmetic", "micro batch", description("micro_batch_size", 3)),
    ("batch-arithmetic", "their product", description("gradient_accumulation_steps", 16)),
    ("parallel-sizes", "experts", description("expert_parallelism", 3)),
    ("parallel-sizes", "tensor", description("tensor_parallelism", 16)),
    ("parallel-sizes", "tensor of 3", description("tensor_parallelism", 3)),
    ("parallel-sizes", "pipeline", description("pipeline_parallelism", 32)),
    ("parallel-sizes", "experts and ranks", description("expert_parallelism", 16)),
    ("precision-name", "unknown", description("lowest_numerical_precision_in_linear", "bf16")),
    ("precision-name", "of communication", description("lowest_numerical_precision_in_comm", "FP8")),
    ("precision-name", "not a name", description("lowest_numerical_precision_in_attn", ["fp8"])),
    ("eval-cadence", "one missing", without_evaluation),
    ("eval-cadence", "the first missing", lambda log: without_evaluation(log, 0)),
    ("eval-cadence", "at two thirds of the grid", halved),
    ("eval-cadence", "one extra", extra_evaluation),
    ("eval-cadence", "off the grid", samples_of("eval_accuracy", 2, 12_288 * 3 + 16)),
    ("eval-cadence", "before training", evaluation_at_zero),
    ("eval-size", "2,048", description("eval_samples", 2048)),
    ("eval-size", "of one evaluation", lambda log: log.find("eval_start", 2)["metadata"].update(eval_samples=512)),
    ("eval-size", "of one loss", metadata("eval_accuracy", 2, eval_samples=2048)),
    ("eval-size", "of one that stops", metadata("eval_stop", LAST, eval_samples=1023)),
    ("eval-size", "a word", metadata("eval_start", 2, eval_samples="all")),
    ("eval-balance", "no eval_stop", lambda log: log.drop("eval_stop", 2)),
    ("eval-balance", "no eval_start", lambda log: log.drop("eval_start", 2)),
    ("eval-balance", "no block_stop", lambda log: log.drop("block_stop", 2)),
    ("eval-balance", "a loss without evaluation", no_evaluation_but_a_loss),
    ("eval-balance", "no block_start", lambda log: log.drop("block_start", 2)),
    ("eval-balance", "the last evaluation open", lambda log: log.drop("eval_stop", LAST)),
    ("eval-balance", "the last block open", lambda log: log.drop("block_stop", LAST)),
    ("eval-loss", "NaN", lambda log: log.set("eval_accuracy", math.nan, 2)),
    ("eval-loss", "infinite", lambda log: log.set("eval_accuracy", math.inf, 2)),
    ("eval-loss", "null", lambda log: log.set("eval_accuracy", None, 2)),
    ("eval-loss", "a string", lambda log: log.set("eval_accuracy", "3.9", 2)),
    ("eval-loss", "zero", lambda log: log.set("eval_accuracy", 0.0, 2)),
    ("eval-loss", "negative", lambda log: log.set("eval_accuracy", -3.0, 2)),
    ("eval-loss", "true", lambda log: log.set("eval_accuracy", True, 2)),
    ("eval-loss", "beyond all numbers", lambda log: log.set("eval_accuracy", 10**400, 2)),
    ("eval-after-target", "training", train_on),
    ("eval-after-target", "two intervals of training", train_on_unevaluated),
    ("eval-after-target", "evaluations alone", lambda log: drop_all(log, "train_loss").set("eval_accuracy", 3.34, 5)),
    ("eval-after-target", "an early pass", lambda log: log.set("eval_accuracy", 3.34, 5)),
    ("eval-target", "the last does not pass", lambda log: log.set("eval_accuracy", 3.3400001, LAST)),
    ("samples-count", "again", samples_of("eval_accuracy", 2, 12_288 * 2)),
    ("samples-count", "backwards", samples_of("eval_accuracy", 2, 12_288)),
    ("samples-count", "ahead of its turn", samples_of("eval_accuracy", 2, 12_288 * 40)),
    ("samples-count", "true", samples_of("eval_accuracy", 2, True)),
    ("samples-count", "run_stop with more", samples_of("run_stop", 0, 12_288 * 100)),
    ("samples-count", "run_stop with a string", samples_of("run_stop", 0, "196608")),
    ("samples-count", "a fraction", samples_of("eval_accuracy", 2, 12_288 * 3 + 0.5)),
    ("samples-count", "a string", samples_of("eval_accuracy", 2, "36864")),
    ("samples-count", "run_stop", samples_of("run_stop", 0, 12_288)),
    ("schedule-rate", "one record", wrong_rate),
    ("schedule-rate", "a constant", constant_rate),
    ("cache-clear", "false", description("cache_clear", False)),
    ("cache-clear", "a word", description("cache_clear", "true")),
    ("cache-clear", "one", description("cache_clear", 1)),
    ("cache-clear", "null", description("cache_clear", None)),
    ("cache-clear", "late", late_cache_clear),
    ("clock-order", "init_stop first", lambda log: swap(log, log.index("init_start"), log.index("init_stop"))),
    ("clock-order", "run_start first", lambda log: swap(log, log.index("init_stop"), log.index("run_start"))),
    ("clock-order", "run_start earlier", set_time("run_start", 0, -2000)),
    ("clock-init-limit", "35 minutes", long_gap_before_run_start),
    ("clock-init-limit", "from the first init_start", second_init),
    ("clock-run-start", "late", late_start),
    ("clock-run-start", "after a block starts", before_the_clock("block_start")),
    ("clock-run-start", "after data", before_the_clock("eval_tokens_sha256")),
    ("clock-run-start", "after throughput", before_the_clock("tracked_stats", early_ms=5)),
    ("clock-run-start", "after a loss", before_the_clock("train_loss")),
    ("clock-run-start", "later than what follows", set_time("eval_tokens_sha256", 0, -2000)),
    ("clock-run-start", "again", again("run_start", None, later_ms=700)),
    ("clock-run-stop", "before the pass", set_time("run_stop", 0, -30_000)),
    ("clock-run-stop", "a millisecond before the pass", lambda log: stop_at_the_pass(log, -1)),
    ("clock-run-stop", "before run_start", set_time("run_stop", 0, -100_000_000)),
    ("clock-run-stop", "again", appended("run_stop", later_ms=5000)),
    ("clock-after-stop", "a record", appended("tracked_stats")),
    ("clock-after-stop", "a loss", appended("train_loss")),
    ("clock-stop-late", "61 seconds", set_time("run_stop", 0, 61_000)),
    ("clock-backwards", "five seconds", set_time("train_loss", 30, -HUNDRED_MINUTES)),
    ("clock-backwards", "an evaluation", set_time("eval_stop", 3, -5_000)),
    ("clock-backwards", "step by step", creeping_back),
    ("clock-backwards", "the same again", lambda log: repeated(log, "tracked_stats", 3, later_ms=-5_000)),
    ("eval-after-target", "a block that no loss shows", block_after_target),
    ("eval-after-target", "a loss without samples", loss_after_target),
    ("eval-balance", "an evaluation without a loss", silent_evaluation),
    ("samples-count", "block_stop a word", samples_of("block_stop", 3, "abc")),
    ("samples-count", "block_start a fraction", samples_of("block_start", 3, 1.5)),
    ("samples-count", "eval_stop null", samples_of("eval_stop", 3, None)),
    ("samples-count", "eval_start backwards", samples_of("eval_start", 3, 7)),
    ("train-loss-value", "lr null", lambda log: log.find("train_loss", 7)["metadata"].update(lr=None)),
    ("train-loss-value", "samples null", lambda log: log.find("train_loss", 7)["metadata"].update(samples_count=None)),
    ("cache-clear", "late by its time", cache_clear_by_its_time),
    ("run-status", "unknown", lambda log: log.find("run_stop")["metadata"].update(status="converged")),
    ("run-status", "capitalised", metadata("run_stop", 0, status="Success")),
    ("run-status", "a list", metadata("run_stop", 0, status=["success"])),
    ("run-status", "failed", metadata("run_stop", 0, status="failed")),
]  # fmt: skip


# What is a warning; all else is an error.
WARNINGS = {
    ("record-conflict", "two seeds"),
    ("clock-stop-late", "61 seconds"),
    ("parallel-sizes", "experts and ranks"),
}


@pytest.mark.parametrize(("rule", "name", "change"), BREAKS, ids=[f"{rule}: {name}" for rule, name, _ in BREAKS])
def test_exactly_this_rule_fires(rule: str, name: str, change: Callable[[MadeLog], object]) -> None:
    log = compliant_log()
    changed = change(log)
    found = judged(changed if isinstance(changed, bytes) else log)
    assert fired(found.findings) == {rule}
    assert fired(found.findings, Severity.ERROR) == (set() if (rule, name) in WARNINGS else {rule})
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
    # In tests of their own.
    covered |= {"hyperparameter-warmup", "open-division", "run-not-converged", "run-resumed"}
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


def test_two_seeds_in_one_run_are_a_warning() -> None:
    log = compliant_log()
    again("seed", 1)(log)
    found = judged(log).findings
    assert [(each.rule, each.severity) for each in found] == [("record-conflict", Severity.WARNING)]


def test_a_seed_logged_by_every_rank_is_one_seed() -> None:
    log = compliant_log()
    for _ in range(7):
        log.insert_after("seed", 0, dict(log.find("seed")))
    assert judged(log).findings == ()


def test_an_aborted_run_does_not_stop_before_its_last_record() -> None:
    log = compliant_log(converged=False)
    log.find("run_stop")["time_ms"] -= 7_200_000
    assert fired(judged(log).findings) == {"clock-run-stop"}


def test_numbers_are_compared_by_what_they_are_worth() -> None:
    log = compliant_log()
    again("opt_gradient_clip_norm", 1)(log)
    again("global_batch_size", 16.0)(log)
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
    assert summary.logged_learning_rates.values == pytest.approx(summary.expected_learning_rates.values, rel=1e-9)
    assert {phase.name for phase in summary.phases} == {"init", "training", "evaluation"}


def findings_of(change: Callable[[MadeLog], object], rule: str, **options: Any) -> list[Finding]:
    """What one rule finds in a compliant log that is changed so."""
    log = compliant_log(**options)
    changed = change(log)
    found = judged(changed if isinstance(changed, bytes) else log).findings
    return [finding for finding in found if finding.rule == rule]


def number_of(log: MadeLog, key: str, n: int = 0) -> int:
    """The line of a record."""
    return log.index(key, n) + 1


REQUIRED_BY_6_1 = (
    "lowest_numerical_precision_in_linear", "lowest_numerical_precision_in_attn", "lowest_numerical_precision_in_comm",
    "tensor_parallelism", "pipeline_parallelism", "context_parallelism", "expert_parallelism", "micro_batch_size",
    "config_filename",
)  # fmt: skip
NOT_REQUIRED = ("train_loss", "tracked_stats", "eval_tokens_sha256", "target_accuracy", "block_start", "block_stop")


@pytest.mark.parametrize("ruleset", ["6.0.0", "6.1.0"])
def test_every_key_of_a_log_is_required_but_these(ruleset: str) -> None:
    keys = dict.fromkeys(record["key"] for record in compliant_log(64).events)
    assert len(keys) == 47
    for key in keys:
        found = judged(drop_all(compliant_log(64), key), ruleset=ruleset).findings
        said = [finding.message for finding in found if finding.rule == "record-required"]
        optional = key in NOT_REQUIRED or (ruleset == "6.0.0" and key in REQUIRED_BY_6_1)
        if key == "block_start":
            assert said == ["neither block_start nor epoch_start; training is not logged"]
        else:
            assert said == (
                [] if optional else [f"ruleset {ruleset} requires records that the log does not have: {key}"]
            )


def in_epochs(log: MadeLog, **about: object) -> MadeLog:
    """Training in epochs instead of blocks."""
    for kind in ("start", "stop"):
        for number, record in enumerate(log.all(f"block_{kind}")):
            record["key"] = f"epoch_{kind}"
            del record["metadata"]["samples_count"]
            record["metadata"].update(about or {"epoch_num": number})
    return log


def test_training_may_be_logged_in_epochs() -> None:
    assert judged(in_epochs(compliant_log())).findings == ()
    assert judged(in_epochs(compliant_log()).drop("epoch_stop", LAST)).findings == ()  # the run ends within one
    assert fired(judged(in_epochs(compliant_log()).drop("epoch_stop", 2)).findings) == {"eval-balance"}
    assert fired(judged(in_epochs(compliant_log(), epoch_count=1)).findings) == {"record-metadata"}


def test_one_epoch_around_the_whole_run() -> None:
    log = drop_all(compliant_log(), "block_start", "block_stop")
    log.insert_after("run_start", 0, event("epoch_start", None, log.find("run_start")["time_ms"], {"epoch_num": 0}))
    assert judged(log).findings == ()


@pytest.mark.parametrize("name", ["epoch_num", "epoch_count", "first_epoch_num"])
def test_a_block_may_count_epochs(name: str) -> None:
    log = compliant_log()
    for record in [*log.all("block_start"), *log.all("block_stop")]:
        del record["metadata"]["samples_count"]
        record["metadata"][name] = 1
    assert judged(log).findings == ()


@pytest.mark.parametrize("key", ["eval_start", "eval_stop"])
def test_an_evaluation_may_start_and_stop_by_epoch(key: str) -> None:
    assert findings_of(metadata(key, 2, samples_count=None, epoch_num=1), "record-metadata") == []


def test_not_a_number_twice_is_no_conflict() -> None:
    log = compliant_log().set("opt_adamw_epsilon", math.nan)
    repeated(log, "opt_adamw_epsilon", 0, later_ms=0, local_rank=1)
    assert fired(judged(log).findings) == {"hyperparameter-number"}


def test_findings_name_the_line_and_what_is_there() -> None:
    log = compliant_log()
    places = {key: number_of(log, key) for key in ("seed", "eval_accuracy", "run_stop", "train_loss", "block_start")}
    cases: list[tuple[str, Break, int | None, str | None, str | None]] = [
        ("record-conflict", again("seed", 1), places["seed"] + 1, str(log.find("seed")["value"]), "1"),
        ("train-loss-value", description("train_loss", -2.5), places["train_loss"], "a finite number", "-2.5"),
        ("train-loss-value", lambda log: log.set("train_loss", -2.5, 9), number_of(log, "train_loss", 9), None, "-2.5"),
        ("train-loss-value", metadata("train_loss", 9, lr=-1.0), number_of(log, "train_loss", 9), None, "-1.0"),
        (
            "train-loss-value",
            metadata("train_loss", 9, samples_count=-1),
            number_of(log, "train_loss", 9),
            None,
            "-1.0",
        ),
        ("eval-loss", description("eval_accuracy", "low"), places["eval_accuracy"], None, '"low"'),
        ("run-status", metadata("run_stop", 0, status="x"), places["run_stop"], "success or aborted", '"x"'),
        ("hyperparameter-fixed", description("opt_adamw_epsilon", 1e-8), None, "1e-05", "1e-08"),
        ("hyperparameter-warmup", description("opt_learning_rate_warmup_steps", -1), None, "0 to 1200000", "-1"),
        ("samples-count", samples_of("run_stop", 0, 5), places["run_stop"], str(12_288 * 16), "5"),
        (
            "samples-count",
            samples_of("eval_accuracy", 2, 5),
            number_of(log, "eval_accuracy", 2),
            "more than 24576",
            "5",
        ),
        ("eval-cadence", without_evaluation, number_of(log, "eval_accuracy", 4) - 5, str(12_288 * 4), str(12_288 * 5)),
        ("eval-size", metadata("eval_stop", 0, eval_samples=5), places["eval_accuracy"] + 1, "1024", "5"),
        ("batch-arithmetic", description("micro_batch_size", 3), None, "a multiple of 3", "16"),
        ("hyperparameter-number", description("opt_base_learning_rate", -1), None, "a positive number", "-1"),
        ("hyperparameter-number", description("opt_end_learning_rate", -1), None, "a non-negative number", "-1"),
        ("hyperparameter-number", description("micro_batch_size", 0), None, "a whole number >= 1", "0"),
        ("clock-init-limit", long_gap_before_run_start, number_of(log, "run_start"), "at most 30 minutes", None),
        ("time-unit", in_seconds, 1, "more than 100000000000", None),
    ]
    for rule, change, place, expected, got in cases:
        (found,) = findings_of(change, rule)
        assert place is None or found.line == place, rule
        assert expected is None or found.expected == expected, rule
        assert got is None or found.got == got, rule
    assert "than in line 8" in findings_of(again("seed", 1), "record-conflict")[0].message
    (found,) = findings_of(lambda log: log.drop("block_stop", 2), "eval-balance")
    assert f"(line {number_of(log, 'block_start', 2)})" in found.message
    assert found.line == number_of(log, "block_start", 3) - 1


def test_a_corrupt_record_is_quoted_with_its_line() -> None:
    log = compliant_log()
    (found,) = findings_of(cut, "record-corrupt")
    assert found.line == number_of(log, "tracked_stats", 4)
    assert found.got is not None and "namespace" in found.got


def test_times_begin_in_1973_and_end_before_nothing() -> None:
    assert judged(compliant_log(start_ms=100_000_000_001)).findings == ()
    found = judged(compliant_log(start_ms=100_000_000_000))
    assert fired(found.findings) == {"time-unit"} and len(found.findings) == 1
    assert found.summary.minutes is None
    log = compliant_log()
    log.find("train_loss")["time_ms"] //= 1000
    assert judged(log).summary.minutes is None


def test_an_empty_submission_status_is_a_warning() -> None:
    for value in ("", None, 5):
        (found,) = findings_of(description("submission_status", value), "submission-identity")
        assert found.severity is Severity.WARNING
    assert judged(compliant_log().set("submission_status", "")).summary.status is Status.CONVERGED


COUNTS = (
    "global_batch_size", "gradient_accumulation_steps", "micro_batch_size", "tensor_parallelism",
    "pipeline_parallelism", "context_parallelism", "expert_parallelism", "max_sequence_length", "train_samples",
    "eval_samples", "max_steps", "opt_learning_rate_decay_steps", "init_checkpoint_step",
)  # fmt: skip
REALS = (
    "opt_base_learning_rate", "opt_adamw_epsilon", "opt_gradient_clip_norm", "target_accuracy",
    "opt_end_learning_rate", "opt_adamw_beta_1", "opt_adamw_beta_2", "opt_adamw_weight_decay",
)  # fmt: skip


@pytest.mark.parametrize("key", COUNTS + REALS)
def test_a_number_is_a_number(key: str) -> None:
    for value in ("many", None, True, [1], math.nan, -math.inf):
        log = compliant_log(64).set(key, value)
        assert fired(judged(log).findings) == {"hyperparameter-number"}, value
    bad = [-1, 1.5] if key in COUNTS else [-0.1]
    # Steps may be none, and so may an end rate, a beta or the weight decay.
    none_is_fine = COUNTS[-2:] + REALS[-4:]
    for value in bad if key in none_is_fine else [*bad, 0]:
        assert "hyperparameter-number" in fired(judged(compliant_log(64).set(key, value)).findings), value
    if key in none_is_fine:
        assert "hyperparameter-number" not in fired(judged(compliant_log(64).set(key, 0)).findings)


@pytest.mark.parametrize("key", COUNTS)
def test_a_whole_number_may_be_written_with_a_point(key: str) -> None:
    log = compliant_log(64)
    log.set(key, float(log.find(key)["value"]))
    found = judged(log)
    assert found.findings == ()
    assert found.summary.global_batch_size == 64


@pytest.mark.parametrize("value", [2**63, 10**300, 10**400, -(2**70)], ids=["2^63", "10^300", "10^400", "-2^70"])
def test_huge_integers_are_judged_like_any_other(value: int) -> None:
    for key in (*COUNTS, "opt_learning_rate_warmup_steps"):
        found = judged(compliant_log(64).set(key, value), machine=Machine(8, "systems/x.json"))
        fine = key == "train_samples" and 0 < value < 10**400
        assert found.summary.status is (Status.CONVERGED if fine else Status.INVALID), key


@pytest.mark.parametrize("value", [2**63, 10**300, 10**400, -(2**70), 1e308], ids=lambda value: f"{str(value)[:5]}...")
def test_huge_samples_are_judged_like_any_other(value: float) -> None:
    for key, n, wrong in (("eval_accuracy", 2, {"samples-count"}), ("run_stop", 0, {"samples-count"}),
                          ("block_stop", 2, {"samples-count"})):  # fmt: skip
        log = compliant_log(64)
        log.find(key, n)["metadata"]["samples_count"] = value
        assert fired(judged(log).findings) == wrong, key
    log = compliant_log(64)
    log.find("train_loss", LAST)["metadata"]["samples_count"] = value
    assert fired(judged(log).findings) & {"schedule-rate", "train-loss-value"}


@pytest.mark.parametrize(("warmup", "decay"), [(0, 1_200_000), (1, 1_199_999), (1_200_000, 0)])
def test_a_warm_up_may_be_none_or_the_whole_run(warmup: int, decay: int) -> None:
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


def test_the_warm_up_is_within_the_logged_steps() -> None:
    log = compliant_log(division="open").set("max_steps", 5000).set("opt_learning_rate_warmup_steps", 6000)
    (found,) = (each for each in judged(log).findings if each.rule == "hyperparameter-warmup")
    assert (found.expected, found.got) == ("0 to 5000", "6000")


@pytest.mark.parametrize(("factor", "fine"), [(1 + 5e-7, True), (1 - 5e-7, True), (1 + 2e-6, False), (1 - 2e-6, False)])
def test_the_end_rate_is_a_tenth_to_a_millionth(factor: float, fine: bool) -> None:
    log = compliant_log(end_learning_rate=4e-5 * factor)
    assert fired(judged(log).findings) == (set() if fine else {"hyperparameter-end-rate"})


def test_without_a_base_rate_the_end_rate_is_nobody_s_tenth() -> None:
    assert findings_of(description("opt_base_learning_rate", 0), "hyperparameter-end-rate") == []


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
        # Expert parallel is over data x tensor x context parallel ranks: 4 x 2 are enough for 8, ...
        (16, {"tensor_parallelism": 2, "gradient_accumulation_steps": 2}, 8, set()),
        (16, {"context_parallelism": 2, "gradient_accumulation_steps": 2}, 8, set()),
        # ... 4 of one stage of two are not, nor are 12.
        (16, {"pipeline_parallelism": 2, "gradient_accumulation_steps": 2}, 8, {"parallel-sizes"}),
        (48, {"gradient_accumulation_steps": 2}, 12, {"parallel-sizes"}),
    ],
)  # fmt: skip
def test_sizes_fit_the_machine(gbs: int, changes: dict[str, int], accelerators: int, wrong: set[str]) -> None:
    log = compliant_log(gbs)
    for key, value in changes.items():
        log.set(key, value)
    assert fired(judged(log, machine=Machine(accelerators, "systems/x.json")).findings, Severity.ERROR) == wrong


@pytest.mark.parametrize(
    ("division", "key", "value", "fine"),
    [
        ("closed", "tensor_parallelism", 8, True), ("open", "tensor_parallelism", 16, True),
        ("closed", "pipeline_parallelism", 5, True), ("closed", "pipeline_parallelism", 24, True),
        ("closed", "pipeline_parallelism", 25, False), ("open", "pipeline_parallelism", 32, True),
        ("closed", "expert_parallelism", 4, True), ("closed", "expert_parallelism", 1, True),
    ],
)  # fmt: skip
def test_sizes_fit_the_model_of_the_closed_division(division: str, key: str, value: int, fine: bool) -> None:
    log = compliant_log(division=division).set(key, value)
    assert fired(judged(log).findings) == (set() if fine else {"parallel-sizes"})


def test_the_ranks_that_the_batch_sizes_imply_only_warn() -> None:
    log = compliant_log(32).set("expert_parallelism", 16)  # 32 = 2 x 2 x 8
    assert fired(judged(log).findings, Severity.WARNING) == {"parallel-sizes"}
    assert fired(judged(log).findings, Severity.ERROR) == set()
    assert fired(judged(log, machine=Machine(8, "systems/x.json")).findings, Severity.ERROR) == {"parallel-sizes"}


EVALUATION = ("block_start", "eval_start", "eval_accuracy", "eval_stop", "block_stop")


def test_evaluations_may_be_logged_twice() -> None:
    """By a second logger, a few milliseconds later, from another line of another file."""
    log = compliant_log()
    for key in (*EVALUATION, "seed", "run_stop"):
        for n in reversed(range(len(log.all(key)))):
            repeated(log, key, n, later_ms=5, file="other.py", lineno=1)
    assert judged(log).findings == ()


@pytest.mark.parametrize(
    ("later_ms", "changes", "fine"),
    [(0, {}, True), (999, {}, True), (1000, {}, True), (1001, {}, False), (0, {"samples_count": 7}, False)],
)
def test_the_same_evaluation_twice_is_one_within_a_second(later_ms: int, changes: dict[str, int], fine: bool) -> None:
    found = findings_of(lambda log: repeated(log, "eval_accuracy", 3, later_ms, **changes), "samples-count")
    assert (found == []) is fine


def test_two_losses_of_one_evaluation_are_two_evaluations() -> None:
    def second_loss(log: MadeLog) -> None:
        repeated(log, "eval_accuracy", 3, later_ms=0)
        log.find("eval_accuracy", 4)["value"] += 1e-7

    assert len(findings_of(second_loss, "samples-count")) == 1


def by_ranks(log: MadeLog, offsets: Sequence[int], prefix: str, keys: Sequence[str] = ()) -> bytes:
    """Every record, or those of some keys, from several ranks whose clocks are off by so many milliseconds."""
    lines = []
    for record in log.events:
        for rank, offset in enumerate(offsets):
            if rank == 0 or not keys or record["key"] in keys:
                lines.append(f"{prefix.format(rank)}{line({**record, 'time_ms': record['time_ms'] + offset})}\n")
    return "".join(lines).encode()


@pytest.mark.parametrize("prefix", ["{}: ", "{}:", " {}: ", "[{}]: ", "[rank{}]: ", "node1: {}: "])
@pytest.mark.parametrize("offsets", [(0, 300, -300), (40, 0, -960)], ids=str)
def test_several_ranks_log_one_run(prefix: str, offsets: tuple[int, ...]) -> None:
    log = compliant_log(64)
    found = judged(by_ranks(log, offsets, prefix))
    assert found.findings == ()
    assert found.summary.seed == judged(log).summary.seed
    assert len(found.summary.evaluations) == 25


def test_without_prefixes_a_second_run_start_is_a_second_run() -> None:
    content = by_ranks(compliant_log(64), (0, 300), "")
    assert fired(judged(content).findings) == {"clock-run-start"}
    # The very same line again is a copy of the output, and other keys may come from any rank.
    assert judged(by_ranks(compliant_log(64), (0, 0), "")).findings == ()
    assert judged(by_ranks(compliant_log(64), (0, 300), "", keys=EVALUATION)).findings == ()


@pytest.mark.parametrize(("later_ms", "fine"), [(1000, True), (1001, False), (-1000, True)])
def test_ranks_start_the_clock_within_a_second(later_ms: int, fine: bool) -> None:
    content = by_ranks(compliant_log(64), (0, later_ms), "{}: ", keys=("run_start",))
    assert fired(judged(content).findings) == (set() if fine else {"clock-run-start"})


def test_a_run_may_be_over_in_no_time() -> None:
    """Records that differ in samples alone are not the same, however close they are."""
    log = compliant_log(64)
    start = log.find("run_start")["time_ms"]
    for record in log.events[log.index("run_start") :]:
        record["time_ms"] = start + (record["time_ms"] - start) // 1_000_000
    assert judged(log).findings == ()


def test_one_missing_evaluation_is_one_finding_and_two_in_a_row_are_one() -> None:
    log = compliant_log()
    without_evaluation(log, 5)
    without_evaluation(log, 5)
    without_evaluation(log, 9)
    found = [finding.message for finding in judged(log).findings]
    assert found == [
        "2 evaluation(s) missing: one is due every 12,288 samples",
        "1 evaluation(s) missing: one is due every 12,288 samples",
    ]


@pytest.mark.parametrize("key", ["block_stop", "epoch_stop", "run_stop", "train_loss"])
@pytest.mark.parametrize(("intervals", "fine"), [(1, True), (2, False)])
def test_whatever_counts_further_samples_shows_that_an_evaluation_is_missing(
    key: str, intervals: int, fine: bool
) -> None:
    """The run may be aborted when the next evaluation is due, not after it."""
    log = compliant_log(converged=False)
    for record in log.all("train_loss"):
        del record["metadata"]["lr"]
    if key == "epoch_stop":
        log.find("block_start", LAST)["key"], log.find("block_stop", LAST)["key"] = "epoch_start", "epoch_stop"
    log.find(key, LAST)["metadata"]["samples_count"] = log.find("run_stop")["metadata"]["samples_count"] + (
        intervals * 12_288
    )
    found = [finding for finding in judged(log).findings if finding.rule == "eval-cadence"]
    assert [finding.got for finding in found] == (
        [] if fine else [str(log.find("eval_accuracy", LAST)["metadata"]["samples_count"])]
    )


def test_an_aborted_run_without_evaluations() -> None:
    log = drop_all(compliant_log(converged=False), "eval_start", "eval_accuracy", "eval_stop")
    assert fired(judged(log, in_set=False).findings) == {"record-required", "eval-cadence", "run-not-converged"}


def test_an_aborted_run_may_end_within_a_block_or_an_evaluation() -> None:
    assert fired(judged(compliant_log(converged=False).drop("block_stop", LAST)).findings) == set()
    assert fired(judged(compliant_log(converged=False).drop("eval_stop", LAST)).findings) == set()


@pytest.mark.parametrize(
    ("samples", "rules"),
    [(None, {"samples-count"}), ("many", {"samples-count"}), (12_288.5, {"samples-count"}), (12_288 * 21.0, set())],
)
def test_run_stop_counts_samples_in_an_aborted_run_as_well(samples: object, rules: set[str]) -> None:
    log = compliant_log(converged=False)
    log.find("run_stop")["metadata"]["samples_count"] = samples
    assert fired(judged(log).findings) == rules


def test_run_stop_without_samples_is_a_warning() -> None:
    log = compliant_log()
    del log.find("run_stop")["metadata"]["samples_count"]
    found = judged(log)
    assert [(finding.rule, finding.severity) for finding in found.findings] == [("samples-count", Severity.WARNING)]
    assert found.summary.status is Status.CONVERGED


def test_samples_grow_over_what_cannot_be_read() -> None:
    log = compliant_log()
    samples_of("eval_accuracy", 3, "x")(log)
    samples_of("eval_accuracy", 4, 12_288 * 3)(log)
    assert [finding.got for finding in judged(log).findings if finding.rule == "samples-count"] == ['"x"', "36864"]


def test_negative_samples_are_no_count() -> None:
    (found,) = findings_of(samples_of("eval_accuracy", 0, -12_288), "samples-count")
    assert "not a whole number of samples" in found.message


def test_an_aborted_run_that_passed_did_not_converge() -> None:
    log = compliant_log()
    log.find("run_stop")["metadata"]["status"] = "aborted"
    alone = judged(log, in_set=False)
    assert fired(alone.findings) == {"run-not-converged"}
    assert alone.findings[0].got == f"{log.find('eval_accuracy', LAST)['value']}"
    assert alone.findings[0].line == number_of(log, "run_stop")
    assert judged(log).findings == ()
    assert judged(log).summary.status is Status.NOT_CONVERGED


def test_a_run_of_unknown_status_is_not_said_to_be_aborted() -> None:
    log = compliant_log()
    del log.find("run_stop")["metadata"]["status"]
    assert fired(judged(log, in_set=False).findings) == {"record-metadata"}


def test_what_goes_on_after_the_target_is_named_from_its_first_record_to_its_last() -> None:
    log = compliant_log().set("eval_accuracy", 3.34, 5)
    (found,) = judged(log).findings
    assert found.line == next(
        number for number, record in enumerate(log.events, 1)
        if record["key"] == "train_loss" and number > number_of(log, "eval_accuracy", 5)
    )  # fmt: skip
    assert found.got == str(16 * 12_288)
    assert found.expected is not None and str(6 * 12_288) in found.expected
    drop_all(log, "train_loss")
    (found, _) = judged(log).findings  # and rates that are not verifiable
    assert (found.line, found.got) == (number_of(log, "block_stop", 6), str(16 * 12_288))
    once = compliant_log()
    train_on(once)
    line_of_first = number_of(once, "train_loss", LAST)
    repeated(once, "train_loss", LAST, later_ms=0, samples_count=16 * 12_288 + 32)
    (found,) = findings_of(lambda log: once.text().encode(), "eval-after-target")
    assert (found.line, found.got) == (line_of_first, str(16 * 12_288 + 32))


def test_an_evaluation_that_comes_again_late_is_not_trained_late() -> None:
    def late(log: MadeLog) -> None:
        log.find("run_stop")["time_ms"] += 5000
        repeated(log, "eval_accuracy", LAST, later_ms=1500)

    assert findings_of(late, "eval-after-target") == []
    assert len(findings_of(late, "samples-count")) == 1


def test_a_last_evaluation_that_fails_after_one_that_passed() -> None:
    log = compliant_log().set("eval_accuracy", 3.33, LAST - 1).set("eval_accuracy", 3.35, LAST)
    assert fired(judged(log).findings) == {"eval-after-target", "eval-target"}


def test_losses_that_come_late_are_not_trained_late() -> None:
    """Those of the last steps, and of steps before, logged after the evaluation that passes; others count too much."""
    log = compliant_log()
    for n in (LAST, 40):
        late = {**log.find("train_loss", n), "time_ms": log.find("run_stop")["time_ms"]}
        log.insert_before("run_stop", 0, late)
    assert judged(log).findings == ()
    for record in log.all("train_loss"):
        record["metadata"].pop("lr", None)
    log.find("train_loss", 20)["metadata"]["samples_count"] = 10**9
    assert fired(judged(log).findings) == set()


def test_the_target_is_met_at_3_34_exactly() -> None:
    for division in ("closed", "open"):
        log = compliant_log(division=division).set("eval_accuracy", 3.34, LAST)
        assert judged(log).findings == ()
    log.set("target_accuracy", 3.3)
    assert fired(judged(log).findings) == {"eval-target"}


def test_the_closed_division_declares_no_target() -> None:
    log = compliant_log().set("target_accuracy", 3.4).set("eval_accuracy", 3.39, LAST)
    assert fired(judged(log).findings) == {"hyperparameter-fixed", "eval-target"}


def test_another_division_is_judged_as_closed() -> None:
    for division in ("Open", "open ", None, "network"):
        log = compliant_log().set("submission_division", division).set("eval_samples", 2048)
        assert fired(judged(log).findings) == {"submission-division", "eval-size"}


def test_the_open_division_takes_the_samples_that_it_declares() -> None:
    log = compliant_log(division="open").set("eval_samples", 512)
    for record in log.all("eval_start"):
        record["metadata"]["eval_samples"] = 512
    assert judged(log).findings == ()
    log.find("eval_start", 3)["metadata"]["eval_samples"] = 1024
    assert fired(judged(log).findings) == {"eval-size"}


def test_the_open_division_has_a_schedule_and_steps_of_its_own() -> None:
    log = compliant_log(division="open").set("max_steps", 50_000).set("opt_learning_rate_decay_steps", 49_872)
    for record in log.all("train_loss"):
        step = record["metadata"]["samples_count"] // 16
        record["metadata"]["lr"] = learning_rate(step - 1, 4e-4, 4e-5, 128, 50_000)
    assert judged(log).findings == ()
    log.set("opt_learning_rate_decay_schedule", "constant")
    for record in log.all("train_loss"):
        record["metadata"]["lr"] = 4e-4
    assert judged(log).findings == ()


def test_the_open_division_s_best_loss_is_a_loss_of_a_run_that_succeeded() -> None:
    log = compliant_log(division="open").set("target_accuracy", 3.345).set("eval_accuracy", 3.342, LAST)
    log.set("eval_accuracy", -1.0, 2)
    found = judged(log).findings
    assert fired(found) == {"open-division", "eval-loss"}
    (found_3_34,) = (finding for finding in found if finding.rule == "open-division")
    assert (found_3_34.line, found_3_34.got) == (number_of(log, "eval_accuracy", LAST), "3.342")
    assert judged(compliant_log(division="open", converged=False)).findings == ()


def test_an_evaluation_of_the_untrained_model_is_no_interval() -> None:
    log = compliant_log(division="open")
    evaluation_at_zero(log)
    assert judged(log).run.eval_interval_samples is None


def test_rates_are_compared_where_there_are_any() -> None:
    log = compliant_log()
    for n in (0, 1, 5, 6):
        del log.find("train_loss", n)["metadata"]["lr"]
    del log.find("train_loss", 9)["metadata"]["samples_count"]
    assert judged(log).findings == ()
    wrong_rate(log)
    (found,) = judged(log).findings
    assert found.rule == "schedule-rate" and found.line == number_of(log, "train_loss", 20)
    assert found.expected == f"{log.find('train_loss', 20)['metadata']['lr'] / 1.001:.10g}"


def test_of_many_findings_of_a_kind_twenty_are_listed() -> None:
    found = findings_of(constant_rate, "schedule-rate")
    assert len(found) == 21
    assert all("contradicts" in finding.message for finding in found[:20])
    assert "not listed" in found[20].message and found[20].line is None
    assert (
        len(findings_of(lambda log: [each.update(value=-1.0) for each in log.all("train_loss")], "train-loss-value"))
        == 21
    )


# ---------- the clock


def test_cache_clear_false_is_an_error_unless_the_division_is_open() -> None:
    for division, value, weight in (
        ("closed", False, Severity.ERROR), ("open", False, Severity.WARNING), ("open", "no", Severity.ERROR),
        ("open", 0, Severity.ERROR),
    ):  # fmt: skip
        (found,) = findings_of(description("cache_clear", value), "cache-clear", division=division)
        assert found.severity is weight


@pytest.mark.parametrize(("key", "change"), [("init_stop", 1000), ("init_start", 1000)])
def test_milliseconds_of_disorder_are_jitter(key: str, change: int) -> None:
    log = compliant_log()
    after = log.find("init_stop" if key == "init_start" else "run_start")["time_ms"]
    log.find(key)["time_ms"] = after + change
    assert [finding for finding in judged(log).findings if finding.rule == "clock-order"] == []
    log.find(key)["time_ms"] = after + change + 1
    assert "clock-order" in fired(judged(log).findings)


@pytest.mark.parametrize(("division", "minutes"), [("closed", 30), ("open", 240)])
def test_initialisation_may_take_so_many_minutes_to_the_millisecond(division: str, minutes: int) -> None:
    for more, fine in ((0, True), (1, False)):
        log = compliant_log(division=division)
        took = log.find("run_start")["time_ms"] - log.find("init_start")["time_ms"]
        log.shift(log.index("run_start"), minutes * 60_000 - took + more)
        assert fired(judged(log).findings) == (set() if fine else {"clock-init-limit"})


@pytest.mark.parametrize(
    "key",
    ["block_start", "block_stop", "eval_start", "eval_accuracy", "eval_stop", "eval_tokens_sha256", "tracked_stats"],
)
def test_nothing_happens_before_the_clock_starts(key: str) -> None:
    assert len(findings_of(before_the_clock(key), "clock-run-start")) == 1
    # Another rank's line may come first in the file, if it happens later.
    assert findings_of(before_the_clock(key, early_ms=-1), "clock-run-start") == []


def test_the_clock_starts_before_the_first_of_them() -> None:
    log = compliant_log()
    late_start(log)
    (found,) = judged(log).findings
    assert found.line == number_of(log, "eval_tokens_sha256")
    together = compliant_log()
    for key in ("eval_tokens_sha256", "block_start"):
        together.find(key)["time_ms"] = together.find("run_start")["time_ms"]
    assert judged(together).findings == ()


def test_the_clock_may_stop_with_the_pass_and_60_seconds_after_it() -> None:
    for later_ms in (0, 60_000):
        assert judged(stop_at_the_pass(compliant_log(), later_ms)).findings == ()
    (found,) = judged(stop_at_the_pass(compliant_log(), 60_001)).findings
    assert (found.rule, found.severity, found.got) == ("clock-stop-late", Severity.WARNING, "60.0")


def test_an_aborted_run_stops_after_it_starts() -> None:
    log = compliant_log(converged=False)
    log.find("run_stop")["time_ms"] = log.find("run_start")["time_ms"] - 1
    assert fired(judged(log).findings) == {"clock-run-stop"}
    at_once = compliant_log(converged=False)
    del at_once.events[at_once.index("run_start") + 1 : at_once.index("run_stop")]
    at_once.find("run_stop")["time_ms"] = at_once.find("run_start")["time_ms"]
    assert "clock-run-stop" not in fired(judged(at_once).findings)


def test_the_clock_stops_late_after_whichever_evaluation_is_the_latest() -> None:
    log = compliant_log().set("eval_accuracy", 3.3, LAST - 1)
    for key in ("eval_start", "eval_accuracy", "eval_stop"):
        log.find(key, LAST)["time_ms"] -= HUNDRED_MINUTES
    log.find("run_stop")["time_ms"] = log.find("eval_accuracy", LAST - 1)["time_ms"] + 60_000
    assert fired(judged(log).findings, Severity.WARNING) == set()


@pytest.mark.parametrize("key", ["train_samples", "micro_batch_size", "opt_name", "config_filename"])
def test_descriptions_after_run_stop_are_warnings(key: str) -> None:
    log = compliant_log()
    record = log.events.pop(log.index(key))
    log.events.append({**record, "time_ms": last_line(log)})
    assert [(finding.rule, finding.severity) for finding in judged(log).findings] == [
        ("clock-after-stop", Severity.WARNING)
    ]


@pytest.mark.parametrize(("back_ms", "fine"), [(999, True), (1000, True), (1001, False)])
def test_the_clock_may_jump_back_by_a_second(back_ms: int, fine: bool) -> None:
    for key in ("tracked_stats", "eval_start", "train_loss"):
        log = compliant_log()
        place = log.index(key, 3)
        log.events[place]["time_ms"] = log.events[place - 1]["time_ms"] - back_ms
        assert fired(judged(log).findings) == (set() if fine else {"clock-backwards"}), key


@pytest.mark.parametrize("stretch", [3, 8, 1 << 16])
def test_one_jump_back_is_one_finding_at_its_line(stretch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_STRETCH", stretch)
    assert judged(compliant_log(64)).findings == ()
    log = compliant_log()
    log.shift(log.index("eval_start", 6), -HUNDRED_MINUTES)
    (found,) = (each for each in judged(log).findings if each.rule == "clock-backwards")
    assert (found.line, found.got) == (number_of(log, "eval_start", 6), '"6000.0 s"')
    creeping = compliant_log()
    first = creeping.find("train_loss", 25)["time_ms"]
    for n in (1, 2, 3):
        creeping.find("train_loss", 25 + n)["time_ms"] = first - 600 * n
    (found,) = judged(creeping).findings
    assert (found.line, found.got) == (number_of(creeping, "train_loss", 27), '"1.2 s"')
    twice = compliant_log()
    for key, n in (("tracked_stats", 2), ("train_loss", 60), ("block_stop", 9)):
        set_time(key, n, -HUNDRED_MINUTES)(twice)
    assert [each.line for each in judged(twice).findings if each.rule == "clock-backwards"] == [
        number_of(twice, "tracked_stats", 2), number_of(twice, "train_loss", 60), number_of(twice, "block_stop", 9)
    ]  # fmt: skip
