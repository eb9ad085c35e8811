"""Rules on plausibility: what no rule of MLPerf forbids, and a reviewer would ask about. All are warnings."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from ..benchmark import RUNS
from ..findings import Severity
from .rule import OWN, Problem, rule
from .sets import RunSet

# Runs scored by an olympic mean of ten.
_SCORED = RUNS - 2


@rule("set-overlap", Severity.WARNING, OWN)
def set_overlap(subject: RunSet) -> Iterator[Problem]:
    """Warn if runs of one system overlap in time."""
    times = sorted(
        (run.start_ms, run.start_ms + run.minutes * 60_000, run.file)
        for run in subject.summaries
        if run.start_ms is not None and run.minutes is not None
    )
    last_stop, last_file, overlaps = 0.0, "", []
    for start, stop, file in times:
        if start < last_stop:
            overlaps.append(f"{file} starts before {last_file} stops")
        if stop > last_stop:
            last_stop, last_file = stop, file
    if overlaps:
        more = f"; and {len(overlaps) - 3} more" if len(overlaps) > 3 else ""
        yield Problem(f"runs of one system overlap in time: {'; '.join(overlaps[:3])}{more}", got=len(overlaps))


@rule("eval-duration", Severity.WARNING, OWN)
def eval_duration(subject: RunSet) -> Iterator[Problem]:
    """Warn about evaluations that take no time, or less than a fifth of the set's median."""
    yield from _short_phases(subject, "evaluation", "evaluations")


@rule("block-duration", Severity.WARNING, OWN)
def block_duration(subject: RunSet) -> Iterator[Problem]:
    """Warn about blocks of training that take no time, or less than a fifth of the set's median.

    A late run_start hides the first block.
    """
    yield from _short_phases(subject, "training", "blocks of training")


def _short_phases(subject: RunSet, name: str, plural: str) -> Iterator[Problem]:
    durations = {
        run.file: [each.stop_ms - each.start_ms for each in run.phases if each.name == name]
        for run in subject.summaries
    }
    every = [duration for of_run in durations.values() for duration in of_run]
    usual = median(every) if every else 0.0
    for file, of_run in durations.items():
        if short := [duration for duration in of_run if duration <= 0 or duration < usual / 5]:
            message = f"{len(short)} of {len(of_run)} {plural} are implausibly short"
            yield Problem(message, expected=f"about {usual / 1000:.3g} s", got=f"{min(short) / 1000:.3g} s", file=file)


@rule("step-time", Severity.WARNING, OWN)
def step_time(subject: RunSet) -> Iterator[Problem]:
    """Warn if the steps of a run, at the median train_step_time of its tracked_stats, take a tenth longer than it."""
    for run in subject.summaries:
        step_s, samples, batch = run.tracked.get("step_s"), run.samples_to_target, run.global_batch_size
        if step_s is None or samples is None or not batch or batch < 1 or run.minutes_to_target is None:
            continue
        minutes = step_s * samples / batch / 60
        if minutes > 1.1 * run.minutes_to_target:
            message = (
                f"{samples / batch:,.0f} steps of {step_s:.4g} s, as its tracked_stats say, take longer than the run"
            )
            got = f"{run.minutes_to_target:.1f} minutes"
            yield Problem(message, expected=f"{minutes:.1f} minutes or more", got=got, file=run.file)


@rule("aborted-pass", Severity.WARNING, OWN)
def aborted_pass(subject: RunSet) -> Iterator[Problem]:
    """Warn about a run that met the target and has status aborted: dropped as the slowest, it leaves a slower one in.

    That raises the mean of the samples, and a set may pass the RCP test by it.
    """
    for run in subject.runs:
        if run.run_stop is not None and run.run_status == "aborted" and run.passing_evaluation is not None:
            message = "the status is aborted, but an evaluation met the target"
            yield Problem(message, run.run_stop.line, expected="success", got="aborted", file=run.log.name)


@rule("set-pace", Severity.WARNING, OWN)
def set_pace(subject: RunSet) -> Iterator[Problem]:
    """Warn about a run whose seconds per sample differ from the set's median by more than a third."""
    paces = {
        run.file: 60 * run.minutes_to_target / run.samples_to_target
        for run in subject.summaries
        if run.minutes_to_target is not None and run.samples_to_target
    }
    usual = median(paces.values()) if paces else 0.0
    for file, pace in paces.items():
        if abs(pace - usual) > usual / 3:
            message = "the seconds per sample differ from the set's median by more than a third"
            yield Problem(message, expected=f"about {usual:.4g}", got=float(f"{pace:.4g}"), file=file)


@rule("rcp-margin", Severity.WARNING, OWN)
def rcp_margin(subject: RunSet) -> Iterator[Problem]:
    """Warn if the RCP test would fail had one run met the target one evaluation earlier: 1/8 of it in the mean."""
    interval, test = subject.interval, None if subject.rcp is None else subject.rcp.pruned
    if interval is None or test is None or not test.passed or test.margin_samples is None:
        return
    if test.margin_samples < interval / _SCORED:
        message = f"{test.margin_samples:,.1f} samples above the minimum: one evaluation earlier in one run would fail"
        yield Problem(message, expected=f">= {interval / _SCORED:g} samples", got=round(test.margin_samples, 1))


@rule("eval-equal", Severity.WARNING, OWN)
def eval_equal(subject: RunSet) -> Iterator[Problem]:
    """Warn if two runs log the same eval_accuracy at the same samples. `set-copy` reports copies."""
    seen: dict[tuple[int, float], int] = {}
    pairs: dict[tuple[int, int], list[int]] = {}
    series = [[(each.samples, each.loss) for each in run.evaluations] for run in subject.summaries]
    for number, points in enumerate(series):
        for point in points:
            other = seen.setdefault(point, number)
            if series[other] != points:
                pairs.setdefault((other, number), []).append(point[0])
    for (other, number), samples in pairs.items():
        first, second = subject.summaries[other].file, subject.summaries[number].file
        message = f"{len(samples)} losses equal to the last digit those of {first} at the same samples"
        yield Problem(message, got=samples[0], file=second)
