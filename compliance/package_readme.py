"""README of a submission tree: facts of the report, and TODO where only the submitter knows the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

from .file_tree import printable
from .findings import Finding, Report, RunSummary, Score, Severity, Verdict
from .submission import SystemDescription

_TEMPLATE = Path(__file__).parent / "templates" / "package_readme.md"


def package_readme(
    report: Report, system: SystemDescription, name: str, logs: dict[str, str], code: Sequence[str]
) -> str:
    """Return the README in Markdown. Every claim is from the report.

    Args:
        report: report on the logs.
        system: system description.
        name: name of the system in the tree.
        logs: name in the tree by the name in the report.
        code: names of the code files.
    """
    summaries = {run.file: run for run in report.sets[0].runs}
    runs = {name_in_tree: summaries[file] for file, name_in_tree in logs.items()}
    machine = f"{_cell(system.nodes)} node(s) of {_cell(system.accelerators_per_node)} accelerators"
    script = next((file for file in sorted(code, key=len) if file.rpartition("/")[2] == "run_and_time.sh"), None)
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        system_name=_cell(system.system_name),
        submitter=_cell(system.submitter),
        division=_cell(system.division),
        status=_cell(system.status),
        system=name,
        verdict=_verdict(report),
        score=_score(report.sets[0].score),
        runs=_runs(runs),
        hyperparameters=_hyperparameters(list(runs.values())),
        hardware=f"{machine}, {_cell(system.raw.get('accelerator_model_name'))}",
        software=f"{_cell(system.raw.get('framework'))} on {_cell(system.raw.get('operating_system'))}",
        count=len(runs),
        command="TODO: the command" if script is None else f"`{printable(script)}`",
        ruleset=report.ruleset,
        findings=_findings(report.findings, logs),
    )


def failing_findings(report: Report) -> list[Finding]:
    """Return the findings that make a report fail: errors, or warnings if there are none (--strict)."""
    errors = [finding for finding in report.findings if finding.severity is Severity.ERROR]
    return errors or [finding for finding in report.findings if finding.severity is Severity.WARNING]


def _verdict(report: Report) -> str:
    sentences = {
        Verdict.PASS: "The logs pass.",
        Verdict.FAIL: f"**The logs FAIL: {len(failing_findings(report))} findings.** This tree was built with --force.",
        Verdict.ERROR: "**The logs could not be judged.** This tree was built with --force.",
    }
    checker = f"`compliance` {_cell(report.tool.get('compliance'))}, ruleset {report.ruleset}"
    official = "The official checkers were not asked."
    if report.official is not None:
        official = f"The official checkers (mlperf-logging {report.official.version}): {report.official.verdict}."
    return f"{sentences[report.verdict]} Checked by {checker}. {official}"


def _score(score: Score | None) -> str:
    if score is None or not score.valid or score.olympic_minutes is None:
        return "There is no valid score."
    text = f"Score: {score.olympic_minutes:.3f} minutes, the mean of the runs without the fastest and the slowest."
    if score.normalized_minutes is None or score.normalization is None or score.normalization <= 1:
        return text
    return f"{text} Normalised by {score.normalization:.6f}: {score.normalized_minutes:.3f} minutes."


def _runs(runs: dict[str, RunSummary]) -> str:
    lines = ["| log | outcome | seed | minutes | samples to target | last loss |", "|---|---|---|---|---|---|"]
    for name, run in runs.items():
        minutes = None if run.minutes is None else f"{run.minutes:.3f}"
        samples = None if run.samples_to_target is None else f"{run.samples_to_target:,}"
        loss = None if run.final_eval_loss is None else f"{run.final_eval_loss:.4f}"
        cells = (name, run.status.replace("_", " "), run.seed, minutes, samples, loss)
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def _hyperparameters(runs: Sequence[RunSummary]) -> str:
    """Return a table of the logged hyperparameters, with every value where runs differ."""
    rows: dict[str, list[float | None]] = {
        "global batch size": [run.global_batch_size for run in runs],
        "base learning rate": [run.learning_rate for run in runs],
        "warm-up steps": [run.warmup_steps for run in runs],
    }
    lines = [f"| {name} | {', '.join(map(_cell, dict.fromkeys(values)))} |" for name, values in rows.items()]
    return "\n".join(["| hyperparameter | logged |", "|---|---|", *lines])


def _findings(findings: Sequence[Finding], logs: dict[str, str]) -> str:
    """Return a line per rule, with its first message and the names of logs in the tree."""
    first: dict[str, Finding] = {}
    for finding in findings:
        first.setdefault(finding.rule, finding)
    lines = []
    for finding in first.values():
        message = finding.message
        for file, name_in_tree in logs.items():
            message = message.replace(file, name_in_tree)
        lines.append(f"- {finding.severity}: {finding.rule}: {_cell(message)}")
    return "\n".join(lines) or "None."


def _cell(value: object) -> str:
    """Return a value as one line of escaped Markdown; "TODO" if it is unknown."""
    if not isinstance(value, str | int | float):
        return "TODO"
    return re.sub(r"([\\`*\[\]<>|$])", r"\\\1", printable(str(value))[:300]) or "TODO"
