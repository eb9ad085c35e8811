"""Read and check the environment variables of the launchers."""

from __future__ import annotations

import os
import re
from pathlib import Path

from launch.errors import RefusedError

Environment = dict[str, str]

# The spellings of true that pydantic accepts.
_TRUE = ("1", "true", "t", "yes", "y", "on")


def require(environment: Environment, *names: str) -> None:
    """Raise RefusedError unless each variable is set and not empty."""
    for name in names:
        if not environment.get(name):
            raise RefusedError(f"{name}: not set. Source a configuration first, e.g. source config_CPU_1x2.sh")


def read_choice(environment: Environment, name: str, default: str, *values: str) -> str:
    """Return the variable, which must have one of the values. Empty counts as unset."""
    value = environment.get(name) or default
    if value not in values:
        raise RefusedError(f"{name}: got '{value}', expected one of: {' '.join(values)}")
    return value


def read_integer(environment: Environment, name: str, default: int | None, low: int, high: int) -> int:
    """Return the variable, which must be a decimal number in range, without leading zeros."""
    text = environment.get(name) or str(default)
    if not re.fullmatch("0|[1-9][0-9]*", text) or not low <= int(text) <= high:
        raise RefusedError(f"{name}: got '{text}', expected an integer from {low} to {high}")
    return int(text)


def resume_requested(environment: Environment) -> bool:
    """Return True if RESUME is true."""
    return environment.get("RESUME", "").lower() in _TRUE


def check_system(environment: Environment) -> None:
    """Check the variables that every configuration sets, and the folders that a run needs before it makes its own."""
    require(environment, "DGXSYSTEM", "DGXNGPU", "DATADIR")
    system = environment["DGXSYSTEM"]
    if not Path(f"config_{system}.sh").is_file():
        configs = " ".join(sorted(str(path) for path in Path().glob("config_*_*x*.sh")))
        raise RefusedError(
            f"DGXSYSTEM: got '{system}', but there is no config_{system}.sh. "
            f"Source one of these, which sets DGXSYSTEM: {configs}"
        )
    # The folder only: the rules forbid touching the data before the clock starts.
    data = environment["DATADIR"]
    if not Path(data).is_dir():
        raise RefusedError(
            f"DATADIR: folder '{data}' does not exist. "
            f"Download the dataset (data_scripts/download_dataset.sh '{data}') "
            f"or make sample data (python -m data_scripts.make_sample_data '{data}')"
        )
    # Before a default LOGDIR is chosen: a new folder would restart training from step 0 at every start.
    if resume_requested(environment) and not environment.get("LOGDIR"):
        raise RefusedError(
            f"RESUME: got '{environment['RESUME']}', but LOGDIR is not set. "
            "Set LOGDIR to the folder of the run to resume"
        )


def read_node_rank(environment: Environment, nodes: int) -> int:
    """Return this node's rank, and check the rendezvous address of a run on several nodes. 0 is the leader."""
    if nodes == 1:
        return 0
    if not environment.get("NODE_RANK"):
        raise RefusedError("NODE_RANK: not set. A multi-node run needs this node's rank, from 0")
    if not environment.get("MASTER_ADDR"):
        raise RefusedError("MASTER_ADDR: not set. A multi-node run needs the address of node 0")
    return read_integer(environment, "NODE_RANK", None, 0, nodes - 1)


def make_folder(name: str, folder: str) -> None:
    """Create the folder that a variable names, and raise RefusedError if it cannot be written."""
    probe = Path(folder, f".writable.{os.getpid()}")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise RefusedError(
            f"{name}: cannot write to '{folder}': {error.strerror}. Use a writable folder with room on its disk"
        ) from error


def resolve_folder(name: str, folder: str) -> str:
    """Return the absolute path of a folder without symbolic links."""
    if not Path(folder).is_dir() or not os.access(folder, os.X_OK):
        raise RefusedError(
            f"{name}: folder '{folder}' does not exist or cannot be entered. Set {name} to a readable folder"
        )
    return os.path.realpath(folder)


def resolve_from(start: str, environment: Environment, *names: str) -> None:
    """Make relative paths relative to the folder ``start`` where the user typed the command, not to the checkout."""
    for name in names:
        path = environment.get(name)
        if path and not Path(path).is_absolute() and os.path.realpath(start) != os.path.realpath("."):
            environment[name] = str(Path(start, path))
