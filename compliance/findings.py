"""The result of judging: findings, runs, and the report that every command returns and every renderer takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    """How much a finding weighs. Errors fail; warnings fail under --strict; the others never do."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    UNVERIFIABLE = "unverifiable"


class Verdict(StrEnum):
    """PASS: no error. FAIL: at least one. ERROR: the input could not be judged."""

    PASS = "pass"
    FAIL = "fail"
    ERROR = "error"


class Status(StrEnum):
    """What became of a run. INVALID: it breaks a rule, whatever its loss; it is never dropped as the slowest."""

    CONVERGED = "converged"
    NOT_CONVERGED = "not_converged"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a rule found.

    Attributes:
        rule: the rule's id.
        severity: how much it weighs.
        message: what, in one sentence, and how to fix it.
        file: the file as the user named it; None for what concerns the whole set.
        line: its line, from 1; None for what concerns the whole file.
        expected: what the rule wants.
        got: what is there.
        citation: where the rule comes from.
    """

    rule: str
    severity: Severity
    message: str
    file: str | None
    line: int | None
    expected: str | None
    got: str | None
    citation: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation: training samples before it, its loss in nats per token, its time in ms, its line."""

    samples: int
    loss: float
    time_ms: float
    line: int


@dataclass(frozen=True, slots=True)
class Phase:
    """An interval of a run: init, training or evaluation. Times in ms since 1970."""

    name: str
    start_ms: float
    stop_ms: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Logged points for the report, thinned to a thousand or so. x: training samples."""

    samples: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run as judged.

    Attributes:
        file: the log as the user named it.
        status: converged, not converged or invalid.
        seed: the logged seed, None if there is none or it is no integer.
        global_batch_size: sequences per step, None likewise.
        learning_rate: base learning rate, None likewise.
        warmup_steps: warm-up steps, None likewise.
        samples_to_target: training samples at the first evaluation that meets the target; None if none does.
        minutes: run_start to run_stop, None if either is missing.
        minutes_to_target: run_start to the first evaluation that meets the target.
        first_eval_loss: nats per token.
        final_eval_loss: of the last evaluation.
        target: the loss that ends the run.
        start_ms: time of run_start.
        evaluations: all with a readable loss and count, in file order.
        train_loss: logged training losses.
        rates_logged: logged learning rates.
        rates_expected: the same points by the logged schedule.
        phases: for the timeline.
        platform, division, organisation: as logged.
        system: directory of the system in a submission tree, None elsewhere.
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
    evaluations: tuple[Evaluation, ...]
    train_loss: Curve
    rates_logged: Curve
    rates_expected: Curve
    phases: tuple[Phase, ...]
    platform: str | None
    division: str | None
    organisation: str | None
    system: str | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and spread of some runs. sd and CV with ddof 1; quantum: the smallest step the figure moves by, if known."""

    runs: int
    mean: float
    sd: float
    cv_percent: float
    minimum: float
    maximum: float
    quantum: float | None
    quantum_percent: float | None


@dataclass(frozen=True, slots=True)
class Variance:
    """Run-to-run variance: training samples to target, and minutes from run_start to run_stop."""

    limit_percent: float
    definition: str
    samples: Spread | None
    minutes: Spread | None


@dataclass(frozen=True, slots=True)
class Score:
    """The set's score.

    Attributes:
        valid: whether the set can be scored; the other figures of an invalid set are for information.
        olympic_minutes: mean of the runs' minutes without the fastest and the slowest; None without enough runs, or
            if the set is invalid.
        normalized_minutes: the same times the normalisation that the RCP test asks for.
        normalization: that factor, 1 or more.
        olympic_samples: olympic mean of the samples to target.
        olympic_minutes_to_target: olympic mean of run_start to the first passing evaluation.
        window: files of the ten runs that count, by start time.
        dropped: files of the fastest and the slowest of them.
    """

    valid: bool
    olympic_minutes: float | None
    normalized_minutes: float | None
    normalization: float | None
    olympic_samples: float | None
    olympic_minutes_to_target: float | None
    window: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RcpTest:
    """One convergence test against the reference convergence points (RCPs).

    Attributes:
        kind: "exact", "interpolated", "smallest" (below the smallest RCP, which then applies) or "missing".
        mean, minimum: the RCP's mean and the smallest accepted mean, in samples; None if missing.
        submission_mean: olympic mean of the set.
        passed: None if there is nothing to test.
        margin_samples: submission mean minus minimum.
        normalization: factor on the score, 1 or more, None if missing.
    """

    kind: str
    mean: float | None
    minimum: float | None
    submission_mean: float | None
    passed: bool | None
    margin_samples: float | None
    normalization: float | None


@dataclass(frozen=True, slots=True)
class Rcp:
    """Both tests. The official package checker decides by the pruned one."""

    global_batch_size: int
    pruned: RcpTest
    full: RcpTest


@dataclass(frozen=True, slots=True)
class OfficialResult:
    """What one official tool said of one file, folder or tree.

    Attributes:
        tool: "compliance_checker", "rcp_checker", "seed_checker", "system_desc_checker" or "package_checker".
        subject: the file or folder as the user named it.
        verdict: "pass", "fail", "refused" (not run, because running it would be unsafe), "crashed" or "timeout".
        messages: what it complained about, one entry each.
        seconds: wall time.
    """

    tool: str
    subject: str
    verdict: str
    messages: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where the official verdict and ours differ, and why."""

    tool: str
    subject: str
    ours: str
    official: str
    reason: str


@dataclass(frozen=True, slots=True)
class Official:
    """The official tools' verdicts beside ours, never mixed into them."""

    version: str
    results: tuple[OfficialResult, ...]
    divergences: tuple[Divergence, ...]

    @property
    def verdict(self) -> str:
        """ "pass" if every tool passed, else the worst of what they said."""
        said = {result.verdict for result in self.results}
        return next((verdict for verdict in ("refused", "crashed", "timeout", "fail") if verdict in said), "pass")


@dataclass(frozen=True, slots=True)
class SetResult:
    """The figures of one set of runs. A submission tree may hold several.

    Attributes:
        name: of the set.
        runs: as judged.
        score, variance, rcp: None without the runs, the division or the batch size that they take.
        eval_interval_samples: samples between evaluations; None if the runs do not share one (`compliance.run`).
    """

    name: str
    runs: tuple[RunSummary, ...]
    score: Score | None
    variance: Variance | None
    rcp: Rcp | None
    eval_interval_samples: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found. Rendered as text, JSON, JUnit, HTML or Markdown."""

    command: str
    ruleset: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    sets: tuple[SetResult, ...]
    official: Official | None
    tool: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
