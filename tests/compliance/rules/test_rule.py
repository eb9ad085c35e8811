"""Rules: problems become findings, values are quoted, every rule of the package is collected."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from compliance.findings import Finding, Severity, Status
from compliance.judge import unverifiable_findings
from compliance.records import ParseError
from compliance.rules import ALL_RULES
from compliance.rules.rule import ABSENT, Problem, parse_problems, quote_json, rule
from tests.support.judging import fired, judged, judged_after, set_value
from tests.support.made_logs import compliant_log


def findings_on(*problems: Problem, file: str | None = "x.txt") -> list[Finding]:
    @rule("test-rule", Severity.WARNING, "nowhere")
    def problematic(_: None) -> Iterator[Problem]:
        """Require   something.

        On two lines.
        """
        yield from problems

    assert problematic.description == "Require something. On two lines."
    assert problematic.divisions == {"closed", "open"}
    return list(problematic.judge(None, file))


def test_a_problem_becomes_a_finding() -> None:
    plain, other = findings_on(
        Problem("message", 3, expected=0, got=None), Problem("other", file="y.txt", severity=Severity.INFO)
    )
    assert plain == Finding("test-rule", Severity.WARNING, "message", "x.txt", 3, "0", "null", "nowhere")
    assert other == Finding("test-rule", Severity.INFO, "other", "y.txt", None, None, None, "nowhere")
    assert findings_on(Problem("message"), file=None)[0].file is None


def test_parse_errors_of_a_rule_become_its_problems() -> None:
    errors = [ParseError("a", 3, "one", "x"), ParseError("b", 4, "two"), ParseError("a", None, "three")]
    assert list(parse_problems(errors, "a", "y.txt")) == [
        Problem("one", 3, got="x", file="y.txt"), Problem("three", got=ABSENT, file="y.txt"),
    ]  # fmt: skip


@pytest.mark.parametrize(("count", "more"), [(0, None), (1, None), (20, None), (21, 1), (50, 30)])
def test_at_most_twenty_problems_are_listed(count: int, more: int | None) -> None:
    findings = findings_on(*(Problem(f"message {number}", number) for number in range(count)))
    assert [finding.line for finding in findings[:20]] == list(range(min(count, 20)))
    assert [finding.message.split()[0] for finding in findings[20:]] == ([str(more)] if more else [])
    assert all(finding.file == "x.txt" and finding.severity is Severity.WARNING for finding in findings)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x", '"x"'), (None, "null"), (True, "true"), (3.34, "3.34"), (math.nan, "NaN"), ([1, "a"], '[1, "a"]'),
        ("é\n", '"\\u00e9\\n"'), ("y" * 98, '"' + "y" * 98 + '"'), ("y" * 99, '"' + "y" * 96 + "..."),
        ({1, 2}, '"{1, 2}"'),
    ],
)  # fmt: skip
def test_values_are_quoted_as_json_on_one_line(value: object, shown: str) -> None:
    assert quote_json(value) == shown
    assert findings_on(Problem("message", got=value))[0].got == shown


def test_every_rule_is_declared_once_with_a_source_and_a_sentence() -> None:
    assert len({each.id for each in ALL_RULES}) == len(ALL_RULES) > 60
    for each in ALL_RULES:
        assert each.citation and len(each.description) > 40 and each.description.endswith(".")


def test_unverifiable_facts_are_reported_and_never_fail() -> None:
    findings = unverifiable_findings()
    assert [finding.rule for finding in findings] == [
        "unverifiable-model", "unverifiable-data", "unverifiable-cache", "unverifiable-optimizer",
    ]  # fmt: skip
    assert all(finding.severity is Severity.UNVERIFIABLE and finding.file is None for finding in findings)


def test_findings_name_the_file_and_determine_the_status() -> None:
    warned = judged(compliant_log(64).set("submission_status", ""), "a name")
    assert ([each.file for each in warned.findings], warned.summary.status) == (["a name"], Status.CONVERGED)
    assert judged_after(set_value("cache_clear", False)).summary.status is Status.INVALID
    lost = compliant_log(64, converged=False)
    assert judged(lost).summary.status is Status.NOT_CONVERGED
    assert judged(lost, in_set=False).summary.status is Status.INVALID


@pytest.mark.parametrize("ruleset", ["6.0.0", "6.1.0"])
@pytest.mark.parametrize("gbs", [16, 24, 32, 48, 64])
@pytest.mark.parametrize("options", [{}, {"convention": "before"}, {"division": "open"}], ids=str)
def test_a_compliant_log_breaks_no_rule(ruleset: str, gbs: int, options: dict[str, Any]) -> None:
    found = judged(compliant_log(gbs, ruleset=ruleset, **options), ruleset=ruleset, in_set=False)
    assert found.findings == ()
    assert found.summary.status is Status.CONVERGED


def test_rules_that_6_0_lacks() -> None:
    old = compliant_log(ruleset="6.0.0", learning_rate=8e-4, end_learning_rate=4e-5, disclosures=False)
    assert fired(judged(old, ruleset="6.0.0").findings) == set()
    assert fired(judged(old, ruleset="6.1.0").findings) == {"hyperparameter-end-rate", "record-required"}
    newer = compliant_log().set("lowest_numerical_precision_in_linear", "mxfp6")
    assert fired(judged(newer, ruleset="6.1.0").findings) == set()
    assert fired(judged(newer, ruleset="6.0.0").findings) == {"precision-name"}
