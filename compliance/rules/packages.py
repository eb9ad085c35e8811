"""Rules on a submission tree: what lies where, what describes the systems, and whether logs and tree tell one story."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..benchmark import NAME, RUNS
from ..file_tree import has_rejected_name, is_binary, is_source, printable_path
from ..findings import Severity
from ..submission import (
    CODE_FOLDER,
    DIVISIONS,
    REQUIRED_FIELDS,
    STATUSES,
    TEXT_FIELDS,
    Submission,
    SystemDescription,
)
from .rule import Problem, Rule, quote_json, rule

_LAYOUT = "MLPerf submission rules, Directory structure (Training)"
_CHECKER = "mlperf-logging 4.1.68, package_checker"
_DESCRIBER = "mlperf-logging 4.1.68, system_desc_checker"
_OWN = "this project"

MAX_FILE_BYTES = 50 << 20  # the limit of mlperf-logging's repo_checker
# Besides logs: what official tools read or write there, and power logs, which are optional.
_KNOWN_BESIDE_LOGS = {"scaling.json", "package_checker_params", "power"}
_MEANT_AS_LOG = re.compile(r"(result|run).*|.*\.(log|gz)", re.IGNORECASE)
_COUNTED_AS_LOG = re.compile(r"result_.*\.txt")


@dataclass(frozen=True, slots=True)
class LoggedIdentity:
    """What a log says of whose it is; None for what it does not say as text.

    Attributes:
        file: the log as messages name it.
        division, organisation, platform: submission_division, submission_org, submission_platform.
    """

    file: str
    division: str | None
    organisation: str | None
    platform: str | None


@dataclass(frozen=True, slots=True)
class PackageContext:
    """A submission tree, and what its logs say.

    Attributes:
        submission: the tree.
        identities: per system name, that of each log in `results/<system>/gpt_oss_20b`.
        runs: logs that make a result.
    """

    submission: Submission
    identities: dict[str, tuple[LoggedIdentity, ...]] = field(default_factory=dict)
    runs: int = RUNS

    @property
    def logged(self) -> Iterator[tuple[str, SystemDescription | None, tuple[LoggedIdentity, ...]]]:
        """Each system with logs: its name, its description if readable, the identities."""
        for system, identities in self.identities.items():
            yield system, self.submission.systems.get(system), identities


@rule("package-structure", Severity.ERROR, _LAYOUT)
def package_structure(subject: PackageContext) -> Iterator[Problem]:
    """The tree has systems/, benchmarks/ and results/; each results/<system> has its systems/<system>.json (the reverse
    is a warning) and a folder gpt_oss_20b, spelled so. Other benchmarks are named and not judged.
    """
    tree = subject.submission
    for file, defect in tree.problems:
        if defect.rule == "package-structure":
            yield Problem(defect.message, file=file)
    for folder in ("systems", "benchmarks", "results"):
        if folder not in tree.folders:
            yield Problem(f"no folder {folder}/", file=tree.path(folder), expected=f"{folder}/")
    systems = tree.subfolders("results")
    for system in systems:
        if system not in tree.system_names:
            message = f"no {_file_of(system)} describes this system; add it"
            yield Problem(message, file=tree.path(f"results/{system}"), expected=_file_of(system))
        if not tree.subfolders(f"results/{system}"):
            message = f"no folder of a benchmark; put the logs in {NAME}/"
            yield Problem(message, file=tree.path(f"results/{system}"), expected=f"{NAME}/")
    if "results" in tree.folders and not tree.results:
        message = f"no results of {NAME}: nothing was judged"
        yield Problem(message, file=tree.path("results"), expected=f"results/<system>/{NAME}/")
    for system in sorted(set(tree.system_names) - set(systems)) if "results" in tree.folders else ():
        message = f"a system without results/{printable_path(system)}; remove it, or is the folder misnamed?"
        yield Problem(message, file=tree.path(f"systems/{system}.json"), severity=Severity.WARNING)
    yield from _benchmarks(tree, ["benchmarks", *(f"results/{system}" for system in systems)])


def _benchmarks(tree: Submission, parents: list[str]) -> Iterator[Problem]:
    """Benchmark folders by another name."""
    for name in (f"{parent}/{child}" for parent in parents for child in tree.subfolders(parent)):
        last = name.rpartition("/")[2]
        if last == NAME:
            continue
        if re.sub(r"[\W_]", "", last).lower() == NAME.replace("_", ""):
            message = "a misspelled benchmark folder, which the official checker skips; rename it"
            yield Problem(message, file=tree.path(name), expected=NAME, got=last)
        else:
            message = f"another benchmark, not judged here; this package judges {NAME}"
            yield Problem(message, file=tree.path(name), severity=Severity.INFO)


@rule("package-result-count", Severity.ERROR, _CHECKER)
def package_result_count(subject: PackageContext) -> Iterator[Problem]:
    """Each gpt_oss_20b folder has exactly ten logs, named result_<i>.txt and not compressed. Anything else in it but
    scaling.json, package_checker_params and power/ is a warning.
    """
    for folder in subject.submission.results:
        stray = [name for name in folder.others if _COUNTED_AS_LOG.fullmatch(name)]
        packed = [name for name in folder.others if name.lower().endswith(".gz")]
        unknown = [name for name in folder.others if name not in {*stray, *packed, *_KNOWN_BESIDE_LOGS}]
        meant = [name for name in unknown if _MEANT_AS_LOG.fullmatch(name)]
        if packed:
            message = f"compressed logs, which the official checker does not count: {_listed(packed)}; decompress them"
            yield Problem(message, file=folder.path, expected="result_<i>.txt")
        if stray:
            message = f"the official checker counts these as logs: {_listed(stray)}; rename them to result_<i>.txt"
            yield Problem(message, file=folder.path, expected="result_<i>.txt, i a number")
        if len(folder.logs) != subject.runs:
            hint = f"; rename {_listed(meant)}" if meant else ""
            message = f"a result has exactly {subject.runs} logs named result_<i>.txt, got {len(folder.logs)}{hint}"
            yield Problem(message, file=folder.path, expected=subject.runs, got=len(folder.logs))
            unknown = [name for name in unknown if name not in meant]
        if unknown:
            message = f"files that do not belong to a result: {_listed(unknown)}; remove them"
            yield Problem(message, file=folder.path, severity=Severity.WARNING)


@rule("package-system-description", Severity.ERROR, _DESCRIBER)
def package_system_description(subject: PackageContext) -> Iterator[Problem]:
    """A system description is a JSON object with the 33 required fields, texts where the official checker wants texts,
    a status of the official list, a division spelled closed or open (the official checker tests seeds and convergence
    only where it reads exactly "closed"), and counts of nodes and accelerators that are positive whole numbers.
    """
    for file, defect in subject.submission.problems:
        if defect.rule == "package-system-description":
            yield Problem(defect.message, defect.line, got=defect.got, file=file)
    for system in subject.submission.systems.values():
        yield from _description(system)


def _description(system: SystemDescription) -> Iterator[Problem]:
    raw, file = system.raw, system.path
    if missing := [name for name in REQUIRED_FIELDS if name not in raw]:
        message = f"required fields are missing: {', '.join(missing)}"
        yield Problem(message, file=file, expected=f"{len(REQUIRED_FIELDS)} fields")
    for name in TEXT_FIELDS:
        if name in raw and not isinstance(raw[name], str):
            message = f"{name} is not text, and stops the official checker; put it in quotes"
            yield Problem(message, file=file, expected="text", got=_said(raw[name]))
    for name in ("submitter", "system_name"):
        if isinstance(raw.get(name), str) and not raw[name].strip():
            yield Problem(f"{name} is empty", file=file, expected="a name", got=_said(raw[name]))
    for name, allowed in (("status", STATUSES), ("division", DIVISIONS)):
        if name in raw and raw[name] not in allowed:
            message = f"{name} is none of the allowed values, which are spelled exactly so"
            yield Problem(message, file=file, expected=" | ".join(allowed), got=_said(raw[name]))
    counts = (("number_of_nodes", system.nodes), ("accelerators_per_node", system.accelerators_per_node))
    for name, count in counts:
        if count is None and name in raw and (isinstance(raw[name], str) or name not in TEXT_FIELDS):
            message = f"{name} is not a positive whole number"
            yield Problem(message, file=file, expected='e.g. "8"', got=_said(raw[name]))


@rule("division-agreement", Severity.ERROR, _OWN)
def division_agreement(subject: PackageContext) -> Iterator[Problem]:
    """The logs' submission_division, the system description's division and the folder named closed or open that the
    tree lies in (the nearest one) agree, as far as each of them says one.
    """
    tree = subject.submission
    folder = tree.folder_division
    for system in tree.systems.values():
        described = _folded(system.division)
        if folder is not None and described is not None and described != folder:
            message = f"the system is described as of another division than the folder {folder}/ that the tree lies in"
            yield Problem(message, file=system.path, expected=folder, got=system.division)
    for name, description, identities in subject.logged:
        described = None if description is None else _folded(description.division)
        wanted, source = (folder, f"the folder {folder}/") if described is None else (described, _file_of(name))
        for value, count, file in _values(identities, "division"):
            if wanted is not None and _folded(value) != wanted:
                message = f"{_logs(count)} with another submission_division than {source} says"
                yield Problem(message, file=file, expected=quote_json(wanted), got=value)


@rule("organisation-agreement", Severity.ERROR, _OWN)
def organisation_agreement(subject: PackageContext) -> Iterator[Problem]:
    """submission_org in the logs is the system description's submitter, letter for letter. submission_platform has no
    prescribed spelling: it is a warning only if it shares no word (letters and digits, of three or more, a leading
    node count like 2x aside) with the system's folder, system_name or accelerator_model_name.
    """
    for name, system, identities in subject.logged:
        if system is None:
            continue
        for value, count, file in _values(identities, "organisation"):
            if system.submitter is not None and value != system.submitter:
                message = f"{_logs(count)} with another submission_org than the submitter of {_file_of(name)}"
                yield Problem(message, file=file, expected=quote_json(system.submitter), got=value)
        names = [name, system.system_name, system.raw.get("accelerator_model_name")]
        known = set[str]().union(*(_words(each) for each in names if isinstance(each, str)))
        for value, count, file in _values(identities, "platform"):
            if known and _words(value) and known.isdisjoint(_words(value)):
                message = f"{_logs(count)} with a submission_platform that looks like another system's"
                yield Problem(message, file=file, expected=quote_json(name), got=value, severity=Severity.WARNING)


@rule("package-code", Severity.ERROR, _LAYOUT)
def package_code(subject: PackageContext) -> Iterator[Problem]:
    """benchmarks/gpt_oss_20b holds source code and a README; without run_and_time.sh it is a warning. The tree has no
    binaries or archives outside results/; files over 50 MB and names that git tools stumble on (a leading dot, a blank)
    are warnings.
    """
    tree = subject.submission
    names = [file.name.rpartition("/")[2].lower() for file in tree.code]
    folder = tree.path(CODE_FOLDER)
    if "benchmarks" in tree.folders:
        if not any(is_source(name) for name in names):
            yield Problem("no source code; add what a result is reproduced with", file=folder, expected=CODE_FOLDER)
        if not any(name.startswith("readme") for name in names):
            yield Problem("no README; add one that says how to reproduce the result", file=folder, expected="README.md")
        if "run_and_time.sh" not in names:
            message = "no run_and_time.sh, the script that the rules want to start a run"
            yield Problem(message, file=folder, expected="run_and_time.sh", severity=Severity.WARNING)
    for file in tree.files:
        if is_binary(file.name) and not file.name.startswith("results/"):
            message = "a binary or an archive; a submission holds what it is built from instead"
            yield Problem(message, file=tree.path(file.name))
        if file.size > MAX_FILE_BYTES:
            message = "larger than the 50 MB that the official repo_checker allows"
            size = f"{file.size:,} bytes"
            yield Problem(message, file=tree.path(file.name), got=size, severity=Severity.WARNING)
    names = sorted([*tree.folders, *(file.name for file in tree.files)])
    awkward = [name for name in names if has_rejected_name(name) and not name.endswith(".git")]
    if awkward:
        message = f"names that the official repo_checker refuses: {_listed(awkward)}; no leading dot, no blank"
        yield Problem(message, file=tree.path("."), severity=Severity.WARNING)


@rule("package-scaling", Severity.INFO, _OWN)
def package_scaling(subject: PackageContext) -> Iterator[Problem]:
    """A scaling.json in results/, by which the official summarizer multiplies the score, is never read here: the
    normalisation is computed from the logs.
    """
    yield from _named(subject, "scaling.json", "present, not read: the normalisation is computed from the logs")


@rule("package-bypass", Severity.WARNING, _CHECKER)
def package_bypass(subject: PackageContext) -> Iterator[Problem]:
    """A package_checker_params file tells the official checker to let failed tests of convergence or seeds pass; here
    no bypass is honoured.
    """
    message = "can tell the official checker to let failed tests pass; here no bypass is honoured. Remove it"
    yield from _named(subject, "package_checker_params", message)


def _named(subject: PackageContext, name: str, message: str) -> Iterator[Problem]:
    tree = subject.submission
    for file in tree.files:
        if file.name.startswith("results/") and file.name.endswith(f"/{name}"):
            yield Problem(message, file=tree.path(file.name))


@rule("package-link", Severity.ERROR, _OWN)
def package_link(subject: PackageContext) -> Iterator[Problem]:
    """No link leads out of the tree, and no folder of systems/ or results/ is a link, because links to folders are not
    followed. A link to nothing is a warning.
    """
    tree = subject.submission
    for link in tree.links:
        file = tree.path(link.name)
        if link.kind == "outside":
            message = "a link that leads out of the tree, not followed; put the file itself here"
            yield Problem(message, file=file, got=link.target)
        elif link.kind == "broken":
            yield Problem("a link to nothing; remove it", file=file, got=link.target, severity=Severity.WARNING)
        elif link.name.partition("/")[0] != "benchmarks":
            yield Problem("a link to a folder, not followed; put the files here", file=file, got=link.target)


def _values(identities: tuple[LoggedIdentity, ...], name: str) -> list[tuple[str, int, str]]:
    """The different values that logs give one field: value, number of logs, the first of them."""
    said = [(getattr(identity, name), identity.file) for identity in identities]
    counts = Counter(value for value, _ in said if value is not None)
    first = dict(reversed(said))
    return [(value, count, first[value]) for value, count in counts.items()]


def _words(text: str) -> set[str]:
    """Words of three letters and digits or more, lower case, without a leading node count; 1x8 is none."""
    words = (re.sub(r"^\d+x", "", word) for word in re.split(r"[^a-z0-9]+", text.lower()))
    return {word for word in words if len(word) >= 3}


def _file_of(system: str) -> str:
    return f"systems/{printable_path(system)}.json"


def _said(value: object) -> object:
    """A JSON value as findings quote it; a deeply nested one has no end."""
    return value if isinstance(value, str | int | float | None) else type(value).__name__


def _logs(count: int) -> str:
    return "a log" if count == 1 else f"{count} logs"


def _folded(division: str | None) -> str | None:
    """A division in lower case; its spelling is judged by other rules."""
    return None if division is None else division.lower()


def _listed(names: list[str]) -> str:
    """The first few of some names."""
    shown = ", ".join(printable_path(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


RULES: tuple[Rule[PackageContext], ...] = (
    package_structure,
    package_result_count,
    package_system_description,
    division_agreement,
    organisation_agreement,
    package_code,
    package_scaling,
    package_bypass,
    package_link,
)
