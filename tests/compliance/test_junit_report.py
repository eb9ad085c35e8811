"""JUnit XML of a report: suites, cases, outcomes and times."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

from hypothesis import given, settings

from compliance.file_tree import printable
from compliance.findings import Finding, Report, SetResult, Severity, Verdict
from compliance.render.junit_report import junit_report
from tests.support.made_reports import (
    ANY_REPORT,
    FOLDER,
    UNVERIFIABLE,
    failing_report,
    made_finding,
    made_report,
    made_run,
    made_set,
    passing_report,
)


def junit(report: Report) -> ElementTree.Element:
    text = junit_report(report)
    assert re.fullmatch(r"[ -~\n]+", text)
    assert text.startswith("<?xml version='1.0' encoding='us-ascii'?>\n")
    return ElementTree.fromstring(text)


def cases(root: ElementTree.Element) -> dict[str | None, ElementTree.Element]:
    return {case.get("name"): case for case in root.iter("testcase")}


def totals(element: ElementTree.Element) -> tuple[int, ...]:
    return tuple(int(element.get(name, -1)) for name in ("tests", "failures", "errors", "skipped"))


def test_a_passing_set() -> None:
    root = junit(passing_report())
    assert root.tag == "testsuites"
    (suite,) = root
    assert (suite.tag, suite.get("name")) == ("testsuite", FOLDER)
    assert list(cases(root)) == [*(run.file for run in made_set().runs), "whole set", "dropout", "data-order"]
    assert {case.get("classname") for case in suite} == {FOLDER}
    assert totals(root) == totals(suite) == (13, 0, 0, 2)
    assert [len(case) for case in suite] == [0] * 11 + [1] * 2
    everywhere = tuple(replace(each, file=f"{n}.txt") for n in range(10) for each in UNVERIFIABLE)
    assert totals(junit(passing_report(findings=everywhere))) == (13, 0, 0, 2)
    skipped = cases(root)["dropout"][0]
    assert (skipped.tag, skipped.get("message")) == ("skipped", "dropout is not in a log")


def test_times_are_those_of_the_official_tools() -> None:
    root = junit(passing_report())
    assert [case.get("time") for case in root.iter("testcase")] == ["1.100"] * 10 + ["2.300", "0.000", "0.000"]
    assert root.get("time") == root[0].get("time") == "13.300"
    assert junit(passing_report(official=None)).get("time") == "0.000"


def test_a_failing_set() -> None:
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
        "error: eval-after-pass: 1 evaluations too many\n"
        f"  in {FOLDER}/result_0.txt:301\n"
        "  source: training_rules.adoc, section 9.3"
    )
    second = cases(root)[f"{FOLDER}/result_1.txt"]
    assert [child.tag for child in second] == ["failure", "system-out"]
    assert str(second[1].text).startswith("warning: run-stop-late: run_stop is late\n")
    whole = cases(root)["whole set"]
    assert whole[0].get("message") == "seed-repeated: two runs have seed 16979"
    assert [line for line in str(whole[1].text).splitlines() if not line.startswith(" ")] == [
        "warning: cv-limit: the CV of the samples is high",
        "info: window: all ten runs count",
    ]


def test_warnings_pass_unless_strict() -> None:
    warning = made_finding("late", Severity.WARNING, file=f"{FOLDER}/result_3.txt")
    assert totals(junit(passing_report(findings=(warning,))))[1] == 0
    strict = junit(passing_report(findings=(warning,), verdict=Verdict.FAIL, options={"strict": True}))
    assert totals(strict)[1] == 1
    assert [child.tag for child in cases(strict)[warning.file]] == ["failure"]


def test_an_unreadable_input_is_an_error() -> None:
    def judged(findings: Sequence[Finding], *sets: SetResult, verdict: Verdict = Verdict.ERROR) -> ElementTree.Element:
        return junit(made_report(*sets, verdict=verdict, findings=tuple(findings)))

    unread = made_finding(file="x.gz")
    root = judged([unread])
    assert totals(root) == (1, 0, 1, 0)
    assert cases(root)["x.gz"][0].tag == "error"
    assert totals(judged([made_finding(file=None)])) == (1, 0, 1, 0)
    # Findings about readable files stay failures.
    assert totals(judged([made_finding(file=f"{FOLDER}/result_0.txt"), unread], made_set())) == (12, 1, 1, 0)
    assert totals(judged([made_finding(file=None), unread], made_set())) == (12, 1, 1, 0)
    assert totals(judged([made_finding(file="systems/x.json")], made_set(), verdict=Verdict.FAIL)) == (12, 1, 0, 0)


def test_each_set_has_a_suite_and_the_rest_has_one() -> None:
    files = ("results/b/result_4.txt", "results/b", None, "systems/b.json")
    findings = (*(made_finding(file=file) for file in files), *UNVERIFIABLE)
    root = junit(made_report(made_set(name="results/a"), made_set(name="results/b"), findings=findings))
    assert [suite.get("name") for suite in root] == ["results/a", "results/b", "check-set"]
    assert [totals(suite) for suite in root] == [(11, 0, 0, 0), (11, 2, 0, 0), (4, 2, 0, 2)]
    assert totals(root) == (26, 4, 0, 2)
    failed = [case.get("name") for case in root.iter("testcase") if case.find("failure") is not None]
    assert failed == ["results/b/result_4.txt", "whole set", "whole set", "systems/b.json"]


def test_one_run_has_one_case() -> None:
    alone = SetResult("", (made_run(0),), None, None, None)
    root = junit(made_report(alone, command="check-run"))
    assert (root[0].get("name"), list(cases(root))) == ("check-run", [made_run(0).file])


@settings(max_examples=100, deadline=None)
@given(ANY_REPORT)
def test_any_report_is_xml_with_every_finding(report: Report) -> None:
    root = junit(report)
    assert totals(root)[0] == len(list(root.iter("testcase")))
    assert totals(root) == tuple(map(sum, zip(*map(totals, root), strict=True)))
    text = " ".join(
        "".join(str(part) for part in (each.text, each.get("message")))
        for tag in ("failure", "error", "system-out", "skipped")
        for each in root.iter(tag)
    )
    for each in report.findings:
        assert printable(each.message) in text
    errors = [each for each in report.findings if each.severity is Severity.ERROR]
    assert (totals(root)[1] + totals(root)[2] > 0) >= bool(errors)
