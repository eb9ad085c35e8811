"""Rules on a submission tree: layout, system descriptions, code, and agreement of logs and tree."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..benchmark import NAME, RUNS
from ..file_tree import has_rejected_name, is_binary, is_source, printable
from ..findings import RunSummary, Severity
from ..json_values import finite_float
from ..power import RunPower
from ..submission import (
    CODE_FOLDER,
    DIVISIONS,
    LOGGED_STATUSES,
    REQUIRED_FIELDS,
    STATUSES,
    TEXT_FIELDS,
    Submission,
    SystemDescription,
)
from .rule import OFFICIAL, OWN, Problem, parse_problems, quote_json, rule

_SUBMISSION = "MLPerf submission rules"
_LAYOUT = f"{_SUBMISSION}, Directory structure (Training)"
_CONTENT = f"{_SUBMISSION}, Submission content"
_CHECKER = f"{OFFICIAL}package_checker"
_DESCRIBER = f"{OFFICIAL}system_desc_checker"

MAX_FILE_BYTES = 50 << 20  # limit of mlperf-logging's repo_checker
# Files that official tools read or write beside the logs, and optional power logs.
_KNOWN_NAMES = {"scaling.json", "package_checker_params", "power"}
_LOOKS_LIKE_LOG = re.compile(r"(result|run).*|.*\.(log|gz)", re.IGNORECASE)
_OFFICIAL_LOG_NAME = re.compile(r"result_.*\.txt")


@dataclass(frozen=True, slots=True)
class PackageContext:
    """A submission tree and, by system name, its runs of this benchmark, their score's factor and their power logs."""

    submission: Submission
    runs: dict[str, tuple[RunSummary, ...]] = field(default_factory=dict)
    required_runs: int = RUNS
    factors: Mapping[str, float | None] = field(default_factory=dict)
    power: Mapping[str, tuple[RunPower, ...]] = field(default_factory=dict)


@rule("package-structure", Severity.ERROR, _LAYOUT)
def package_structure(context: PackageContext) -> Iterator[Problem]:
    """Require the folders systems/, benchmarks/ and results/, with matching names in them.

    Each results/<system> has a systems/<system>.json (the reverse is a warning) and a folder gpt_oss_20b, spelled
    exactly so. Other benchmarks are reported and not judged.
    """
    tree = context.submission
    for file, error in tree.problems:
        yield from parse_problems([error], "package-structure", file)
    for folder in ("systems", "benchmarks", "results"):
        if folder not in tree.folders:
            yield Problem(f"no folder {folder}/", file=tree.path(folder), expected=f"{folder}/")
    systems = tree.subfolders("results")
    for system in systems:
        if system not in tree.system_names:
            message = f"no {_description_file(system)} describes this system; add it"
            yield Problem(message, file=tree.path(f"results/{system}"), expected=_description_file(system))
        if not tree.subfolders(f"results/{system}"):
            message = f"no benchmark folder; put the logs in {NAME}/"
            yield Problem(message, file=tree.path(f"results/{system}"), expected=f"{NAME}/")
    if "results" in tree.folders and not tree.results:
        message = f"no results of {NAME}: nothing was judged"
        yield Problem(message, file=tree.path("results"), expected=f"results/<system>/{NAME}/")
    for system in sorted(set(tree.system_names) - set(systems)) if "results" in tree.folders else ():
        message = f"a system without results/{printable(system)}; remove it, or rename the results folder"
        yield Problem(message, file=tree.path(f"systems/{system}.json"), severity=Severity.WARNING)
    yield from _other_benchmarks(tree, ["benchmarks", *(f"results/{system}" for system in systems)])


def _other_benchmarks(tree: Submission, parents: list[str]) -> Iterator[Problem]:
    for name in (f"{parent}/{child}" for parent in parents for child in tree.subfolders(parent)):
        last = name.rpartition("/")[2]
        if last == NAME:
            continue
        # gpt-oss-20b, GPT_OSS_20B, gptoss20b
        if re.sub(r"[\W_]", "", last).lower() == NAME.replace("_", ""):
            message = "a misspelled benchmark folder, which the official checker skips; rename it"
            yield Problem(message, file=tree.path(name), expected=NAME, got=last)
        else:
            message = f"another benchmark, not judged here; this package judges {NAME}"
            yield Problem(message, file=tree.path(name), severity=Severity.INFO)


@rule("package-result-count", Severity.ERROR, _CHECKER)
def package_result_count(context: PackageContext) -> Iterator[Problem]:
    """Require exactly ten uncompressed logs result_<i>.txt in each gpt_oss_20b folder.

    Any other file except scaling.json, package_checker_params and power/ is a warning.
    """
    for folder in context.submission.results:
        stray = [name for name in folder.others if _OFFICIAL_LOG_NAME.fullmatch(name)]
        packed = [name for name in folder.others if name.lower().endswith(".gz")]
        unknown = [name for name in folder.others if name not in {*stray, *packed, *_KNOWN_NAMES}]
        # Only named as a hint if logs are missing; otherwise they are unknown files.
        misnamed = [name for name in unknown if _LOOKS_LIKE_LOG.fullmatch(name)]
        if packed:
            message = f"compressed logs, which the official checker does not count: {_join(packed)}; decompress them"
            yield Problem(message, file=folder.path, expected="result_<i>.txt")
        if stray:
            message = f"the official checker counts these as logs: {_join(stray)}; rename them to result_<i>.txt"
            yield Problem(message, file=folder.path, expected="result_<i>.txt, i a number")
        count, required = len(folder.logs), context.required_runs
        if count != required:
            hint = f"; rename {_join(misnamed)}" if misnamed else ""
            message = f"a result has exactly {required} logs named result_<i>.txt, got {count}{hint}"
            yield Problem(message, file=folder.path, expected=required, got=count)
            unknown = [name for name in unknown if name not in misnamed]
        if unknown:
            message = f"files that do not belong to a result: {_join(unknown)}; remove them"
            yield Problem(message, file=folder.path, severity=Severity.WARNING)


@rule("package-system-description", Severity.ERROR, _DESCRIBER)
def package_system_description(context: PackageContext) -> Iterator[Problem]:
    """Require system descriptions that the official checkers read.

    A system description is a JSON object with the 33 required fields, text where the official checker expects text,
    a status of the official list, division closed or open (the official checker tests seeds and convergence only for
    exactly "closed"), a positive whole number of nodes, and a whole number of accelerators, 0 on CPUs alone.
    """
    for file, error in context.submission.problems:
        yield from parse_problems([error], "package-system-description", file)
    for system in context.submission.systems.values():
        yield from _description_problems(system)


def _description_problems(system: SystemDescription) -> Iterator[Problem]:
    raw, file = system.raw, system.path
    if missing := [name for name in REQUIRED_FIELDS if name not in raw]:
        message = f"required fields are missing: {', '.join(missing)}"
        yield Problem(message, file=file, expected=f"{len(REQUIRED_FIELDS)} fields")

    def field_problem(name: str, message: str, expected: str) -> Problem:
        value = raw[name]
        # A list or an object can be nested deeper than JSON can be written; its type is quoted instead.
        got = value if isinstance(value, str | int | float | None) else type(value).__name__
        return Problem(f"{name} {message}", file=file, expected=expected, got=got)

    for name in TEXT_FIELDS:
        if name in raw and not isinstance(raw[name], str):
            yield field_problem(name, "is not text, which crashes the official checker; put it in quotes", "text")
    for name in ("submitter", "system_name"):
        if isinstance(raw.get(name), str) and not raw[name].strip():
            yield field_problem(name, "is empty", "a name")
    for name, allowed in (("status", STATUSES), ("division", DIVISIONS)):
        if name in raw and raw[name] not in allowed:
            yield field_problem(name, "is not exactly one of the allowed values", " | ".join(allowed))
    # accelerators_per_node as a number is already reported as not being text.
    for name in ("number_of_nodes", "accelerators_per_node"):
        minimum = 0 if name == "accelerators_per_node" else 1  # a system of CPUs has none
        is_text = isinstance(raw.get(name), str) or name not in TEXT_FIELDS
        if system.count(name, minimum) is None and name in raw and is_text:
            yield field_problem(name, f"is not a whole number of at least {minimum}", 'e.g. "8"')


@rule(
    "division-agreement",
    Severity.ERROR,
    f"{_SUBMISSION}, Results tables; {_CHECKER}: tests convergence by the description's, settings by the logs'",
)
def division_agreement(context: PackageContext) -> Iterator[Problem]:
    """Require one division in the logs and in the system description.

    Another folder name is a warning, this project's judgement: the folder is the nearest one named closed or open above
    the tree. Missing divisions are not compared.
    """
    tree = context.submission
    folder = tree.folder_division
    for system in tree.systems.values():
        described = _lower(system.text("division"))
        if folder is not None and described is not None and described != folder:
            message = f"the system description has another division than the folder {folder}/ above the tree"
            got = system.text("division")
            yield Problem(message, file=system.path, expected=folder, got=got, severity=Severity.WARNING)
    for name, runs in context.runs.items():
        description = tree.systems.get(name)
        described = None if description is None else _lower(description.text("division"))
        expected, source, severity = folder, f"the folder {folder}/", Severity.WARNING
        if described is not None:
            expected, source, severity = described, _description_file(name), Severity.ERROR
        for value, count, file in _logged_values(runs, "division"):
            if expected is not None and _lower(value) != expected:
                message = f"{_count_logs(count)} with another submission_division than {source}"
                yield Problem(message, file=file, expected=quote_json(expected), got=value, severity=severity)


@rule("organisation-agreement", Severity.WARNING, OWN)
def organisation_agreement(context: PackageContext) -> Iterator[Problem]:
    """Warn if submission_org in the logs is not the system description's submitter.

    submission_platform has no prescribed spelling. It is reported if it shares no word of three or more letters and
    digits, without a leading node count like 2x, with the system's folder, system_name or accelerator_model_name.
    """
    for name, runs in context.runs.items():
        system = context.submission.systems.get(name)
        if system is None:
            continue
        submitter = system.text("submitter")
        for value, count, file in _logged_values(runs, "organisation"):
            if submitter is not None and value != submitter:
                file_name = _description_file(name)
                message = f"{_count_logs(count)} with another submission_org than the submitter in {file_name}"
                yield Problem(message, file=file, expected=quote_json(submitter), got=value)
        names = [name, system.text("system_name"), system.text("accelerator_model_name")]
        known = set[str]().union(*(_words(each) for each in names if each is not None))
        for value, count, file in _logged_values(runs, "platform"):
            if known and _words(value) and known.isdisjoint(_words(value)):
                message = f"{_count_logs(count)} with a submission_platform that looks like another system's"
                yield Problem(message, file=file, expected=quote_json(name), got=value)


@rule("status-agreement", Severity.WARNING, OWN)
def status_agreement(context: PackageContext) -> Iterator[Problem]:
    """Warn if submission_status in the logs is not the system description's status: onprem is Available on-premise."""
    for name, runs in context.runs.items():
        system = context.submission.systems.get(name)
        status = None if system is None else system.text("status")
        for value, count, file in _logged_values(runs, "logged_status") if status in STATUSES else ():
            if LOGGED_STATUSES.get(value, status) != status:
                message = f"{_count_logs(count)} with another submission_status than {_description_file(name)}"
                yield Problem(message, file=file, expected=quote_json(status), got=value)


@rule("package-code", Severity.ERROR, f"{_CONTENT}; Source code requirements for training inspection")
def package_code(context: PackageContext) -> Iterator[Problem]:
    """Require source code and a README in benchmarks/gpt_oss_20b.

    A missing run_and_time.sh is a warning, as are binaries and archives outside results/ (the rules allow them, and
    nobody can inspect them), files over 50 MB, and names that git tools reject (a leading dot, a blank).
    """
    tree = context.submission
    names = [file.name.rpartition("/")[2].lower() for file in tree.code]
    folder = tree.path(CODE_FOLDER)
    if "benchmarks" in tree.folders:
        if not any(is_source(name) for name in names):
            yield Problem("no source code; add the code of the result", file=folder, expected=CODE_FOLDER)
        if not any(name.startswith("readme") for name in names):
            message = "no README; add one that explains how to reproduce the result"
            yield Problem(message, file=folder, expected="README.md")
        if "run_and_time.sh" not in names:
            message = "no run_and_time.sh, the script that starts a run by the rules"
            yield Problem(message, file=folder, expected="run_and_time.sh", severity=Severity.WARNING)
    for file in tree.files:
        if is_binary(file.name) and not file.name.startswith("results/"):
            message = "a binary or an archive; submit its sources, too"
            yield Problem(message, file=tree.path(file.name), severity=Severity.WARNING)
        if file.size > MAX_FILE_BYTES:
            message = "larger than the 50 MB that the official repo_checker allows"
            size = f"{file.size:,} bytes"
            yield Problem(message, file=tree.path(file.name), got=size, severity=Severity.WARNING)
    names = sorted([*tree.folders, *(file.name for file in tree.files)])
    rejected = [name for name in names if has_rejected_name(name) and not name.endswith(".git")]
    if rejected:
        message = f"names that the official repo_checker rejects: {_join(rejected)}; no leading dot, no blank"
        yield Problem(message, file=tree.path("."), severity=Severity.WARNING)


@rule("package-scaling", Severity.ERROR, f"{OFFICIAL}result_summarizer: multiplies the score by the factor")
def package_scaling(context: PackageContext) -> Iterator[Problem]:
    """Require the factor of a shipped scaling.json to be the computed one. An equal factor is a note."""
    for folder in context.submission.results:
        if "scaling.json" not in folder.others:
            continue
        file, computed, shipped = f"{folder.path}/scaling.json", context.factors.get(folder.system), folder.scaling
        if computed is None:
            message = "a factor on the score, not compared: no factor can be computed"
            yield Problem(message, file=file, got=shipped, severity=Severity.INFO)
        elif (number := finite_float(shipped)) is None or not math.isclose(number, computed, rel_tol=1e-9):
            message = "a factor on the score that is not the one computed from the logs"
            yield Problem(message, file=file, expected=repr(computed), got=shipped)
        else:
            message = "a factor on the score, equal to the one computed from the logs"
            yield Problem(message, file=file, got=shipped, severity=Severity.INFO)


@rule("package-copy", Severity.WARNING, OWN)
def package_copy(context: PackageContext) -> Iterator[Problem]:
    """Warn about runs that stand in the results of two systems: equal start and evaluations, to the last digit."""
    seen: dict[object, str] = {}
    for system, runs in context.runs.items():
        logged: dict[object, str] = {run.identity: run.file for run in runs if run.identity}
        if copied := [seen[each] for each in logged if each in seen]:
            message = f"{_count_logs(len(copied))} with the times and losses of another system's runs"
            file = context.submission.path(f"results/{system}/{NAME}")
            yield Problem(message, expected="runs of this system", got=copied[0], file=file)
        seen |= logged


@rule("package-bypass", Severity.INFO, _CHECKER)
def package_bypass(context: PackageContext) -> Iterator[Problem]:
    """Report a package_checker_params file, which lets failed convergence or seed tests pass officially.

    This project ignores it. The official checker reads it in results/<system>/ and below.
    """
    yield from _files_named(context, "package_checker_params", "bypass requested, audit due; ignored here")


def _files_named(context: PackageContext, name: str, message: str) -> Iterator[Problem]:
    tree = context.submission
    for file in tree.files:
        if file.name == name or (file.name.startswith("results/") and file.name.endswith(f"/{name}")):
            yield Problem(message, file=tree.path(file.name))


@rule("package-link", Severity.ERROR, f"{_CONTENT}; Directory structure (Training)")
def package_link(context: PackageContext) -> Iterator[Problem]:
    """Reject links in benchmarks/, systems/ and results/ whose target is not part of the submission or is not judged.

    These are links out of the tree, and in systems/ and results/ links to folders. A broken link is a warning, as is a
    link out of the tree elsewhere.
    """
    tree = context.submission
    for link in tree.links:
        file, part = tree.path(link.name), link.name.partition("/")[0]
        if link.kind == "outside":
            message = "a link out of the tree, not followed; replace it by the file"
            severity = None if part in ("benchmarks", "systems", "results") else Severity.WARNING
            yield Problem(message, file=file, got=link.target, severity=severity)
        elif link.kind == "broken":
            yield Problem("a broken link; remove it", file=file, got=link.target, severity=Severity.WARNING)
        elif part in ("systems", "results"):
            yield Problem("a link to a folder, not followed; put the files here", file=file, got=link.target)


def _logged_values(runs: tuple[RunSummary, ...], name: str) -> list[tuple[str, int, str]]:
    """Return the distinct values of a field of the runs, each with the number of its logs and the first of them."""
    logged = [(getattr(run, name), run.file) for run in runs]
    counts = Counter(value for value, _ in logged if value is not None)
    first_files = dict(reversed(logged))
    return [(value, count, first_files[value]) for value, count in counts.items()]


def _words(text: str) -> set[str]:
    """Return the lower-case words of three or more letters and digits, without a leading node count (2xNAME)."""
    words = (re.sub(r"^\d+x", "", word) for word in re.split(r"[^a-z0-9]+", text.lower()))
    return {word for word in words if len(word) >= 3}


def _description_file(system: str) -> str:
    return f"systems/{printable(system)}.json"


def _count_logs(count: int) -> str:
    return "a log" if count == 1 else f"{count} logs"


def _lower(division: str | None) -> str | None:
    return None if division is None else division.lower()


def _join(names: list[str]) -> str:
    """Return the first five names as text, and the number of the others."""
    shown = ", ".join(printable(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
