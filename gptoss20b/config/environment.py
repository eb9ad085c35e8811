"""The environment: the settings it gives, and the place the launcher gives this process. Read here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import AliasChoices, BaseModel, Field, create_model
from pydantic_settings import BaseSettings, SettingsConfigDict

from .tree import Config

_PREFIXES = ("MLPERF_", "MLLOG_")


@dataclass(frozen=True)
class Setting:
    """One leaf of the tree that can be set from outside.

    Attributes:
        variable: its environment variable, e.g. ``GLOBAL_BATCH_SIZE``.
        path: its place in the tree, e.g. ``("free", "global_batch_size")``.
        description: one line for `--help`.
    """

    variable: str
    path: tuple[str, ...]
    description: str

    @property
    def option(self) -> str:
        """The parameter name of its command-line option, e.g. ``global_batch_size``."""
        return self.variable.lower()


@cache
def settings() -> dict[str, Setting]:
    """All settings by environment variable, in tree order."""
    return {setting.variable: setting for setting in _leaves(Config, ())}


def _leaves(node: type[BaseModel], path: tuple[str, ...]) -> Iterator[Setting]:
    for name, field in node.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and "env" in extra:
            yield Setting(str(extra["env"]), (*path, name), field.description or "")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _leaves(field.annotation, (*path, name))


@cache
def _environment_reader() -> type[BaseSettings]:
    """A flat pydantic-settings class with one text field per variable; empty variables count as unset."""
    fields: dict[str, Any] = {}
    for variable in settings():
        aliases = [f"{prefix}{variable}" for prefix in _PREFIXES] if variable.startswith("SUBMISSION_") else []
        fields[variable.lower()] = (str | None, Field(None, validation_alias=AliasChoices(variable, *aliases)))
    reader = create_model("EnvironmentReader", __base__=BaseSettings, **fields)
    reader.model_config = SettingsConfigDict(case_sensitive=True, env_ignore_empty=True, extra="ignore")
    reader.model_rebuild(force=True)
    return reader


def read_settings() -> dict[str, str]:
    """The settings that the environment gives, by variable name."""
    given = _environment_reader()().model_dump()
    return {name.upper(): value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Launch:
    """What torchrun (or any launcher that sets the same variables) says of this process.

    Attributes:
        rank, local_rank: number of this process in the run, and on its node.
        world_size: processes of the run.
        standalone: no launcher; the only process of a run of one.
        under_torchrun: the parent process is torchrun's.
    """

    rank: int
    local_rank: int
    world_size: int
    standalone: bool
    under_torchrun: bool


class LaunchError(RuntimeError):
    """The launcher's idea of the run makes no sense, or differs from the configuration's."""


def read_launch() -> Launch:
    """This process's place, from RANK, LOCAL_RANK, WORLD_SIZE and MASTER_ADDR.

    Raises:
        LaunchError: one of them is not a number.
    """
    return Launch(
        rank=_number("RANK", 0),
        local_rank=_number("LOCAL_RANK", _number("RANK", 0)),
        world_size=_number("WORLD_SIZE", 1),
        standalone="MASTER_ADDR" not in os.environ,
        under_torchrun="TORCHELASTIC_RUN_ID" in os.environ,
    )


def is_rank_zero() -> bool:
    """Whether this process is the one of its run that should say what all of them find."""
    return "MASTER_ADDR" not in os.environ or os.environ.get("RANK", "0") == "0"


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise LaunchError(
            f"{variable}: got '{text}', expected a whole number from 0. It is the launcher's: start the run with "
            "run_and_time.sh or torchrun, or unset it."
        )
    return int(text)
