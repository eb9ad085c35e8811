"""Text, JSON and JUnit of a report: what they say, and that nothing a log holds breaks them."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn
from xml.etree import ElementTree

import pytest
import rich.console
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from rich.cells import cell_len

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
from compliance.plan import make_plan
from compliance.render.json_report import dumps, json_report
from compliance.render.junit_report import junit_report
from compliance.render.terminal import visible
from compliance.render.text_report import text_report

PACKAGE = Path(__file__).resolve().parents[2] / "compliance"
REPORT_SCHEMA = json.loads((PACKAGE / "report.schema.json").read_text())
PLAN_SCHEMA = json.loads((PACKAGE / "plan.schema.json").read_text())
FOLDER = "results/8xB200/gpt_oss_20b"

START = 1_771_600_000_000
EVALUATIONS = (22, 20, 18, 17, 19, 18, 20, 16, 18, 19)
NO_CURVE = Curve((), ())
RULES = "training_rules.adoc, section 9.3"
UNVERIFIABLE = (
    Finding("dropout", Severity.UNVERIFIABLE, "dropout is not in a log", None, None, None, None, RULES),
    Finding("data-order", Severity.UNVERIFIABLE, "the order of the training data", None, None, None, None, RULES),
)


def run(number: int, folder: str = FOLDER, **changes: Any) -> RunSummary:
    """A run at GBS 32 that meets the target at its last evaluation."""
    count = EVALUATIONS[number]
    evaluations = tuple(
        Evaluation(12_288 * n, round(3.339 + 0.9 * (1 / n - 1 / count), 6), START + 60_000.0 * n, 60 + 5 * n)
        for n in range(1, count + 1)
    )
    summary = RunSummary(
        file=f"{folder}/result_{number}.txt",
        status=Status.CONVERGED,
        seed=16_979 + 1013 * number,
        global_batch_size=32,
        learning_rate=8e-4,
        warmup_steps=128,
        samples_to_target=12_288 * count,
        minutes=19.31 * count + 0.05 * number,
        minutes_to_target=19.31 * count,
        first_eval_loss=evaluations[0].loss,
        final_eval_loss=evaluations[-1].loss,
        target=3.34,
        start_ms=START + 2.4e7 * number,
        evaluations=evaluations,
        train_loss=Curve((32.0,), (11.9,)),
        rates_logged=NO_CURVE,
        rates_expected=NO_CURVE,
        phases=(Phase("init", START - 9e4, START),),
        platform="8xB200",
        division="closed",
        organisation="Example",
    )
    return replace(summary, **changes)


def result(name: str = FOLDER, **changes: Any) -> SetResult:
    """Ten runs with their figures."""
    runs = tuple(run(number, name) for number in range(10))
    mean, minutes = 229_785.6, 361.32
    figures = SetResult(
        name=name,
        runs=runs,
        score=Score(True, 360.1, 361.5, 1.003889, 229_376.0, 359.9, tuple(each.file for each in runs),
                    (runs[7].file, runs[0].file)),
        variance=Variance(
            5.0,
            "CV = standard deviation (ddof 1) / mean, over the converged runs. The limit of 5 % is this project's own.",
            Spread(10, mean, 20_834.9, 9.067, 196_608.0, 270_336.0, 12_288, 5.3476),
            Spread(10, minutes, 32.7, 9.05, 309.3, 424.8, None, None),
        ),
        rcp=Rcp(
            32,
            RcpTest("interpolated", 230_058.667, 222_720.776, 229_376.0, True, 6_655.224, 1.002976),
            RcpTest("exact", 234_837.333, 229_258.556, 229_376.0, True, 117.444, 1.023809),
        ),
    )  # fmt: skip
    return replace(figures, **changes)


def report(**changes: Any) -> Report:
    """A set of ten that passes, with the official tools' verdict."""
    runs = result().runs
    official = Official(
        "4.1.68",
        (
            *(OfficialResult("compliance_checker", each.file, "pass", (), 1.1) for each in runs),
            OfficialResult("rcp_checker", FOLDER, "pass", (), 2.3),
        ),
        (),
    )
    judged = Report(
        command="check-set",
        ruleset="6.1.0",
        verdict=Verdict.PASS,
        findings=UNVERIFIABLE,
        sets=(result(),),
        official=official,
        tool={"compliance": "1.0", "mlperf-logging": "4.1.68", "python": "3.11.9"},
        options={"runs": 10, "cv_limit": 5.0, "strict": False, "official": True},
    )
    return replace(judged, **changes)


def failing_report() -> Report:
    """Ten runs that break rules alike, as the real reference logs do."""
    runs = result().runs
    errors = [
        Finding(
            "benchmark-name", Severity.ERROR, "the benchmark's name is spelt with underscores", each.file, 27,
            "gpt_oss_20b", "'gpt-oss-20b'", "closed_gpt_oss_20b.yaml",
        )
        for each in runs
    ] + [
        Finding(
            "eval-after-pass", Severity.ERROR,
            f"trained on for {n} evaluations after the first that passed; stop there",
            each.file, 300 + n, None, None, RULES,
        )
        for n, each in enumerate(runs[:3], 1)
    ] + [
        Finding("seed-repeated", Severity.ERROR, "two runs have seed 16979; every run needs its own", None, None,
                "10 different seeds", "9", RULES)
    ]  # fmt: skip
    warnings = [
        Finding("run-stop-late", Severity.WARNING, "run_stop is 128.4 s after the passing evaluation", runs[1].file,
                412, "at most 60 s", "128.4 s", "this project"),
        Finding("cv-limit", Severity.WARNING, "the CV of the samples is above this project's limit", None, None,
                "at most 5 %", "9.07 %", "this project"),
    ]  # fmt: skip
    notes = [Finding("window", Severity.INFO, "all ten runs count", None, None, None, None, RULES)]
    unknown = ("submission_benchmark: gpt-oss-20b not known",)
    official = Official(
        "4.1.68",
        (
            *(OfficialResult("compliance_checker", each.file, "fail", unknown, 1.1) for each in runs),
            OfficialResult("rcp_checker", FOLDER, "pass", (), 2.0),
            OfficialResult("package_checker", "results", "timeout", ("no answer within 120 s",), 120.0),
        ),
        (Divergence("rcp_checker", FOLDER, "fail", "pass",
                    "it takes the evaluation of lowest loss, we the first that passes"),),
    )  # fmt: skip
    invalid = tuple(replace(each, status=Status.INVALID) for each in runs)
    none = Score(False, None, None, 1.003889, 229_376.0, 359.9, tuple(each.file for each in runs), ())
    failed = result(runs=invalid, score=none)
    return report(verdict=Verdict.FAIL, findings=(*errors, *warnings, *notes, *UNVERIFIABLE), sets=(failed,),
                  official=official)  # fmt: skip


def error(message: str, file: str | None = None, line: int | None = None, **changes: Any) -> Finding:
    """An error with nothing special about it."""
    return replace(Finding("some-rule", Severity.ERROR, message, file, line, None, None, "a source"), **changes)


# What logs, file names and tools could put into a report to break a format, a terminal or a parser.
HOSTILE = (
    "\x1b[31mred\x1b[2J", "\x9b31m", "\x00\x07\x08\x7f", "a\nb\r\nc\td", "[bold red]x[/bold red]", "[/]", "[link=x]y",
    ":smile:", "<b>&amp;]]>\"'", "<!--", "\ud800", "caf\udce9", "\ud83d\ude00", "\u202egnp.exe", "\ufffe\uffff",
    "\u2028", "\U0001f600", "漢字" * 30, "x" * 3000, "", "../../evil", "../\x1b]0;title\x07",
)  # fmt: skip
texts = st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=()), max_size=30)
names = texts.filter(bool)
integers = st.integers() | st.sampled_from([10**15, 2**64, -(10**300), 10**400, -(10**4000)])
numbers = st.floats() | integers
amounts = st.floats(min_value=0) | st.just(float("nan"))
factors = st.none() | st.floats(min_value=1)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def few(strategy: st.SearchStrategy[Any], most: int = 2) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(strategy, max_size=most).map(tuple)


findings = st.builds(
    Finding, names, st.sampled_from(Severity), texts, maybe(texts), maybe(st.integers(min_value=1)), maybe(texts),
    maybe(texts), texts,
)  # fmt: skip
evaluations = st.builds(Evaluation, integers, numbers, numbers, st.integers(min_value=1))
runs = st.builds(
    RunSummary, texts, st.sampled_from(Status), maybe(integers), maybe(integers), maybe(numbers), maybe(integers),
    maybe(integers), maybe(numbers), maybe(numbers), maybe(numbers), maybe(numbers), numbers, maybe(numbers),
    few(evaluations), st.just(NO_CURVE), st.just(NO_CURVE), st.just(NO_CURVE), st.just(()), maybe(texts), maybe(texts),
    maybe(texts), maybe(texts),
)  # fmt: skip
spreads = st.builds(
    Spread, st.integers(min_value=2), numbers, amounts, amounts, numbers, numbers, maybe(amounts), maybe(amounts)
)
scores = st.builds(
    Score, st.booleans(), maybe(numbers), maybe(numbers), factors, maybe(numbers), maybe(numbers), few(texts, 3),
    few(texts),
)  # fmt: skip
variances = st.builds(Variance, st.floats(0, 1e3), texts, maybe(spreads), maybe(spreads))
found = st.builds(
    RcpTest, st.sampled_from(["exact", "interpolated", "smallest"]), maybe(numbers), maybe(numbers), maybe(numbers),
    maybe(st.booleans()), maybe(numbers), factors,
)  # fmt: skip
missing = st.builds(
    RcpTest, st.just("missing"), st.none(), st.none(), maybe(numbers), maybe(st.booleans()), st.none(), st.none()
)
rcps = st.builds(Rcp, st.integers(min_value=1), found | missing, found | missing)
sets = st.builds(SetResult, texts, few(runs), maybe(scores), maybe(variances), maybe(rcps))
tools = st.sampled_from(REPORT_SCHEMA["$defs"]["official_tool"]["enum"])
verdicts = st.sampled_from(["pass", "fail", "refused", "crashed", "timeout"])
officials = st.builds(
    Official,
    texts,
    few(st.builds(OfficialResult, tools, texts, verdicts, few(texts), st.floats(0, 1e6))),
    few(st.builds(Divergence, tools, texts, texts, texts, texts)),
)
reports = st.builds(
    Report, names, st.sampled_from(RULESETS), st.sampled_from(Verdict), few(findings, 4), few(sets), maybe(officials),
    st.dictionaries(texts, texts, max_size=2),
    st.dictionaries(texts, texts | numbers | st.booleans() | st.none(), max_size=2),
)  # fmt: skip


# JSON


def no_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} is not JSON")


def document(judged: Report) -> dict[str, Any]:
    """The report's JSON, read by the rules of RFC 8259."""
    parsed: dict[str, Any] = json.loads(json_report(judged), parse_constant=no_constant)
    return parsed


def valid(instance: object, schema: dict[str, Any] = REPORT_SCHEMA) -> bool:
    return bool(Draft202012Validator(schema).is_valid(instance))


def test_json_has_the_promised_keys_and_values() -> None:
    made = document(failing_report())
    assert list(made) == [
        "schema_version", "command", "verdict", "ruleset", "tool", "options", "findings", "runs", "score", "variance",
        "rcp", "sets", "official",
    ]  # fmt: skip
    assert (made["schema_version"], made["command"], made["verdict"], made["ruleset"]) == (
        1, "check-set", "fail", "6.1.0",
    )  # fmt: skip
    assert made["findings"][0] == {
        "rule": "benchmark-name",
        "severity": "error",
        "message": "the benchmark's name is spelt with underscores",
        "file": f"{FOLDER}/result_0.txt",
        "line": 27,
        "expected": "gpt_oss_20b",
        "got": "'gpt-oss-20b'",
        "citation": "closed_gpt_oss_20b.yaml",
    }
    assert made["options"] == {"runs": 10, "cv_limit": 5.0, "strict": False, "official": True}
    assert made["tool"]["mlperf-logging"] == "4.1.68"
    assert made["official"]["verdict"] == "timeout"
    assert made["official"]["divergences"][0]["official"] == "pass"
    assert made["official"]["results"][0]["messages"] == ["submission_benchmark: gpt-oss-20b not known"]
    assert made["rcp"]["pruned"]["margin_samples"] == 6_655.224
    assert made["variance"]["samples"]["quantum"] == 12_288
    assert made["variance"]["minutes"]["quantum"] is None
    assert valid(made)


def test_json_has_each_run_without_its_curves() -> None:
    made = document(report())["runs"]
    assert list(made[0]) == [
        "file", "status", "seed", "global_batch_size", "learning_rate", "warmup_steps", "samples_to_target", "minutes",
        "minutes_to_target", "first_eval_loss", "final_eval_loss", "target", "start_ms", "division", "organisation",
        "platform", "system", "evaluations",
    ]  # fmt: skip
    assert [each["seed"] for each in made] == [16_979 + 1013 * number for number in range(10)]
    assert made[1]["status"] == "converged"
    assert made[1]["evaluations"][-1] == {
        "samples": 245_760, "loss": 3.339, "time_ms": START + 60_000.0 * 20, "line": 160,
    }  # fmt: skip


def test_json_score_is_that_of_the_only_set() -> None:
    one, two = result(), result("results/other/gpt_oss_20b", score=None)
    alone = document(report())
    assert alone["score"]["olympic_minutes"] == 360.1
    assert [alone[key] for key in ("score", "variance", "rcp")] == [
        alone["sets"][0][key] for key in ("score", "variance", "rcp")
    ]
    both = document(report(sets=(one, two)))
    assert both["score"] is both["variance"] is both["rcp"] is None
    assert [each["name"] for each in both["sets"]] == [one.name, two.name]
    assert both["sets"][1]["files"] == [each.file for each in two.runs]
    assert both["sets"][0]["score"]["olympic_minutes"] == 360.1
    assert len(both["runs"]) == 20
    none = document(report(sets=(), verdict=Verdict.ERROR, official=None))
    assert (none["score"], none["variance"], none["rcp"], none["runs"], none["sets"], none["official"]) == (
        None, None, None, [], [], None,
    )  # fmt: skip
    assert valid(none)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), 10**400, -(10**5000)], ids=range(5))
def test_json_has_null_for_what_is_no_number_of_json(number: float) -> None:
    judged = report(sets=(result(runs=(run(0, minutes=number, seed=number),)),), options={"cv_limit": number})
    made = document(judged)
    assert made["runs"][0]["minutes"] is made["runs"][0]["seed"] is made["options"]["cv_limit"] is None
    assert made["runs"][0]["minutes_to_target"] == pytest.approx(424.82)


def test_json_keeps_the_largest_numbers_that_a_double_holds() -> None:
    made = document(report(sets=(result(runs=(run(0, seed=2**63 - 1, minutes=1.7e308),)),)))["runs"][0]
    assert (made["seed"], made["minutes"]) == (2**63 - 1, 1.7e308)


def test_json_is_ascii_and_has_no_lone_surrogate() -> None:
    name = "caf\udce9/\x1b[2J\x00\x7f\u2028漢\ud83d\ude00"
    text = json_report(report(findings=(error("m", name),), options={"system": Path("a")}))
    assert re.fullmatch(r"[ -~\n]+", text)
    assert text.endswith("}\n")
    made = json.loads(text)
    assert made["findings"][0]["file"] == "caf\\udce9/\x1b[2J\x00\x7f\u2028漢\\ud83d\\ude00"
    assert made["options"] == {"system": "a"}


@settings(max_examples=150, deadline=None)
@given(reports)
def test_json_of_any_report_is_json_by_the_schema(judged: Report) -> None:
    text = json_report(judged)
    assert re.fullmatch(r"[ -~\n]+", text)
    made = json.loads(text, parse_constant=no_constant)
    Draft202012Validator(REPORT_SCHEMA).validate(made)
    json.dumps(made, ensure_ascii=False, allow_nan=False).encode("utf-8")
    assert json_report(copy.deepcopy(judged)) == text


# The schemas


def objects(schema: object) -> Iterator[dict[str, Any]]:
    """Every schema of an object inside a schema."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for part in schema.values():
            yield from objects(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from objects(part)


@pytest.mark.parametrize("schema", [REPORT_SCHEMA, PLAN_SCHEMA], ids=["report", "plan"])
def test_schemas_are_strict(schema: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    closed = [each for each in objects(schema) if "properties" in each]
    for each in closed:
        assert each["additionalProperties"] is False
        assert each["required"] == list(each["properties"])
    # Only names of packages and options are free.
    maps = [each for each in objects(schema) if "properties" not in each]
    assert len(maps) == (2 if schema is REPORT_SCHEMA else 0)


def test_the_schema_knows_every_verdict_severity_status_and_ruleset() -> None:
    definitions = REPORT_SCHEMA["$defs"]
    assert REPORT_SCHEMA["properties"]["verdict"]["enum"] == list(Verdict)
    assert REPORT_SCHEMA["properties"]["ruleset"]["enum"] == list(RULESETS)
    assert definitions["finding"]["properties"]["severity"]["enum"] == list(Severity)
    assert definitions["run"]["properties"]["status"]["enum"] == list(Status)
    assert PLAN_SCHEMA["properties"]["ruleset"]["enum"] == list(RULESETS)


Break = Callable[[dict[str, Any]], object]
WRONG_REPORTS: dict[str, Break] = {
    "another version": lambda made: made.update(schema_version=2),
    "unknown key": lambda made: made.update(extra=1),
    "no findings": lambda made: made.pop("findings"),
    "no official": lambda made: made.pop("official"),
    "unknown verdict": lambda made: made.update(verdict="passed"),
    "unknown ruleset": lambda made: made.update(ruleset="5.1.0"),
    "version that is a number": lambda made: made["tool"].update(python=3.11),
    "option that is a list": lambda made: made["options"].update(runs=[10]),
    "unknown severity": lambda made: made["findings"][0].update(severity="fatal"),
    "line zero": lambda made: made["findings"][0].update(line=0),
    "line that is text": lambda made: made["findings"][0].update(line="27"),
    "finding without citation": lambda made: made["findings"][0].pop("citation"),
    "unknown status": lambda made: made["runs"][0].update(status="ok"),
    "seed that is text": lambda made: made["runs"][0].update(seed="1"),
    "fractional samples": lambda made: made["runs"][0].update(samples_to_target=1.5),
    "curves": lambda made: made["runs"][0].update(train_loss=[]),
    "evaluation without a line": lambda made: made["runs"][0]["evaluations"][0].pop("line"),
    "normalisation below one": lambda made: made["score"].update(normalization=0.99),
    "three dropped": lambda made: made["score"].update(dropped=["a", "b", "c"]),
    "negative deviation": lambda made: made["variance"]["samples"].update(sd=-1),
    "spread of one": lambda made: made["variance"]["samples"].update(runs=1),
    "unknown kind": lambda made: made["rcp"]["pruned"].update(kind="pruned"),
    "missing point with a mean": lambda made: made["rcp"]["pruned"].update(kind="missing"),
    "passed as text": lambda made: made["rcp"]["full"].update(passed="pass"),
    "set without files": lambda made: made["sets"][0].pop("files"),
    "unknown official verdict": lambda made: made["official"].update(verdict="ok"),
    "unknown tool": lambda made: made["official"]["results"][0].update(tool="linter"),
    "negative time": lambda made: made["official"]["results"][0].update(seconds=-1),
    "one message as text": lambda made: made["official"]["results"][0].update(messages="no"),
    "divergence without a reason": lambda made: made["official"]["divergences"][0].pop("reason"),
}


@pytest.mark.parametrize("breaks", WRONG_REPORTS.values(), ids=list(WRONG_REPORTS))
def test_the_schema_refuses_a_wrong_report(breaks: Break) -> None:
    made = document(failing_report())
    assert valid(made)
    breaks(made)
    assert not valid(made)


@pytest.mark.parametrize("gbs", [1, 16, 24, 32, 48, 64, 65, 4096])
@pytest.mark.parametrize("ruleset", RULESETS)
def test_plans_follow_their_schema(gbs: int, ruleset: str) -> None:
    made = json.loads(dumps(make_plan(gbs, ruleset, draws=50).to_json()))
    Draft202012Validator(PLAN_SCHEMA).validate(made)
    assert made["gbs"] == gbs
    assert (made["probability_of_failing"] is None) == (gbs > 64)


WRONG_PLANS: dict[str, Break] = {
    "unknown key": lambda made: made.update(extra=1),
    "no source": lambda made: made["suggested"][0].pop("source"),
    "batch size 0": lambda made: made.update(gbs=0),
    "interval too short": lambda made: made.update(eval_interval_samples=12_287),
    "no layout": lambda made: made.update(accumulation=[]),
    "probability above 1": lambda made: made.update(probability_of_failing=1.01),
    "estimate above 1": lambda made: made["bootstrap"]["full"].update(probability=1.01),
    "exact point without a mean": lambda made: made["rcp"]["full"].update(mean=None),
    "missing point with a mean": lambda made: made["rcp"]["full"].update(kind="missing"),
    "learning rate 0": lambda made: made["suggested"][0].update(learning_rate=0),
    "estimate without its error": lambda made: made["bootstrap"]["pruned"].pop("standard_error"),
}


@pytest.mark.parametrize("breaks", WRONG_PLANS.values(), ids=list(WRONG_PLANS))
def test_the_schema_refuses_a_wrong_plan(breaks: Break) -> None:
    made = json.loads(dumps(make_plan(16, "6.1.0", draws=50).to_json()))
    assert valid(made, PLAN_SCHEMA)
    breaks(made)
    assert not valid(made, PLAN_SCHEMA)


def test_importing_the_renderers_imports_nothing_slow() -> None:
    code = (
        "import sys, compliance.render.json_report as j, compliance.render.text_report, compliance.render.junit_report;"
        "print([name for name in ('rich', 'numpy', 'jsonschema', 'jinja2', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


# Text


def lines(judged: Report, **options: Any) -> list[str]:
    return text_report(judged, **options).splitlines()


def between(made: list[str], heading: str) -> list[str]:
    """The lines of a section, up to the empty one that ends it."""
    start = made.index(heading) + 1
    return made[start : [*made, ""].index("", start)]


def test_text_begins_with_the_verdict() -> None:
    assert lines(report())[0] == "PASS: 0 errors, 0 warnings in 10 runs (gpt_oss_20b, 6.1.0)"
    assert lines(failing_report())[0] == "FAIL: 14 errors, 2 warnings in 10 runs (gpt_oss_20b, 6.1.0)"
    strict = report(verdict=Verdict.FAIL, ruleset="6.0.0", findings=(error("late", severity=Severity.WARNING),))
    assert lines(strict)[0] == (
        "FAIL: 0 errors, 1 warning in 10 runs (gpt_oss_20b, 6.0.0); --strict makes warnings fail"
    )
    two = report(sets=(result("a"), result("b", runs=(run(0, "b"),))))
    assert lines(two)[0] == "PASS: 0 errors, 0 warnings in 11 runs of 2 sets (gpt_oss_20b, 6.1.0)"
    unread = report(verdict=Verdict.ERROR, findings=(error("not a log", "x"),), sets=(), official=None)
    assert lines(unread)[0] == (
        "ERROR: 1 error, 0 warnings in 0 runs (gpt_oss_20b, 6.1.0); the input could not be judged"
    )


def test_text_groups_errors_by_rule_and_says_the_same_thing_once() -> None:
    assert between(lines(failing_report()), "Errors (14)") == [
        "  benchmark-name x 10  [closed_gpt_oss_20b.yaml]",
        "    the benchmark's name is spelt with underscores",
        f"      expected gpt_oss_20b, got 'gpt-oss-20b': {FOLDER}/result_0.txt:27,",
        "      result_1.txt:27, result_2.txt:27, result_3.txt:27, result_4.txt:27, result_5.txt:27,",
        "      result_6.txt:27, result_7.txt:27, result_8.txt:27, result_9.txt:27",
        "  eval-after-pass x 3  [training_rules.adoc, section 9.3]",
        "    trained on for 1 evaluations after the first that passed; stop there",
        f"      {FOLDER}/result_0.txt:301",
        "    trained on for 2 evaluations after the first that passed; stop there",
        f"      {FOLDER}/result_1.txt:302",
        "    trained on for 3 evaluations after the first that passed; stop there",
        f"      {FOLDER}/result_2.txt:303",
        "  seed-repeated  [training_rules.adoc, section 9.3]",
        "    two runs have seed 16979; every run needs its own",
        "      expected 10 different seeds, got 9",
    ]


def test_text_lists_the_values_of_one_message_below_it() -> None:
    late = [error("run_stop is late", f"{n}.txt", n, expected="60 s", got=f"{n % 2 + 60} s") for n in range(1, 5)]
    silent = error("run_stop is late", expected="60 s")
    assert between(lines(report(findings=(*late, silent))), "Errors (5)")[1:] == [
        "    run_stop is late",
        "      expected 60 s, got 61 s: 1.txt:1, 3.txt:3",
        "      expected 60 s, got 60 s: 2.txt:2, 4.txt:4",
        "      expected 60 s",
    ]


def test_text_has_the_sections_in_order_of_weight() -> None:
    headings = [line for line in lines(failing_report())[1:] if line and not line.startswith(" ")]
    assert headings == [
        "Errors (14)",
        "Warnings (2)",
        "Notes (1)",
        "Not verifiable from a log",
        f"Runs in {FOLDER}",
        "No score: the set is not valid. For information only:",
        "Variance",
        "Convergence against the reference (RCP) at GBS 32",
        "Official tools (mlperf-logging 4.1.68): timeout",
    ]


def test_text_names_a_folder_again_when_it_changes() -> None:
    files = ("a/x.txt", "a/y.txt", "b/x.txt", "z.txt", None)
    same = tuple(error("m", file, 7) for file in files)
    assert "      a/x.txt:7, y.txt:7, b/x.txt:7, z.txt:7" in lines(report(findings=same))


def test_text_says_what_is_not_verifiable_once() -> None:
    everywhere = tuple(replace(each, file=f"{n}.txt") for n in range(10) for each in UNVERIFIABLE)
    made = between(lines(report(findings=everywhere)), "Not verifiable from a log")
    assert made == ["  dropout: dropout is not in a log", "  data-order: the order of the training data"]


def test_text_stops_after_twenty_of_a_kind() -> None:
    many = tuple(error(f"message {number}", "x", number) for number in range(1, 26))
    made = between(lines(report(findings=many)), "Errors (25)")
    assert "    message 20" in made
    assert "    message 21" not in made
    assert made[-1] == "    ... and 5 more; --format json has all"
    values = tuple(error("m", got=str(number)) for number in range(24))
    assert between(lines(report(findings=values)), "Errors (24)")[-2:] == [
        "      got 19",
        "      ... and 4 more; --format json has all",
    ]
    places = tuple(error("m", f"{number}.txt") for number in range(23))
    assert any(line.endswith("19.txt, and 3 more") for line in lines(report(findings=places)))
    assert "..." not in text_report(report(findings=many[:20]))
    talker = OfficialResult("compliance_checker", "x", "fail", tuple(f"complaint {n}" for n in range(22)), 1.0)
    said = between(lines(report(official=Official("4", (talker,), ()))), "Official tools (mlperf-logging 4): fail")
    assert said[-3:] == [
        "      complaint 19",
        "      ... and 2 more; --format json has all",
        "  No divergence from our verdict.",
    ]


def test_text_cuts_what_is_longer_than_any_reader_wants() -> None:
    made = text_report(report(findings=(error("m" * 2000, expected="e" * 2000, got="g" * 2000),)))
    assert made.count("m" * 50) < 15
    assert len(made) < 6000


def test_text_lists_the_runs() -> None:
    first = run(0, seed=2**63 - 1)
    odd = run(
        1, status=Status.NOT_CONVERGED, seed=None, global_batch_size=None, samples_to_target=None, minutes=None,
        final_eval_loss=None,
    )  # fmt: skip
    wild = run(
        2, status=Status.INVALID, seed=2**70, minutes=float("nan"), final_eval_loss=1e20, samples_to_target=10**400
    )
    made = lines(report(sets=(result(runs=(first, odd, wild)),)))
    table = [line.split() for line in between(made, f"Runs in {FOLDER}")]
    assert table == [
        ["samples", "final"],
        ["file", "status", "seed", "GBS", "to", "target", "minutes", "loss"],
        ["result_0.txt", "converged", "9223372036854775807", "32", "270,336", "424.820", "3.33900"],
        ["result_1.txt", "not", "converged", "-", "-", "-", "-", "-"],
        ["result_2.txt", "invalid", "1.181e+21", "32", "over", "1e308", "nan", "1e+20"],
    ]
    scattered = lines(report(sets=(result(runs=(run(0, "a"), run(1, "b"))),)))
    assert [line.split()[0] for line in between(scattered, "Runs")][1:] == ["file", "a/result_0.txt", "b/result_1.txt"]


def test_text_of_the_score() -> None:
    assert between(lines(report()), "Score") == [
        "  olympic mean: 360.100 minutes, run_start to run_stop",
        "  normalised: 361.500 minutes, by the RCP test's 1.003889",
        "  olympic mean to the first passing evaluation: 359.900 minutes, 229,376.0 samples",
        "  window: all 10 runs",
        f"  dropped as fastest and slowest: {FOLDER}/result_7.txt, result_0.txt",
    ]
    figures = result()
    assert figures.score is not None
    shorter = replace(figures, score=replace(figures.score, window=tuple(each.file for each in figures.runs[2:5])))
    assert f"  window: 3 of 10 runs: {FOLDER}/result_2.txt, result_3.txt, result_4.txt" in lines(
        report(sets=(shorter,))
    )
    invalid = between(lines(failing_report()), "No score: the set is not valid. For information only:")
    assert not any(line.startswith(("  olympic mean: ", "  normalised")) for line in invalid)


def test_text_of_variance_and_rcp() -> None:
    made = lines(report())
    table = [line.split() for line in between(made, "Variance")]
    assert table[1] == ["runs", "mean", "sd", "CV", "%", "least", "most", "quantum", "%"]
    assert table[2] == ["samples", "10", "229,785.6", "20,834.9", "9.07", "196,608", "270,336", "12,288", "5.35"]
    assert table[3] == ["minutes", "10", "361.320", "32.700", "9.05", "309.300", "424.800", "-", "-"]
    assert "(ddof 1)" in " ".join(between(made, "Variance"))
    heading = "Convergence against the reference (RCP) at GBS 32"
    tests = [line.split() for line in between(made, heading)]
    assert tests[0] == ["olympic", "mean:", "229,376.0", "samples"]
    assert tests[1] == ["test", "result", "point", "RCP", "mean", "minimum", "margin", "normalisation"]
    assert tests[2] == ["pruned", "pass", "interpolated", "230,058.7", "222,720.8", "+6,655.2", "1.002976"]
    assert tests[3] == ["full", "pass", "exact", "234,837.3", "229,258.6", "+117.4", "1.023809"]
    absent = RcpTest("missing", None, None, 9e5, False, None, None)
    short = RcpTest("exact", 301_056.0, 290_308.3, 290_304.0, None, -4.3, 1.04)
    other = lines(report(sets=(result(rcp=Rcp(100, absent, short), variance=None),)))
    tests = [line.split() for line in between(other, heading.replace("32", "100"))]
    assert tests[0] == ["olympic", "mean:", "900,000.0", "samples"]
    assert tests[2] == ["pruned", "FAIL", "missing", "-", "-", "-", "-"]
    assert tests[3] == ["full", "not", "tested", "exact", "301,056.0", "290,308.3", "-4.3", "1.040000"]
    assert "Variance" not in other


def test_text_tables_fit_eighty_columns_whole() -> None:
    narrow, wide = lines(report(), width=80), lines(report(), width=200)
    assert "…" not in "".join(narrow)
    for heading in (f"Runs in {FOLDER}", "Convergence against the reference (RCP) at GBS 32"):
        assert between(narrow, heading) == between(wide, heading)
    assert between(narrow, "Variance")[:4] == between(wide, "Variance")[:4]


def test_text_in_little_space_breaks_names_and_no_figures() -> None:
    message = "x" * 150
    made = lines(report(findings=(error(message),)), width=60)
    assert "".join(made).count("x") >= 150
    first = next(line for line in made if "16979" in line)
    assert first.split()[1:] == ["converged", "16979", "32", "270,336", "424.820", "3.33900"]


def test_text_of_the_official_tools() -> None:
    heading = "Official tools (mlperf-logging 4.1.68): "
    assert between(lines(report()), heading + "pass") == [
        "  compliance_checker: 10 pass (11.0 s)",
        "  rcp_checker: 1 pass (2.3 s)",
        "  No divergence from our verdict.",
    ]
    assert between(lines(failing_report()), heading + "timeout") == [
        "  compliance_checker: 10 fail (11.0 s)",
        f"    {FOLDER}/result_0.txt, result_1.txt, result_2.txt, result_3.txt, result_4.txt,",
        "    result_5.txt, result_6.txt, result_7.txt, result_8.txt, result_9.txt",
        "      submission_benchmark: gpt-oss-20b not known",
        "  rcp_checker: 1 pass (2.0 s)",
        "  package_checker: 1 timeout (120.0 s)",
        "    results",
        "      no answer within 120 s",
        "  DIVERGENCE rcp_checker: ours fail, official pass",
        "    it takes the evaluation of lowest loss, we the first that passes",
        f"      {FOLDER}",
    ]
    assert not any(line.startswith("Official") for line in lines(report(official=None)))
    uneven = tuple(
        OfficialResult("compliance_checker", f"{n}.txt", "fail", ("first", f"only {n}", "last"), 1.0) for n in range(2)
    )
    assert between(lines(report(official=Official("4", uneven, ()))), "Official tools (mlperf-logging 4): fail")[
        1:8
    ] == [
        "    0.txt, 1.txt",
        "      first",
        "      last",
        "    0.txt",
        "      only 0",
        "    1.txt",
        "      only 1",
    ]
    chatty = OfficialResult("rcp_checker", "x", "pass", ("RCP test passed",), 1.0)
    assert "RCP test passed" not in text_report(report(official=Official("4", (chatty,), ())))
    same = tuple(Divergence("compliance_checker", f"{n}.txt", "fail", "pass", "no such rule") for n in range(3))
    assert between(lines(report(official=Official("4", (), same))), "Official tools (mlperf-logging 4): pass") == [
        "  DIVERGENCE compliance_checker: ours fail, official pass",
        "    no such rule",
        "      0.txt, 1.txt, 2.txt",
    ]


def test_text_names_each_of_several_sets() -> None:
    made = lines(report(sets=(result("results/a"), result("results/b"))))
    assert made.index("Set results/a") < made.index("Runs in results/a") < made.index("Set results/b")
    assert not any(line.startswith("Set ") for line in lines(report()))


def test_text_shows_what_a_log_holds_and_obeys_none_of_it() -> None:
    message = "[bold red]x[/bold red] [/] :smile: \x1b[31m\x9b2J\u202e \ud800 a\nb"
    made = text_report(report(findings=(error(message, "[b]f\x1b.txt"),)))
    assert "    [bold red]x[/bold red] [/] :smile: \\x1b[31m\\x9b2J\\u202e \\ud800 a\\nb\n" in made
    assert "      [b]f\\x1b.txt\n" in made
    assert visible("plain é 漢") == "plain é 漢"


@settings(max_examples=150, deadline=None)
@given(reports, st.integers(min_value=40, max_value=200))
def test_text_of_any_report_prints_and_fits(judged: Report, width: int) -> None:
    made = text_report(judged, width=width)
    assert made.endswith("\n")
    for line in made.splitlines():
        assert line.isprintable()
        assert cell_len(line) <= width
    made.encode("utf-8")


def test_text_is_coloured_only_when_asked() -> None:
    plain, coloured = text_report(failing_report()), text_report(failing_report(), colour=True)
    assert "\x1b" not in plain
    assert coloured.startswith("\x1b[1;31mFAIL: 14 errors")
    bare = re.sub(r"\x1b\[[\d;]*m", "", coloured)
    assert [line.rstrip() for line in bare.splitlines()] == plain.splitlines()


def test_text_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def both() -> list[str]:
        return [text_report(failing_report(), width=120, colour=colour) for colour in (False, True)]

    names = ("TERM", "COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    before = both()
    for name, value in zip(names, ("dumb", "40", "1", "1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    assert both() == before


# JUnit


def junit(judged: Report) -> ElementTree.Element:
    text = junit_report(judged)
    assert re.fullmatch(r"[ -~\n]+", text)
    assert text.startswith("<?xml version='1.0' encoding='us-ascii'?>\n")
    return ElementTree.fromstring(text)


def cases(root: ElementTree.Element) -> dict[str | None, ElementTree.Element]:
    return {case.get("name"): case for case in root.iter("testcase")}


def totals(element: ElementTree.Element) -> tuple[int, ...]:
    return tuple(int(element.get(name, -1)) for name in ("tests", "failures", "errors", "skipped"))


def test_junit_of_a_passing_set() -> None:
    root = junit(report())
    assert root.tag == "testsuites"
    (suite,) = root
    assert (suite.tag, suite.get("name")) == ("testsuite", FOLDER)
    assert list(cases(root)) == [*(each.file for each in result().runs), "whole set", "dropout", "data-order"]
    assert {case.get("classname") for case in suite} == {FOLDER}
    assert totals(root) == totals(suite) == (13, 0, 0, 2)
    assert [len(case) for case in suite] == [0] * 11 + [1] * 2
    everywhere = tuple(replace(each, file=f"{n}.txt") for n in range(10) for each in UNVERIFIABLE)
    assert totals(junit(report(findings=everywhere))) == (13, 0, 0, 2)
    skipped = cases(root)["dropout"][0]
    assert (skipped.tag, skipped.get("message")) == ("skipped", "dropout is not in a log")


def test_junit_times_are_those_of_the_official_tools() -> None:
    root = junit(report())
    assert [case.get("time") for case in root.iter("testcase")] == ["1.100"] * 10 + ["2.300", "0.000", "0.000"]
    assert root.get("time") == root[0].get("time") == "13.300"
    assert junit(report(official=None)).get("time") == "0.000"


def test_junit_of_a_failing_set() -> None:
    root = junit(failing_report())
    assert totals(root) == totals(root[0]) == (13, 11, 0, 2)
    first = cases(root)[f"{FOLDER}/result_0.txt"]
    assert [child.tag for child in first] == ["failure"]
    assert first[0].get("type") == "benchmark-name"
    assert first[0].get("message") == "benchmark-name: the benchmark's name is spelt with underscores (and 1 more)"
    assert first[0].text == (
        "error: benchmark-name: the benchmark's name is spelt with underscores\n"
        f"  in {FOLDER}/result_0.txt:27\n"
        "  expected: gpt_oss_20b\n"
        "  got: 'gpt-oss-20b'\n"
        "  source: closed_gpt_oss_20b.yaml\n"
        "error: eval-after-pass: trained on for 1 evaluations after the first that passed; stop there\n"
        f"  in {FOLDER}/result_0.txt:301\n"
        "  source: training_rules.adoc, section 9.3"
    )
    second = cases(root)[f"{FOLDER}/result_1.txt"]
    assert [child.tag for child in second] == ["failure", "system-out"]
    assert second[1].text is not None
    assert second[1].text.startswith("warning: run-stop-late: run_stop is 128.4 s after the passing evaluation\n")
    whole = cases(root)["whole set"]
    assert whole[0].get("message") == "seed-repeated: two runs have seed 16979; every run needs its own"
    assert [line for line in (whole[1].text or "").splitlines() if not line.startswith(" ")] == [
        "warning: cv-limit: the CV of the samples is above this project's limit",
        "info: window: all ten runs count",
    ]


def test_junit_warnings_pass_unless_strict() -> None:
    warning = error("late", f"{FOLDER}/result_3.txt", severity=Severity.WARNING)
    assert totals(junit(report(findings=(warning,))))[1] == 0
    strict = junit(report(findings=(warning,), verdict=Verdict.FAIL, options={"strict": True}))
    assert totals(strict)[1] == 1
    assert [child.tag for child in cases(strict)[warning.file]] == ["failure"]


def test_junit_calls_an_unreadable_input_an_error() -> None:
    unread = report(verdict=Verdict.ERROR, findings=(error("not gzip", "x.gz"),), sets=(), official=None)
    root = junit(unread)
    assert totals(root) == (1, 0, 1, 0)
    assert cases(root)["x.gz"][0].tag == "error"
    nothing = junit(report(verdict=Verdict.ERROR, findings=(error("no logs in ."),), sets=(), official=None))
    assert totals(nothing) == (1, 0, 1, 0)
    # What could be read is judged as ever.
    mixed = report(verdict=Verdict.ERROR, findings=(error("bad", f"{FOLDER}/result_0.txt"), error("not gzip", "x.gz")))
    assert totals(junit(mixed)) == (12, 1, 1, 0)
    whole = report(verdict=Verdict.ERROR, findings=(error("a set of nine"), error("not gzip", "x.gz")))
    assert totals(junit(whole)) == (12, 1, 1, 0)
    other = report(verdict=Verdict.FAIL, findings=(error("bad", "systems/x.json"),))
    assert totals(junit(other)) == (12, 1, 0, 0)


def test_junit_has_a_suite_for_each_set_and_one_for_what_is_in_none() -> None:
    both = (result("results/a"), result("results/b"))
    said = (error("of a run", "results/b/result_4.txt"), error("of a set", "results/b"), error("of the tree"))
    root = junit(report(sets=both, findings=(*said, error("of a file", "systems/b.json"), *UNVERIFIABLE)))
    assert [suite.get("name") for suite in root] == ["results/a", "results/b", "check-set"]
    assert [totals(suite) for suite in root] == [(11, 0, 0, 0), (11, 2, 0, 0), (4, 2, 0, 2)]
    assert totals(root) == (26, 4, 0, 2)
    failed = [case.get("name") for case in root.iter("testcase") if case.find("failure") is not None]
    assert failed == ["results/b/result_4.txt", "whole set", "whole set", "systems/b.json"]


def test_junit_of_one_run_has_one_case() -> None:
    alone = SetResult("", (run(0),), None, None, None)
    root = junit(report(command="check-run", sets=(alone,), findings=(), official=None))
    assert (root[0].get("name"), list(cases(root))) == ("check-run", [run(0).file])


@settings(max_examples=150, deadline=None)
@given(reports)
def test_junit_of_any_report_is_xml_that_says_it_all(judged: Report) -> None:
    root = junit(judged)
    assert totals(root)[0] == len(list(root.iter("testcase")))
    assert totals(root) == tuple(map(sum, zip(*map(totals, root), strict=True)))
    said = " ".join(
        "".join(str(part) for part in (each.text, each.get("message")))
        for tag in ("failure", "error", "system-out", "skipped")
        for each in root.iter(tag)
    )
    for each in judged.findings:
        assert visible(each.message) in said
    errors = [each for each in judged.findings if each.severity is Severity.ERROR]
    assert (totals(root)[1] + totals(root)[2] > 0) >= bool(errors)
