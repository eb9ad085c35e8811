"""One paragraph that says why the verdict is what it is, and its parts: reasons without a score, the RCP margin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from .. import benchmark
from ..findings import Finding, Rcp, Report, Score, SetResult, Severity, Status, Verdict
from .formatting import count, number, run_ranges

_MAX_RULES, _MAX_SETS, _MAX_LENGTH = 6, 4, 300


def explain(report: Report) -> str:
    """Return the paragraph: what decides the verdict, how each set gets its score, what the official tools say."""
    if report.verdict is Verdict.ERROR:
        messages = [finding.message[:_MAX_LENGTH] for finding in report.findings]
        return " ".join(["The input could not be judged:", *messages[:1]])
    sentences = [_verdict(report)]
    for result in report.sets[:_MAX_SETS]:
        prefix = f"In {result.name}: " if len(report.sets) > 1 else ""
        sentences.append(prefix + " ".join(_set_sentences(result, required_runs(report))))
    if len(report.sets) > _MAX_SETS:
        sentences.append(f"{len(report.sets) - _MAX_SETS} more sets follow below.")
    if report.official is None:
        sentences.append("The official tools were not run.")
    else:
        differ = len(report.official.divergences)
        named = f"; {count(differ, 'difference')} from ours {'is' if differ == 1 else 'are'} listed" if differ else ""
        sentences.append(f"The verdict of the official tools is {report.official.verdict}{named}.")
    return " ".join(sentences)


def required_runs(report: Report) -> int:
    """Return the runs of a result that the check required."""
    return int(report.options.get("runs", benchmark.RUNS))


def headline(score: Score | None) -> tuple[str, str]:
    """Return the normalised score of a set, and the raw one it comes from; "No score" and "" without."""
    if score is None or not score.valid or score.olympic_minutes is None:
        return "No score", ""
    raw, scored, factor = score.olympic_minutes, score.normalized_minutes, score.normalization
    if scored is None or factor is None:
        return f"{number(raw, 2)} minutes", "raw; the RCP test gives no factor to normalise by"
    return f"{number(scored, 2)} minutes", f"normalised; raw {number(raw, 2)} minutes, factor {factor:g}"


def reasons_without_score(result: SetResult, required: int) -> list[str]:
    """Return the reasons why the set has no score, from its runs and its RCP test; empty if it has one."""
    if headline(result.score)[1]:
        return []
    by_status = {status: [n for n, run in enumerate(result.runs, 1) if run.status is status] for status in Status}
    invalid, failed = by_status[Status.INVALID], by_status[Status.NOT_CONVERGED]
    reasons = []
    if len(result.runs) < required:
        reasons.append(f"{count(len(result.runs), 'run')}; a score needs {required}")
    if invalid:
        reasons.append(f"{count(len(invalid), 'run')} invalid: {run_ranges(invalid)}")
    if len(failed) > 1:
        reasons.append(f"{len(failed)} runs did not converge, at most one may: {run_ranges(failed)}")
    if result.rcp and not result.rcp.pruned.passed:
        reasons.append("the RCP test is not passed")
    return reasons or ["the errors below"]


def margin_in_words(rcp: Rcp | None, result: SetResult) -> str:
    """Return the distance from the smallest accepted mean of the deciding RCP test, and how many evaluations it is."""
    if rcp is None:
        if any(run.division == "open" for run in result.runs):
            return "The logs are of the open division: no convergence is tested against the reference."
        return "Convergence is tested against the reference at a known batch size only."
    test = rcp.pruned
    if test.minimum is None or test.submission_mean is None or test.margin_samples is None:
        missing = "the set has no mean" if test.minimum is not None else f"none applies to {rcp.global_batch_size:,}"
        return f"Convergence cannot be tested against the reference point of the batch size: {missing}."
    margin, side = abs(test.margin_samples), "above" if test.margin_samples >= 0 else "below"
    percent = number(100 * margin / test.minimum, 1) if test.minimum > 0 else "-"
    sentence = (
        f"The mean of {number(test.submission_mean, 1)} samples to the target is {number(margin, 1)} samples "
        f"({percent} %) {side} the smallest accepted mean, {number(test.minimum, 1)}"
    )
    if side == "below":
        return f"{sentence}: the set converged faster than the reference plausibly can."
    counted = len(result.score.window) - len(result.score.dropped) if result.score else 0
    if not result.eval_interval_samples or counted < 1 or not margin < 1e9:
        return f"{sentence}."
    spare = int(margin * counted / result.eval_interval_samples)
    kept = f"{count(spare, 'evaluation')} fewer in all would still pass" if spare else "one evaluation fewer would fail"
    return f"{sentence}: over the {counted} runs that count, {kept}."


def _verdict(report: Report) -> str:
    errors, warnings, waived = (
        [finding for finding in report.findings if finding.severity is severity]
        for severity in (Severity.ERROR, Severity.WARNING, Severity.WAIVED)
    )
    accepted = f" {count(len(waived), 'finding')} waived, which does not fail." if waived else ""
    if errors:
        return f"The verdict is fail because of {count(len(errors), 'error')}: {_rules(errors)}.{accepted}"
    if report.verdict is Verdict.FAIL:
        counted = count(len(warnings), "warning")
        return f"The verdict is fail because --strict counts {counted}: {_rules(warnings)}.{accepted}"
    noted = f"; {count(len(warnings), 'warning')}, which only --strict counts: {_rules(warnings)}" if warnings else ""
    return f"The verdict is pass: no error by the rules of {report.ruleset}{noted}.{accepted}"


def _rules(findings: Iterable[Finding]) -> str:
    """Return the rules of the findings, the most frequent first, each with its number of findings."""
    by_rule = Counter(finding.rule for finding in findings).most_common()
    shown = [f"{rule} ({amount})" if amount > 1 else rule for rule, amount in by_rule[:_MAX_RULES]]
    more = [f"{len(by_rule) - _MAX_RULES} more rules"] if len(by_rule) > _MAX_RULES else []
    return ", ".join([*shown, *more])


def _set_sentences(result: SetResult, required: int) -> Iterator[str]:
    if len(result.runs) == 1:
        (run,) = result.runs
        passed = run.samples_to_target is not None
        reached = f"meets the target after {number(run.samples_to_target)} samples" if passed else "misses the target"
        status = run.status.replace("_", " ")
        yield f"The run {reached}, and takes {number(run.minutes, 2)} minutes; its status is {status}."
        return
    score = result.score
    if reasons := reasons_without_score(result, required):
        yield f"The set has no score: {'; '.join(reasons)}."
    elif score is not None:
        counted = len(score.window) - len(score.dropped)
        runs = f"the mean of {count(counted, 'run')} without the fastest and the slowest of {len(score.window)}"
        yield "The score is {} ({}): {}.".format(*headline(score), runs)
    if result.runs:
        yield margin_in_words(result.rcp, result)
