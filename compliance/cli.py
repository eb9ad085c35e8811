"""The command line, `python -m compliance COMMAND`: judges logs, plans and compares runs, builds packages, reports.

It renders what the typed interface returns. Everything slow to import is imported where it is used.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from . import system_description
from .benchmark import RULESETS, RUNS
from .check import DEFAULTS, Options, check_package, check_run, check_set, unreadable_report
from .findings import Report, Verdict
from .log_files import InputError
from .official import OfficialToolsError
from .rcp import RcpDataError
from .welch import CONFIDENCE

if TYPE_CHECKING:
    from .rules.rule import Rule


class ExitCode(IntEnum):
    """Exit status of every command."""

    PASS = 0
    VIOLATION = 1
    USAGE = 2
    UNREADABLE = 3
    INTERNAL = 4
    INTERRUPTED = 130


class Format(StrEnum):
    """How a report is shown."""

    TEXT = "text"
    JSON = "json"
    JUNIT = "junit"


class PlanFormat(StrEnum):
    """How a plan or a comparison is shown."""

    TEXT = "text"
    JSON = "json"


# typer wants an enumeration for a choice.
Ruleset = StrEnum("Ruleset", {f"V{name.replace('.', '_')}": name for name in RULESETS})  # type: ignore[misc]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Judges logs of MLPerf Training's gpt_oss_20b: one run, a set of ten, a submission tree.",
    epilog="Exit status: 0 pass, 1 violation, 2 usage, 3 unreadable input, 4 internal error, 130 interrupted.",
)

RulesetOption = Annotated[Ruleset, typer.Option("--ruleset", help="Version of the rules.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How to show the report, on stdout.")]
RunsOption = Annotated[int, typer.Option("--runs", min=3, help="Runs that make a result.")]
LimitOption = Annotated[
    float, typer.Option("--cv-limit", min=0.0, help="CV of samples and minutes, in percent, above which to warn.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Warnings fail as well.")]
OfficialOption = Annotated[bool, typer.Option("--official/--no-official", help="Ask the official tools as well.")]
TimeoutOption = Annotated[
    float, typer.Option("--official-timeout", min=1.0, help="Seconds that an official tool may take for one file.")
]
SystemOption = Annotated[
    Path | None, typer.Option("--system", help="System description, to check the sizes in the log against.")
]
LATEST = Ruleset(RULESETS[-1])


@app.command("check-run")
def check_run_command(
    log: Annotated[Path, typer.Argument(help="A log, gzipped or not.")],
    ruleset: RulesetOption = LATEST,
    form: FormatOption = Format.TEXT,
    runs: RunsOption = RUNS,
    cv_limit: LimitOption = DEFAULTS.cv_limit,
    strict: StrictOption = False,
    official: OfficialOption = True,
    official_timeout: TimeoutOption = DEFAULTS.official_timeout,
    system: SystemOption = None,
) -> None:
    """Judge one log."""
    options = Options(str(ruleset), runs, cv_limit, strict, official, official_timeout, system)
    _answer("check-run", options, form, lambda: check_run(log, options))


@app.command("check-set")
def check_set_command(
    logs: Annotated[list[Path], typer.Argument(metavar="DIR|LOG...", help="A folder of logs, or logs.")],
    ruleset: RulesetOption = LATEST,
    form: FormatOption = Format.TEXT,
    runs: RunsOption = RUNS,
    cv_limit: LimitOption = DEFAULTS.cv_limit,
    strict: StrictOption = False,
    official: OfficialOption = True,
    official_timeout: TimeoutOption = DEFAULTS.official_timeout,
    system: SystemOption = None,
) -> None:
    """Judge the runs of one result: each log, and what only several show."""
    options = Options(str(ruleset), runs, cv_limit, strict, official, official_timeout, system)
    _answer("check-set", options, form, lambda: check_set(logs, options))


@app.command("check-package")
def check_package_command(
    root: Annotated[Path, typer.Argument(help="A submission tree: systems/, benchmarks/, results/.")],
    ruleset: RulesetOption = LATEST,
    form: FormatOption = Format.TEXT,
    runs: RunsOption = RUNS,
    cv_limit: LimitOption = DEFAULTS.cv_limit,
    strict: StrictOption = False,
    official: OfficialOption = True,
    official_timeout: TimeoutOption = DEFAULTS.official_timeout,
) -> None:
    """Judge a submission tree: every result in it, its system descriptions and its code."""
    options = Options(str(ruleset), runs, cv_limit, strict, official, official_timeout)
    _answer("check-package", options, form, lambda: check_package(root, options))


@app.command("plan")
def plan_command(
    gbs: Annotated[int, typer.Option("--gbs", min=1, help="Global batch size, in sequences.")],
    ruleset: RulesetOption = LATEST,
    form: Annotated[PlanFormat, typer.Option("--format", help="How to show the plan.")] = PlanFormat.JSON,
) -> None:
    """Say what a global batch size asks for: evaluations, RCPs, published rates, the chance of failing."""
    import json

    from .plan import make_plan

    plan = make_plan(gbs, str(ruleset))
    if form is PlanFormat.JSON:
        _write(json.dumps(plan.to_json(), indent=2))
    else:
        from .render.plan_text import plan_text

        _write(plan_text(plan, width=_width()))


@app.command("compare")
def compare_command(
    a: Annotated[Path, typer.Argument(metavar="A", help="Runs before a change: a folder of logs, or a log.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Runs after it, likewise.")],
    ruleset: RulesetOption = LATEST,
    form: Annotated[PlanFormat, typer.Option("--format", help="How to show the comparison.")] = PlanFormat.TEXT,
    confidence: Annotated[
        float, typer.Option("--confidence", help="Of the intervals and of the verdict.")
    ] = CONFIDENCE,
) -> None:
    """Say whether B meets the target in fewer samples, or minutes, than A, beyond noise (Welch's t test)."""
    from .compare import NotComparableError, compare
    from .judge import judge_run
    from .log_files import find_logs, read_log
    from .render.comparison import comparison_json, comparison_text

    runs_a, runs_b = ([judge_run(read_log(log), str(ruleset)) for log in find_logs([path])] for path in (a, b))
    try:
        compared = compare(runs_a, runs_b, str(ruleset), names=(str(a), str(b)), confidence=confidence)
    except NotComparableError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(ExitCode.USAGE) from error
    as_text = form is PlanFormat.TEXT
    _write(comparison_text(compared, width=_width(), colour=_colour()) if as_text else comparison_json(compared))


app.command("system-description")(system_description.main)


@app.command("package")
def package_command(
    logs: Annotated[Path, typer.Option("--logs", help="Folder of the logs.")],
    system: Annotated[Path, typer.Option("--system", help="System description; its name becomes the system's.")],
    code: Annotated[Path, typer.Option("--code", help="Folder of the source code.")],
    out: Annotated[Path, typer.Option("--out", help="Submission tree to make: a new or an empty folder.")],
    ruleset: RulesetOption = LATEST,
    form: FormatOption = Format.TEXT,
    runs: RunsOption = RUNS,
    cv_limit: LimitOption = DEFAULTS.cv_limit,
    strict: StrictOption = False,
    official: OfficialOption = True,
    official_timeout: TimeoutOption = DEFAULTS.official_timeout,
    force: Annotated[bool, typer.Option("--force", help="Build although the logs or the tree fail.")] = False,
    write_scaling: Annotated[
        bool, typer.Option("--write-scaling", help="Write scaling.json, if the score is to be normalised.")
    ] = False,
) -> None:
    """Build a submission tree from logs that pass, and judge it."""
    from .package import PackageRefusedError, build

    options = Options(str(ruleset), runs, cv_limit, strict, False, official_timeout, system)
    judged = check_set([logs], options)
    by_start = sorted(judged.sets[0].runs, key=lambda run: run.start_ms or 0.0)
    try:
        built = build(
            [Path(run.file) for run in by_start], system, code, out,
            report=judged, runs=runs, force=force, write_scaling=write_scaling,
        )  # fmt: skip
    except PackageRefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(ExitCode.VIOLATION) from error
    except FileExistsError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
    if built.left_out:
        print(f"left out of the code: {', '.join(built.left_out)}", file=sys.stderr)
    print(f"built {built.root}; the TODO marks in its README are yours", file=sys.stderr)
    checked = replace(options, official=official, system=None)
    _answer("check-package", checked, form, lambda: check_package(out, checked))


@app.command("report")
def report_command(
    logs: Annotated[list[Path], typer.Argument(metavar="DIR|LOG...", help="A folder of logs, logs, or a tree.")],
    out: Annotated[Path, typer.Option("--out", help="File to write: report.html or report.md.")],
    ruleset: RulesetOption = LATEST,
    runs: RunsOption = RUNS,
    cv_limit: LimitOption = DEFAULTS.cv_limit,
    strict: StrictOption = False,
    official: OfficialOption = True,
    official_timeout: TimeoutOption = DEFAULTS.official_timeout,
    system: SystemOption = None,
) -> None:
    """Write one self-contained file: verdict, findings, runs, curves, variance. Exit status as the check's."""
    kind = {".html": "html", ".htm": "html", ".md": "md"}.get(out.suffix.lower())
    if kind is None:
        raise typer.BadParameter(f"--out {out}: the name must end in .html or .md")
    if not out.parent.is_dir() or out.is_dir():
        raise typer.BadParameter(f"--out {out}: not a file that can be made; name one in a folder that exists")
    from .render.document import document

    options = Options(str(ruleset), runs, cv_limit, strict, official, official_timeout, system)
    is_tree = len(logs) == 1 and (logs[0] / "results").is_dir() and (logs[0] / "systems").is_dir()
    found = check_package(logs[0], options) if is_tree else check_set(logs, options)
    text = document(found, kind)  # type: ignore[arg-type]
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"--out {out}: {error.strerror}") from error
    _write(f"{found.verdict}: {out}")
    raise typer.Exit(_status(found))


@app.command("rules")
def rules_command(
    markdown: Annotated[bool, typer.Option("--markdown", help="A table as the README has it.")] = False,
) -> None:
    """List every rule: id, weight, what it asks, and where that comes from."""
    from .rules import ALL_RULES

    _write(rules_table(ALL_RULES) if markdown else "\n\n".join(map(_rule_text, ALL_RULES)))


def rules_table(rules: Iterable[Rule[Any]]) -> str:
    """The rules as a Markdown table."""
    rows = [f"| `{rule.id}` | {rule.severity} | {rule.description} |" for rule in rules]
    return "\n".join(["| rule | weight | what it asks |", "|---|---|---|", *rows])


def _rule_text(rule: Rule[Any]) -> str:
    divisions = "" if len(rule.divisions) > 1 else f", {next(iter(rule.divisions))} division only"
    return f"{rule.id} ({rule.severity}{divisions})\n  {rule.description}\n  [{rule.citation}]"


def _answer(command: str, options: Options, form: Format, check: Callable[[], Report]) -> NoReturn:
    """Runs a check and shows its report. What cannot be read is a report, too, for whoever reads JSON."""
    try:
        found = check()
    except InputError as error:
        if form is Format.TEXT:
            raise
        _write(_rendered(unreadable_report(command, options, str(error)), form))
        raise typer.Exit(ExitCode.UNREADABLE) from error
    _write(_rendered(found, form))
    raise typer.Exit(_status(found))


def _status(report: Report) -> ExitCode:
    return ExitCode.PASS if report.verdict is Verdict.PASS else ExitCode.VIOLATION


def _rendered(report: Report, form: Format) -> str:
    if form is Format.JSON:
        from .render.json_report import json_report

        return json_report(report)
    if form is Format.JUNIT:
        from .render.junit_report import junit_report

        return junit_report(report)
    from .render.text_report import text_report

    return text_report(report, width=_width(), colour=_colour())


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 120


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _write(text: str) -> None:
    """Text on stdout, in whatever encoding it has."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.rstrip("\n").encode(encoding, "backslashreplace").decode(encoding) + "\n")


def main() -> NoReturn:
    """Runs a command and exits; every end has a line and a status of its own."""
    status = ExitCode.INTERNAL
    try:
        app(prog_name="python -m compliance")  # ends in SystemExit, usage errors and interruptions with theirs
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = ExitCode.UNREADABLE
    except (OfficialToolsError, RcpDataError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = ExitCode.USAGE
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        print(f"internal error: {type(error).__name__}: {error} ({where}); please report it", file=sys.stderr)
    sys.exit(status)
