"""Settings of this start that differ from the configuration file that was sourced."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from .environment import read_settings, settings
from .sourcing import source

_ROOT = Path(__file__).resolve().parents[2]
# Chosen for each start by users or launchers, and no change of the configuration.
_PER_START = {"LOGDIR", "DATADIR", "SEED", "CONFIG_FILENAME", "GIT_COMMIT", "CACHE_CLEARED", "MLLOG_STDOUT", "RESUME"}


def describe_changes(options: Mapping[str, str | None]) -> str | None:
    """Return ``changed after config_X.sh: MAX_STEPS 200 (file: not set)``; None without changes or without the file.

    ``options``: settings of the command line, by variable. The file is CONFIG_FILENAME, here or beside this package.
    """
    given = read_settings() | {name: value for name, value in options.items() if value}
    name = given.get("CONFIG_FILENAME", "")
    path = next((each for each in (Path(name).absolute(), _ROOT / name) if each.is_file()), None)
    in_file = _source(path) if path else None
    if in_file is None:
        return None
    changes = [
        f"{variable} {given.get(variable, 'not set')} (file: {in_file.get(variable, 'not set')})"
        for variable in settings()
        if variable not in _PER_START and not _is_same(given.get(variable), in_file.get(variable))
    ]
    return f"changed after {name}: {', '.join(changes)}" if changes else None


def _source(path: Path) -> dict[str, str] | None:
    try:
        return source(path)
    except (OSError, subprocess.SubprocessError):
        return None


def _is_same(given: str | None, in_file: str | None) -> bool:
    """Compare two texts of a setting, and numbers by their value.

    >>> _is_same("0.0004", "4e-4"), _is_same("16", None)
    (True, False)
    """
    try:
        return float(given or "") == float(in_file or "")
    except ValueError:
        return given == in_file
