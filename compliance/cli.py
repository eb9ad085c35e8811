"""Command line, ``python -m compliance COMMAND``.

Commands call the typed interface (`check`, `plan`, `compare`, `package`) and render its result. Slow imports are inside
the functions that need them.
"""

from __future__ import annotations

import inspect
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import IntEnum
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from system_info.entry_point import StdoutError

from . import system_description
from .benchmark import NAME, RUNS, Ruleset
from .check import DEFAULTS, Options, check_package, check_run, check_set, unreadable_report
from .compare import NotComparableError, compare
from .file_tree import printable
from .findings import Report, Verdict
from .log_files import InputError
from .official import OfficialToolsError
from .package import PackageRefusedError, build
from .processes import describe_error
from .rcp import RcpDataError
from .waivers import read_waivers
from .welch import CONFIDENCE

if TYPE_CHECKING:
    import pandas as pd

    from .diff import TreeDiff
    from .documents import Document
    from .review import Review


class ExitCode(IntEnum):
    """Exit status of every command."""

    PASS = 0
    VIOLATION = 1
    USAGE = 2
    UNREADABLE = 3
    INTERNAL = 4
    INTERRUPTED = 130
    TERMINATED = 143


# Errors that a command reports in one line, with its exit status.
_STATUSES: dict[type[Exception], ExitCode] = {
    InputError: ExitCode.UNREADABLE,
    PackageRefusedError: ExitCode.VIOLATION,
    NotComparableError: ExitCode.USAGE,
    OfficialToolsError: ExitCode.USAGE,
    RcpDataError: ExitCode.USAGE,
    StdoutError: ExitCode.USAGE,
}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Check MLPerf Training logs of gpt_oss_20b: a run, a set of ten runs, a submission, or a whole repository.",
    epilog=(
        "Exit status: 0 pass, 1 violation, 2 usage, 3 unreadable input, 4 internal error, 130 interrupted, "
        "143 terminated."
    ),
)

Format = Literal["text", "json", "junit"]
TextOrJson = Literal["text", "json"]
RulesetOption = Annotated[Ruleset, typer.Option("--ruleset", help="Version of the rules.")]
FormatOption = Annotated[Format, typer.Option("--format", help="Format of the report on stdout.")]
SystemOption = Annotated[
    Path | None, typer.Option("--system", help="System description (JSON) of the logs, to check parallel sizes.")
]
LogsArgument = Annotated[list[Path], typer.Argument(metavar="DIR_OR_LOG...", help="Folder of logs, or log files.")]


def _table_path(path: Path | None) -> Path | None:
    """Refuse the file of a table before the work begins."""
    if path is not None and (path.suffix not in (".csv", ".xlsx") or not path.parent.is_dir() or path.is_dir()):
        raise typer.BadParameter(f"{path}: expected a name that ends in .csv or .xlsx, in an existing folder")
    return path


TableOption = Annotated[
    Path | None,
    typer.Option("--out", callback=_table_path, help="Write the table to this file, too: .csv or .xlsx."),
]
LATEST = Ruleset.V6_1_0


def _check_options(
    *,
    ruleset: RulesetOption = LATEST,
    runs: Annotated[int, typer.Option("--runs", min=3, help="Runs required for a result.")] = RUNS,
    cv_limit: Annotated[
        float,
        typer.Option(
            "--cv-limit", min=0.0, help="Warn if the variation (CV) of samples or minutes is above this, in percent."
        ),
    ] = DEFAULTS.cv_limit,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings, too.")] = False,
    official: Annotated[
        bool, typer.Option("--official/--no-official", help="Run the official mlperf-logging checkers, too.")
    ] = True,
    official_timeout: Annotated[
        float, typer.Option("--official-timeout", min=1.0, help="Time limit of an official checker, in s per log.")
    ] = DEFAULTS.official_timeout,
    waive: Annotated[
        Path | None, typer.Option("--waive", help="Waivers (TOML): findings to accept, each with reason and last day.")
    ] = None,
) -> Options:
    return Options(ruleset, runs, cv_limit, strict, official, official_timeout, waive=waive)


def _takes_check_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `_check_options`, which it gets as its argument ``options``."""
    own, shared = (inspect.signature(each, eval_str=True).parameters for each in (command, _check_options))

    @wraps(command)
    def run(**values: Any) -> None:
        command(options=_check_options(**{name: values.pop(name) for name in shared}), **values)

    parameters = [each for name, each in own.items() if name != "options"]
    run.__signature__ = inspect.Signature([*parameters, *shared.values()])  # type: ignore[attr-defined]
    return run


@app.command("check-run")
@_takes_check_options
def check_run_command(
    log: Annotated[Path, typer.Argument(help="Log file, plain or gzipped.")],
    options: Options,
    output_format: FormatOption = "text",
    system: SystemOption = None,
) -> None:
    """Check one log."""
    _report_and_exit("check-run", replace(options, system=system), output_format, partial(check_run, log))


@app.command("check-set")
@_takes_check_options
def check_set_command(
    logs: LogsArgument, options: Options, output_format: FormatOption = "text", system: SystemOption = None
) -> None:
    """Check the runs of one result: every log, and the rules across runs (seeds, copies, variance, convergence)."""
    _report_and_exit("check-set", replace(options, system=system), output_format, partial(check_set, logs))


@app.command("check-package")
@_takes_check_options
def check_package_command(
    root: Annotated[Path, typer.Argument(help="Submission tree with systems/, benchmarks/ and results/.")],
    options: Options,
    output_format: FormatOption = "text",
) -> None:
    """Check a submission tree: every result, the system descriptions and the code."""
    _report_and_exit("check-package", options, output_format, partial(check_package, root))


@app.command("plan")
def plan_command(
    gbs: Annotated[int, typer.Option("--gbs", min=1, help="Global batch size, in sequences.")],
    ruleset: RulesetOption = LATEST,
    output_format: Annotated[TextOrJson, typer.Option("--format", help="Format of the plan.")] = "json",
) -> None:
    """Plan a global batch size: evaluation interval, layouts, convergence bounds, learning rates, risk of failing."""
    from .plan import make_plan
    from .render.text import plan_text

    plan = make_plan(gbs, ruleset)
    _print(_json(plan) if output_format == "json" else plan_text(plan, width=_width()))


@app.command("compare")
def compare_command(
    a: Annotated[Path, typer.Argument(metavar="A", help="Runs before a change: a folder of logs, or one log.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Runs after it: a folder of logs, or one log.")],
    ruleset: RulesetOption = LATEST,
    output_format: Annotated[TextOrJson, typer.Option("--format", help="Format of the comparison.")] = "text",
    confidence: Annotated[
        float, typer.Option("--confidence", help="Confidence of the intervals and the verdict, 0.5 to 0.9999.")
    ] = CONFIDENCE,
    out: TableOption = None,
) -> None:
    """Test whether B meets the target in fewer samples or minutes than A, by Welch's t test."""
    from .judge import judge_run
    from .log_files import find_logs, read_log
    from .render.text import comparison_text

    runs_a, runs_b = ([judge_run(read_log(log), ruleset) for log in find_logs([path])] for path in (a, b))
    comparison = compare(runs_a, runs_b, ruleset, names=(str(a), str(b)), confidence=confidence)
    if out is not None:
        from .frames import comparison_frame

        _write_table(comparison_frame(comparison), out)
    as_json = output_format == "json"
    _print(_json(comparison) if as_json else comparison_text(comparison, width=_width(), colour=_colour()))


@app.command("diff")
@_takes_check_options
def diff_command(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="Submission tree before.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Submission tree after.")],
    options: Options,
    output_format: Annotated[TextOrJson, typer.Option("--format", help="Format of the differences.")] = "text",
    out: TableOption = None,
) -> None:
    """Check two revisions of a submission tree; show files, results and findings that differ. NEW gives the status."""
    from .diff import diff_trees

    diff = diff_trees(old, new, options)
    if out is not None:
        from .frames import results_frame

        _write_table(results_frame(diff), out)
    if output_format == "json":
        _print(_json(diff))
    else:
        from .render.text import diff_text

        _print(diff_text(diff, width=_width(), colour=_colour()))
    raise typer.Exit(_exit_code(diff))


app.command("system-description")(system_description.main)


@app.command("package")
@_takes_check_options
def package_command(
    logs: Annotated[Path, typer.Option("--logs", help="Folder of the logs.")],
    system: Annotated[Path, typer.Option("--system", help="System description; its file name names the system.")],
    code: Annotated[Path, typer.Option("--code", help="Folder of the source code.")],
    out: Annotated[Path, typer.Option("--out", help="Submission tree to create: a new or an empty folder.")],
    options: Options,
    output_format: FormatOption = "text",
    force: Annotated[bool, typer.Option("--force", help="Build even if the logs or the tree fail.")] = False,
    write_scaling: Annotated[
        bool, typer.Option("--write-scaling", help="Write scaling.json if the RCP test normalizes the score.")
    ] = False,
) -> None:
    """Build a submission tree from logs that pass, and check it."""
    report = check_set([logs], replace(options, official=False, system=system))
    try:
        not_copied = build(
            report,
            system,
            code,
            out,
            runs=options.runs,
            force=force,
            write_scaling=write_scaling,
            waive=read_waivers(options.waive).waive,
        )
    except FileExistsError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
    if not_copied:
        print(f"not copied from the code: {', '.join(not_copied)}", file=sys.stderr)
    print(f"built {out}; fill in the TODO marks in its README", file=sys.stderr)
    _report_and_exit("check-package", options, output_format, partial(check_package, out))


@app.command("report")
@_takes_check_options
def report_command(
    logs: Annotated[
        list[Path],
        typer.Argument(metavar="DIR_OR_LOG...", help="One log, a set as a folder or log files, or a submission tree."),
    ],
    out: Annotated[Path, typer.Option("--out", help="File to write, for example report.html or report.md.")],
    options: Options,
    system: SystemOption = None,
    curve: Annotated[
        Path | None, typer.Option("--curve", help="Draw the evaluation losses to this file, too: .svg or .png.")
    ] = None,
) -> None:
    """Check logs or a submission tree, and write the report with its pictures to one HTML or Markdown file."""
    kind = {".html": "html", ".htm": "html", ".md": "md"}.get(out.suffix.lower())
    if kind is None:
        raise typer.BadParameter(f"--out {out}: the name must end in .html or .md")
    if not out.parent.is_dir() or out.is_dir():
        raise typer.BadParameter(f"--out {out}: not a file that can be written; name one in an existing folder")
    if curve is not None and curve.suffix not in (".svg", ".png"):
        raise typer.BadParameter(f"--curve {curve}: the name must end in .svg or .png")
    from .render.report_file import loss_curve, report_file
    from .telemetry import read_telemetry

    options = replace(options, system=system)
    is_tree = len(logs) == 1 and (logs[0] / "results").is_dir() and (logs[0] / "systems").is_dir()
    if is_tree:
        report = check_package(logs[0], options)
    elif len(logs) == 1 and logs[0].is_file():
        report = check_run(logs[0], options)
    else:
        report = check_set(logs, options)
    telemetry, warnings = read_telemetry([run for result in report.sets for run in result.runs])
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    text = report_file(report, kind, telemetry=telemetry)  # type: ignore[arg-type]
    picture = loss_curve(report, curve.suffix[1:]) if curve else None  # type: ignore[arg-type]
    for option, path, content in (("--out", out, text.encode()), ("--curve", curve, picture)):
        if path and content:
            try:
                path.write_bytes(content)
            except OSError as error:
                raise typer.BadParameter(f"{option} {path}: {error.strerror}") from error
    _print(f"{report.verdict}: {out}")
    raise typer.Exit(_exit_code(report))


@app.command("review")
@_takes_check_options
def review_command(
    root: Annotated[
        Path, typer.Argument(help="Results repository: submissions as <org>, or as closed/<org> and open/<org>.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder to write: index.html, summary.csv, summary.xlsx, summary.json, pages/. Files of these names "
            "are overwritten, and others stay.",
        ),
    ],
    options: Options,
    benchmark: Annotated[str, typer.Option("--benchmark", help="Benchmark to judge.")] = NAME,
) -> None:
    """Check every result of a repository of many submitters side by side: one table, and a page for each result."""
    from .render.review_files import review_text, write_files
    from .review import UnknownBenchmarkError, find_results, review

    if out.resolve().is_relative_to(root.resolve()):
        raise typer.BadParameter(
            f"{out}: lies in {root}, which is only read; name a folder outside", param_hint="--out"
        )
    try:
        found = find_results(root, benchmark)
    except UnknownBenchmarkError as error:
        raise typer.BadParameter(str(error), param_hint="--benchmark") from error
    try:
        with _progress(len(found.results)) as on_progress:
            reviewed = review(found, options, out, on_progress)
        write_files(reviewed, out)
    except OSError as error:
        raise typer.BadParameter(f"{error.filename or out}: {error.strerror}", param_hint="--out") from error
    _print(review_text(reviewed, out, width=_width(), colour=_colour()))
    raise typer.Exit(_exit_code(reviewed))


@app.command("rules")
def rules_command(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a Markdown table, as in the documentation.")
    ] = False,
) -> None:
    """List every rule: id, severity, requirement and source."""
    from .render.text import rules_text
    from .rules import ALL_RULES

    _print(rules_text(ALL_RULES, markdown))


@app.command("schema")
def schema_command(
    document: Annotated[
        Literal["report", "plan", "comparison", "review", "diff"], typer.Argument(help="Name of the document.")
    ],
) -> None:
    """Print the JSON schema of a document, as printed with --format json; review: of its summary.json."""
    import json

    from .documents import DOCUMENTS, json_schema

    _print(json.dumps(json_schema(DOCUMENTS[document]), indent=2))


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr, if that is a terminal. Yield the function that takes the number done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    shown = sys.stderr.isatty() and not console.is_dumb_terminal
    columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TextColumn("results"), TimeRemainingColumn())
    # Without auto_refresh there is no thread, and processes can be forked.
    with Progress(*columns, console=console, auto_refresh=False, transient=True, disable=not shown) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done, refresh=True)


def _report_and_exit(command: str, options: Options, output_format: Format, check: Callable[[Options], Report]) -> None:
    """Run a check, print its report and exit. In JSON and JUnit, unreadable input is a report as well."""
    try:
        report = check(options)
    except InputError as error:
        if output_format == "text":
            raise
        _print(_render(unreadable_report(command, options, str(error)), output_format))
        raise typer.Exit(ExitCode.UNREADABLE) from error
    _print(_render(report, output_format))
    raise typer.Exit(_exit_code(report))


def _exit_code(judged: Report | TreeDiff | Review) -> ExitCode:
    return ExitCode.PASS if judged.verdict is Verdict.PASS else ExitCode.VIOLATION


def _render(report: Report, output_format: Format) -> str:
    if output_format == "json":
        from .documents import report_document

        return _json(report_document(report))
    if output_format == "junit":
        from .render.junit_report import junit_report

        return junit_report(report)
    from .render.text import text_report

    return text_report(report, width=_width(), colour=_colour())


def _write_table(frame: pd.DataFrame, path: Path) -> None:
    from .frames import write_frame

    try:
        write_frame(frame, path)
    except OSError as error:
        raise typer.BadParameter(f"--out {path}: {error.strerror}") from error


def _json(document: Document) -> str:
    from .documents import to_json  # imports pydantic

    return to_json(document)


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 120


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _print(text: str) -> None:
    print(text.rstrip("\n"), flush=True)


def main() -> NoReturn:
    """Run a command and exit with an `ExitCode`. Every failure prints one line."""
    status = ExitCode.INTERNAL
    try:
        app(prog_name="python -m compliance")  # raises SystemExit, also for usage errors and interrupts
    except tuple(_STATUSES) as error:
        print(f"error: {error}", file=sys.stderr)
        status = _STATUSES[type(error)]
    except PermissionError as error:  # of a folder on the way to a path, where Python 3.11 refuses even `is_dir`
        print(f"error: {printable(str(error.filename))}: {error.strerror}", file=sys.stderr)
        status = ExitCode.UNREADABLE
    except ModuleNotFoundError:
        raise  # __main__ says what to install
    except Exception as error:
        print(f"internal error: {describe_error(error)}; please report it", file=sys.stderr)
    sys.exit(status)
