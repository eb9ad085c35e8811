"""JSON documents: their values, their schemas, and that every report makes valid JSON."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from compliance.benchmark import RULESETS
from compliance.compare import Comparison, compare
from compliance.documents import DOCUMENTS, Document, report_document, to_json
from compliance.findings import (
    OfficialTool,
    OfficialVerdict,
    RcpKind,
    Report,
    RunOutcome,
    Severity,
    Status,
    Verdict,
)
from compliance.plan import make_plan
from tests.support.commands import command
from tests.support.judging import judged
from tests.support.made_logs import compliant_log
from tests.support.made_reports import (
    ANY_REPORT,
    FOLDER,
    failing_report,
    made_finding,
    made_report,
    made_run,
    made_set,
    passing_report,
)
from tests.support.schemas import check_document, is_valid, schema


def read(document: Document) -> dict[str, Any]:
    """Return the document as a reader of RFC 8259 gets it."""
    parsed: dict[str, Any] = json.loads(to_json(document), parse_constant=pytest.fail)
    return parsed


def document(report: Report) -> dict[str, Any]:
    return read(report_document(report))


def comparison() -> Comparison:
    runs = [judged(compliant_log(64, number), f"{number}.txt") for number in range(2)]
    return compare(runs, runs, "6.1.0")


MAKERS: dict[str, Callable[[], Document]] = {
    "report": lambda: report_document(failing_report()),
    "plan": lambda: make_plan(16, "6.1.0", draws=50),
    "comparison": comparison,
}


# The documents


def test_a_report_has_the_promised_keys_and_values() -> None:
    made = document(failing_report())
    assert list(made) == [
        "schema_version", "command", "verdict", "explanation", "ruleset", "tool", "options", "findings", "runs",
        "score", "variance", "rcp", "sets", "official",
    ]  # fmt: skip
    assert [made[key] for key in ("schema_version", "command", "verdict", "ruleset")] == [
        3,
        "check-set",
        "fail",
        "6.1.0",
    ]
    assert made["findings"][0] == {
        "rule": "benchmark-name",
        "severity": "error",
        "message": "the benchmark's name is spelt with underscores",
        "file": f"{FOLDER}/result_0.txt",
        "line": 27,
        "expected": "gpt_oss_20b",
        "got": "'gpt-oss-20b'",
        "citation": "closed_gpt_oss_20b.yaml",
        "waived": None,
    }
    assert made["options"] == {"runs": 10, "cv_limit": 5.0, "strict": False, "system": None}
    assert made["tool"]["mlperf-logging"] == "4.1.68"
    assert made["official"]["verdict"] == "timeout"
    assert made["official"]["divergences"][0]["official"] == "pass"
    assert made["official"]["results"][0]["messages"] == ["submission_benchmark: gpt-oss-20b not known"]
    assert made["rcp"]["pruned"]["margin_samples"] == 10751.223749
    assert made["variance"]["samples"]["quantum"] == 12_288
    assert made["variance"]["minutes"]["quantum"] is None
    assert made["sets"][0]["eval_interval_samples"] == 12_288
    assert is_valid("report", made)


def test_a_report_has_each_run_without_its_curves() -> None:
    made = document(passing_report())["runs"]
    assert list(made[0]) == [field.name for field in fields(RunOutcome)]
    assert {"train_loss", "phases"}.isdisjoint(made[0])
    assert [run["seed"] for run in made] == [1000 + 7 * number for number in range(10)]
    (last, expected) = made[1]["evaluations"][-1], made_run(1, 18).evaluations[-1]
    assert last == {"samples": 221_184, "loss": expected.loss, "time_ms": expected.time_ms, "line": 1800}


def test_the_score_of_a_report_is_that_of_the_only_set() -> None:
    one, two = made_set(), made_set(name="results/other/gpt_oss_20b", score=None)
    figures = ("score", "variance", "rcp")
    alone = document(made_report(one))
    assert one.score is not None and alone["score"]["olympic_minutes"] == one.score.olympic_minutes
    assert [alone[key] for key in figures] == [alone["sets"][0][key] for key in figures]
    both = document(made_report(one, two))
    assert [both[key] for key in figures] == [None] * 3
    assert [each["name"] for each in both["sets"]] == [one.name, two.name]
    assert both["sets"][1]["files"] == [run.file for run in two.runs]
    assert both["sets"][0]["score"] == alone["score"]
    assert len(both["runs"]) == 20
    none = document(made_report(verdict=Verdict.ERROR))
    assert [none[key] for key in (*figures, "runs", "sets", "official")] == [None, None, None, [], [], None]
    assert is_valid("report", none)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), 10**400, -(10**5000)], ids=range(5))
def test_a_number_that_json_cannot_hold_is_null(number: float) -> None:
    run = made_run(0, minutes=number, seed=10**400)
    made = document(made_report(made_set([run, made_run(1)]), options={"cv_limit": number}))
    assert made["runs"][0]["minutes"] is made["runs"][0]["seed"] is made["options"]["cv_limit"] is None
    assert made["runs"][0]["minutes_to_target"] == run.minutes_to_target


def test_the_largest_numbers_of_a_double_are_kept() -> None:
    run = made_run(0, seed=2**63 - 1, minutes=1.7e308)
    made = document(made_report(made_set([run, made_run(1)])))["runs"][0]
    assert (made["seed"], made["minutes"]) == (2**63 - 1, 1.7e308)


def test_json_is_ascii_and_has_no_lone_surrogate() -> None:
    name = "caf\udce9/\x1b[2J\x00\x7f\u2028漢\ud83d\ude00"
    text = to_json(report_document(made_report(findings=(made_finding(file=name),), options={name: name})))
    assert re.fullmatch(r"[ -~\n]+", text) and text.endswith("}\n")
    readable = "caf\\udce9/\x1b[2J\x00\x7f\u2028漢\\ud83d\\ude00"
    made = json.loads(text)
    assert made["findings"][0]["file"] == readable
    assert made["options"] == {readable: readable}


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(ANY_REPORT)
def test_any_report_is_valid_by_its_schema(report: Report) -> None:
    text = to_json(report_document(report))
    assert re.fullmatch(r"[ -~\n]+", text)
    made = json.loads(text, parse_constant=pytest.fail)
    check_document("report", made)
    json.dumps(made, ensure_ascii=False, allow_nan=False).encode("utf-8")
    assert to_json(report_document(copy.deepcopy(report))) == text


@pytest.mark.parametrize("gbs", [1, 16, 24, 32, 48, 64, 65, 4096])
@pytest.mark.parametrize("ruleset", RULESETS)
def test_any_plan_is_valid_by_its_schema(gbs: int, ruleset: str) -> None:
    made = json.loads(to_json(make_plan(gbs, ruleset, draws=50)))
    check_document("plan", made)
    assert (made["gbs"], made["ruleset"]) == (gbs, ruleset)
    assert (made["probability_of_failing"] is None) == (gbs > 64)


# The schemas


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_committed_schema_is_the_generated_one(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = command(capsys, "schema", name)
    assert (printed.status, printed.err) == (0, "")
    assert json.loads(printed.out) == schema(name), f"run: python -m compliance schema {name} > NAME.schema.json"


def objects(part: object) -> Iterator[dict[str, Any]]:
    """Yield every schema of an object inside a schema."""
    if isinstance(part, dict) and part.get("type") == "object":
        yield part
    for child in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from objects(child)


@pytest.mark.parametrize(("name", "maps"), [("report", 2), ("plan", 0), ("comparison", 0), ("review", 3)])
def test_schemas_are_strict_and_described(name: str, maps: int) -> None:
    content = schema(name)
    Draft202012Validator.check_schema(content)
    assert content["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    found = list(objects(content))
    # Only names of packages, options and other benchmarks are free.
    assert sum("properties" not in each for each in found) == maps
    for each in (each for each in found if "properties" in each):
        assert each["additionalProperties"] is False
        assert each["required"] == list(each["properties"])
        assert each["description"]
        assert "None" not in json.dumps(each)


def test_schemas_list_every_choice() -> None:
    definitions = schema("report")["$defs"]
    choices = {name: definitions[name]["enum"] for name in ("Verdict", "Ruleset", "Severity", "Status")}
    assert choices == {
        "Verdict": list(Verdict), "Ruleset": list(RULESETS), "Severity": list(Severity), "Status": list(Status),
    }  # fmt: skip
    result = definitions["OfficialResult"]["properties"]
    assert result["tool"]["enum"] == list(get_args(OfficialTool))
    assert result["verdict"]["enum"] == list(get_args(OfficialVerdict))
    assert definitions["RcpTest"]["properties"]["kind"]["enum"] == list(get_args(RcpKind))


Break = Callable[[dict[str, Any]], object]
WRONG_REPORTS: dict[str, Break] = {
    "another version": lambda made: made.update(schema_version=1),
    "unknown key": lambda made: made.update(extra=1),
    "no official": lambda made: made.pop("official"),
    "unknown ruleset": lambda made: made.update(ruleset="5.1.0"),
    "version that is a number": lambda made: made["tool"].update(python=3.11),
    "option that is a list": lambda made: made["options"].update(runs=[10]),
    "line zero": lambda made: made["findings"][0].update(line=0),
    "finding without citation": lambda made: made["findings"][0].pop("citation"),
    "fractional samples": lambda made: made["runs"][0].update(samples_to_target=1.5),
    "curves": lambda made: made["runs"][0].update(train_loss=[]),
    "evaluation without a line": lambda made: made["runs"][0]["evaluations"][0].pop("line"),
    "normalization below one": lambda made: made["score"].update(normalization=0.99),
    "three dropped": lambda made: made["score"].update(dropped=["a", "b", "c"]),
    "negative deviation": lambda made: made["variance"]["samples"].update(sd=-1),
    "spread of one": lambda made: made["variance"]["samples"].update(runs=1),
    "unknown kind": lambda made: made["rcp"]["pruned"].update(kind="pruned"),
    "unknown official verdict": lambda made: made["official"].update(verdict="ok"),
    "negative time": lambda made: made["official"]["results"][0].update(seconds=-1),
}
WRONG_PLANS: dict[str, Break] = {
    "unknown key": lambda made: made.update(extra=1),
    "no source": lambda made: made["suggested"][0].pop("source"),
    "batch size 0": lambda made: made.update(gbs=0),
    "interval too short": lambda made: made.update(eval_interval_samples=12_287),
    "no layout": lambda made: made.update(accumulation=[]),
    "probability above 1": lambda made: made.update(probability_of_failing=1.01),
    "estimate above 1": lambda made: made["bootstrap"]["full"].update(probability=1.01),
    "learning rate 0": lambda made: made["suggested"][0].update(learning_rate=0),
}


WRONG_COMPARISONS: dict[str, Break] = {
    "another version": lambda made: made.update(schema_version=1),
    "unknown outcome": lambda made: made["samples"].update(outcome="faster"),
    "confidence 1": lambda made: made.update(confidence=1.0),
    "no set": lambda made: made.update(a=None),
    "one run": lambda made: made["a"].update(runs=1),
}
WRONG = {"report": WRONG_REPORTS, "plan": WRONG_PLANS, "comparison": WRONG_COMPARISONS}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in WRONG.items() for case in cases])
def test_the_schema_refuses_a_wrong_document(name: str, case: str) -> None:
    made = read(MAKERS[name]())
    assert is_valid(name, made)
    WRONG[name][case](made)
    assert not is_valid(name, made)
