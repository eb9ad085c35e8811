"""The report as JUnit XML, for continuous integration: one suite per set, one case per file."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from ..file_tree import printable
from ..findings import Finding, Report, SetResult, Severity, Verdict

_WHOLE = "whole set"


def junit_report(report: Report) -> str:
    """Return the report as a JUnit XML document in plain ASCII, ending in a newline.

    The errors of a file are one failure, because many readers show the first one only. Its warnings, notes and waived
    findings are the output of the case; with --strict, warnings are errors. Findings about a whole set are a case, and
    findings outside of all sets are a suite. Each unverifiable point is a skipped case. Errors about an unreadable file
    are `error` instead of `failure`. The time of a case is that of the official tools, in seconds. Characters that XML
    1.0 forbids become visible escapes.
    """
    root = Element("testsuites", name=printable(f"{report.command} {report.ruleset}"))
    findings = list(report.findings)
    for result in report.sets:
        known = {result.name, *(run.file for run in result.runs)}
        everything = len(report.sets) == 1
        _suite(root, report, [each for each in findings if everything or each.file in known], result)
        findings = [each for each in findings if not everything and each.file not in known]
    if findings or not report.sets:
        _suite(root, report, findings)
    _set_totals(root)
    indent(root)
    document: bytes = tostring(root, encoding="us-ascii", xml_declaration=True)
    return document.decode() + "\n"


def _suite(root: Element, report: Report, findings: Sequence[Finding], result: SetResult | None = None) -> None:
    name = (result.name if result is not None else "") or report.command
    suite = SubElement(root, "testsuite", name=printable(name))
    of_subject: dict[str, list[Finding]] = {run.file: [] for run in (result.runs if result is not None else ())}
    judged = frozenset(of_subject)
    if result is not None and (result.score or result.variance or result.rcp):
        of_subject[_WHOLE] = []
    skipped = {}
    for each in findings:
        if each.severity is Severity.UNVERIFIABLE:
            skipped[each.rule, each.message] = each
        else:
            subject = _WHOLE if each.file in (None, name) else each.file
            of_subject.setdefault(subject or _WHOLE, []).append(each)
    for subject, about in of_subject.items():
        case = _case(suite, name, subject, _official_seconds(report, name if subject == _WHOLE else subject))
        unread = report.verdict is Verdict.ERROR and subject not in judged and not (subject == _WHOLE and judged)
        _outcome(case, about, "error" if unread else "failure", strict=bool(report.options.get("strict")))
    for each in skipped.values():
        SubElement(_case(suite, name, each.rule, 0), "skipped", message=printable(each.message))
    _set_totals(suite)


def _case(suite: Element, set_name: str, name: str, seconds: float) -> Element:
    return SubElement(suite, "testcase", classname=printable(set_name), name=printable(name), time=f"{seconds:.3f}")


def _outcome(case: Element, findings: Sequence[Finding], tag: str, strict: bool) -> None:
    """Add the failing findings to a case, then the others as its output."""
    failing = {Severity.ERROR, Severity.WARNING} if strict else {Severity.ERROR}
    fatal = [each for each in findings if each.severity in failing]
    rest = [each for each in findings if each.severity not in failing]
    if fatal:
        first = f"{fatal[0].rule}: {fatal[0].message}"
        message = first if len(fatal) == 1 else f"{first} (and {len(fatal) - 1} more)"
        problem = SubElement(case, tag, message=printable(message), type=printable(fatal[0].rule))
        problem.text = "\n".join(map(_entry, fatal))
    if rest:
        SubElement(case, "system-out").text = "\n".join(map(_entry, rest))


def _entry(finding: Finding) -> str:
    lines = [f"{finding.severity}: {finding.rule}: {finding.message}", f"  in {finding.place}" if finding.place else ""]
    lines += [f"  {name}: {text}" for name, text in (("expected", finding.expected), ("got", finding.got)) if text]
    lines += [f"  {finding.waived}"] if finding.waived else []
    lines += [f"  source: {finding.citation}"]
    return "\n".join(printable(line) for line in lines if line)


def _official_seconds(report: Report, subject: str) -> float:
    results = report.official.results if report.official is not None else ()
    return sum(each.seconds for each in results if each.subject == subject)


def _set_totals(element: Element) -> None:
    """Set the totals of a suite, or of all suites, from its cases."""
    cases = list(element.iter("testcase"))
    element.set("tests", str(len(cases)))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    element.set("time", f"{sum(float(case.get('time', 0)) for case in cases):.3f}")
