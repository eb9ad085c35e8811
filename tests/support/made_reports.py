"""Reports made without logs: runs like the reference's, sets with figures, findings, and strategies for any report."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from compliance.benchmark import RULESETS
from compliance.findings import (
    Curve,
    Divergence,
    Evaluation,
    Finding,
    Official,
    OfficialResult,
    Phase,
    Rcp,
    RcpTest,
    Report,
    RunSummary,
    Score,
    SetResult,
    Severity,
    Spread,
    Status,
    Variance,
    Verdict,
)

INTERVAL, GBS, TARGET = 12_288, 32, 3.34
START_MS = 1_771_600_000_000.0
FOLDER = "results/big/gpt_oss_20b"
RULES = "training_rules.adoc, section 9.3"
# Evaluations until the first pass, of ten runs; olympic mean 19 x 12,288 = 233,472 samples.
LENGTHS = (19, 18, 20, 19, 21, 19, 18, 19, 20, 17)
PRUNED = RcpTest("interpolated", 230058.666667, 222720.776251, 233_472.0, True, 10751.223749, 1.0)
FULL = RcpTest("exact", 234837.333333, 229258.556210, 233_472.0, True, 4213.443790, 1.0)
MISSING = RcpTest("missing", None, None, 233_472.0, None, None, None)
NO_CURVE = Curve((), ())
HOSTILE_MARKUP = (
    "<script>alert('x')</script><img src=http://evil.example/x.png> & |a| `b` *c* [d](http://evil.example) $e$ _f_"
)


def made_run(
    index: int, length: int = 19, status: Status = Status.CONVERGED, *, folder: str = FOLDER, **changes: Any
) -> RunSummary:
    """Return a run of ``length`` evaluations; the last is the first pass, if it converged. Changes replace fields."""
    noise = random.Random(index)
    end = (3.36 if status is Status.NOT_CONVERGED else TARGET) - noise.uniform(0.001, 0.012)
    # The shape of the reference's curve: 5.26 at the first evaluation, 0.016 from one to the next at the target.
    losses = [end + 2.66 * (n**-0.429 - length**-0.429) for n in range(1, length + 1)]
    start = START_MS + index * 25_000_000.0
    block, evaluation = 1_080_000.0 + noise.uniform(-9_000, 9_000), 58_000.0
    phases, points, now = [Phase("init", start - 200_000, start)], [], start
    for n, loss in enumerate(losses, 1):
        phases += [Phase("training", now, now + block), Phase("evaluation", now + block, now + block + evaluation)]
        now += block + evaluation
        points.append(Evaluation(n * INTERVAL, loss, now, 100 * n))
    passed = losses[-1] <= TARGET
    steps = np.linspace(1, length * INTERVAL / GBS, 1000).round()
    samples, rates = tuple((steps * GBS).tolist()), tuple((8e-4 * np.minimum(steps / 128, 1)).tolist())
    run = RunSummary(
        file=f"{folder}/result_{index}.txt",
        status=status,
        seed=1000 + 7 * index,
        global_batch_size=GBS,
        learning_rate=8e-4,
        warmup_steps=128,
        samples_to_target=length * INTERVAL if passed else None,
        minutes=(now + 900 - start) / 60_000,
        minutes_to_target=(now - start) / 60_000 if passed else None,
        first_eval_loss=losses[0],
        final_eval_loss=losses[-1],
        target=TARGET,
        start_ms=start,
        division="closed",
        organisation="Example",
        platform="MI355X",
        evaluations=tuple(points),
        train_loss=Curve(samples, tuple(11.0 / (1 + count / 3e4) + 3 for count in samples)),
        logged_learning_rates=Curve(samples, rates),
        expected_learning_rates=Curve(samples, rates),
        phases=tuple(phases),
    )
    return replace(run, **changes)


def made_set(runs: Sequence[RunSummary] | None = None, name: str = FOLDER, **changes: Any) -> SetResult:
    """Return a set with its figures, of ten runs unless they are given; changes replace fields."""
    runs = tuple(made_run(i, n, folder=name) for i, n in enumerate(LENGTHS)) if runs is None else tuple(runs)
    by_time = sorted(runs, key=lambda run: run.minutes or math.inf)
    olympic = sum(run.minutes or 0 for run in by_time[1:-1]) / max(len(runs) - 2, 1)
    files, dropped = tuple(run.file for run in runs), (by_time[0].file, by_time[-1].file)
    score = Score(True, olympic, olympic * 1.25, 1.25, 233_472.0, 359.973, files, dropped)
    samples = Spread(10, 233_472.0, 12_953.1, 5.548, 208_896, 258_048, INTERVAL, 5.263)
    clock = Spread(10, 361.2, 10.1, 2.796, 322.5, 398.25, None, None)
    variance = Variance(5.0, "CV = sd / mean; sd with ddof 1. The limit is this project's.", samples, clock)
    return replace(SetResult(name, runs, score, variance, Rcp(GBS, PRUNED, FULL), INTERVAL), **changes)


def mixed_set() -> SetResult:
    """Return twelve runs: one did not converge, two are invalid, one has a hostile file name, the window has ten."""
    runs = [made_run(i, n) for i, n in enumerate((*LENGTHS, 22, 16))]
    runs[3] = made_run(3, 26, Status.NOT_CONVERGED)
    runs[5] = made_run(5, 19, Status.INVALID)
    runs[7] = made_run(7, 15, Status.INVALID, file="/a" * 300 + "/" + HOSTILE_MARKUP.replace("/", "") + ".txt")
    result = made_set(runs)
    assert result.score is not None
    return replace(result, score=replace(result.score, window=tuple(run.file for run in runs[1:11])))


def made_finding(rule: str = "some-rule", severity: Severity = Severity.ERROR, **changes: Any) -> Finding:
    """Return a finding of one file and line; changes replace fields."""
    message = f"{rule} is broken"
    finding = Finding(rule, severity, message, "logs/result_0.txt", 12, "expected value", "actual value", "6.1")
    return replace(finding, **changes)


def unverifiable(rule: str, message: str) -> Finding:
    """Return a finding about a point that no log proves."""
    return Finding(rule, Severity.UNVERIFIABLE, message, None, None, None, None, RULES)


UNVERIFIABLE = (
    unverifiable("dropout", "dropout is not in a log"),
    unverifiable("data-order", "the order of the training data"),
)


def made_report(*sets: SetResult, **changes: Any) -> Report:
    """Return a report that passes, without official verdicts; changes replace fields."""
    report = Report(
        command="check-set",
        ruleset="6.1.0",
        verdict=Verdict.PASS,
        findings=(),
        sets=sets,
        official=None,
        tool={"compliance": "0.1", "mlperf-logging": "4.1.68"},
        options={"runs": 10, "cv_limit": 5.0, "strict": False, "system": None},
    )
    return replace(report, **changes)


def passing_report(**changes: Any) -> Report:
    """Return the report of ten runs that pass, official tools included."""
    result = made_set()
    results = [OfficialResult("compliance_checker", run.file, "pass", (), 1.1) for run in result.runs]
    official = Official("4.1.68", "pass", (*results, OfficialResult("rcp_checker", FOLDER, "pass", (), 2.3)), ())
    return replace(made_report(result, findings=UNVERIFIABLE, official=official), **changes)


def failing_report() -> Report:
    """Return the report of ten runs that break rules alike, as the published reference logs do."""
    result = made_set()
    files = [run.file for run in result.runs]
    name = made_finding(
        "benchmark-name", message="the benchmark's name is spelt with underscores", line=27, expected="gpt_oss_20b",
        got="'gpt-oss-20b'", citation="closed_gpt_oss_20b.yaml",
    )  # fmt: skip
    late = made_finding("eval-after-pass", expected=None, got=None, citation=RULES)
    of_set: dict[str, Any] = {"file": None, "line": None}
    findings = (
        *(replace(name, file=file) for file in files),
        *(replace(late, file=files[n], line=301 + n, message=f"{n + 1} evaluations too many") for n in range(3)),
        made_finding("seed-repeated", message="two runs have seed 16979", expected="10 seeds", got="9", **of_set),
        made_finding("run-stop-late", Severity.WARNING, message="run_stop is late", file=files[1], line=412),
        made_finding("cv-limit", Severity.WARNING, message="the CV of the samples is high", **of_set),
        made_finding("window", Severity.INFO, message="all ten runs count", **of_set),
        *UNVERIFIABLE,
    )
    unknown = ("submission_benchmark: gpt-oss-20b not known",)
    official = Official(
        "4.1.68",
        "timeout",
        (
            *(OfficialResult("compliance_checker", file, "fail", unknown, 1.1) for file in files),
            OfficialResult("rcp_checker", FOLDER, "pass", (), 2.0),
            OfficialResult("package_checker", "results", "timeout", ("no answer within 120 s",), 120.0),
        ),
        (Divergence("rcp_checker", FOLDER, "fail", "pass", "it takes the evaluation of lowest loss"),),
    )
    invalid = tuple(replace(run, status=Status.INVALID) for run in result.runs)
    score = Score(False, None, None, 1.003889, 229_376.0, 359.9, tuple(files), ())
    failed = replace(result, runs=invalid, score=score)
    return made_report(failed, verdict=Verdict.FAIL, findings=findings, official=official)


# What logs, file names and tools could put into a report to break a format, a terminal or a parser.
HOSTILE_TEXTS = (
    "\x1b[31mred\x1b[2J", "\x9b31m", "\x00\x07\x08\x7f", "a\nb\r\nc\td", "[bold red]x[/bold red]", "[/]", "[link=x]y",
    ":smile:", "<b>&amp;]]>\"'", "<!--", "\ud800", "caf\udce9", "\ud83d\ude00", "\u202egnp.exe", "\ufffe\uffff",
    "\u2028", "\U0001f600", "漢字" * 30, "x" * 3000, "", "../../evil", "../\x1b]0;title\x07",
)  # fmt: skip
TEXTS = st.sampled_from(HOSTILE_TEXTS) | st.text(st.characters(exclude_categories=()), max_size=30)
# Fields of a report that are text are drawn from these.
st.register_type_strategy(str, TEXTS)


def short(strategy: st.SearchStrategy[Any], max_size: int = 2) -> st.SearchStrategy[tuple[Any, ...]]:
    """Return a strategy for short tuples."""
    return st.lists(strategy, max_size=max_size).map(tuple)


_RUNS = st.builds(
    RunSummary, seed=st.none() | st.integers() | st.sampled_from([10**15, -(10**300), 10**400]),
    evaluations=short(st.from_type(Evaluation)), phases=st.just(()), train_loss=st.just(NO_CURVE),
    logged_learning_rates=st.just(NO_CURVE), expected_learning_rates=st.just(NO_CURVE),
)  # fmt: skip
_SCORES = st.builds(Score, window=short(TEXTS, 3), dropped=short(TEXTS))
_SETS = st.builds(SetResult, runs=short(_RUNS), score=st.none() | _SCORES)
_OFFICIALS = st.builds(
    Official,
    results=short(st.builds(OfficialResult, messages=short(TEXTS))),
    divergences=short(st.from_type(Divergence)),
)
ANY_REPORT = st.builds(
    Report, ruleset=st.sampled_from(RULESETS), findings=short(st.from_type(Finding), 4), sets=short(_SETS),
    official=st.none() | _OFFICIALS, tool=st.dictionaries(TEXTS, TEXTS, max_size=2),
    options=st.dictionaries(TEXTS, TEXTS | st.floats() | st.just(10**5000) | st.booleans() | st.none(), max_size=2),
)  # fmt: skip
