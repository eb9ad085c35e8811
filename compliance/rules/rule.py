"""What a rule is: an id, a weight, a source, and one pure function from what is judged to what is wrong with it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..findings import Finding, Severity

BOTH_DIVISIONS = frozenset({"closed", "open"})
# A file with a hundred thousand corrupt records would bury everything else.
MAX_FINDINGS = 20

# For `Problem.got`, where None is a value: the null of a log.
ABSENT = object()

Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with what was judged; the rule adds its id, weight and source to make a `Finding`.

    Attributes:
        message: what, in one sentence, and how to fix it.
        line: line of the file, from 1.
        expected: what the rule wants.
        got: what is there.
        file: the file, where the subject is more than one.
        severity: instead of the rule's own.
    """

    message: str
    line: int | None = None
    expected: object = None
    got: object = ABSENT
    file: str | None = None
    severity: Severity | None = None


@dataclass(frozen=True)
class Rule(Generic[Subject]):
    """One rule.

    Attributes:
        id: its name in findings, e.g. "eval-cadence".
        severity: the weight of its findings unless one says otherwise.
        citation: the document or file that it comes from, or this project's name for its own.
        check: yields a problem for everything that breaks it.
        divisions: divisions it applies to.
    """

    id: str
    severity: Severity
    citation: str
    check: Callable[[Subject], Iterator[Problem]]
    divisions: frozenset[str] = BOTH_DIVISIONS

    @property
    def description(self) -> str:
        """The docstring of the check, as one paragraph."""
        return " ".join((inspect.getdoc(self.check) or "").split())

    def judge(self, subject: Subject, file: str | None = None) -> Iterator[Finding]:
        """The findings of this rule; past `MAX_FINDINGS` the rest is counted in a last one."""
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
    name: str, severity: Severity, citation: str, divisions: Iterable[str] = BOTH_DIVISIONS
) -> Callable[[Callable[[Subject], Iterator[Problem]]], Rule[Subject]]:
    """Declares the decorated generator to be the check of a rule."""

    def declare(check: Callable[[Subject], Iterator[Problem]]) -> Rule[Subject]:
        return Rule(name, severity, citation, check, frozenset(divisions))

    return declare


def quote_json(value: object) -> str:
    """A value of a log as a finding quotes it: as JSON, on one line, never long.

    >>> quote_json("x"), quote_json(3.34), quote_json(None), quote_json("y" * 200)[-5:]
    ('"x"', '3.34', 'null', 'yy...')
    """
    text = json.dumps(value, default=repr)
    return text if len(text) <= 100 else text[:97] + "..."
