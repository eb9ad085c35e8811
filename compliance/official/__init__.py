"""Verdicts of the official tools, obtained in subprocesses and compared with ours.

mlperf-logging is called, never copied or patched.
"""

from .divergence import OwnVerdict, find_divergences
from .tools import TIMEOUT_S, OfficialTools, OfficialToolsError, version

__all__ = ["TIMEOUT_S", "OfficialTools", "OfficialToolsError", "OwnVerdict", "find_divergences", "version"]
