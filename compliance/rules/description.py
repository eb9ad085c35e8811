"""Rules on what the log says of the run: submission, hyperparameters, sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from .. import benchmark
from ..findings import Severity
from ..run import Run, finite_float, whole_number
from .rule import Problem, Rule, rule

_CLOSED = ("closed",)
_YAML = "mlperf-logging 4.1.68, compliance_checker/training_6.x.0/closed_gpt_oss_20b.yaml"
_COMMON = "mlperf-logging 4.1.68, compliance_checker/training_6.x.0/common.yaml"
_RULES = "training rules, Hyperparameters"

# Whole numbers of at least so much; real numbers above or at so much.
_COUNTS = {
    "global_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "micro_batch_size": 1,
    "tensor_parallelism": 1,
    "pipeline_parallelism": 1,
    "context_parallelism": 1,
    "expert_parallelism": 1,
    "max_sequence_length": 1,
    "train_samples": 1,
    "eval_samples": 1,
    "max_steps": 1,
    "opt_learning_rate_decay_steps": 0,
    "init_checkpoint_step": 0,
}
_POSITIVE = ("opt_base_learning_rate", "opt_adamw_epsilon", "opt_gradient_clip_norm", "target_accuracy")
_NOT_NEGATIVE = ("opt_end_learning_rate", "opt_adamw_beta_1", "opt_adamw_beta_2", "opt_adamw_weight_decay")


@rule("submission-benchmark", Severity.ERROR, _COMMON)
def submission_benchmark(run: Run) -> Iterator[Problem]:
    """submission_benchmark is `gpt_oss_20b`, with underscores."""
    for record in run.all("submission_benchmark"):
        if record.value != benchmark.NAME:
            message = "submission_benchmark names another benchmark, or this one misspelt"
            yield Problem(message, record.line, expected=benchmark.NAME, got=record.value)


@rule("submission-division", Severity.ERROR, _COMMON)
def submission_division(run: Run) -> Iterator[Problem]:
    """submission_division is `closed` or `open`; any other is judged as closed."""
    for record in run.all("submission_division"):
        if record.value not in ("closed", "open"):
            message = "submission_division is neither closed nor open"
            yield Problem(message, record.line, expected="closed or open", got=record.value)


@rule("submission-identity", Severity.ERROR, _COMMON)
def submission_identity(run: Run) -> Iterator[Problem]:
    """submission_org, _platform and _status and config_filename are words, and not empty."""
    for key in ("submission_org", "submission_platform", "submission_status", "config_filename"):
        for record in run.all(key):
            # The published reference logs have an empty submission_status, and the official checker takes it.
            severity = Severity.WARNING if key == "submission_status" else None
            if not isinstance(record.value, str) or not record.value.strip():
                yield Problem(f"{key} is empty", record.line, expected="a name", got=record.value, severity=severity)


@rule("hyperparameter-number", Severity.ERROR, _COMMON)
def hyperparameter_number(run: Run) -> Iterator[Problem]:
    """Where a number belongs there is a finite number, whole where it counts something, and not negative.

    Whole numbers may be written 16 or 16.0.
    """
    for key, least in _COUNTS.items():
        for record in run.all(key):
            number = whole_number(record.value)
            if number is None or number < least:
                message = f"{key} is not a whole number of at least {least}"
                yield Problem(message, record.line, expected=f"a whole number >= {least}", got=record.value)
    for key in (*_POSITIVE, *_NOT_NEGATIVE):
        for record in run.all(key):
            real = finite_float(record.value)
            if real is None or real < 0 or (real == 0 and key in _POSITIVE):
                sign = "positive" if key in _POSITIVE else "non-negative"
                message = f"{key} is not a {sign} finite number"
                yield Problem(message, record.line, expected=f"a {sign} number", got=record.value)


@rule("hyperparameter-fixed", Severity.ERROR, f"{_RULES}; {_YAML}", _CLOSED)
def hyperparameter_fixed(run: Run) -> Iterator[Problem]:
    """The closed division fixes optimizer, betas, epsilon, decay, clipping, schedule, max_steps and sequence length.

    opt_learning_rate_decay_steps is max_steps less the warm-up; target_accuracy, where logged, is 3.34.
    """
    expected = {**benchmark.FIXED, "target_accuracy": benchmark.TARGET_LOSS}
    warmup = run.count("opt_learning_rate_warmup_steps")
    if warmup is not None and 0 <= warmup <= benchmark.MAX_STEPS:
        expected["opt_learning_rate_decay_steps"] = benchmark.MAX_STEPS - warmup
    for key, wanted in expected.items():
        for record in run.all(key):
            number = finite_float(record.value)
            wrong = record.value != wanted if isinstance(wanted, str) else number is not None and number != wanted
            if wrong:
                message = f"{key} is fixed in the closed division"
                yield Problem(message, record.line, expected=str(wanted), got=record.value)


@rule("hyperparameter-end-rate", Severity.ERROR, f"{_RULES}; gpt_oss_20b reference configuration", _CLOSED)
def hyperparameter_end_rate(run: Run) -> Iterator[Problem]:
    """opt_end_learning_rate is 0.1 x opt_base_learning_rate; ruleset 6.0.0 alone also takes 4e-5.

    The official rule files check neither.
    """
    base, end = run.number("opt_base_learning_rate"), run.number("opt_end_learning_rate")
    record = run.first("opt_end_learning_rate")
    if base is None or end is None or record is None or base <= 0 or end < 0:
        return
    allowed = [benchmark.END_RATE_RATIO * base, *([benchmark.OLD_END_RATE] if run.ruleset == "6.0.0" else [])]
    if not any(math.isclose(end, rate, rel_tol=1e-6) for rate in allowed):
        words = " or ".join(f"{rate:.6g}" for rate in allowed)
        message = "the end learning rate is not a tenth of the base learning rate"
        yield Problem(message, record.line, expected=words, got=record.value)


@rule("hyperparameter-warmup", Severity.ERROR, f"{_RULES}; {_YAML}")
def hyperparameter_warmup(run: Run) -> Iterator[Problem]:
    """opt_learning_rate_warmup_steps is a whole number from 0 to max_steps."""
    last = run.count("max_steps")
    for record in run.all("opt_learning_rate_warmup_steps"):
        steps = whole_number(record.value)
        if steps is None or steps < 0 or (last is not None and steps > last):
            message = "the warm-up is not a whole number of steps within the run"
            yield Problem(message, record.line, expected=f"0 to {last or benchmark.MAX_STEPS}", got=record.value)


@rule("init-checkpoint", Severity.ERROR, "training rules, Pre-training is not allowed")
def init_checkpoint(run: Run) -> Iterator[Problem]:
    """init_checkpoint_step is 0: training starts from random weights."""
    for record in run.all("init_checkpoint_step"):
        step = whole_number(record.value)
        if step is not None and step > 0:
            message = "the run does not start from random weights"
            yield Problem(message, record.line, expected="0", got=record.value)


@rule("batch-arithmetic", Severity.ERROR, "gpt_oss_20b reference configuration")
def batch_arithmetic(run: Run) -> Iterator[Problem]:
    """global_batch_size = micro_batch_size x gradient_accumulation_steps x data parallel size.

    The data parallel size is known from a system description; without one, the product of the other two must divide
    the global batch size.
    """
    record = run.first("global_batch_size")
    batch, micro, steps = map(run.count, ("global_batch_size", "micro_batch_size", "gradient_accumulation_steps"))
    if record is None or batch is None or micro is None or steps is None or min(batch, micro, steps) < 1:
        return
    if run.machine is None:
        if batch % (micro * steps):
            message = f"global_batch_size is no multiple of micro batch {micro} x accumulation {steps}"
            yield Problem(message, record.line, expected=f"a multiple of {micro * steps}", got=batch)
    elif run.data_parallel is not None and batch != micro * steps * run.data_parallel:
        message = (
            f"global_batch_size is not micro batch {micro} x accumulation {steps} x data parallel {run.data_parallel} "
            f"({run.machine.accelerators} accelerators by {run.machine.source})"
        )
        yield Problem(message, record.line, expected=str(micro * steps * run.data_parallel), got=batch)


@rule("parallel-sizes", Severity.ERROR, "Megatron-Core parallel state; model of the gpt_oss_20b reference")
def parallel_sizes(run: Run) -> Iterator[Problem]:
    """Parallel sizes fit the model and the machine.

    Tensor parallel divides the 8 KV groups, pipeline parallel is at most 24 layers, expert parallel divides the 32
    experts, tensor x pipeline x context divides the accelerators, and expert parallel what is left of them per
    pipeline stage. In the open division the model may be another.
    """
    sizes = {kind: run.parallel(kind) for kind in ("tensor", "pipeline", "context", "expert")}

    def problem(kind: str, message: str, expected: str) -> Problem:
        record = run.first(f"{kind}_parallelism")
        return Problem(message, record.line if record else None, expected=expected, got=sizes[kind])

    if run.division == "closed":
        if benchmark.KV_GROUPS % sizes["tensor"]:
            yield problem("tensor", "tensor_parallelism does not divide the 8 KV groups", "1, 2, 4 or 8")
        if sizes["pipeline"] > benchmark.LAYERS:
            yield problem("pipeline", "more pipeline stages than the 24 layers", "at most 24")
        if benchmark.EXPERTS % sizes["expert"]:
            yield problem("expert", "expert_parallelism does not divide the 32 experts", "1, 2, 4, 8, 16 or 32")
    model = sizes["tensor"] * sizes["pipeline"] * sizes["context"]
    if run.machine is not None and run.machine.accelerators % model:
        message = f"tensor x pipeline x context parallelism of {model} does not divide the machine"
        record = run.first("tensor_parallelism")
        expected = f"a divisor of {run.machine.accelerators} accelerators ({run.machine.source})"
        yield Problem(message, record.line if record else None, expected=expected, got=model)
    elif run.data_parallel is not None and (run.data_parallel * model // sizes["pipeline"]) % sizes["expert"]:
        ranks = run.data_parallel * model // sizes["pipeline"]
        message = f"expert_parallelism does not divide the {ranks} ranks of a stage"
        found = problem("expert", message, f"a divisor of {ranks}")
        # Without a system description the ranks are only what the batch sizes imply.
        yield found if run.machine is not None else replace(found, severity=Severity.WARNING)


@rule("precision-name", Severity.ERROR, f"training rules, Numerical formats; {_COMMON}")
def precision_name(run: Run) -> Iterator[Problem]:
    """lowest_numerical_precision_in_linear, _in_attn and _in_comm are formats that the ruleset knows."""
    known = benchmark.PRECISIONS | benchmark.PRECISIONS_ADDED[run.ruleset]
    for part in ("linear", "attn", "comm"):
        key = f"lowest_numerical_precision_in_{part}"
        for record in run.all(key):
            if not isinstance(record.value, str) or record.value not in known:
                message = f"{key} is no format that ruleset {run.ruleset} knows"
                yield Problem(message, record.line, expected=", ".join(sorted(known)), got=record.value)


@rule("open-division", Severity.ERROR, "mlperf-logging 4.1.68, training_6.x.0/open_gpt_oss_20b.yaml", ("open",))
def open_division(run: Run) -> Iterator[Problem]:
    """Even the open division keeps sequence length 8192, adamw, and an evaluation at or below 3.34."""
    for key in ("max_sequence_length", "opt_name"):
        record = run.first(key)
        if record is not None and record.value != benchmark.FIXED[key]:
            message = f"{key} is fixed in the open division as well"
            yield Problem(message, record.line, expected=str(benchmark.FIXED[key]), got=record.value)
    best = min((each.loss for each in run.evaluations if each.loss > 0), default=None)
    if best is not None and run.run_status == "success" and best > benchmark.TARGET_LOSS:
        message = "no evaluation reaches 3.34, which the official checker wants whatever target the log declares"
        yield Problem(message, run.evaluations[-1].line, expected=f"<= {benchmark.TARGET_LOSS}", got=best)


RULES: tuple[Rule[Run], ...] = (
    submission_benchmark,
    submission_division,
    submission_identity,
    hyperparameter_number,
    hyperparameter_fixed,
    hyperparameter_end_rate,
    hyperparameter_warmup,
    init_checkpoint,
    batch_arithmetic,
    parallel_sizes,
    precision_name,
    open_division,
)
