"""The result of judging: findings, runs, and the report that every command returns and every renderer takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

from annotated_types import Ge, MaxLen

# Bounds and choices of the JSON schemas. annotated_types is the vocabulary of pydantic without its import time.
PositiveInt = Annotated[int, Ge(1)]
NonNegativeFloat = Annotated[float, Ge(0)]
Factor = Annotated[float, Ge(1)]
RcpKind = Literal["exact", "interpolated", "smallest", "missing"]
OfficialTool = Literal["compliance_checker", "rcp_checker", "seed_checker", "system_desc_checker", "package_checker"]
OfficialVerdict = Literal["pass", "fail", "refused", "crashed", "timeout"]


class Severity(StrEnum):
    """Severity of a finding. Errors fail; warnings fail with --strict; the others never fail.

    WAIVED: an error or a warning that a waiver accepts.
    """

    ERROR = "error"
    WARNING = "warning"
    WAIVED = "waived"
    INFO = "info"
    UNVERIFIABLE = "unverifiable"


class Verdict(StrEnum):
    """Verdict of a check. PASS: no error. FAIL: at least one. ERROR: the input could not be judged."""

    PASS = "pass"
    FAIL = "fail"
    ERROR = "error"


class Status(StrEnum):
    """Status of a run. INVALID: it breaks a rule, whatever its loss; it is never dropped as the slowest."""

    CONVERGED = "converged"
    NOT_CONVERGED = "not_converged"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Waived:
    """Waiver that accepts a finding.

    Attributes:
        severity: severity of the finding without the waiver.
        who: who accepts it.
        until: last day of the waiver, as YYYY-MM-DD.
    """

    severity: Severity
    who: str
    reason: str
    until: str

    def __str__(self) -> str:
        """Return the waiver as a sentence."""
        return f"{self.severity} waived by {self.who} until {self.until}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation or note that a rule reports.

    Attributes:
        message: problem and fix, in one sentence.
        file: file as the user named it; None if the finding concerns a whole set.
        line: line of the file, from 1; None if the finding concerns the whole file.
        citation: source of the rule.
        waived: the waiver of a finding of severity waived; None for the others.
    """

    rule: str
    severity: Severity
    message: str
    file: str | None
    line: PositiveInt | None
    expected: str | None
    got: str | None
    citation: str
    waived: Waived | None = None

    @property
    def place(self) -> str:
        """Return file and line, "" if the finding concerns a whole set."""
        return "" if self.file is None else self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of the model.

    Attributes:
        samples: training samples before the evaluation.
        loss: evaluation loss in nats per token.
        time_ms: time in ms since 1970, as logged.
    """

    samples: int
    loss: float
    time_ms: float
    line: PositiveInt


@dataclass(frozen=True, slots=True)
class Phase:
    """Interval of a run: init, training or evaluation. Times in ms since 1970."""

    name: str
    start_ms: float
    stop_ms: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Logged values over training samples, thinned to about a thousand points."""

    samples: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """Settings and outcome of one run. A value is None if the log lacks it, or logs no number.

    Attributes:
        file: log as the user named it.
        global_batch_size: sequences per step.
        learning_rate: base learning rate.
        samples_to_target: training samples at the first evaluation that meets the target; None if none does.
        minutes: minutes from run_start to run_stop.
        minutes_to_target: minutes from run_start to the first evaluation that meets the target.
        first_eval_loss: loss of the first evaluation, in nats per token.
        final_eval_loss: loss of the last evaluation, in nats per token.
        target: evaluation loss that ends the run.
        start_ms: time of run_start in ms since 1970.
        system: folder of the system in a submission tree; None elsewhere.
        evaluations: all with a readable loss and count, in file order.
    """

    file: str
    status: Status
    seed: int | None
    global_batch_size: int | None
    learning_rate: float | None
    warmup_steps: int | None
    samples_to_target: int | None
    minutes: float | None
    minutes_to_target: float | None
    first_eval_loss: float | None
    final_eval_loss: float | None
    target: float
    start_ms: float | None
    division: str | None
    organisation: str | None
    platform: str | None
    system: str | None = None
    evaluations: tuple[Evaluation, ...]

    @property
    def identity(self) -> tuple[object, ...] | None:
        """Return what copies of a run have in common: start and evaluations. None without an evaluation."""
        logged = tuple((each.samples, each.loss) for each in self.evaluations)
        return (self.start_ms, logged) if logged else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary(RunOutcome):
    """One run as judged, with the curves and phases for pictures. JSON reports hold the `RunOutcome` only.

    Attributes:
        train_loss: logged training losses, of tracked_stats without any train_loss.
        tracked: medians that tracked_stats log: step_s, validation_s, and throughput in samples per second.
        logged_learning_rates: logged learning rates.
        expected_learning_rates: learning rates of the logged schedule at the same points.
        phases: intervals for the timeline.
        logged_status: submission_status.
        disclosed: logged parallel sizes, micro batch size, precisions, configuration file and commit as text, by key.
    """

    train_loss: Curve
    logged_learning_rates: Curve
    expected_learning_rates: Curve
    phases: tuple[Phase, ...]
    logged_status: str | None = None
    tracked: Mapping[str, float] = field(default_factory=dict)
    disclosed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and spread over runs.

    Attributes:
        sd: standard deviation, ddof 1.
        cv_percent: coefficient of variation, 100 x sd / mean.
        quantum: resolution of the values; None if there is none, or it is unknown.
        quantum_percent: resolution in percent of the mean.
    """

    runs: Annotated[int, Ge(2)]
    mean: float
    sd: NonNegativeFloat
    cv_percent: NonNegativeFloat
    minimum: float
    maximum: float
    quantum: NonNegativeFloat | None
    quantum_percent: NonNegativeFloat | None


@dataclass(frozen=True, slots=True)
class Variance:
    """Run-to-run variance of a set.

    Attributes:
        limit_percent: largest CV without a warning. The limit is this project's; the rules have none.
        definition: meaning of the figures, in sentences.
        samples: training samples to the target.
        minutes: minutes from run_start to run_stop.
    """

    limit_percent: NonNegativeFloat
    definition: str
    samples: Spread | None
    minutes: Spread | None


@dataclass(frozen=True, slots=True)
class Score:
    """Score of a set.

    Attributes:
        valid: true if the set has a score. The other figures of an invalid set are for information.
        olympic_minutes: mean minutes without the fastest and the slowest run; None with too few runs, or if the set is
            invalid.
        normalization: factor of the RCP test, 1 or more.
        olympic_samples: olympic mean of the samples to the target.
        olympic_minutes_to_target: olympic mean of the minutes from run_start to the first passing evaluation.
        window: files of the scored runs, by start time.
        dropped: files of the fastest and the slowest of them.
    """

    valid: bool
    olympic_minutes: float | None
    normalized_minutes: float | None
    normalization: Factor | None
    olympic_samples: float | None
    olympic_minutes_to_target: float | None
    window: tuple[str, ...]
    dropped: Annotated[tuple[str, ...], MaxLen(2)]


@dataclass(frozen=True, slots=True)
class RcpTest:
    """One convergence test against the reference convergence points (RCPs).

    Attributes:
        kind: how the RCP was found. "smallest": the smallest RCP, for a batch size below it. "missing": none applies.
        mean: mean of the RCP in samples; None if missing.
        minimum: smallest accepted mean in samples; None if missing.
        submission_mean: olympic mean of the set in samples.
        passed: outcome; None if there is no mean to test.
        margin_samples: submission_mean - minimum.
        normalization: factor on the score, 1 or more; None if missing.
    """

    kind: RcpKind
    mean: float | None
    minimum: float | None
    submission_mean: float | None
    passed: bool | None
    margin_samples: float | None
    normalization: Factor | None


@dataclass(frozen=True, slots=True)
class Rcp:
    """Both convergence tests of a set.

    Attributes:
        pruned: the test that the official package checker decides by.
    """

    global_batch_size: PositiveInt
    pruned: RcpTest
    full: RcpTest


@dataclass(frozen=True, slots=True)
class RunEnergy:
    """Energy of one run, of all devices together.

    Attributes:
        file: log of the run.
        joules: energy from run_start to run_stop; None if that of any device is unknown.
        nodes, switches: devices with a power log.
        readings: power readings from run_start to run_stop.
        missing: seconds of that time in which a device lacks a reading, summed over devices.
    """

    file: str
    joules: NonNegativeFloat | None
    nodes: int
    switches: int
    readings: int
    missing: int


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy of a set with power logs.

    Attributes:
        olympic_joules: mean energy of the runs that the score keeps; None without a score, or if one is unknown.
        normalized_joules: the same times the score's normalization, as in the official summary.
    """

    olympic_joules: NonNegativeFloat | None
    normalized_joules: NonNegativeFloat | None
    runs: tuple[RunEnergy, ...]


@dataclass(frozen=True, slots=True)
class OfficialResult:
    """Verdict and complaints of one official tool about one file, folder or tree.

    Attributes:
        subject: file, folder or tree as the user named it.
        verdict: "refused": not run, because that would be unsafe.
        seconds: wall time.
        decides: false for the RCP test against all points, which the official package checker does not ask.
    """

    tool: OfficialTool
    subject: str
    verdict: OfficialVerdict
    messages: tuple[str, ...]
    seconds: NonNegativeFloat
    decides: bool = True


@dataclass(frozen=True, slots=True)
class Divergence:
    """A difference between the official verdict on a subject and ours, with its cause."""

    tool: OfficialTool
    subject: str
    ours: str
    official: str
    reason: str


@dataclass(frozen=True, slots=True)
class Official:
    """Verdicts of the official tools (mlperf-logging). They stand beside ours and do not change it.

    Attributes:
        verdict: "pass" if every deciding check passed, else the worst verdict of these.
    """

    version: str
    verdict: OfficialVerdict
    results: tuple[OfficialResult, ...]
    divergences: tuple[Divergence, ...]


@dataclass(frozen=True, slots=True)
class SetResult:
    """Runs and figures of one set. A submission tree may hold several sets.

    Attributes:
        name: name of the set; empty outside a submission tree.
        score: None with fewer than three runs.
        variance: None without runs.
        rcp: None in the open division, and without a batch size.
        eval_interval_samples: training samples between evaluations; None if the runs do not share one
            (`compliance.run`).
        energy: None without power logs, which only a submission tree has.
        system: name and accelerator of the system description; None without one.
        accelerators: accelerators of a run; without a description its ranks, as logged sizes imply; None if unknown.
    """

    name: str
    runs: tuple[RunSummary, ...]
    score: Score | None
    variance: Variance | None
    rcp: Rcp | None
    eval_interval_samples: int | None = None
    energy: Energy | None = None
    system: str | None = None
    accelerators: int | None = None

    @property
    def seconds_per_sample(self) -> float | None:
        """Return the olympic mean of the seconds to the target over that of the samples to it."""
        score = self.score
        if score is None or score.olympic_minutes_to_target is None or not score.olympic_samples:
            return None
        return 60 * score.olympic_minutes_to_target / score.olympic_samples


@dataclass(frozen=True, slots=True)
class Report:
    """Result of a check, rendered as text, JSON, JUnit, HTML or Markdown.

    Attributes:
        verdict: pass, fail, or error if the input could not be judged.
        official: None if the official tools were not asked.
        tool: versions of the packages that judged, by name.
        options: options of the command, by name.
    """

    command: str
    ruleset: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    sets: tuple[SetResult, ...]
    official: Official | None
    tool: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
