"""Where the official verdicts and ours differ, and why. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from ..findings import Divergence, Finding, OfficialResult, Severity

_MOST_QUOTED = 3
_NO_VERDICT = ("refused", "crashed", "timeout")
# What the package checker says, after the folder, when it lets one log break the rules.
_ACCEPTED = ": 1 file does not comply, accepting this under olympic scoring"


@dataclass(frozen=True, slots=True)
class OwnVerdict:
    """Our judgement of what one official tool judged.

    Attributes:
        verdict: "pass", "fail", or "not judged".
        findings: ours about it; only errors count.
    """

    verdict: str
    findings: tuple[Finding, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that make it fail."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)


def find_divergences(
    ours: Mapping[tuple[str, str], OwnVerdict], results: Sequence[OfficialResult]
) -> tuple[Divergence, ...]:
    """Every difference, in the order of the results.

    Args:
        ours: our judgement by official tool and subject. Without one, only what has no official verdict is named.
        results: the official tools' results, of all tools and subjects together.
    """
    found = []
    for result in results:
        own = ours.get((result.tool, result.subject), OwnVerdict("not judged"))
        if reason := _reason(own, result, results):
            found.append(Divergence(result.tool, result.subject, own.verdict, result.verdict, reason))
    return tuple(found)


def _reason(own: OwnVerdict, result: OfficialResult, results: Sequence[OfficialResult]) -> str | None:
    if result.verdict in _NO_VERDICT:
        return f"no official verdict, {result.verdict}: {_quoted(result.messages)}"
    if result.verdict == "fail":
        return f"official says: {_quoted(result.messages)}" if own.verdict == "pass" else None
    reasons = []
    accepted = _accepted(result, results)
    if accepted:
        reasons.append(
            f"official accepts one log that breaks the rules as the slowest, which only a run that does not converge "
            f"may be: {', '.join(accepted)}"
        )
    if own.verdict == "fail":
        unchecked = _rules(finding for finding in own.errors if finding.file not in accepted)
        if unchecked:
            reasons.append(f"official does not check: {', '.join(unchecked)}")
        elif not reasons:
            reasons.append("official passes what fails here without an error of its own")
    return "; ".join(reasons) or None


def _accepted(result: OfficialResult, results: Sequence[OfficialResult]) -> list[str]:
    """Logs that a passing package checker let go: by name where the compliance checker was asked, else their folder."""
    named = []
    for message in result.messages:
        if not message.endswith(_ACCEPTED):
            continue
        folder = PurePath(message.removesuffix(_ACCEPTED))
        failing = [
            other.subject
            for other in results
            if other.tool == "compliance_checker" and other.verdict != "pass" and _lies_in(other.subject, folder)
        ]
        named += failing or [f"one in {folder}"]
    return named


def _lies_in(file: str, folder: PurePath) -> bool:
    """Whether a path ends in the folder and a name.

    >>> _lies_in("/x/results/s/gpt_oss_20b/result_1.txt", PurePath("results/s/gpt_oss_20b"))
    True
    """
    parent = PurePath(file).parent.parts
    return parent[-len(folder.parts) :] == folder.parts


def _rules(findings: Iterable[Finding]) -> list[str]:
    return list(dict.fromkeys(finding.rule for finding in findings))


def _quoted(messages: Sequence[str]) -> str:
    more = f"; and {len(messages) - _MOST_QUOTED} more" if len(messages) > _MOST_QUOTED else ""
    return ("; ".join(messages[:_MOST_QUOTED]) or "no message") + more
