"""The report for a terminal: verdict, findings by severity, figures of each set, verdicts of the official tools."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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
)
from .formatting import count, group_by, number
from .terminal import Block, Line, Table, draw

# Entries shown of a longer list, and characters of a longer text. The JSON has all.
_MAX_ENTRIES = 20
_MAX_LENGTH = 500
_STYLES = {
    Verdict.PASS: "bold green",
    Verdict.FAIL: "bold red",
    Verdict.ERROR: "bold magenta",
    Severity.ERROR: "bold red",
    Severity.WARNING: "bold yellow",
    Severity.INFO: "bold cyan",
}


def text_report(report: Report, width: int = 100, colour: bool = False) -> str:
    """Return the report as lines of at most ``width`` columns, ending in a newline.

    Without ``colour`` the text has no control character but newlines.
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
    where = count(sum(len(result.runs) for result in report.sets), "run")
    if len(report.sets) > 1:
        where += f" of {len(report.sets)} sets"
    text = f"{report.verdict.upper()}: {count(errors, 'error')}, {count(warnings, 'warning')} in {where}"
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
    for rule, of_rule in group_by(findings, lambda each: each.rule):
        times = f" x {len(of_rule)}" if len(of_rule) > 1 else ""
        yield Line(f"{_shortened(rule)}{times}  [{_shortened(of_rule[0].citation)}]", 2, "bold")
        messages = group_by(of_rule, lambda each: each.message)
        for message, alike in messages[:_MAX_ENTRIES]:
            yield Line(_shortened(message), 4)
            values = group_by(alike, lambda each: (each.expected, each.got))
            yield from (Line(line, 6) for line in map(_evidence, values[:_MAX_ENTRIES]) if line)
            yield from _rest_of_list(len(values), 6)
        yield from _rest_of_list(len(messages), 4)


def _evidence(alike: tuple[tuple[str | None, str | None], list[Finding]]) -> str:
    (expected, got), findings = alike
    values = [f"{name} {_shortened(text)}" for name, text in (("expected", expected), ("got", got)) if text is not None]
    places = _places((each.file, each.line) for each in findings)
    return ": ".join(filter(None, (", ".join(values), places)))


def _unverifiable(findings: Iterable[Finding]) -> Iterator[Block]:
    open_points = [each for each in findings if each.severity is Severity.UNVERIFIABLE]
    if not open_points:
        return
    yield from _heading("Not verifiable from a log")
    for (rule, message), _ in group_by(open_points, lambda each: (each.rule, each.message)):
        yield Line(f"{_shortened(rule)}: {_shortened(message)}", 2)


def _set(result: SetResult, several: bool) -> Iterator[Block]:
    if several:
        yield from _heading(f"Set {_shortened(result.name)}")
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
    yield from _heading(f"Runs in {_shortened(folder)}" if folder else "Runs")
    rows = tuple(
        (
            _shortened(run.file.rpartition("/")[2] if folder else run.file),
            run.status.replace("_", " "),
            str(run.seed) if run.seed is not None and abs(run.seed) < 2**64 else number(run.seed),
            number(run.global_batch_size),
            number(run.samples_to_target),
            number(run.minutes, 3),
            number(run.final_eval_loss, 5),
        )
        for run in runs
    )
    yield Table(("file", "status", ">seed", ">GBS", ">samples\nto target", ">minutes", ">final\nloss"), rows)


def _score(score: Score, runs: int) -> Iterator[Block]:
    yield from _heading("Score" if score.valid else "No score: the set is not valid. For information only:")
    if score.olympic_minutes is not None:
        yield Line(f"olympic mean: {number(score.olympic_minutes, 3)} minutes, run_start to run_stop", 2)
    if score.normalized_minutes is not None:
        factor = f"{number(score.normalized_minutes, 3)} minutes, by the RCP test's {number(score.normalization, 6)}"
        yield Line(f"normalised: {factor}", 2)
    first_pass = f"{number(score.olympic_minutes_to_target, 3)} minutes, {number(score.olympic_samples, 1)} samples"
    yield Line(f"olympic mean to the first passing evaluation: {first_pass}", 2)
    if len(score.window) == runs:
        yield Line(f"window: all {count(runs, 'run')}", 2)
    else:
        yield Line(f"window: {len(score.window)} of {count(runs, 'run')}: {_places(_files(score.window))}", 2)
    if score.dropped:
        yield Line(f"dropped as fastest and slowest: {_places(_files(score.dropped))}", 2)


def _variance(variance: Variance) -> Iterator[Block]:
    yield from _heading("Variance")
    measures = (("samples", variance.samples, 1, 0), ("minutes", variance.minutes, 3, 3))
    rows = tuple(_spread(name, spread, *digits) for name, spread, *digits in measures if spread is not None)
    if rows:
        yield Table(("", ">runs", ">mean", ">sd", ">CV %", ">least", ">most", ">quantum", ">quantum\n%"), rows)
    yield Line(_shortened(variance.definition), 2)


def _spread(name: str, spread: Spread, digits: int, digits_of_one: int) -> tuple[str, ...]:
    return (
        name,
        str(spread.runs),
        number(spread.mean, digits),
        number(spread.sd, digits),
        number(spread.cv_percent, 2),
        number(spread.minimum, digits_of_one),
        number(spread.maximum, digits_of_one),
        number(spread.quantum),
        number(spread.quantum_percent, 2),
    )


def _rcp(rcp: Rcp) -> Iterator[Block]:
    yield from _heading(f"Convergence against the reference (RCP) at GBS {number(rcp.global_batch_size)}")
    yield Line(f"olympic mean: {number(rcp.pruned.submission_mean, 1)} samples", 2)
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
        number(test.mean, 1),
        number(test.minimum, 1),
        number(test.margin_samples, 1, "+"),
        number(test.normalization, 6),
    )


def _official(official: Official) -> Iterator[Block]:
    yield from _heading(f"Official tools (mlperf-logging {_shortened(official.version)}): {official.verdict}")
    for tool, results in group_by(official.results, lambda each: each.tool):
        verdicts = ", ".join(f"{len(same)} {verdict}" for verdict, same in group_by(results, lambda each: each.verdict))
        yield Line(f"{_shortened(tool)}: {verdicts} ({sum(each.seconds for each in results):.1f} s)", 2)
        yield from _complaints([each for each in results if each.verdict != "pass"])
    if not official.divergences:
        yield Line("No divergence from our verdict.", 2)
    alike = group_by(official.divergences, lambda each: (each.tool, each.ours, each.official, each.reason))
    for (tool, ours, theirs, reason), same in alike:
        yield Line(
            f"DIVERGENCE {_shortened(tool)}: ours {_shortened(ours)}, official {_shortened(theirs)}", 2, "bold yellow"
        )
        yield Line(_shortened(reason), 4)
        yield Line(_places(_files(each.subject for each in same)), 6, "cyan")


def _complaints(results: Iterable[OfficialResult]) -> Iterator[Block]:
    """Yield the messages of failed results; files with the same messages are listed once."""
    by_message = group_by(((text, each.subject) for each in results for text in each.messages), lambda each: each[0])
    subjects = [(message, tuple(subject for _, subject in pairs)) for message, pairs in by_message]
    for files, messages in group_by(subjects, lambda each: each[1]):
        yield Line(_places(_files(files)), 4, "cyan")
        yield from (Line(_shortened(message), 6) for message, _ in messages[:_MAX_ENTRIES])
        yield from _rest_of_list(len(messages), 6)


def _heading(text: str, style: str = "bold") -> Iterator[Block]:
    yield Line()
    yield Line(text, style=style)


def _rest_of_list(number: int, indent: int) -> Iterator[Block]:
    if number > _MAX_ENTRIES:
        yield Line(f"... and {number - _MAX_ENTRIES} more; --format json has all", indent)


def _places(places: Iterable[tuple[str | None, int | None]]) -> str:
    """Format files with lines. Name a folder once while it stays the same."""
    shown, last = [], None
    for file, line in places:
        if file is None:
            continue
        folder, _, name = file.rpartition("/")
        shown.append((name if folder == last else file) + (f":{line}" if line is not None else ""))
        last = folder
    more = f", and {len(shown) - _MAX_ENTRIES} more" if len(shown) > _MAX_ENTRIES else ""
    return ", ".join(map(_shortened, shown[:_MAX_ENTRIES])) + more


def _files(files: Iterable[str]) -> Iterator[tuple[str, None]]:
    return ((file, None) for file in files)


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_LENGTH else text[:_MAX_LENGTH] + "..."
