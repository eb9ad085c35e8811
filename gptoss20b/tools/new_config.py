"""The `new-config` command: write the configuration of a system.

The file is sourced and resolved under its own name in a temporary folder first, so that only a valid one is written.
"""

from __future__ import annotations

import math
import re
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..config import Config, ConfigError, Problem, resolve
from ..config.sourcing import source
from ..hardware import SYSTEMS

COMMON = "config_common.sh"
# Global batch size -> learning rate and warm-up steps of the reference's convergence points (ruleset 6.1.0).
REFERENCE_POINTS = {16: ("4e-4", 128), 32: ("8e-4", 128), 64: ("1e-3", 192)}
# The reference's layout of eight GPUs.
EXPERT_PARALLEL, MICRO_BATCH_SIZE = 8, 2
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"


@dataclass(frozen=True)
class Request:
    """The choices of a new configuration; None takes the reference's value.

    Attributes:
        name: of the system, without nodes and GPUs.
        nodes, gpus: nodes of the run, and GPUs per node.
        global_batch_size: default: the smallest convergence point that the layout divides.
        learning_rate: as the file shall spell it, e.g. ``4e-4``.
    """

    name: str
    nodes: int
    gpus: int
    expert_parallel: int | None = None
    micro_batch: int = MICRO_BATCH_SIZE
    global_batch_size: int | None = None
    learning_rate: str | None = None
    warmup_steps: int | None = None

    @property
    def filename(self) -> str:
        """The file's name, which gives DGXSYSTEM."""
        return f"config_{self.name}_{self.nodes}x{self.gpus}.sh"


def prepare_config(request: Request, folder: Path) -> tuple[str, Config]:
    """Return the text of a new configuration in the project's folder, and what it resolves to. Write nothing there.

    Raises:
        ConfigError: a bad name, a file that exists, no convergence point to take, or settings that `train` rejects.
    """
    problems = [*_check_name(request.name), *_check_folder(request.filename, folder)]
    if problems:
        raise ConfigError(problems)
    text = render(request)
    environment = _source(text, request.filename, folder)
    return text, resolve(environment=environment)


def write_config(request: Request, text: str, folder: Path) -> Path:
    """Write the text to its new file, and return the path.

    Raises:
        ConfigError: somebody else has just made the file, or the folder is not writable.
    """
    path = folder / request.filename
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError([_exists(request.filename)]) from None
    except OSError as error:
        advice = f"cannot be written: {error.strerror}. Make '{folder}' writable."
        raise ConfigError([Problem((request.filename,), advice)]) from error
    return path


def render(request: Request) -> str:
    """Return the text of the file.

    Raises:
        ConfigError: the global batch size has no convergence point, and learning rate or warm-up are not given.
    """
    gbs = request.global_batch_size or _smallest_point(request)
    point_rate, point_warmup = REFERENCE_POINTS.get(gbs, (None, None))
    rate = point_rate if request.learning_rate is None else request.learning_rate
    warmup = point_warmup if request.warmup_steps is None else request.warmup_steps
    if rate is None or warmup is None:
        missing = {"LEARNING_RATE": rate, "WARMUP_STEPS": warmup}
        raise ConfigError([_no_point(variable, gbs) for variable, value in missing.items() if value is None])
    # Within a node: across nodes, every all-to-all would cross the network.
    expert_parallel = request.expert_parallel or math.gcd(EXPERT_PARALLEL, request.gpus)
    nodes = "One node" if request.nodes == 1 else f"{request.nodes} nodes"
    is_point = (rate, warmup) == (point_rate, point_warmup)
    source = "the reference's convergence point" if is_point else "not a convergence point of the reference"
    return f"""\
#!/usr/bin/env bash
# {nodes} of {request.gpus} GPUs. Closed division. Batch size, learning rate and warm-up: {source}.
source "$(dirname "${{BASH_SOURCE[0]:-$0}}")/{COMMON}" "${{BASH_SOURCE[0]:-$0}}"

export DGXNNODES={request.nodes}
export DGXNGPU={request.gpus}
export EXPERT_PARALLEL={expert_parallel}

export GLOBAL_BATCH_SIZE={gbs}
export MICRO_BATCH_SIZE={request.micro_batch}
export LEARNING_RATE={shlex.quote(rate)}
export WARMUP_STEPS={warmup}
"""


def layout_warning(config: Config) -> str | None:
    """Return a warning if experts are spread over several nodes."""
    parallel = config.parallel
    if parallel.expert <= parallel.gpus_per_node:
        return None
    return (
        f"EXPERT_PARALLEL: {parallel.expert} spans nodes of {parallel.gpus_per_node} GPUs, so that every all-to-all "
        f"crosses the network. Consider --expert-parallel {math.gcd(EXPERT_PARALLEL, parallel.gpus_per_node)}."
    )


def memory_warning(config: Config, gpu: str) -> str | None:
    """Return a warning if a known GPU does not survive unbalanced routing. Needs Megatron-Core, no GPU.

    Raises:
        ConfigError: an unknown GPU.
    """
    if (system := SYSTEMS.get(gpu.upper())) is None:
        expected = f"got '{gpu}', expected one of {', '.join(SYSTEMS)}. Leave it out for another GPU."
        raise ConfigError([Problem(("--gpu",), expected)])
    from ..memory import peak_memory

    peak = peak_memory(config)
    if peak.fits(system.memory_bytes):
        return None
    return (
        f"MICRO_BATCH_SIZE: {config.execution.micro_batch_size} may not fit {system.name}: a step takes "
        f"{peak.describe(system.memory_bytes)}. Try a smaller --micro-batch, a larger --expert-parallel or "
        "RECOMPUTE=moe_act."
    )


def _check_name(name: str) -> list[Problem]:
    advice = "Nodes and GPUs are appended to it."
    if not re.fullmatch(_NAME, name):
        return [Problem(("NAME",), f"got '{name}', expected letters, digits and . _ - such as B200. {advice}")]
    if re.search(r"_\d+x\d+$", name):
        return [Problem(("NAME",), f"got '{name}', expected a name without the layout, such as B200. {advice}")]
    return []


def _check_folder(filename: str, folder: Path) -> list[Problem]:
    if not (folder / COMMON).is_file():
        advice = "Run new-config in the project's folder, which has run_local.sh."
        return [Problem((COMMON,), f"not found in '{folder}', which the configuration sources. {advice}")]
    return [_exists(filename)] if (folder / filename).exists() else []


def _exists(filename: str) -> Problem:
    return Problem((filename,), "exists, and is never overwritten. Choose another NAME, or remove the file.")


def _smallest_point(request: Request) -> int:
    """Return the smallest convergence point that the ranks divide. Without one, the largest: `resolve` rejects it."""
    micro_batches = request.micro_batch * request.nodes * request.gpus
    return next((gbs for gbs in REFERENCE_POINTS if gbs % micro_batches == 0), max(REFERENCE_POINTS))


def _no_point(variable: str, gbs: int) -> Problem:
    points = ", ".join(map(str, REFERENCE_POINTS))
    option = f"--{variable.lower().replace('_', '-')}"
    return Problem(
        (variable,),
        f"not given, and the reference has no convergence point at GLOBAL_BATCH_SIZE={gbs}, only at {points}. Add "
        f"{option}, or use one of these batch sizes (docs/tuning.md has published rates).",
    )


def _source(text: str, filename: str, folder: Path) -> dict[str, str]:
    """Return the variables that a clean bash has after sourcing the file."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(folder / COMMON, scratch)
        path = Path(scratch, filename)
        path.write_text(text, encoding="utf-8")
        try:
            return source(path, strict=True)
        except subprocess.CalledProcessError as error:
            reason = f"cannot be sourced by bash: {error.stderr.strip()}. Restore the project's file."
            raise ConfigError([Problem((COMMON,), reason)]) from error
