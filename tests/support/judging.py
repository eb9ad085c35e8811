"""Judging made logs in memory, for the tests of the rules."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from compliance.findings import Finding, SetResult, Severity
from compliance.judge import JudgedRun, judge_run, judge_set
from compliance.parse import parse
from compliance.run import Machine
from tests.support.made_logs import MadeLog

WEIGHTY = (Severity.ERROR, Severity.WARNING)


def judged(
    log: MadeLog | bytes, name: str = "result_0.txt", *, ruleset: str = "6.1.0", machine: Machine | None = None,
    in_set: bool = True,
) -> JudgedRun:  # fmt: skip
    """A made log, or the bytes of any, judged as a file of this name."""
    content = log if isinstance(log, bytes) else log.text().encode()
    return judge_run(parse(io.BytesIO(content), name), ruleset, machine, in_set=in_set)


def judged_set(
    logs: Sequence[MadeLog], *, ruleset: str = "6.1.0", **options: int | float
) -> tuple[SetResult, list[Finding]]:
    """The set's figures, and the findings on its runs and on the whole."""
    runs = [judged(log, f"result_{number}.txt", ruleset=ruleset) for number, log in enumerate(logs)]
    result, findings = judge_set(runs, ruleset, **options)  # type: ignore[arg-type]
    return result, [*(finding for run in runs for finding in run.findings), *findings]


def fired(findings: Iterable[Finding], *severities: Severity) -> set[str]:
    """Ids of the rules that found something of these weights; errors and warnings if none is named."""
    return {finding.rule for finding in findings if finding.severity in (severities or WEIGHTY)}
