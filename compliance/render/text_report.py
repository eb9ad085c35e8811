"""The report for a terminal: the verdict first, then what breaks which rule, then the figures.

What to say and how to draw it are apart: the first functions make lines and tables of plain strings, `_draw` alone
knows rich, which costs a few hundredths of a second to import. Every string passes `visible` on its way out, and none
is read as rich's markup.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Literal, TypeVar

from ..benchmark import NAME
from ..findings import (
    Finding,
    Official,
    OfficialResult,
    Rcp,
    RcpTest,
    Report,
    RunSummary,
    Score,
    SetResult,
    Severity,
    Spread,
    Variance,
    Verdict,
)  # fmt: skip
from .terminal import Block, Line, Table, draw

# More of the same kind tell a reader nothing; the JSON has all.
_MOST = 20
_LONGEST = 500
_STYLES = {
    Verdict.PASS: "bold green",
    Verdict.FAIL: "bold red",
    Verdict.ERROR: "bold magenta",
    Severity.ERROR: "bold red",
    Severity.WARNING: "bold yellow",
    Severity.INFO: "bold cyan",
}


Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


def text_report(report: Report, width: int = 100, colour: bool = False) -> str:
    """The report as lines for a terminal, ending in a newline.

    Args:
        report: what a check found.
        width: columns; longer lines are wrapped.
        colour: whether to write ANSI colours. Without, the text has no control character but newlines.
    """
    return draw(_blocks(report), width, colour)


def _blocks(report: Report) -> Iterator[Block]:
    yield _verdict(report)
    for severity, title in ((Severity.ERROR, "Errors"), (Severity.WARNING, "Warnings"), (Severity.INFO, "Notes")):
        yield from _findings(title, [each for each in report.findings if each.severity is severity], _STYLES[severity])
    yield from _unverifiable(report.findings)
    for result in report.sets:
        yield from _set(result, several=len(report.sets) > 1)
    if report.official is not None:
        yield from _official(report.official)


def _verdict(report: Report) -> Line:
    counts = {severity: sum(each.severity is severity for each in report.findings) for severity in Severity}
    errors, warnings = counts[Severity.ERROR], counts[Severity.WARNING]
    where = _count(sum(len(result.runs) for result in report.sets), "run")
    if len(report.sets) > 1:
        where += f" of {len(report.sets)} sets"
    text = f"{report.verdict.upper()}: {_count(errors, 'error')}, {_count(warnings, 'warning')} in {where}"
    text += f" ({NAME}, {report.ruleset})"
    if report.verdict is Verdict.FAIL and not errors:
        text += "; --strict makes warnings fail"
    if report.verdict is Verdict.ERROR:
        text += "; the input could not be judged"
    return Line(text, style=_STYLES[report.verdict])


def _findings(title: str, findings: list[Finding], style: str) -> Iterator[Block]:
    if not findings:
        return
    yield from _heading(f"{title} ({len(findings)})", style)
    for rule, of_rule in _groups(findings, lambda each: each.rule):
        times = f" x {len(of_rule)}" if len(of_rule) > 1 else ""
        yield Line(f"{_cut(rule)}{times}  [{_cut(of_rule[0].citation)}]", 2, "bold")
        messages = _groups(of_rule, lambda each: each.message)
        for message, alike in messages[:_MOST]:
            yield Line(_cut(message), 4)
            values = _groups(alike, lambda each: (each.expected, each.got))
            yield from (Line(line, 6) for line in map(_evidence, values[:_MOST]) if line)
            yield from _rest(len(values), 6)
        yield from _rest(len(messages), 4)


def _evidence(alike: tuple[tuple[str | None, str | None], list[Finding]]) -> str:
    (expected, got), findings = alike
    values = [f"{name} {_cut(text)}" for name, text in (("expected", expected), ("got", got)) if text is not None]
    places = _places((each.file, each.line) for each in findings)
    return ": ".join(filter(None, (", ".join(values), places)))


def _unverifiable(findings: Iterable[Finding]) -> Iterator[Block]:
    open_points = [each for each in findings if each.severity is Severity.UNVERIFIABLE]
    if not open_points:
        return
    yield from _heading("Not verifiable from a log")
    for (rule, message), _ in _groups(open_points, lambda each: (each.rule, each.message)):
        yield Line(f"{_cut(rule)}: {_cut(message)}", 2)


def _set(result: SetResult, several: bool) -> Iterator[Block]:
    if several:
        yield from _heading(f"Set {_cut(result.name)}")
    yield from _runs(result.runs)
    if result.score is not None:
        yield from _score(result.score, len(result.runs))
    if result.variance is not None:
        yield from _variance(result.variance)
    if result.rcp is not None:
        yield from _rcp(result.rcp)


def _runs(runs: tuple[RunSummary, ...]) -> Iterator[Block]:
    if not runs:
        return
    folders = {run.file.rpartition("/")[0] for run in runs}
    folder = folders.pop() if len(folders) == 1 else ""
    yield from _heading(f"Runs in {_cut(folder)}" if folder else "Runs")
    rows = tuple(
        (
            _cut(run.file.rpartition("/")[2] if folder else run.file),
            run.status.replace("_", " "),
            str(run.seed) if run.seed is not None and abs(run.seed) < 2**64 else _number(run.seed),
            _number(run.global_batch_size),
            _number(run.samples_to_target),
            _number(run.minutes, 3),
            _number(run.final_eval_loss, 5),
        )
        for run in runs
    )
    yield Table(("file", "status", ">seed", ">GBS", ">samples\nto target", ">minutes", ">final\nloss"), rows)


def _score(score: Score, runs: int) -> Iterator[Block]:
    yield from _heading("Score" if score.valid else "No score: the set is not valid. For information only:")
    if score.olympic_minutes is not None:
        yield Line(f"olympic mean: {_number(score.olympic_minutes, 3)} minutes, run_start to run_stop", 2)
    if score.normalized_minutes is not None:
        factor = f"{_number(score.normalized_minutes, 3)} minutes, by the RCP test's {_number(score.normalization, 6)}"
        yield Line(f"normalised: {factor}", 2)
    first_pass = f"{_number(score.olympic_minutes_to_target, 3)} minutes, {_number(score.olympic_samples, 1)} samples"
    yield Line(f"olympic mean to the first passing evaluation: {first_pass}", 2)
    if len(score.window) == runs:
        yield Line(f"window: all {_count(runs, 'run')}", 2)
    else:
        yield Line(f"window: {len(score.window)} of {_count(runs, 'run')}: {_places(_files(score.window))}", 2)
    if score.dropped:
        yield Line(f"dropped as fastest and slowest: {_places(_files(score.dropped))}", 2)


def _variance(variance: Variance) -> Iterator[Block]:
    yield from _heading("Variance")
    measures = (("samples", variance.samples, 1, 0), ("minutes", variance.minutes, 3, 3))
    rows = tuple(_spread(name, spread, *digits) for name, spread, *digits in measures if spread is not None)
    if rows:
        yield Table(("", ">runs", ">mean", ">sd", ">CV %", ">least", ">most", ">quantum", ">quantum\n%"), rows)
    yield Line(_cut(variance.definition), 2)


def _spread(name: str, spread: Spread, digits: int, digits_of_one: int) -> tuple[str, ...]:
    return (
        name,
        str(spread.runs),
        _number(spread.mean, digits),
        _number(spread.sd, digits),
        _number(spread.cv_percent, 2),
        _number(spread.minimum, digits_of_one),
        _number(spread.maximum, digits_of_one),
        _number(spread.quantum),
        _number(spread.quantum_percent, 2),
    )


def _rcp(rcp: Rcp) -> Iterator[Block]:
    yield from _heading(f"Convergence against the reference (RCP) at GBS {_number(rcp.global_batch_size)}")
    yield Line(f"olympic mean: {_number(rcp.pruned.submission_mean, 1)} samples", 2)
    yield Table(
        ("test", "result", "point", ">RCP mean", ">minimum", ">margin", ">normalisation"),
        (_rcp_test("pruned", rcp.pruned), _rcp_test("full", rcp.full)),
    )
    yield Line("The official package checker decides by the pruned test.", 2)


def _rcp_test(name: str, test: RcpTest) -> tuple[str, ...]:
    return (
        name,
        {None: "not tested", True: "pass", False: "FAIL"}[test.passed],
        test.kind,
        _number(test.mean, 1),
        _number(test.minimum, 1),
        _number(test.margin_samples, 1, "+"),
        _number(test.normalization, 6),
    )


def _official(official: Official) -> Iterator[Block]:
    yield from _heading(f"Official tools (mlperf-logging {_cut(official.version)}): {official.verdict}")
    for tool, results in _groups(official.results, lambda each: each.tool):
        said = ", ".join(f"{len(same)} {verdict}" for verdict, same in _groups(results, lambda each: each.verdict))
        yield Line(f"{_cut(tool)}: {said} ({sum(each.seconds for each in results):.1f} s)", 2)
        yield from _complaints([each for each in results if each.verdict != "pass"])
    if not official.divergences:
        yield Line("No divergence from our verdict.", 2)
    alike = _groups(official.divergences, lambda each: (each.tool, each.ours, each.official, each.reason))
    for (tool, ours, theirs, reason), same in alike:
        yield Line(f"DIVERGENCE {_cut(tool)}: ours {_cut(ours)}, official {_cut(theirs)}", 2, "bold yellow")
        yield Line(_cut(reason), 4)
        yield Line(_places(_files(each.subject for each in same)), 6, "cyan")


def _complaints(results: Iterable[OfficialResult]) -> Iterator[Block]:
    """What several files have in common is said once."""
    by_message = _groups(((text, each.subject) for each in results for text in each.messages), lambda each: each[0])
    subjects = [(message, tuple(subject for _, subject in said)) for message, said in by_message]
    for files, messages in _groups(subjects, lambda each: each[1]):
        yield Line(_places(_files(files)), 4, "cyan")
        yield from (Line(_cut(message), 6) for message, _ in messages[:_MOST])
        yield from _rest(len(messages), 6)


def _heading(text: str, style: str = "bold") -> Iterator[Block]:
    yield Line()
    yield Line(text, style=style)


def _rest(number: int, indent: int) -> Iterator[Block]:
    if number > _MOST:
        yield Line(f"... and {number - _MOST} more; --format json has all", indent)


def _places(places: Iterable[tuple[str | None, int | None]]) -> str:
    """Files with lines, each folder named once in a row."""
    shown, last = [], None
    for file, line in places:
        if file is None:
            continue
        folder, _, name = file.rpartition("/")
        shown.append((name if folder == last else file) + (f":{line}" if line is not None else ""))
        last = folder
    more = f", and {len(shown) - _MOST} more" if len(shown) > _MOST else ""
    return ", ".join(map(_cut, shown[:_MOST])) + more


def _files(files: Iterable[str]) -> Iterator[tuple[str, None]]:
    return ((file, None) for file in files)


def _groups(items: Iterable[Item], key: Callable[[Item], Key]) -> list[tuple[Key, list[Item]]]:
    """Items by key, in order of appearance."""
    found: dict[Key, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.items())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _number(value: float | None, digits: int = 0, sign: Literal["", "+"] = "") -> str:
    if value is None:
        return "-"
    if abs(value) < 1e15:
        return f"{value:{sign},.{digits}f}"
    # NaN, infinity, or what a broken log claims; an integer of a thousand digits has no float.
    return f"{value:.4g}" if isinstance(value, float) or abs(value) < 1e308 else "over 1e308"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
