"""Facts that no log can prove. Every report lists them as unverifiable, which is not passed."""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Severity
from .rule import Problem, rule


@rule("unverifiable-model", Severity.UNVERIFIABLE, "training rules, Model; gpt_oss_20b reference configuration")
def model(_: None) -> Iterator[Problem]:
    """Report that layers, dropout 0 and init_method_std 0.008 are visible in the code only."""
    yield Problem("architecture, dropout and initial weights: read the submitted code")


@rule("unverifiable-data", Severity.UNVERIFIABLE, "training rules, Training Data Order and Quality measure")
def data(_: None) -> Iterator[Problem]:
    """Report that the log does not show which sequences were trained on and evaluated, nor their order."""
    yield Problem("data, its order, and the evaluated sequences: read the submitted code, compare their checksums")


@rule("unverifiable-cache", Severity.UNVERIFIABLE, "training rules, Data State at Start of Run")
def cache(_: None) -> Iterator[Problem]:
    """Report that cache_clear is a claim: the log does not show whether the caches were flushed."""
    yield Problem("cache_clear is a claim of the log: read the launch script")


@rule("unverifiable-optimizer", Severity.UNVERIFIABLE, "training rules, Hyperparameters")
def optimizer(_: None) -> Iterator[Problem]:
    """Report that the log does not show which hyperparameters the optimizer used, except the learning rate."""
    yield Problem("use of the logged hyperparameters: read the submitted code")
