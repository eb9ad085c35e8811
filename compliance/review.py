"""Review of a results repository: each result of many submitters is judged in a separate process.

ROOT is a submission, or holds submissions as `<org>`, `closed/<org>` or `open/<org>`. A submission holds
`results/<system>/<benchmark>`. Links are not followed. Results of other benchmarks are counted, and not opened.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from itertools import count
from pathlib import Path
from stat import S_ISDIR
from typing import Literal, TypeVar

from .benchmark import NAME, Ruleset
from .check import Options, check_submission, options_by_name, tool_versions
from .file_tree import printable
from .findings import OfficialVerdict, PositiveInt, Report, RunSummary, Severity, Verdict
from .log_files import InputError
from .official import version as official_version
from .processes import cores, run_apart
from .submission import DIVISIONS, Submission, read_submission
from .waivers import read_waivers

Value = TypeVar("Value")

PAGES = "pages"
_SIZES = {
    "TP": "tensor_parallelism", "PP": "pipeline_parallelism", "CP": "context_parallelism", "EP": "expert_parallelism",
    "MBS": "micro_batch_size",
}  # fmt: skip
_PRECISIONS = tuple(f"lowest_numerical_precision_in_{part}" for part in ("linear", "attn", "comm"))
_MAX_NAME = 100  # characters of a page's name; file systems allow 255


class UnknownBenchmarkError(ValueError):
    """The benchmark is not one that this package judges."""


@dataclass(frozen=True, slots=True)
class Result:
    """A result to judge: the folder of its submission below the root, its system, and the name of its page."""

    submission: str
    system: str
    page: str


@dataclass(slots=True)
class Repository:
    """Results below a root.

    Attributes:
        results: results of this benchmark, by submission and system.
        submissions: number of submissions, including those without a result of this benchmark.
        others: number of results of each other benchmark.
        skipped: folders that were not searched, with the reason.
        is_complete: False if a folder could not be read.
    """

    root: Path
    results: list[Result] = field(default_factory=list)
    submissions: int = 0
    others: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)
    is_complete: bool = True

    def skip_unreadable(self, path: Path, error: OSError) -> None:
        """Note a folder that could not be read."""
        self.is_complete = False
        self.skipped.append(f"{printable(path)}: {error.strerror}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewedResult:
    """One result in a review. A setting of the runs is None if they differ in it.

    Attributes:
        submitter: of the system description; the submission's folder without one.
        submission: folder below the root.
        system: folder in results/.
        status: availability of the system.
        reason: why the result could not be judged; None if it was.
        official: verdict of the official tools; None if they were not run.
        layout: logged parallel sizes and micro batch size.
        precision: lowest logged precisions of linear layers, attention and communication.
        minutes: olympic mean; None without a valid score, as normalized_minutes.
        samples: olympic mean of the training samples to the target.
        normalization: factor of the RCP test.
        rcp_margin_samples: samples above the smallest accepted mean.
        seconds_per_sample: from run_start to the first passing evaluation, per training sample, of olympic means.
        energy_joules: mean of the runs that the score keeps; None without power logs.
        failed_rules: ids of the rules with errors.
        same_runs_as: other results with a run of the same start and evaluations, as submission/system.
        page: file of the result's report; None if the result could not be judged.
    """

    submitter: str
    submission: str
    system: str
    nodes: int | None = None
    accelerators_per_node: int | None = None
    accelerator: str | None = None
    division: str | None = None
    status: str | None = None
    verdict: Verdict
    reason: str | None = None
    official: OfficialVerdict | None = None
    runs: int = 0
    global_batch_size: int | None = None
    learning_rate: float | None = None
    warmup_steps: int | None = None
    layout: str | None = None
    precision: str | None = None
    minutes: float | None = None
    normalized_minutes: float | None = None
    normalization: float | None = None
    samples: float | None = None
    rcp_margin_samples: float | None = None
    samples_cv_percent: float | None = None
    minutes_cv_percent: float | None = None
    seconds_per_sample: float | None = None
    energy_joules: float | None = None
    errors: int = 0
    warnings: int = 0
    waived: int = 0
    notes: int = 0
    unverifiable: int = 0
    failed_rules: tuple[str, ...] = ()
    same_runs_as: tuple[str, ...] = ()
    page: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """Review of a results repository, as written to summary.json.

    Attributes:
        verdict: pass if every result passes and every folder could be read, else fail.
        root: repository as the user named it.
        tool: versions of the packages that judged, by name.
        options: options of the command, by name.
        submissions: submissions found, including those without a result of this benchmark.
        other_benchmarks: results of each other benchmark, not judged.
        skipped: folders that were not searched, with the reason.
    """

    schema_version: Literal[1] = 1
    verdict: Verdict
    benchmark: str
    ruleset: Ruleset
    root: str
    tool: dict[str, str]
    options: dict[str, str | int | float | bool | None]
    submissions: PositiveInt
    other_benchmarks: dict[str, int]
    skipped: tuple[str, ...]
    results: tuple[ReviewedResult, ...]

    def count(self, verdict: Verdict) -> int:
        """Return the number of results with a verdict."""
        return sum(each.verdict is verdict for each in self.results)


def find_results(root: Path, benchmark: str = NAME) -> Repository:
    """List the results below a root.

    Raises:
        InputError: the root cannot be listed, or holds no result of this benchmark.
        UnknownBenchmarkError: this package does not judge the benchmark.
    """
    if not root.is_dir():
        raise InputError(f"{printable(root)}: no such folder; expected one with the submissions of a round")
    found = Repository(root)
    taken: set[str] = set()
    for submission in _submissions(found):
        found.submissions += 1
        for system in _subfolders(found, submission / "results"):
            for name in (folder.name for folder in _subfolders(found, system)):
                if name == NAME:
                    folder = submission.relative_to(root).as_posix()
                    found.results.append(Result(folder, system.name, _page_name(folder, system.name, taken)))
                else:
                    found.others[printable(name)] += 1
    counts = {NAME: len(found.results), **found.others}
    held = f"results in {printable(root)}: {', '.join(f'{name} {number:,}' for name, number in counts.items())}"
    if benchmark != NAME:
        raise UnknownBenchmarkError(f"{benchmark}: only {NAME} is judged; {held}")
    if not found.results:
        raise InputError(f"{held}; expected ROOT/<org>/results/<system>/{NAME}, also below ROOT/closed and ROOT/open")
    return found


def review(
    found: Repository, options: Options, out: Path, on_progress: Callable[[int], None] = lambda done: None
) -> Review:
    """Judge every result, and write its page to the folder `pages` in ``out``.

    Raises:
        InputError: the file of waivers cannot be read.
        OfficialToolsError: the official tools are requested and not installed.
        OSError: the folder cannot be made.
    """
    from .render import report_file  # before the fork: every process needs it

    # What is wrong for every result ends the review.
    read_waivers(options.waive)
    if options.official:
        official_version()
    (out / PAGES).mkdir(parents=True, exist_ok=True)
    report_file.load_template("html")
    judged: dict[int, tuple[ReviewedResult, list[bytes]]] = {}
    judge = partial(_judge, found.root, options, out)
    # With the official tools a process waits for its subprocess, one at a time, and so keeps one core busy, too.
    with closing(run_apart(judge, found.results, cores())) as outcomes:
        for done, (index, outcome) in enumerate(outcomes, 1):
            if isinstance(outcome, Exception):
                judged[index] = _unjudged(found.results[index], outcome), []
            else:
                judged[index] = outcome
            on_progress(done)
    results = tuple(_with_copies([judged[index] for index in sorted(judged)]))
    passed = found.is_complete and all(row.verdict is Verdict.PASS for row in results)
    return Review(
        verdict=Verdict.PASS if passed else Verdict.FAIL,
        benchmark=NAME,
        ruleset=Ruleset(options.ruleset),
        root=printable(found.root),
        tool=tool_versions(),
        options=options_by_name(options),
        submissions=found.submissions,
        other_benchmarks=dict(found.others.most_common()),
        skipped=tuple(found.skipped),
        results=results,
    )


def _submissions(found: Repository) -> Iterator[Path]:
    if _is_folder(found, found.root / "systems") and _is_folder(found, found.root / "results"):
        yield found.root
        return
    for folder in _subfolders(found, found.root):
        organisations = _subfolders(found, folder) if folder.name in DIVISIONS else [folder]
        yield from (each for each in organisations if _is_folder(found, each / "results"))


def _is_folder(found: Repository, path: Path) -> bool:
    """Return whether a path is a folder and no link. One in a folder that cannot be entered is skipped."""
    try:
        return S_ISDIR(path.lstat().st_mode)
    except PermissionError as error:
        found.skip_unreadable(path, error)
    except OSError:
        pass  # there is no such folder
    return False


def _subfolders(found: Repository, folder: Path) -> list[Path]:
    """Return the folders directly in a folder, sorted. Links to folders and unreadable folders are skipped."""
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        found.skip_unreadable(folder, error)
        return []
    found.skipped += [f"{printable(each.path)}: a link" for each in entries if each.is_symlink() and each.is_dir()]
    return [folder / each.name for each in entries if each.is_dir(follow_symlinks=False) and each.name[0] != "."]


def _page_name(submission: str, system: str, taken: set[str]) -> str:
    """Return a new name that is safe as a file and in a link, whatever the folders are called."""
    name = re.sub(r"[^A-Za-z0-9_]+", "-", f"{submission}-{system}").strip("-")[:_MAX_NAME] or "result"
    names = (f"{name}{f'-{number}' if number > 1 else ''}.html" for number in count(1))
    # Some file systems ignore case.
    page = next(each for each in names if each.lower() not in taken)
    taken.add(page.lower())
    return f"{PAGES}/{page}"


def _judge(root: Path, options: Options, out: Path, result: Result) -> tuple[ReviewedResult, list[bytes]]:
    """Return the row of a result, and a digest for each run that is equal for copies of the run."""
    from .render.report_file import PICTURES, report_file

    tree = read_submission(root / result.submission, only=result.system)
    report = check_submission(tree, options, jobs=1)
    # A waiver may be for another result.
    report = replace(report, findings=tuple(each for each in report.findings if each.rule != "waiver-unused"))
    # Drawing all pictures of a page would take longer than judging its ten logs.
    page = report_file(report, "html", PICTURES[:1])
    (out / result.page).write_text(page, encoding="utf-8")
    runs = [repr(run.identity).encode() for run in report.sets[0].runs if run.identity]
    return _row(result, tree, report), [blake2b(run, digest_size=16).digest() for run in runs]


def _with_copies(judged: Sequence[tuple[ReviewedResult, Sequence[bytes]]]) -> Iterator[ReviewedResult]:
    """Yield the results with the names of those that share a run with them. Each was judged alone."""
    holders: dict[bytes, dict[str, None]] = {}
    for result, runs in judged:
        for run in runs:
            holders.setdefault(run, {})[f"{result.submission}/{result.system}"] = None
    for result, runs in judged:
        others = dict.fromkeys(name for run in runs for name in holders[run])
        others.pop(f"{result.submission}/{result.system}", None)
        yield replace(result, same_runs_as=tuple(others))


def _unjudged(result: Result, error: Exception) -> ReviewedResult:
    return ReviewedResult(
        submitter=printable(Path(result.submission).name), submission=printable(result.submission),
        system=printable(result.system), verdict=Verdict.ERROR, reason=printable(str(error)),
    )  # fmt: skip


def _row(result: Result, tree: Submission, report: Report) -> ReviewedResult:
    described = tree.systems.get(result.system)
    judged = report.sets[0]
    runs, score, variance = judged.runs, judged.score, judged.variance
    by_severity = Counter(finding.severity for finding in report.findings)
    return ReviewedResult(
        submitter=(described and described.text("submitter")) or Path(result.submission).name or result.system,
        submission=result.submission,
        system=result.system,
        nodes=described.count("number_of_nodes") if described else None,
        accelerators_per_node=described.count("accelerators_per_node", 0) if described else None,
        accelerator=described.text("accelerator_model_name") if described else None,
        division=(described and described.text("division")) or _common(run.division for run in runs),
        status=described.text("status") if described else None,
        verdict=report.verdict,
        official=report.official.verdict if report.official else None,
        runs=len(runs),
        global_batch_size=_common(run.global_batch_size for run in runs),
        learning_rate=_common(run.learning_rate for run in runs),
        warmup_steps=_common(run.warmup_steps for run in runs),
        layout=_common(map(_layout, runs)),
        precision=_common(map(_precision, runs)),
        minutes=score.olympic_minutes if score else None,
        normalized_minutes=score.normalized_minutes if score else None,
        normalization=score.normalization if score else None,
        samples=score.olympic_samples if score else None,
        rcp_margin_samples=judged.rcp.pruned.margin_samples if judged.rcp else None,
        samples_cv_percent=variance.samples.cv_percent if variance and variance.samples else None,
        minutes_cv_percent=variance.minutes.cv_percent if variance and variance.minutes else None,
        seconds_per_sample=judged.seconds_per_sample,
        energy_joules=judged.energy.olympic_joules if judged.energy else None,
        errors=by_severity[Severity.ERROR],
        warnings=by_severity[Severity.WARNING],
        waived=by_severity[Severity.WAIVED],
        notes=by_severity[Severity.INFO],
        unverifiable=by_severity[Severity.UNVERIFIABLE],
        failed_rules=tuple(dict.fromkeys(each.rule for each in report.findings if each.severity is Severity.ERROR)),
        page=result.page,
    )


def _common(values: Iterable[Value | None]) -> Value | None:
    """Return the value that all runs with one share, None if they differ."""
    distinct = {value for value in values if value is not None}
    return distinct.pop() if len(distinct) == 1 else None


def _layout(run: RunSummary) -> str | None:
    sizes = [f"{short} {run.disclosed[key]}" for short, key in _SIZES.items() if key in run.disclosed]
    return ", ".join(sizes) or None


def _precision(run: RunSummary) -> str | None:
    return ", ".join(dict.fromkeys(run.disclosed[key] for key in _PRECISIONS if key in run.disclosed)) or None
