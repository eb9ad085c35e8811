"""Two revisions of a submission tree, as a reviewer gets them after objections: what changed, and by how much."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Literal

from .benchmark import Ruleset
from .check import DEFAULTS, Options, check_package
from .file_tree import Link, list_tree, printable
from .findings import Finding, OfficialVerdict, Report, SetResult, Severity, Verdict

State = Literal["same", "changed", "added", "removed"]
# Figures of a result: the fields of its score.
_OF_SCORE = {
    "score_minutes": "normalized_minutes",
    "olympic_minutes": "olympic_minutes",
    "factor": "normalization",
    "samples": "olympic_samples",
}


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision of the tree.

    Attributes:
        root: folder as the user named it.
        official: verdict of the official tools; None if they were not asked.
    """

    root: str
    verdict: Verdict
    errors: int
    warnings: int
    waived: int
    official: OfficialVerdict | None


@dataclass(frozen=True, slots=True)
class FileChanges:
    """Names below the root of files that differ, sorted. A link counts as a file; its content is its target.

    Attributes:
        changed: in both revisions with different content.
        not_compared: files and folders that could not be read or listed, each with the reason.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    not_compared: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FigureChange:
    """One figure of a result in both revisions.

    Attributes:
        old, new: None if the revision does not have the figure.
        change: new - old, of numbers.
        percent: change in percent of old.
    """

    figure: str
    old: int | float | str | None
    new: int | float | str | None
    change: float | None
    percent: float | None


@dataclass(frozen=True, slots=True)
class ResultChange:
    """One result: a folder below results/ with its figures.

    Attributes:
        figures: verdict, runs, score_minutes (normalised), olympic_minutes, factor of the score, samples to the target
            (olympic mean), cv_samples_percent, cv_minutes_percent and energy_joules (mean of the scored runs).
    """

    result: str
    state: State
    figures: tuple[FigureChange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeDiff:
    """Differences between two revisions of a tree, as printed by ``diff --format json``.

    Attributes:
        verdict: verdict on the new revision.
        tool: versions of the packages that judged, by name.
        options: options of the command, by name.
        appeared: findings of the new revision that the old one does not have; lines and their numbers do not count.
        gone: findings of the old revision that the new one does not have.
    """

    schema_version: Literal[1] = 1
    command: Literal["diff"] = "diff"
    verdict: Verdict
    ruleset: Ruleset
    tool: dict[str, str]
    options: dict[str, str | int | float | bool | None]
    old: Revision
    new: Revision
    files: FileChanges
    results: tuple[ResultChange, ...]
    appeared: tuple[Finding, ...]
    gone: tuple[Finding, ...]


def diff_trees(old: Path, new: Path, options: Options = DEFAULTS) -> TreeDiff:
    """Check two revisions of a submission tree and compare them.

    Raises:
        InputError, OfficialToolsError: as `check_package`.
    """
    before, after = (check_package(root, options) for root in (old, new))
    findings_before, findings_after = _findings(before, old), _findings(after, new)
    return TreeDiff(
        verdict=after.verdict,
        ruleset=Ruleset(options.ruleset),
        tool=after.tool,
        options=after.options,
        old=_revision(old, before),
        new=_revision(new, after),
        files=_compare_files(old, new),
        results=tuple(_compare_results(_results(before, old), _results(after, new))),
        appeared=tuple(_missing_from(findings_before, findings_after)),
        gone=tuple(_missing_from(findings_after, findings_before)),
    )


def _revision(root: Path, report: Report) -> Revision:
    found = Counter(each.severity for each in report.findings)
    return Revision(
        root=printable(root),
        verdict=report.verdict,
        errors=found[Severity.ERROR],
        warnings=found[Severity.WARNING],
        waived=found[Severity.WAIVED],
        official=None if report.official is None else report.official.verdict,
    )


def _compare_files(old: Path, new: Path) -> FileChanges:
    trees = [list_tree(root, lambda folder: folder.rpartition("/")[2] != ".git") for root in (old, new)]
    entries: list[dict[str, int | Link]] = [
        {file.name: file.size for file in tree.files} | {link.name: link for link in tree.links} for tree in trees
    ]
    not_compared = [f"{name or '.'}: {reason}" for tree in trees for name, reason in tree.unlisted]
    changed = []
    for name in sorted(entries[0].keys() & entries[1].keys()):
        try:
            # Only files of equal size are read.
            is_link = isinstance(entries[0][name], Link)
            if entries[0][name] != entries[1][name] or (not is_link and _digest(old / name) != _digest(new / name)):
                changed.append(name)
        except OSError as error:
            not_compared.append(f"{name}: {error.strerror}")
    added, removed = (tuple(sorted(a.keys() - b.keys())) for a, b in (entries[::-1], entries))
    return FileChanges(added, removed, tuple(changed), tuple(dict.fromkeys(not_compared)))


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _results(report: Report, root: Path) -> dict[str, dict[str, int | float | str | None]]:
    """Return the figures of each result by its folder below the root."""
    return {_relative(result.name, root): _figures(result) for result in report.sets}


def _figures(result: SetResult) -> dict[str, int | float | str | None]:
    score, variance = result.score, result.variance
    spreads = (None, None) if variance is None else (variance.samples, variance.minutes)
    cv_samples, cv_minutes = (None if spread is None else spread.cv_percent for spread in spreads)
    return {
        "verdict": "valid" if score is not None and score.valid else "no score",
        "runs": len(result.runs),
        **{figure: getattr(score, name, None) for figure, name in _OF_SCORE.items()},
        "cv_samples_percent": cv_samples,
        "cv_minutes_percent": cv_minutes,
        "energy_joules": getattr(result.energy, "olympic_joules", None),
    }


def _compare_results(
    old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]
) -> Iterator[ResultChange]:
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, {}), new.get(name, {})
        state: State = "removed" if not after else "added" if not before else "same" if before == after else "changed"
        figures = (_compare_figures(each, before.get(each), after.get(each)) for each in before or after)
        yield ResultChange(name, state, tuple(figures))


def _compare_figures(figure: str, old: Any, new: Any) -> FigureChange:
    are_numbers = isinstance(old, int | float) and isinstance(new, int | float)
    change = new - old if are_numbers else None
    return FigureChange(figure, old, new, change, 100 * change / old if change is not None and old else None)


def _relative(file: str, root: Path) -> str:
    """Return a path for messages without the root."""
    prefix = next((each for each in (printable(root), str(root)) if PurePath(file).is_relative_to(each)), None)
    return file if prefix is None else PurePath(file).relative_to(prefix).as_posix()


def _findings(report: Report, root: Path) -> list[Finding]:
    """Return the findings with files and messages that name files below the root, so that revisions can be compared."""
    roots = "|".join(re.escape(each) for each in {printable(root), str(root)})
    named = re.compile(rf"(?<![\w/.-])(?:{roots})/(?=(?:systems|benchmarks|results)/)")
    return [
        replace(each, message=named.sub("", each.message), file=each.file and _relative(each.file, root))
        for each in report.findings
    ]


def _missing_from(known: Iterable[Finding], findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the findings that have no equal in ``known``, of several equal ones as many as are too many."""
    left = Counter(map(_identity, known))
    for finding in findings:
        identity = _identity(finding)
        left[identity] -= 1
        if left[identity] < 0:
            yield finding


def _identity(finding: Finding) -> tuple[str, str, str | None, str]:
    # Some messages name another line of the log.
    return finding.rule, finding.severity, finding.file, re.sub(r"\bline \d+", "line", finding.message)
