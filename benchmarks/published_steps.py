"""Step times that others published, and how well the model predicts one of them from another.

Only facts are here: layouts, seconds, and where each is from. "v6.0 logs" are the public result logs of MLPerf Training
v6.0 (a block's `train_step_time` or time over steps, and its `validation_time`) with the layout that the submission's
configuration or README names. None was measured by this project.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations

from gptoss20b.config import Config, ModelConfig
from gptoss20b.config.presets import PRESETS
from gptoss20b.config.tree import Execution, FixedHyperparameters, FreeHyperparameters, Parallel
from gptoss20b.hardware import SYSTEMS, System
from gptoss20b.tools.estimate import EstimateError
from gptoss20b.tools.estimate.assumptions import Assumptions
from gptoss20b.tools.estimate.scaling import evaluation_time, step_time

# Of the reference model, as `info` counts them; those of the submissions differ by 0.03 %.
COUNTS: Mapping[str, int] = {
    "experts": 24 * 32 * 3 * 2880 * 2880,
    "embedding": 128_256 * 2880,
    "other": 20_488_418_112 - (24 * 32 * 3 * 2880 + 128_256) * 2880,
}
# Transformer Engine in MXFP8: gradients reduced in bf16, weights quantised twice a step from bf16 (2 + 2), gradients
# of the weights written and cleared in bf16 (2 + 2).
_MXFP8 = Assumptions(gradient_bytes=2, traffic_bytes=8)
_BF16 = Assumptions()


@dataclass(frozen=True)
class Published:
    """One published run.

    Attributes:
        name: who, and on what.
        kind: runs of one kind share vendor and precision; one predicts another.
        system: key of `SYSTEMS`.
        layout: nodes, GPUs a node, expert and context parallel.
        gbs, micro_batch: sequences.
        step_seconds: of a training step, evaluations left out.
        evaluation_seconds: of one evaluation; None where it was not published.
        eval_samples: sequences of that evaluation.
        assumed: what differs from this project's back end.
        source: where the figures are from.
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
    assumed: Assumptions = _MXFP8

    @property
    def config(self) -> Config:
        """The run as a configuration, whatever the environment says."""
        nodes, gpus, expert, context = self.layout
        return Config(
            model=ModelConfig(variant="reference", **PRESETS["reference"]["model"]),
            fixed=FixedHyperparameters(eval_samples=self.eval_samples),
            free=FreeHyperparameters(global_batch_size=self.gbs),
            parallel=Parallel(nodes=nodes, gpus_per_node=gpus, expert=expert, context=context),
            execution=Execution(micro_batch_size=self.micro_batch),
        )

    @property
    def split(self) -> bool:
        """Whether a GPU has less than a whole sequence."""
        return self.layout[3] > 1


_MX, _BF, _LOGS = "NVIDIA MXFP8", "AMD bf16", "v6.0 logs"
_FP8_WEIGHTS = replace(_MXFP8, weight_bytes=1)  # gathered in FP8
PUBLISHED = (
    Published("Lambda 8 x B200", _MX, "B200", (1, 8, 1, 1), 16, 2, 0.4531, 7.12, _LOGS, assumed=_FP8_WEIGHTS),
    Published("NVIDIA 8 x GB200", _MX, "GB200", (2, 4, 1, 1), 16, 2, 0.4380, 6.87, _LOGS),
    Published("NVIDIA 72 x GB200", _MX, "GB200", (18, 4, 4, 2), 36, 1, 0.1659, 1.50, _LOGS),
    Published("16 x B300", _MX, "B300", (2, 8, 1, 1), 48, 3, 0.574, None, "v6.0 logs (docs/tuning.md)"),
    Published("Dell 4 x GB300", _MX, "GB300", (1, 4, 1, 1), 16, 2, 0.6999, 13.94, "v6.0 logs; EP unknown, taken as 1"),
    Published("NVIDIA 8 x GB300", _MX, "GB300", (2, 4, 1, 1), 24, 3, 0.4917, 6.52, _LOGS),
    Published("HPE 16 x GB300", _MX, "GB300", (4, 4, 1, 1), 32, 2, 0.3539, 3.35, _LOGS),
    Published("HPE 32 x GB300", _MX, "GB300", (8, 4, 1, 1), 64, 2, 0.3526, 1.73, _LOGS),
    Published("NVIDIA 72 x GB300", _MX, "GB300", (18, 4, 4, 2), 36, 1, 0.1613, 1.39, _LOGS),
    Published(
        "reference, GBS 16", _BF, "MI355X", (1, 8, 8, 1), 16, 2, 1.395, None, "published step time", assumed=_BF16,
    ),
    Published(
        "reference, GBS 32", _BF, "MI355X", (1, 8, 8, 1), 32, 2, 2.809, 58.4,
        "published convergence logs: medians of blocks and evaluations, then of 10 runs", 2048, _BF16,
    ),
)  # fmt: skip
# What the default imbalance is fitted to: the second, predicted from the first.
FITTED = ("NVIDIA 8 x GB200", "NVIDIA 72 x GB200")


@dataclass(frozen=True)
class Prediction:
    """One published step, predicted with the efficiency of another.

    Attributes:
        calibrated, predicted: the two runs.
        seconds: predicted step.
    """

    calibrated: Published
    predicted: Published
    seconds: float

    @property
    def error(self) -> float:
        """Predicted over published, less 1."""
        return self.seconds / self.predicted.step_seconds - 1

    @property
    def same_generation(self) -> bool:
        """Whether both are on one generation of GPUs."""
        return _generation(self.calibrated) == _generation(self.predicted)

    @property
    def same_split(self) -> bool:
        """Whether both, or neither, split sequences and experts over GPUs."""
        return self.calibrated.split == self.predicted.split

    @property
    def like(self) -> bool:
        """Whether GPUs and layouts are so alike that the model should hold."""
        return self.same_generation and self.same_split


def _generation(run: Published) -> str:
    return {"GB300": "Blackwell Ultra", "B300": "Blackwell Ultra"}.get(run.system, run.system.removeprefix("G"))


@cache
def efficiency_of(run: Published) -> float:
    """The efficiency at which the model takes as long for a step as was published."""
    return from_step(run.step_seconds, run.config, COUNTS, SYSTEMS[run.system], run.assumed)


def predict(calibrated: Published, predicted: Published) -> Prediction:
    """One run's step with another's efficiency."""
    step = step_time(predicted.config, COUNTS, SYSTEMS[predicted.system], efficiency_of(calibrated), predicted.assumed)
    return Prediction(calibrated, predicted, step.seconds)


def predicted_evaluation(run: Published) -> float:
    """Seconds of one evaluation, by the efficiency of the run's training step."""
    return evaluation_time(run.config, SYSTEMS[run.system], efficiency_of(run), run.assumed)


def predictions() -> Iterator[Prediction]:
    """Every run from every other of its kind; nothing is tested on what it was calibrated or fitted on."""
    for calibrated, predicted in permutations(PUBLISHED, 2):
        # Without a split there is no imbalance that could have been fitted.
        fitted = predicted.name in FITTED and (calibrated.split or predicted.split)
        if calibrated.kind == predicted.kind and not fitted:
            yield predict(calibrated, predicted)


def from_step(seconds: float, config: Config, counts: Mapping[str, int], system: System, given: Assumptions) -> float:
    """The lowest efficiency at which the model's step takes these seconds; bisection.

    Where communication outlasts the work that hides it, the step takes as long at higher ones.

    Raises:
        EstimateError: a step that takes less than its communication and memory traffic do.
    """
    low, high, longest = 1e-4, 1e2, seconds * (1 + 1e-12)  # sums of floats differ in the last digits
    if step_time(config, counts, system, high, given).seconds > longest:
        raise EstimateError(f"a step of {seconds} s is shorter than its communication and memory traffic alone")
    for _ in range(100):
        middle = (low + high) / 2
        if step_time(config, counts, system, middle, given).seconds > longest:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def largest_errors() -> dict[str, float]:
    """Return the number of predictions and their largest absolute error: of like GPUs and layouts, and of all."""
    every = list(predictions())
    like = [abs(each.error) for each in every if each.like]
    return {
        "like_predictions": len(like),
        "like_worst": max(like),
        "predictions": len(every),
        "worst": max(abs(each.error) for each in every),
    }
