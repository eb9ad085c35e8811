"""Environment variables: the settings that they give, and this process's place in the run. Read only here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

from pydantic import BaseModel

from .tree import Config

# Other submissions' scripts set SUBMISSION_* with one of these prefixes.
PREFIXES = ("MLPERF_", "MLLOG_")


@dataclass(frozen=True)
class Setting:
    """Leaf of the configuration tree that a user can set, e.g. by ``GLOBAL_BATCH_SIZE``.

    ``path`` are the field names from the root of the tree, e.g. ``("free", "global_batch_size")``.
    """

    variable: str
    path: tuple[str, ...]
    description: str

    @property
    def option(self) -> str:
        """The parameter name of its command-line option, e.g. ``global_batch_size``."""
        return self.variable.lower()

    def value_in(self, config: Config) -> Any:
        """Return the value of this setting in a configuration."""
        return reduce(getattr, self.path, config)


@cache
def settings() -> dict[str, Setting]:
    """Return all settings by environment variable, in tree order."""
    return {setting.variable: setting for setting in _iterate_settings(Config, ())}


def _iterate_settings(branch: type[BaseModel], path: tuple[str, ...]) -> Iterator[Setting]:
    for name, field in branch.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and "env" in extra:
            yield Setting(str(extra["env"]), (*path, name), field.description or "")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _iterate_settings(field.annotation, (*path, name))


def read_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the settings that an environment gives, by variable name. Empty variables count as unset."""
    given = {}
    for variable in settings():
        prefixes = ("", *PREFIXES) if variable.startswith("SUBMISSION_") else ("",)
        texts = (environment.get(prefix + variable) for prefix in prefixes)
        if text := next(filter(None, texts), None):
            given[variable] = text
    return given


def other_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names of the variables that may be misspelt settings: none with ALLOW_UNKNOWN=1.

    A container has few of its host's variables. HOST_VARIABLES names them all, separated by colons.
    """
    if environment.get("ALLOW_UNKNOWN") == "1":
        return []
    return [*environment, *environment.get("HOST_VARIABLES", "").split(":")]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process's place in the run, as torchrun or another launcher gives it.

    ``standalone``: started without a launcher, as the only process. ``under_torchrun``: torchrun is the parent process.
    """

    rank: int
    local_rank: int
    world_size: int
    standalone: bool
    under_torchrun: bool = False


class LaunchError(RuntimeError):
    """The launcher's variables are invalid, or contradict the configuration."""


def read_launch() -> Launch:
    """Read this process's place from RANK, LOCAL_RANK, WORLD_SIZE and MASTER_ADDR.

    Raises:
        LaunchError: one of them is not a number.
    """
    return Launch(
        rank=_read_number("RANK", 0),
        local_rank=_read_number("LOCAL_RANK", _read_number("RANK", 0)),
        world_size=_read_number("WORLD_SIZE", 1),
        standalone="MASTER_ADDR" not in os.environ,
        under_torchrun="TORCHELASTIC_RUN_ID" in os.environ,
    )


def read_error_file() -> str | None:
    """Return the file in which torchrun expects the error of this rank; None under another launcher."""
    return os.environ.get("TORCHELASTIC_ERROR_FILE")


def hides_gpus() -> bool:
    """Return True if the user hides all GPUs of this machine, as config_CPU_1x2.sh does."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") == "-1"


def visible_gpus(*variables: str) -> list[str] | None:
    """Return the GPUs that the first set one of these variables names, by index or UUID; None if none is set.

    An empty variable hides all GPUs: its only name is empty.
    """
    return next((os.environ[name].split(",") for name in variables if name in os.environ), None)


def is_rank_zero() -> bool:
    """Return True if this process reports what all ranks find: rank 0, or a process without a launcher."""
    return "MASTER_ADDR" not in os.environ or os.environ.get("RANK", "0") == "0"


def _read_number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise LaunchError(
            f"{variable}: got '{text}', expected a whole number from 0. The launcher sets it: start the run with "
            "run_and_time.sh or torchrun, or unset it."
        )
    return int(text)
