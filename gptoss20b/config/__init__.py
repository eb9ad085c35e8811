"""One frozen, typed tree per run, with every problem reported at once."""

from .checks import Problem, disagreements, fixed_by_rules
from .environment import settings
from .resolve import ConfigError, resolve
from .tree import Config, Model

__all__ = ["Config", "ConfigError", "Model", "Problem", "disagreements", "fixed_by_rules", "resolve", "settings"]
