"""Rule: an id, a severity, a citation, and a pure function from a subject to the problems it has."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..benchmark import OFFICIAL_PACKAGE, OFFICIAL_VERSION
from ..findings import Finding, Severity
from ..records import ParseError, Record

# Citations. OFFICIAL is followed by a file or a tool of that package.
OFFICIAL = f"{OFFICIAL_PACKAGE} {OFFICIAL_VERSION}, "
COMMON_YAML = f"{OFFICIAL}compliance_checker/training_6.x.0/common.yaml"
CLOSED_YAML = f"{OFFICIAL}compliance_checker/training_6.x.0/closed_gpt_oss_20b.yaml"
SEED_CHECKER = f"training rules, Random numbers; {OFFICIAL}package_checker/seed_checker"
# Citation of a rule without a sentence of MLPerf or an official check behind it. Such a rule warns.
OWN = "this project's judgement, not a rule of MLPerf"
BOTH_DIVISIONS = frozenset({"closed", "open"})
# A file with a hundred thousand corrupt records would bury all other findings.
MAX_FINDINGS = 20

# Default of `Problem.got`. None is a value there: the null of a log.
ABSENT = object()

Subject = TypeVar("Subject")
# Returns a finding, marked if a waiver accepts it (`compliance.waivers`).
Waive = Callable[[Finding], Finding]


@dataclass(frozen=True, slots=True)
class Problem:
    """Violation found by a rule. The rule adds its id and citation to make a `Finding`.

    ``severity`` replaces that of the rule. ``file`` names the file of a subject with several.
    """

    message: str
    line: int | None = None
    expected: object = None
    got: object = ABSENT
    file: str | None = None
    severity: Severity | None = None


@dataclass(frozen=True)
class Rule(Generic[Subject]):
    """One rule. ``check`` yields a problem for every violation; its docstring describes the rule.

    Attributes:
        id: name in findings, e.g. "eval-cadence".
        severity: default severity of its findings.
        citation: document or file that states the rule, or "this project".
        official: parts of the official checks that test the same: "pruned", "full" or "seeds".
        of_set: report once for a set what all of its logs have in common.
    """

    id: str
    severity: Severity
    citation: str
    check: Callable[[Subject], Iterator[Problem]]
    divisions: frozenset[str] = BOTH_DIVISIONS
    official: tuple[str, ...] = ()
    of_set: bool = False

    @property
    def description(self) -> str:
        """Return the docstring of the check as one paragraph."""
        return " ".join((inspect.getdoc(self.check) or "").split())

    def judge(self, subject: Subject, file: str | None = None) -> Iterator[Finding]:
        """Yield the findings of this rule. A last one counts those past `MAX_FINDINGS`."""
        problems = list(self.check(subject))
        for problem in problems[:MAX_FINDINGS]:
            yield self._finding(problem, file)
        if len(problems) > MAX_FINDINGS:
            more = Problem(f"{len(problems) - MAX_FINDINGS} more findings of this kind are not listed", file=file)
            yield self._finding(more, file)

    def _finding(self, problem: Problem, file: str | None) -> Finding:
        return Finding(
            rule=self.id,
            severity=problem.severity or self.severity,
            message=problem.message,
            file=problem.file or file,
            line=problem.line,
            expected=None if problem.expected is None else str(problem.expected),
            got=None if problem.got is ABSENT else quote_json(problem.got),
            citation=self.citation,
        )


def rule(
    name: str,
    severity: Severity,
    citation: str,
    divisions: Iterable[str] = BOTH_DIVISIONS,
    *,
    official: tuple[str, ...] = (),
    of_set: bool = False,
) -> Callable[[Callable[[Subject], Iterator[Problem]]], Rule[Subject]]:
    """Declare the decorated generator to be the check of a rule."""

    def declare(check: Callable[[Subject], Iterator[Problem]]) -> Rule[Subject]:
        return Rule(name, severity, citation, check, frozenset(divisions), official, of_set)

    return declare


def judge_by(
    rules: Iterable[Rule[Subject]], subject: Subject, file: str | None = None, waive: Waive | None = None
) -> tuple[Finding, ...]:
    """Return the findings of rules on a subject. Waivers apply here, before any verdict, and nowhere else."""
    findings = (finding for rule in rules for finding in rule.judge(subject, file))
    return tuple(map(waive, findings) if waive else findings)


def parse_problems(errors: Iterable[ParseError], rule_id: str, file: str | None = None) -> Iterator[Problem]:
    """Yield a problem for each parse error of a rule."""
    for error in errors:
        if error.rule == rule_id:
            yield Problem(error.message, error.line, got=ABSENT if error.got is None else error.got, file=file)


def value_problem(record: Record, message: str, expected: object, severity: Severity | None = None) -> Problem:
    """Return the problem of a record whose value breaks a rule."""
    return Problem(message, record.line, expected=expected, got=record.value, severity=severity)


def quote_json(value: object) -> str:
    """Return a log's value as quoted in findings: JSON on one line, at most 100 characters.

    >>> quote_json("x"), quote_json(3.34), quote_json(None), quote_json("y" * 200)[-5:]
    ('"x"', '3.34', 'null', 'yy...')
    """
    text = json.dumps(value, default=repr)
    return text if len(text) <= 100 else text[:97] + "..."
