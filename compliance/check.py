"""Checks of one log, a set of runs, or a submission tree: read, judge, return a `Report`.

The checks print nothing and write nothing. The official tools run beside our own judging, in separate processes.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from system_info.version import __version__

from .benchmark import RULESETS, RUNS
from .findings import (
    Finding,
    Official,
    OfficialResult,
    OfficialVerdict,
    Report,
    RunSummary,
    SetResult,
    Severity,
    Status,
    Verdict,
)
from .judge import JudgedRun, judge_run, judge_set, run_findings, unverifiable_findings
from .log_files import InputError, find_logs, read_log
from .official import TIMEOUT_S, OfficialTools, OwnVerdict, find_divergences
from .official import version as official_version
from .power import RunPower, read_power, set_energy
from .processes import cores, run_apart
from .records import ParseError
from .rules import ALL_RULES, PACKAGE_RULES, WAIVER_RULES
from .rules.packages import PackageContext
from .rules.rule import judge_by
from .run import Machine, common_eval_interval
from .submission import Submission, read_submission, read_system_description
from .waivers import Waivers, read_waivers

# By official tool and subject.
OwnVerdicts = dict[tuple[str, str], OwnVerdict]
# Smaller sets are judged before other processes have started.
_PARALLEL_BYTES = 16 << 20
# The official package checker runs these in the closed division only.
_CLOSED_TOOLS = ("rcp_checker", "seed_checker")


@dataclass(frozen=True)
class Options:
    """Options of a check.

    Attributes:
        runs: runs of a result.
        cv_limit: largest coefficient of variation without a warning, in percent.
        strict: let warnings fail the check.
        official: run the official tools, too.
        official_timeout: time limit of an official tool in seconds per log.
        system: system description of the logs. A submission tree holds its own.
        waive: file of waivers.
    """

    ruleset: str = RULESETS[-1]
    runs: int = RUNS
    cv_limit: float = 5.0
    strict: bool = False
    official: bool = True
    official_timeout: float = TIMEOUT_S
    system: Path | None = None
    waive: Path | None = None


DEFAULTS = Options()


def check_run(log: Path, options: Options = DEFAULTS) -> Report:
    """Check one log.

    Raises:
        InputError: the log cannot be read.
        OfficialToolsError: the official tools are requested and not installed.
    """
    if find_logs([log]) != [log]:
        raise InputError(f"{log}: a folder; check-run takes one log, check-set a folder of them")
    waivers = read_waivers(options.waive)
    with _official_tools(options) as tools:
        # The official tools run in parallel with our own judging.
        if tools:
            tools.check_files({str(log): log})
        machine = _machine(options.system)
        judged = judge_run(read_log(log), options.ruleset, machine, in_set=False, waive=waivers.waive)
        official = _compare(tools, _verdicts_on_files([judged]))
    result = SetResult("", (judged.summary,), None, None, None, common_eval_interval([judged.run]))
    return _report("check-run", options, judged.findings, [result], official, waivers)


def check_set(paths: Sequence[Path], options: Options = DEFAULTS) -> Report:
    """Check a set of runs, logs or folders of logs: every log, plus cross-run rules (seeds, copies, variance, RCP).

    Raises:
        InputError, OfficialToolsError: as `check_run`. InputError also if there is no log.
    """
    logs = {str(path): path for path in find_logs(paths)}
    machine, waivers = _machine(options.system), read_waivers(options.waive)
    with _official_tools(options) as tools:
        if tools:
            tools.check_set(logs)  # first, because it takes longest
            tools.check_files(logs)
        judged = _judge_logs(list(logs.values()), options, waivers, machine)
        result, findings = _judge_set(judged, options, waivers)
        official = _compare(tools, _verdicts_on_files(judged) | _verdicts_on_set(result, findings))
    return _report("check-set", options, findings, [result], official, waivers)


def check_package(root: Path, options: Options = DEFAULTS) -> Report:
    """Check a submission tree: its results, system descriptions and code, and their agreement.

    Raises:
        InputError, OfficialToolsError: as `check_run`. InputError also if the root is no folder.
    """
    try:
        tree = read_submission(root)
    except NotADirectoryError as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise InputError(f"{root}: {error.strerror}") from error
    return check_submission(tree, options)


def check_submission(tree: Submission, options: Options = DEFAULTS, jobs: int | None = None) -> Report:
    """Check a submission tree that is already listed, in at most ``jobs`` processes at once; None: one per core.

    Raises:
        InputError, OfficialToolsError: as `check_run`.
    """
    waivers = read_waivers(options.waive)
    findings: list[Finding] = []
    results: list[SetResult] = []
    runs: dict[str, tuple[RunSummary, ...]] = {}
    factors: dict[str, float | None] = {}
    power: dict[str, tuple[RunPower, ...]] = {}
    own: OwnVerdicts = {}
    with _official_tools(options, jobs) as tools:
        if tools:
            _start_official_tools(tools, tree)
        for folder in tree.results:
            system = tree.systems.get(folder.system)
            machine = None if system is None else system.machine
            judged = _judge_logs(folder.logs, options, waivers, machine, folder.system, jobs)
            result, of_set = _judge_set(judged, options, waivers, folder.path)
            power[folder.system] = read_power(folder, result.runs)
            results.append(replace(result, energy=set_energy(power[folder.system], result.score)))
            runs[folder.system] = result.runs
            factors[folder.system] = result.rcp.pruned.normalization if result.rcp else 1.0
            # Findings on a whole set name its folder in a tree.
            found = [replace(each, file=each.file or folder.path) for each in of_set]
            own |= _verdicts_on_files(judged) | _verdicts_on_set(result, found)
            findings += found
        context = PackageContext(tree, runs, options.runs, factors, power)
        of_tree = judge_by(PACKAGE_RULES, context, waive=waivers.waive)
        findings += of_tree
        if any(finding.severity in _failing(options) for finding in of_tree):
            results = [_without_score(each) for each in results]
        own |= _verdicts_on_tree(tree, findings)
        official = _compare(tools, own)
    return _report("check-package", options, findings, results, official, waivers)


def unreadable_report(command: str, options: Options, message: str) -> Report:
    """Return the report of an input that cannot be read."""
    finding = Finding("input", Severity.ERROR, message, None, None, None, None, "this project")
    return Report(
        command, options.ruleset, Verdict.ERROR, (finding,), (), None, tool_versions(), options_by_name(options)
    )


def _judge_logs(
    logs: Sequence[Path],
    options: Options,
    waivers: Waivers,
    machine: Machine | None,
    system: str | None = None,
    jobs: int | None = None,
) -> list[JudgedRun]:
    """Judge logs, in parallel if that is faster. The official tools use every core already.

    Raises:
        InputError: a log cannot be read: the first of them.
    """

    def judge(share: Sequence[Path]) -> list[JudgedRun]:
        return [judge_run(read_log(log), options.ruleset, machine, system, waive=waivers.waive) for log in share]

    jobs = min(1 if options.official else jobs or cores(), len(logs))
    if jobs <= 1 or sum(path.stat().st_size for path in logs) < _PARALLEL_BYTES:
        return judge(logs)
    # Starting a process takes as long as a log: each judges an equal share.
    shares = [logs[len(logs) * part // jobs : len(logs) * (part + 1) // jobs] for part in range(jobs)]
    # A process marks the waivers that it used in its own copy.
    outcomes = dict(run_apart(lambda share: (judge(share), waivers.used), shares, jobs))
    judged: list[JudgedRun] = []
    for _, outcome in sorted(outcomes.items()):
        if isinstance(outcome, Exception):
            raise outcome
        judged += outcome[0]
        waivers.used |= outcome[1]
    return judged


def _judge_set(
    judged: Sequence[JudgedRun], options: Options, waivers: Waivers, name: str = ""
) -> tuple[SetResult, list[Finding]]:
    """Return the figures of a set, and the findings on its runs and on the whole."""
    result, of_set = judge_set(
        judged, options.ruleset, required_runs=options.runs, cv_limit=options.cv_limit, name=name, waive=waivers.waive
    )
    return result, [*run_findings(judged), *of_set]


def _report(
    command: str,
    options: Options,
    judged: Sequence[Finding],
    sets: Sequence[SetResult],
    official: Official | None,
    waivers: Waivers,
) -> Report:
    findings = (*judged, *judge_by(WAIVER_RULES, waivers), *unverifiable_findings())
    verdict = Verdict.FAIL if any(finding.severity in _failing(options) for finding in findings) else Verdict.PASS
    return Report(
        command, options.ruleset, verdict, findings, tuple(sets), official, tool_versions(), options_by_name(options)
    )


def _failing(options: Options) -> set[Severity]:
    return {Severity.ERROR, Severity.WARNING} if options.strict else {Severity.ERROR}


def _without_score(result: SetResult) -> SetResult:
    """Return a set whose tree fails: no score and no energy of the set, and the other figures for information."""
    score, energy = result.score, result.energy
    if score is not None:
        score = replace(score, valid=False, olympic_minutes=None, normalized_minutes=None)
    if energy is not None:
        energy = replace(energy, olympic_joules=None, normalized_joules=None)
    return replace(result, score=score, energy=energy)


def tool_versions() -> dict[str, str]:
    """Return the versions that determine the verdict."""
    try:
        official = version("mlperf-logging")
    except PackageNotFoundError:
        official = "not installed"
    return {"compliance": __version__, "mlperf-logging": official, "python": platform.python_version()}


def options_by_name(options: Options) -> dict[str, Any]:
    """Return the options as plain values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}


def _machine(path: Path | None) -> Machine | None:
    """Return the machine of option --system.

    Raises:
        InputError: the description cannot be read, or lacks the number of accelerators.
    """
    if path is None:
        return None
    system = read_system_description(path)
    if isinstance(system, ParseError):
        raise InputError(f"{path}{'' if system.line is None else f':{system.line}'}: {system.message}")
    if system.machine is None and system.count("accelerators_per_node", 0) != 0:
        raise InputError(f"{path}: number_of_nodes and accelerators_per_node must be whole numbers above 0")
    return system.machine


def _official_tools(options: Options, jobs: int | None = None) -> AbstractContextManager[OfficialTools | None]:
    return OfficialTools(options.ruleset, options.official_timeout, jobs) if options.official else nullcontext()


def _start_official_tools(tools: OfficialTools, tree: Submission) -> None:
    tools.check_tree(str(tree.root), tree.root, tree.only)  # first, because it takes longest
    for folder in tree.results:
        logs = {str(log): log for log in folder.logs}
        tools.check_set(logs, folder.path)
        tools.check_files(logs)
    for name in tree.system_names:
        file = tree.root / "systems" / f"{name}.json"
        tools.check_system(tree.path(f"systems/{name}.json"), file)


def _compare(tools: OfficialTools | None, own: Mapping[tuple[str, str], OwnVerdict]) -> Official | None:
    """Return the official verdicts and their differences from ours.

    Results of closed-division tools are left out where we did not judge the same, that is in the open division.
    """
    if tools is None:
        return None

    def applies(result: OfficialResult) -> bool:
        return result.tool not in _CLOSED_TOOLS or (result.tool, result.subject) in own

    results = tuple(filter(applies, tools.collect()))
    return Official(official_version(), _worst_verdict(results), results, find_divergences(own, results))


def _worst_verdict(results: Iterable[OfficialResult]) -> OfficialVerdict:
    verdicts = {result.verdict for result in results if result.decides}
    worst_first: tuple[OfficialVerdict, ...] = ("refused", "crashed", "timeout", "fail")
    return next((verdict for verdict in worst_first if verdict in verdicts), "pass")


def _verdicts_on_files(judged: Iterable[JudgedRun]) -> OwnVerdicts:
    """Return our verdict on each log alone, which passes only with convergence."""
    return {
        ("compliance_checker", each.summary.file): OwnVerdict(
            "pass" if each.summary.status is Status.CONVERGED else "fail", each.findings
        )
        for each in judged
    }


def _verdicts_on_set(result: SetResult, findings: Sequence[Finding]) -> OwnVerdicts:
    """Return our verdicts on the subjects of the official RCP and seed checkers. Closed division only."""
    if result.rcp is None:
        return {}
    own: OwnVerdicts = {}
    passed = {"pruned": result.rcp.pruned.passed, "full": result.rcp.full.passed}
    for tool, part in (("rcp_checker", "pruned"), ("rcp_checker", "full"), ("seed_checker", "seeds")):
        rules = {rule.id for rule in ALL_RULES if part in rule.official}
        errors = tuple(each for each in findings if each.rule in rules and each.severity is Severity.ERROR)
        verdict = "fail" if errors or passed.get(part) is False else "pass"
        own[tool, f"{result.name} {part}".strip()] = OwnVerdict(verdict, errors)
    return own


def _verdicts_on_tree(tree: Submission, findings: Sequence[Finding]) -> OwnVerdicts:
    errors = tuple(each for each in findings if each.severity is Severity.ERROR)
    own = {("package_checker", str(tree.root)): OwnVerdict("fail" if errors else "pass", errors)}
    for name in tree.system_names:
        file = tree.path(f"systems/{name}.json")
        in_file = tuple(each for each in errors if each.file == file)
        own["system_desc_checker", file] = OwnVerdict("fail" if in_file else "pass", in_file)
    return own
