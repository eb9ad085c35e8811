"""The checks: one log, the runs of one result, a submission tree. They read, judge, and return a `Report`.

Nothing is printed and nothing is written. The official tools run beside our own judging, in processes of their own.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import __version__
from .benchmark import RULESETS, RUNS
from .findings import Finding, Official, OfficialResult, Report, SetResult, Severity, Status, Verdict
from .judge import JudgedRun, judge_run, judge_set, unverifiable_findings
from .log_files import InputError, find_logs, read_log
from .official import TIMEOUT_S, OfficialTools, OwnVerdict, find_divergences
from .official import version as official_version
from .records import ParseError
from .rules import PACKAGE_RULES
from .rules.packages import LoggedIdentity, PackageContext
from .run import Machine, common_eval_interval
from .submission import ResultFolder, Submission, SystemDescription, read_submission, read_system_description


@dataclass(frozen=True)
class Options:
    """How to check.

    Attributes:
        ruleset: "6.0.0" or "6.1.0".
        runs: runs that make a result.
        cv_limit: largest coefficient of variation without a warning, in percent.
        strict: whether warnings fail.
        official: whether to ask the official tools as well.
        official_timeout: seconds that an official tool may take for one log.
        system: system description that the logs belong to; a submission tree has its own.
    """

    ruleset: str = RULESETS[-1]
    runs: int = RUNS
    cv_limit: float = 5.0
    strict: bool = False
    official: bool = True
    official_timeout: float = TIMEOUT_S
    system: Path | None = None


DEFAULTS = Options()


def check_run(log: Path, options: Options = DEFAULTS) -> Report:
    """Judges one log.

    Raises:
        InputError: it cannot be read.
        OfficialToolsError: the official tools are asked for and not installed.
    """
    found = find_logs([log])
    if found != [log]:
        raise InputError(f"{log}: a folder; check-run takes one log, check-set a folder of them")
    path = log
    with _official(options) as tools:
        if tools:
            tools.check_files({str(path): path})
        judged = judge_run(read_log(path), options.ruleset, _machine_of(options.system), in_set=False)
        official = _beside(tools, _ours_of_files([judged]))
    result = SetResult("", (judged.summary,), None, None, None, common_eval_interval([judged.run]))
    return _report("check-run", options, [*judged.findings, *unverifiable_findings()], [result], official)


def check_set(paths: Sequence[Path], options: Options = DEFAULTS) -> Report:
    """Judges the runs of one result.

    Args:
        paths: logs, or folders of logs.
        options: how.

    Raises:
        InputError: a log cannot be read, or there is none.
        OfficialToolsError: the official tools are asked for and not installed.
    """
    logs = {str(path): path for path in find_logs(paths)}
    machine = _machine_of(options.system)
    with _official(options) as tools:
        if tools:
            tools.check_set(logs)  # takes longest
            tools.check_files(logs)
        judged = [judge_run(read_log(path), options.ruleset, machine) for path in logs.values()]
        result, found = judge_set(judged, options.ruleset, required_runs=options.runs, cv_limit=options.cv_limit)
        findings = [*_of(judged), *found]
        official = _beside(tools, _ours_of_files(judged) | _ours_of_set(result, findings))
    return _report("check-set", options, [*findings, *unverifiable_findings()], [result], official)


def check_package(root: Path, options: Options = DEFAULTS) -> Report:
    """Judges a submission tree: each result in it, the system descriptions, the code, and whether they agree.

    Raises:
        InputError: it is no folder, or a log in it cannot be read.
        OfficialToolsError: the official tools are asked for and not installed.
    """
    try:
        tree = read_submission(root)
    except NotADirectoryError as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise InputError(f"{root}: {error.strerror}") from error
    findings: list[Finding] = []
    results: list[SetResult] = []
    identities: dict[str, tuple[LoggedIdentity, ...]] = {}
    ours: dict[tuple[str, str], OwnVerdict] = {}
    with _official(options) as tools:
        if tools:
            _start_on_tree(tools, tree)
        for folder in tree.results:
            machine = _machine_in(tree, folder)
            judged = [judge_run(read_log(log), options.ruleset, machine, folder.system) for log in folder.logs]
            result, found = judge_set(
                judged, options.ruleset, required_runs=options.runs, cv_limit=options.cv_limit, name=folder.path
            )
            results.append(result)
            identities[folder.system] = tuple(_identity(each) for each in judged)
            # In a tree, what concerns a whole set has a folder.
            in_folder = [*_of(judged), *(replace(each, file=each.file or folder.path) for each in found)]
            ours |= _ours_of_files(judged) | _ours_of_set(result, in_folder)
            findings += [each for each in in_folder if not _said_by_package(each)]
        subject = PackageContext(tree, identities, options.runs)
        findings += [finding for rule in PACKAGE_RULES for finding in rule.judge(subject)]
        ours |= _ours_of_tree(tree, findings)
        official = _beside(tools, ours)
    return _report("check-package", options, [*findings, *unverifiable_findings()], results, official)


def unreadable_report(command: str, options: Options, message: str) -> Report:
    """The report of an input that could not be read."""
    finding = Finding("input", Severity.ERROR, message, None, None, None, None, "this project")
    return Report(command, options.ruleset, Verdict.ERROR, (finding,), (), None, _tools(), _shown(options))


def _report(
    command: str, options: Options, findings: Sequence[Finding], sets: Sequence[SetResult], official: Official | None
) -> Report:
    failing = {Severity.ERROR, Severity.WARNING} if options.strict else {Severity.ERROR}
    verdict = Verdict.FAIL if any(finding.severity in failing for finding in findings) else Verdict.PASS
    return Report(command, options.ruleset, verdict, tuple(findings), tuple(sets), official, _tools(), _shown(options))


def _tools() -> dict[str, str]:
    """Versions that the verdict rests on."""
    try:
        official = version("mlperf-logging")
    except PackageNotFoundError:
        official = "not installed"
    return {"compliance": __version__, "mlperf-logging": official, "python": platform.python_version()}


def _shown(options: Options) -> dict[str, object]:
    return asdict(options) | {"system": None if options.system is None else str(options.system)}


def _of(judged: Iterable[JudgedRun]) -> list[Finding]:
    return [finding for each in judged for finding in each.findings]


def _machine_of(path: Path | None) -> Machine | None:
    """The machine of --system.

    Raises:
        InputError: the description cannot be read, or does not say how many accelerators there are.
    """
    if path is None:
        return None
    system = read_system_description(path)
    if isinstance(system, ParseError):
        raise InputError(f"{path}{'' if system.line is None else f':{system.line}'}: {system.message}")
    machine = _machine(system)
    if machine is None:
        raise InputError(f"{path}: number_of_nodes and accelerators_per_node must be whole numbers above 0")
    return machine


def _machine(system: SystemDescription | None) -> Machine | None:
    return (
        None if system is None or system.total_accelerators is None else Machine(system.total_accelerators, system.path)
    )


def _machine_in(tree: Submission, folder: ResultFolder) -> Machine | None:
    return _machine(tree.systems.get(folder.system))


def _identity(judged: JudgedRun) -> LoggedIdentity:
    run = judged.summary
    return LoggedIdentity(run.file, run.division, run.organisation, run.platform)


def _said_by_package(finding: Finding) -> bool:
    """Too few runs: package-result-count says it of the folder."""
    return finding.rule == "set-count" and finding.severity is Severity.ERROR


@contextmanager
def _official(options: Options) -> Iterator[OfficialTools | None]:
    if not options.official:
        yield None
        return
    with OfficialTools(options.ruleset, options.official_timeout) as tools:
        yield tools


def _start_on_tree(tools: OfficialTools, tree: Submission) -> None:
    tools.check_tree(str(tree.root), tree.root)  # takes longest
    for folder in tree.results:
        logs = {str(log): log for log in folder.logs}
        tools.check_set(logs, folder.path)
        tools.check_files(logs)
    for name in tree.system_names:
        file = tree.root / "systems" / f"{name}.json"
        tools.check_system(tree.path(f"systems/{name}.json"), file)


def _beside(tools: OfficialTools | None, ours: Mapping[tuple[str, str], OwnVerdict]) -> Official | None:
    """The official verdicts, with what differs from ours. Tests that ours skips in the open division are left out."""
    if tools is None:
        return None
    results = tuple(each for each in tools.collect() if not _closed_only(each) or (each.tool, each.subject) in ours)
    return Official(official_version(), results, find_divergences(ours, results))


def _closed_only(result: OfficialResult) -> bool:
    return result.tool in ("rcp_checker", "seed_checker")


def _ours_of_files(judged: Iterable[JudgedRun]) -> dict[tuple[str, str], OwnVerdict]:
    """Our verdict on each log alone, where a run has to converge to pass."""
    return {
        ("compliance_checker", each.summary.file): OwnVerdict(
            "pass" if each.summary.status is Status.CONVERGED else "fail", each.findings
        )
        for each in judged
    }


def _ours_of_set(result: SetResult, findings: Sequence[Finding]) -> dict[tuple[str, str], OwnVerdict]:
    """Our verdict on what the official RCP and seed checkers judge, which is for the closed division."""
    if result.rcp is None:
        return {}

    def about(part: str, *rules: str, passed: bool | None = None) -> tuple[tuple[str, str], OwnVerdict]:
        found = tuple(each for each in findings if each.rule in rules and each.severity is Severity.ERROR)
        tool = "seed_checker" if part == "seeds" else "rcp_checker"
        verdict = "fail" if found or passed is False else "pass"
        return (tool, f"{result.name} {part}".strip()), OwnVerdict(verdict, found)

    converged = ("set-not-converged", "rcp-missing")
    return dict(
        [
            about("pruned", *converged, "rcp-pruned", passed=result.rcp.pruned.passed),
            about("full", *converged, passed=result.rcp.full.passed),
            about("seeds", "seed", "set-seed"),
        ]
    )


def _ours_of_tree(tree: Submission, findings: Sequence[Finding]) -> dict[tuple[str, str], OwnVerdict]:
    errors = tuple(each for each in findings if each.severity is Severity.ERROR)
    ours = {("package_checker", str(tree.root)): OwnVerdict("fail" if errors else "pass", errors)}
    for name in tree.system_names:
        file = tree.path(f"systems/{name}.json")
        found = tuple(each for each in errors if each.file == file)
        ours["system_desc_checker", file] = OwnVerdict("fail" if found else "pass", found)
    return ours
