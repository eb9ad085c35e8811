"""Judge synthetic logs in memory: helpers for the tests of the rules."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

from compliance.findings import Finding, SetResult, Severity
from compliance.judge import JudgedRun, judge_run, judge_set
from compliance.parse import parse
from compliance.rules.rule import Rule
from compliance.run import Machine
from tests.support.made_logs import MadeLog, compliant_log

# A change of a compliant log. A change that returns bytes replaces the log.
Change = Callable[[MadeLog], object]
LAST = -1


def judged(
    log: MadeLog | bytes, name: str = "result_0.txt", *, ruleset: str = "6.1.0", machine: Machine | None = None,
    in_set: bool = True,
) -> JudgedRun:  # fmt: skip
    """Judge a synthetic log, or the bytes of any, as a file of this name."""
    content = log if isinstance(log, bytes) else log.text().encode()
    return judge_run(parse(io.BytesIO(content), name), ruleset, machine, in_set=in_set)


def judged_set(
    logs: Sequence[MadeLog], *, ruleset: str = "6.1.0", **options: int | float
) -> tuple[SetResult, list[Finding]]:
    """Return the set's figures, and the findings on its runs and on the whole."""
    runs = [judged(log, f"result_{number}.txt", ruleset=ruleset) for number, log in enumerate(logs)]
    result, findings = judge_set(runs, ruleset, **options)  # type: ignore[arg-type]
    return result, [*(finding for run in runs for finding in run.findings), *findings]


def judged_after(change: Change, **options: Any) -> JudgedRun:
    """Judge a compliant log, made with these options, after a change."""
    log = compliant_log(**options)
    changed = change(log)
    return judged(changed if isinstance(changed, bytes) else log)


def findings_of(change: Change, rule: str, **options: Any) -> list[Finding]:
    """Return the findings of one rule on a compliant log after a change."""
    return [finding for finding in judged_after(change, **options).findings if finding.rule == rule]


def fired(findings: Iterable[Finding], *severities: Severity) -> set[str]:
    """Return the ids of the rules with findings of these severities; errors and warnings by default."""
    return {each.rule for each in findings if each.severity in (severities or (Severity.ERROR, Severity.WARNING))}


def assert_fires_alone(rule: str, change: Change, severity: Severity = Severity.ERROR) -> None:
    """Assert that one rule, and no other, reports a change of a compliant log."""
    findings = judged_after(change).findings
    assert fired(findings) == {rule}
    assert fired(findings, Severity.ERROR) == ({rule} if severity is Severity.ERROR else set())
    assert all(each.message and each.citation and each.file == "result_0.txt" for each in findings)


def rule_ids(module: ModuleType) -> set[str]:
    """Return the ids of the rules that a module defines."""
    return {value.id for value in vars(module).values() if isinstance(value, Rule)}


def line_number(log: MadeLog, key: str, n: int = 0) -> int:
    """Return the line of the n-th record of a key."""
    return log.index(key, n) + 1


# --- changes of a log


def set_value(key: str, value: Any, n: int = 0) -> Change:
    """Change the value of a record."""
    return lambda log: log.set(key, value, n)


def set_metadata(key: str, n: int, **changes: Any) -> Change:
    """Change a record's metadata."""
    return lambda log: log.find(key, n)["metadata"].update(changes)


def drop_metadata(key: str, n: int, name: str, **added: Any) -> Change:
    """Remove one name of a record's metadata, and add others."""

    def change(log: MadeLog) -> None:
        metadata = log.find(key, n)["metadata"]
        del metadata[name]
        metadata.update(added)

    return change


def drop_rates(log: MadeLog) -> MadeLog:
    """Remove the learning rates of all train losses."""
    for record in log.all("train_loss"):
        record["metadata"].pop("lr", None)
    return log


def drop_all(log: MadeLog, *keys: str) -> MadeLog:
    """Remove every record of some keys."""
    log.events[:] = [record for record in log.events if record["key"] not in keys]
    return log


def move_time(key: str, n: int, ms: int) -> Change:
    """Move the time of a record."""

    def change(log: MadeLog) -> None:
        log.find(key, n)["time_ms"] += ms

    return change


def repeat(log: MadeLog, key: str, n: int = 0, later_ms: int = 0, value: Any = None, **metadata: Any) -> MadeLog:
    """Insert the n-th record of a key once more right after it, with another time, value or metadata."""
    record = copy.deepcopy(log.find(key, n))
    record["metadata"].update(metadata)
    record["time_ms"] += later_ms
    record["value"] = record["value"] if value is None else value
    return log.insert_after(key, n, record)


def drop_evaluation(log: MadeLog, n: int = 3) -> None:
    """Remove the n-th evaluation, and join the blocks around it."""
    for key in ("block_stop", "eval_start", "eval_accuracy", "eval_stop"):
        log.drop(key, n)
    log.drop("block_start", n + 1)
