"""Configuration of a run: a frozen, typed tree, and all of its problems at once."""

from .checks import Problem, fixed_hyperparameter_overrides, mismatched_settings
from .environment import settings
from .resolve import ConfigError, resolve
from .tree import Config, ModelConfig

__all__ = [
    "Config",
    "ConfigError",
    "ModelConfig",
    "Problem",
    "fixed_hyperparameter_overrides",
    "mismatched_settings",
    "resolve",
    "settings",
]
