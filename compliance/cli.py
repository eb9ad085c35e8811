"""Command line, ``python -m compliance COMMAND``.

Commands call the typed interface (`check`, `plan`, `compare`, `package`) and render its result. Slow imports are inside
the functions that need them.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from . import system_description
from .benchmark import RUNS, Ruleset
from .check import DEFAULTS, Options, check_package, check_run, check_set, unreadable_report
from .compare import NotComparableError, compare
from .findings import Report, Verdict
from .log_files import InputError
from .official import OfficialToolsError
from .package import PackageRefusedError, build
from .rcp import RcpDataError
from .welch import CONFIDENCE

if TYPE_CHECKING:
    from .documents import Document


class ExitCode(IntEnum):
    """Exit status of every command."""

    PASS = 0
    VIOLATION = 1
    USAGE = 2
    UNREADABLE = 3
    INTERNAL = 4
    INTERRUPTED = 130


class ReportFormat(StrEnum):
    """Format of a report."""

    TEXT = "text"
    JSON = "json"
    JUNIT = "junit"


class TextOrJson(StrEnum):
    """Format of a plan or a comparison."""

    TEXT = "text"
    JSON = "json"


class DocumentName(StrEnum):
    """JSON document with a schema."""

    REPORT = "report"
    PLAN = "plan"
    COMPARISON = "comparison"


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Check MLPerf Training logs of gpt_oss_20b: one run, a set of ten runs, or a submission tree.",
    epilog="Exit status: 0 pass, 1 violation, 2 usage, 3 unreadable input, 4 internal error, 130 interrupted.",
)

RulesetOption = Annotated[Ruleset, typer.Option("--ruleset", help="Version of the rules.")]
FormatOption = Annotated[ReportFormat, typer.Option("--format", help="Format of the report on stdout.")]
RunsOption = Annotated[int, typer.Option("--runs", min=3, help="Runs required for a result.")]
LimitOption = Annotated[
    float,
    typer.Option(
        "--cv-limit", min=0.0, help="Warn if the variation (CV) of samples or minutes is above this, in percent."
    ),
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Fail on warnings, too.")]
OfficialOption = Annotated[
    bool, typer.Option("--official/--no-official", help="Run the official mlperf-logging checkers, too.")
]
TimeoutOption = Annotated[
    float, typer.Option("--official-timeout", min=1.0, help="Time limit of an official checker, in seconds per log.")
]
SystemOption = Annotated[
    Path | None, typer.Option("--system", help="System description (JSON) of the logs, to check parallel sizes.")
]
LogsArgument = Annotated[list[Path], typer.Argument(metavar="DIR|LOG...", help="Folder of logs, or log files.")]
LATEST = Ruleset.V6_1_0


@app.command("check-run")
def check_run_command(
    log: Annotated[Path, typer.Argument(help="Log file, plain or gzipped.")],
    ruleset: RulesetOption = LATEST,
    output_format: FormatOption = ReportFormat.TEXT,
    runs: RunsOption = RUNS,
    cv_limit: LimitOption = DEFAULTS.cv_limit,
    strict: StrictOption = False,
    official: OfficialOption = True,
    official_timeout: TimeoutOption = DEFAULTS.official_timeout,
    system: SystemOption = None,
) -> None:
    """Check one log."""
    options = Options(ruleset, runs, cv_limit, strict, official, official_timeout, system)
    _report_and_exit("check-run", options, output_format, lambda: check_run(log, options))


@app.command("check-set")
def check_set_command(
    logs: LogsArgument,
    ruleset: RulesetOption = LATEST,
    output_format: FormatOption = ReportFormat.TEXT,
    runs: RunsOption = RUNS,
    cv_limit: LimitOption = DEFAULTS.cv_limit,
    strict: StrictOption = False,
    official: OfficialOption = True,
    official_timeout: TimeoutOption = DEFAULTS.official_timeout,
    system: SystemOption = None,
) -> None:
    """Check the runs of one result: every log, and the rules across runs (seeds, copies, variance, convergence)."""
    options = Options(ruleset, runs, cv_limit, strict, official, official_timeout, system)
    _report_and_exit("check-set", options, output_format, lambda: check_set(logs, options))


@app.command("check-package")
def check_package_command(
    root: Annotated[Path, typer.Argument(help="Submission tree with systems/, benchmarks/ and results/.")],
    ruleset: RulesetOption = LATEST,
    output_format: FormatOption = ReportFormat.TEXT,
    runs: RunsOption = RUNS,
    cv_limit: LimitOption = DEFAULTS.cv_limit,
    strict: StrictOption = False,
    official: OfficialOption = True,
    official_timeout: TimeoutOption = DEFAULTS.official_timeout,
) -> None:
    """Check a submission tree: every result, the system descriptions and the code."""
    options = Options(ruleset, runs, cv_limit, strict, official, official_timeout)
    _report_and_exit("check-package", options, output_format, lambda: check_package(root, options))


@app.command("plan")
def plan_command(
    gbs: Annotated[int, typer.Option("--gbs", min=1, help="Global batch size, in sequences.")],
    ruleset: RulesetOption = LATEST,
    output_format: Annotated[TextOrJson, typer.Option("--format", help="Format of the plan.")] = TextOrJson.JSON,
) -> None:
    """Plan a global batch size: evaluation interval, layouts, convergence bounds, learning rates, risk of failing."""
    from .plan import make_plan
    from .render.text import plan_text

    plan = make_plan(gbs, ruleset)
    _print(_json(plan) if output_format is TextOrJson.JSON else plan_text(plan, width=_width()))


@app.command("compare")
def compare_command(
    a: Annotated[Path, typer.Argument(metavar="A", help="Runs before a change: a folder of logs, or one log.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Runs after it: a folder of logs, or one log.")],
    ruleset: RulesetOption = LATEST,
    output_format: Annotated[TextOrJson, typer.Option("--format", help="Format of the comparison.")] = TextOrJson.TEXT,
    confidence: Annotated[
        float, typer.Option("--confidence", help="Confidence of the intervals and the verdict, 0.5 to 0.9999.")
    ] = CONFIDENCE,
) -> None:
    """Test whether B meets the target in fewer samples or minutes than A, by Welch's t test."""
    from .judge import judge_run
    from .log_files import find_logs, read_log
    from .render.text import comparison_text

    runs_a, runs_b = ([judge_run(read_log(log), ruleset) for log in find_logs([path])] for path in (a, b))
    comparison = compare(runs_a, runs_b, ruleset, names=(str(a), str(b)), confidence=confidence)
    as_json = output_format is TextOrJson.JSON
    _print(_json(comparison) if as_json else comparison_text(comparison, width=_width(), colour=_colour()))


app.command("system-description")(system_description.main)


@app.command("package")
def package_command(
    logs: Annotated[Path, typer.Option("--logs", help="Folder of the logs.")],
    system: Annotated[Path, typer.Option("--system", help="System description; its file name names the system.")],
    code: Annotated[Path, typer.Option("--code", help="Folder of the source code.")],
    out: Annotated[Path, typer.Option("--out", help="Submission tree to create: a new or an empty folder.")],
    ruleset: RulesetOption = LATEST,
    output_format: FormatOption = ReportFormat.TEXT,
    runs: RunsOption = RUNS,
    cv_limit: LimitOption = DEFAULTS.cv_limit,
    strict: StrictOption = False,
    official: OfficialOption = True,
    official_timeout: TimeoutOption = DEFAULTS.official_timeout,
    force: Annotated[bool, typer.Option("--force", help="Build even if the logs or the tree fail.")] = False,
    write_scaling: Annotated[
        bool, typer.Option("--write-scaling", help="Write scaling.json if the RCP test normalizes the score.")
    ] = False,
) -> None:
    """Build a submission tree from logs that pass, and check it."""
    options = Options(ruleset, runs, cv_limit, strict, False, official_timeout, system)
    report = check_set([logs], options)
    by_start = sorted(report.sets[0].runs, key=lambda run: run.start_ms or 0.0)
    try:
        not_copied = build(
            [Path(run.file) for run in by_start], system, code, out,
            report=report, runs=runs, force=force, write_scaling=write_scaling,
        )  # fmt: skip
    except FileExistsError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
    if not_copied:
        print(f"not copied from the code: {', '.join(not_copied)}", file=sys.stderr)
    print(f"built {out}; fill in the TODO marks in its README", file=sys.stderr)
    checked = replace(options, official=official, system=None)
    _report_and_exit("check-package", checked, output_format, lambda: check_package(out, checked))


@app.command("report")
def report_command(
    logs: Annotated[
        list[Path], typer.Argument(metavar="DIR|LOG...", help="Folder of logs, log files, or a submission tree.")
    ],
    out: Annotated[Path, typer.Option("--out", help="File to write, for example report.html or report.md.")],
    ruleset: RulesetOption = LATEST,
    runs: RunsOption = RUNS,
    cv_limit: LimitOption = DEFAULTS.cv_limit,
    strict: StrictOption = False,
    official: OfficialOption = True,
    official_timeout: TimeoutOption = DEFAULTS.official_timeout,
    system: SystemOption = None,
) -> None:
    """Check logs or a submission tree, and write the report with its pictures to one HTML or Markdown file."""
    kind = {".html": "html", ".htm": "html", ".md": "md"}.get(out.suffix.lower())
    if kind is None:
        raise typer.BadParameter(f"--out {out}: the name must end in .html or .md")
    if not out.parent.is_dir() or out.is_dir():
        raise typer.BadParameter(f"--out {out}: not a file that can be written; name one in an existing folder")
    from .render.report_file import report_file

    options = Options(ruleset, runs, cv_limit, strict, official, official_timeout, system)
    is_tree = len(logs) == 1 and (logs[0] / "results").is_dir() and (logs[0] / "systems").is_dir()
    report = check_package(logs[0], options) if is_tree else check_set(logs, options)
    text = report_file(report, kind)  # type: ignore[arg-type]
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"--out {out}: {error.strerror}") from error
    _print(f"{report.verdict}: {out}")
    raise typer.Exit(_exit_code(report))


@app.command("rules")
def rules_command(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table, as in the README.")] = False,
) -> None:
    """List every rule: id, severity, requirement and source."""
    from .render.text import rules_text
    from .rules import ALL_RULES

    _print(rules_text(ALL_RULES, markdown))


@app.command("schema")
def schema_command(
    document: Annotated[DocumentName, typer.Argument(help="Name of the document.")],
) -> None:
    """Print the JSON schema of a report, a plan or a comparison, as printed with --format json."""
    import json

    from .documents import DOCUMENTS, json_schema

    _print(json.dumps(json_schema(DOCUMENTS[document]), indent=2))


def _report_and_exit(
    command: str, options: Options, output_format: ReportFormat, check: Callable[[], Report]
) -> NoReturn:
    """Run a check, print its report and exit. In JSON and JUnit, unreadable input is a report as well."""
    try:
        report = check()
    except InputError as error:
        if output_format is ReportFormat.TEXT:
            raise
        _print(_render(unreadable_report(command, options, str(error)), output_format))
        raise typer.Exit(ExitCode.UNREADABLE) from error
    _print(_render(report, output_format))
    raise typer.Exit(_exit_code(report))


def _exit_code(report: Report) -> ExitCode:
    return ExitCode.PASS if report.verdict is Verdict.PASS else ExitCode.VIOLATION


def _render(report: Report, output_format: ReportFormat) -> str:
    if output_format is ReportFormat.JSON:
        from .documents import report_document

        return _json(report_document(report))
    if output_format is ReportFormat.JUNIT:
        from .render.junit_report import junit_report

        return junit_report(report)
    from .render.text import text_report

    return text_report(report, width=_width(), colour=_colour())


def _json(document: Document) -> str:
    from .documents import to_json  # imports pydantic

    return to_json(document)


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 120


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _print(text: str) -> None:
    """Print text to stdout; characters that its encoding lacks become escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.rstrip("\n").encode(encoding, "backslashreplace").decode(encoding) + "\n")


def main() -> NoReturn:
    """Run a command and exit with an `ExitCode`. Every failure prints one line."""
    status = ExitCode.INTERNAL
    try:
        app(prog_name="python -m compliance")  # raises SystemExit, also for usage errors and interrupts
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = ExitCode.UNREADABLE
    except PackageRefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        status = ExitCode.VIOLATION
    except (NotComparableError, OfficialToolsError, RcpDataError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = ExitCode.USAGE
    except ModuleNotFoundError:
        raise  # __main__ says what to install
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        print(f"internal error: {type(error).__name__}: {error} ({where}); please report it", file=sys.stderr)
    sys.exit(status)
