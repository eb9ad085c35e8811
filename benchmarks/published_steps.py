"""Back-test of the scaling model: published step times, and how well the model predicts one from another.

Only facts are here: layouts, seconds, and the source of each. "v6.0 logs" are the public result logs of MLPerf Training
v6.0 (a block's `train_step_time` or time over steps, and its `validation_time`), with the layout that the submission's
configuration or README names. None was measured by this project. Figures and conclusions: docs/performance-model.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations

from gptoss20b.config import Config, ModelConfig
from gptoss20b.config.presets import PRESETS
from gptoss20b.config.tree import Execution, FixedHyperparameters, FreeHyperparameters, Parallel
from gptoss20b.hardware import SYSTEMS
from gptoss20b.tools.estimate.assumptions import Assumptions, EstimateError
from gptoss20b.tools.estimate.scaling import ScalingModel

# Parameters of the reference model, as `info` counts them; those of the submissions differ by 0.03 %.
COUNTS: Mapping[str, int] = {
    "experts": 24 * 32 * 3 * 2880 * 2880,
    "embedding": 128_256 * 2880,
    "other": 20_488_418_112 - (24 * 32 * 3 * 2880 + 128_256) * 2880,
}
# Transformer Engine in MXFP8: gradients are reduced in bf16; weights are quantised twice a step from bf16 (2 + 2), and
# their gradients written and zeroed in bf16 (2 + 2).
_MXFP8 = Assumptions(gradient_bytes=2, traffic_bytes=8)
_BF16 = Assumptions()


@dataclass(frozen=True)
class PublishedRun:
    """One published run, in seconds of a training step without evaluations, and of one evaluation where that is known.

    Attributes:
        kind: vendor and precision; runs of one kind predict each other.
        system: key of `SYSTEMS`.
        layout: nodes, GPUs per node, expert parallel, context parallel.
        source: origin of the figures.
        assumptions: of its software, where they differ from this project's back end.
    """

    name: str
    kind: str
    system: str
    layout: tuple[int, int, int, int]
    gbs: int
    micro_batch: int
    step_seconds: float
    evaluation_seconds: float | None
    source: str
    eval_samples: int = 1024
    assumptions: Assumptions = _MXFP8

    @property
    def config(self) -> Config:
        """The run as a configuration, independent of the environment."""
        nodes, gpus, expert, context = self.layout
        return Config(
            model=ModelConfig(variant="reference", **PRESETS["reference"]["model"]),
            fixed=FixedHyperparameters(eval_samples=self.eval_samples),
            free=FreeHyperparameters(global_batch_size=self.gbs),
            parallel=Parallel(nodes=nodes, gpus_per_node=gpus, expert=expert, context=context),
            execution=Execution(micro_batch_size=self.micro_batch),
        )

    @property
    def model(self) -> ScalingModel:
        """The scaling model of the run."""
        return ScalingModel(self.config, COUNTS, SYSTEMS[self.system], self.assumptions)

    @property
    def splits_sequences(self) -> bool:
        """Whether a GPU has less than a whole sequence."""
        return self.layout[3] > 1

    @property
    def generation(self) -> str:
        """Generation of the GPUs."""
        return {"GB300": "Blackwell Ultra", "B300": "Blackwell Ultra"}.get(self.system, self.system.removeprefix("G"))


_MX, _BF, _LOGS = "NVIDIA MXFP8", "AMD bf16", "v6.0 logs"
_FP8 = replace(_MXFP8, weight_bytes=1)  # gathered in FP8
PUBLISHED = (
    PublishedRun("Lambda 8 x B200", _MX, "B200", (1, 8, 1, 1), 16, 2, 0.4531, 7.12, _LOGS, assumptions=_FP8),
    PublishedRun("NVIDIA 8 x GB200", _MX, "GB200", (2, 4, 1, 1), 16, 2, 0.4380, 6.87, _LOGS),
    PublishedRun("NVIDIA 72 x GB200", _MX, "GB200", (18, 4, 4, 2), 36, 1, 0.1659, 1.50, _LOGS),
    PublishedRun("16 x B300", _MX, "B300", (2, 8, 1, 1), 48, 3, 0.574, None, "v6.0 logs (docs/tuning.md)"),
    PublishedRun("Dell 4 x GB300", _MX, "GB300", (1, 4, 1, 1), 16, 2, 0.6999, 13.94, "v6.0 logs; EP taken as 1"),
    PublishedRun("NVIDIA 8 x GB300", _MX, "GB300", (2, 4, 1, 1), 24, 3, 0.4917, 6.52, _LOGS),
    PublishedRun("HPE 16 x GB300", _MX, "GB300", (4, 4, 1, 1), 32, 2, 0.3539, 3.35, _LOGS),
    PublishedRun("HPE 32 x GB300", _MX, "GB300", (8, 4, 1, 1), 64, 2, 0.3526, 1.73, _LOGS),
    PublishedRun("NVIDIA 72 x GB300", _MX, "GB300", (18, 4, 4, 2), 36, 1, 0.1613, 1.39, _LOGS),
    PublishedRun(
        "reference, GBS 16", _BF, "MI355X", (1, 8, 8, 1), 16, 2, 1.395, None, "published step time", assumptions=_BF16,
    ),
    PublishedRun(
        "reference, GBS 32", _BF, "MI355X", (1, 8, 8, 1), 32, 2, 2.809, 58.4,
        "published convergence logs: medians of blocks and evaluations, then of 10 runs", 2048, _BF16,
    ),
)  # fmt: skip
# The default imbalance is fitted to the second run, predicted from the first.
IMBALANCE_FIT = ("NVIDIA 8 x GB200", "NVIDIA 72 x GB200")


@dataclass(frozen=True)
class Prediction:
    """The step of one published run, predicted with the efficiency of another."""

    calibrated: PublishedRun
    predicted: PublishedRun
    seconds: float

    @property
    def error(self) -> float:
        """Predicted over published time, less 1."""
        return self.seconds / self.predicted.step_seconds - 1

    @property
    def is_like(self) -> bool:
        """Whether GPU generation and layout are similar enough for the model to hold."""
        pair = (self.calibrated, self.predicted)
        return len({(run.generation, run.splits_sequences) for run in pair}) == 1


@cache
def fit_efficiency(run: PublishedRun) -> float:
    """Return the efficiency at which the model's step takes as long as the published one."""
    return efficiency_from_step(run.step_seconds, run.model)


def efficiency_from_step(seconds: float, model: ScalingModel) -> float:
    """Return the lowest efficiency at which the model's step takes ``seconds``, by bisection.

    Where communication outlasts the work that hides it, higher efficiencies give the same step.

    Raises:
        EstimateError: a step shorter than its communication and memory traffic.
    """
    low, high, longest = 1e-4, 1e2, seconds * (1 + 1e-12)  # sums of floats differ in the last digits
    if model.step_time(high).seconds > longest:
        raise EstimateError(f"a step of {seconds} s is shorter than its communication and memory traffic alone")
    for _ in range(100):
        middle = (low + high) / 2
        if model.step_time(middle).seconds > longest:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def predict(calibrated: PublishedRun, predicted: PublishedRun) -> Prediction:
    """Predict one run's step with another's efficiency."""
    return Prediction(calibrated, predicted, predicted.model.step_time(fit_efficiency(calibrated)).seconds)


def predict_evaluation(run: PublishedRun) -> float:
    """Return the seconds of one evaluation, predicted with the efficiency of the run's own training step."""
    return run.model.evaluation_time(fit_efficiency(run))


def predictions() -> Iterator[Prediction]:
    """Predict every run from every other of its kind, except pairs that the fitted imbalance has seen."""
    for calibrated, predicted in permutations(PUBLISHED, 2):
        # Where neither run splits its experts, imbalance does not enter.
        seen = predicted.name in IMBALANCE_FIT and (calibrated.splits_sequences or predicted.splits_sequences)
        if calibrated.kind == predicted.kind and not seen:
            yield predict(calibrated, predicted)


def largest_errors() -> dict[str, float]:
    """Return the number of predictions and their largest absolute error: of like GPUs and layouts, and of all."""
    every = list(predictions())
    like = [abs(each.error) for each in every if each.is_like]
    return {
        "like_predictions": len(like),
        "like_worst": max(like),
        "predictions": len(every),
        "worst": max(abs(each.error) for each in every),
    }
