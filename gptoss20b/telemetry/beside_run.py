"""Starts the sampler of a node beside its ranks, and ends it after them. Nothing that goes wrong here ends a run."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from os import getpid
from typing import Any

from ..config import ConfigError, resolve, settings
from ..config.tree import Logging

# To finish a sample; a driver that hangs does not keep the run waiting.
_GRACE_SECONDS = 3.0
# The sampler has said why it ended.
_EXPLAINED_STATUSES = (0, 1)


@contextmanager
def sampling(options: Sequence[str], node: int, gpus: str) -> Iterator[None]:
    """Sample this node's GPUs while the block runs, if TELEMETRY asks for it.

    Args:
        options: arguments of the ranks, which may hold settings.
        node: number of this node.
        gpus: torchrun's --nproc-per-node: the run uses that many of the visible GPUs.
    """
    process = None
    try:
        process = _start(_logging_settings(options), node, gpus)
    except OSError as error:
        _warn(f"could not start: {error}")
    try:
        yield
    finally:
        if process:
            _stop(process)


def _logging_settings(options: Sequence[str]) -> Logging | None:
    """Return the settings as the ranks will read them; None if they are invalid, which the ranks report."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    wanted = [each for each in settings().values() if each.path[0] == "logging"]
    for each in wanted:
        parser.add_argument(f"--{each.option.replace('_', '-')}", dest=each.variable)
    with suppress(argparse.ArgumentError, ConfigError):
        return resolve(vars(parser.parse_known_args(options)[0])).logging
    return None


def _start(wanted: Logging | None, node: int, gpus: str) -> subprocess.Popen[bytes] | None:
    if wanted is None or not wanted.telemetry:
        return None
    if wanted.directory is None:
        _warn("no samples, because LOGDIR is not set. Name a folder")
        return None
    command = [sys.executable, "-m", "gptoss20b", "telemetry", str(wanted.directory), f"--parent={getpid()}"]
    command += [f"--interval={wanted.telemetry_interval}", f"--node={node}"]
    command += [f"--gpus={gpus}"] if gpus.isdecimal() else []
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _stop(process: subprocess.Popen[Any]) -> None:
    status = process.poll()
    if status is not None:
        if status not in _EXPLAINED_STATUSES:
            _warn(f"the sampler ended early, with status {status}")
        return
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # and it is not waited for: a call of a broken driver may never end


def _warn(message: str) -> None:
    with suppress(OSError):
        print(f"warning: telemetry: {message}", file=sys.stderr, flush=True)
