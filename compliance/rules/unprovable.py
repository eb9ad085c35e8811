"""What no log can prove, and every report therefore says: not verifiable is not passed."""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Severity
from .rule import Problem, Rule, rule


@rule("unverifiable-model", Severity.UNVERIFIABLE, "training rules, Model; gpt_oss_20b reference configuration")
def model(_: None) -> Iterator[Problem]:
    """The model's layers, dropout 0 and init_method_std 0.008 are in the code, not in the log."""
    yield Problem("architecture, dropout and initial weights: read the submitted code")


@rule("unverifiable-data", Severity.UNVERIFIABLE, "training rules, Training Data Order and Quality measure")
def data(_: None) -> Iterator[Problem]:
    """Which sequences were trained on and evaluated, and in what order, is not in the log."""
    yield Problem("data, its order, and the evaluated sequences: read the submitted code, compare their checksums")


@rule("unverifiable-cache", Severity.UNVERIFIABLE, "training rules, Data State at Start of Run")
def cache(_: None) -> Iterator[Problem]:
    """cache_clear is a claim; that the caches were flushed is not in the log."""
    yield Problem("cache_clear is a claim of the log: read the launch script")


@rule("unverifiable-optimizer", Severity.UNVERIFIABLE, "training rules, Hyperparameters")
def optimizer(_: None) -> Iterator[Problem]:
    """That the optimizer used the logged hyperparameters is not in the log, the learning rate apart."""
    yield Problem("that the logged hyperparameters were used: read the submitted code")


RULES: tuple[Rule[None], ...] = (model, data, cache, optimizer)
