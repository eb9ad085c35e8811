"""Differences between the official verdicts and ours, with reasons. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from ..findings import Divergence, Finding, OfficialResult, Severity

_MAX_QUOTED = 3
_NO_VERDICT = ("refused", "crashed", "timeout")
# End of the package checker's message, after the folder, when it lets one log break the rules.
_ACCEPTED = ": 1 file does not comply, accepting this under olympic scoring"


@dataclass(frozen=True, slots=True)
class OwnVerdict:
    """Our verdict on the subject of one official tool: "pass", "fail", or "not judged"."""

    verdict: str
    findings: tuple[Finding, ...] = ()


def find_divergences(
    ours: Mapping[tuple[str, str], OwnVerdict], results: Sequence[OfficialResult]
) -> tuple[Divergence, ...]:
    """Return every difference, in the order of the results.

    ``ours`` is by tool and subject. Without our verdict, only a missing official verdict is a difference.
    """
    divergences = []
    for result in results:
        own = ours.get((result.tool, result.subject), OwnVerdict("not judged"))
        if reason := _reason(own, result, results):
            divergences.append(Divergence(result.tool, result.subject, own.verdict, result.verdict, reason))
    return tuple(divergences)


def _reason(own: OwnVerdict, result: OfficialResult, results: Sequence[OfficialResult]) -> str | None:
    """Return the reason of a difference, None if the verdicts agree."""
    if result.verdict in _NO_VERDICT:
        return f"no official verdict, {result.verdict}: {_quote(result.messages)}"
    if result.verdict == "fail":
        return f"official message: {_quote(result.messages)}" if own.verdict == "pass" else None
    reasons = []
    accepted = _accepted_logs(result, results)
    if accepted:
        reasons.append(
            "official accepts one log that breaks the rules as the slowest, which by the rules only a run without "
            f"convergence may be: {', '.join(accepted)}"
        )
    if own.verdict == "fail":
        errors = (each for each in own.findings if each.severity is Severity.ERROR and each.file not in accepted)
        unchecked = list(dict.fromkeys(finding.rule for finding in errors))
        if unchecked:
            reasons.append(f"official does not check: {', '.join(unchecked)}")
        elif not reasons:
            reasons.append("official passes a failure without errors")
    return "; ".join(reasons) or None


def _accepted_logs(result: OfficialResult, results: Sequence[OfficialResult]) -> list[str]:
    """Return the logs that a package checker accepted although they break rules.

    Only its folder is known for a log that the compliance checker did not judge.
    """
    accepted = []
    for message in result.messages:
        if not message.endswith(_ACCEPTED):
            continue
        folder = PurePath(message.removesuffix(_ACCEPTED))
        failing = [
            other.subject
            for other in results
            if other.tool == "compliance_checker" and other.verdict != "pass" and _is_in(other.subject, folder)
        ]
        accepted += failing or [f"one in {folder}"]
    return accepted


def _is_in(file: str, folder: PurePath) -> bool:
    """Return True if a path ends in the folder and a name.

    >>> _is_in("/x/results/s/gpt_oss_20b/result_1.txt", PurePath("results/s/gpt_oss_20b"))
    True
    """
    return PurePath(file).parent.parts[-len(folder.parts) :] == folder.parts


def _quote(messages: Sequence[str]) -> str:
    more = f"; and {len(messages) - _MAX_QUOTED} more" if len(messages) > _MAX_QUOTED else ""
    return ("; ".join(messages[:_MAX_QUOTED]) or "no message") + more
