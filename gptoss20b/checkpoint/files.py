"""A checkpoint on disk: a folder `step_<number>` with Megatron-Core's files and `state.json`, complete or not there.

`state.json` says where the run was and how long each file is, with its CRC-32. A folder gets its name last and in one
step, so that a process killed at any moment leaves the complete ones as they are. Nothing here needs torch.
"""

from __future__ import annotations

import itertools
import json
import shutil
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from ..config import Config
from ..durable import fsync_path
from ..result import read_result
from ..stopping import ExitCode

FORMAT = 2
STATE = "state.json"
_CHUNK = 1 << 24
# Room kept while ranks write, for what the first rank writes last: where each tensor lies, a few MB. If it alone
# met a full disk there, in the middle of Megatron's collectives, the other ranks would wait for it in vain.
_RESERVED = 1 << 25


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or gone on from."""


@dataclass(frozen=True)
class TrainState:
    """Where a run is between two steps.

    Attributes:
        step: finished optimizer steps.
        seed: of weights and order.
        log_bytes: length of the result file.
        eval_tokens_sha256: hash of the evaluated tokens.
    """

    step: int
    seed: int
    log_bytes: int
    eval_tokens_sha256: str


@dataclass(frozen=True)
class CheckpointMetadata:
    """A complete checkpoint.

    Attributes:
        folder: where it lies.
        train_state: where the run was.
        run_identity: what the run was configured with, as far as it must not change.
        files: (bytes, CRC-32) of each file by its name.
    """

    folder: Path
    train_state: TrainState
    run_identity: dict[str, Any]
    files: dict[str, tuple[int, int]]


def bytes_on_disk(config: Config, parameters: int) -> int:
    """Bytes of a checkpoint of so many parameters: each one's weight, fp32 main weight and two moments."""
    return parameters * ((2 if config.execution.bf16_weights else 4) + 12)


def host_bytes_to_save(config: Config, parameters: int) -> int:
    """Bytes of host memory that a save takes on one node at its peak: what is gathered there, and its copy."""
    return 2 * bytes_on_disk(config, parameters) // config.parallel.nodes


def unfinished(folder: Path, step: int) -> Path:
    """Where the checkpoint of this step is written before it is complete."""
    return folder / f".step_{step:08d}.part"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, the newest first."""
    return sorted(folder.glob("step_????????"), reverse=True)


def should_resume(folder: Path, log: Path, resume: bool) -> bool:
    """Whether a run with this log goes on from a checkpoint; False if it begins.

    Raises:
        CheckpointError: it was asked for and cannot be, or the checkpoints there would be mixed with another run's.
    """
    begun, found = log.exists(), list_checkpoints(folder)
    if found and not begun:
        raise CheckpointError(
            f"SAVE_DIR: {folder} holds checkpoints of a run whose log is not {log}. "
            "Name another folder, or that run's LOGDIR"
        )
    if not (resume and begun):
        return False
    result = read_result(log)
    if result.exit_code in (ExitCode.CONVERGED, ExitCode.NOT_CONVERGED, ExitCode.DIVERGED):
        raise CheckpointError(f"RESUME: this run has ended: {result}. Name another LOGDIR to begin one")
    if not found:
        raise CheckpointError(
            f"RESUME: {log} exists, and {folder} has no checkpoint. Name another LOGDIR to begin anew"
        )
    return True


def prepare(folder: Path, step: int, needed: int, host_needed: int) -> Path:
    """An empty folder for a new checkpoint; what an interrupted save left is removed.

    Args:
        folder: of all checkpoints.
        step: that the new one follows.
        needed: bytes of disk that it will take.
        host_needed: bytes of this node's memory that saving it will take.

    Raises:
        OSError: it cannot be made.
        CheckpointError: there is no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".step_*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    free, needed = shutil.disk_usage(folder).free, needed + _RESERVED
    if free < needed:
        raise CheckpointError(f"{folder} has {free / 2**30:.1f} GiB free, a checkpoint takes {needed / 2**30:.1f}")
    memory = psutil.virtual_memory().available
    if memory < host_needed:
        raise CheckpointError(
            f"this node has {memory / 2**30:.1f} GiB of memory available, saving a checkpoint takes "
            f"{host_needed / 2**30:.1f}"
        )
    part = unfinished(folder, step)
    part.mkdir()
    _reserve(part).write_bytes(bytes(_RESERVED))
    return part


def release_reserved_space(part: Path) -> None:
    """Give the room free that `prepare` kept for the last files of this checkpoint.

    Raises:
        OSError: it could not be done.
    """
    _reserve(part).unlink()


def _reserve(part: Path) -> Path:
    return part.with_suffix(".reserve")


def size_and_crc(path: Path) -> tuple[int, int]:
    """Length in bytes and CRC-32 of a file.

    Raises:
        OSError: it cannot be read.
    """
    size = crc = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc


def file_checksums(part: Path, known: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Fingerprint of every file of a checkpoint, by name, of which many are known.

    Raises:
        OSError: one cannot be read.
    """
    return known | {path.name: size_and_crc(path) for path in part.iterdir() if path.name not in known}


def commit(part: Path, saved: CheckpointMetadata) -> None:
    """Give a written checkpoint its `state.json` and its name, after all of it has reached the disk.

    Raises:
        OSError: it could not be done; the folder keeps its temporary name.
    """
    state = {
        "format": FORMAT,
        "train_state": asdict(saved.train_state),
        "run_identity": saved.run_identity,
        "files": saved.files,
    }
    (part / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    for path in (*part.iterdir(), part):
        fsync_path(path)
    part.rename(saved.folder)
    fsync_path(saved.folder.parent)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` complete checkpoints. One that is half removed has no complete name any more.

    Raises:
        OSError: one could not be removed.
    """
    for old in list_checkpoints(folder)[keep:]:
        leaving = folder / f".{old.name}.old"
        old.rename(leaving)
        shutil.rmtree(leaving)


def quarantine(damaged: Path) -> None:
    """Take a checkpoint out of the way, for a person to look at or to remove.

    Raises:
        OSError: it cannot be renamed.
    """
    free = (damaged.with_name(f"damaged_{damaged.name}" + (f"_{k}" if k else "")) for k in itertools.count())
    damaged.rename(next(name for name in free if not name.exists()))


def read_metadata(folder: Path) -> CheckpointMetadata:
    """Read a checkpoint's `state.json`.

    Raises:
        CheckpointError: it is missing, or not what this version writes.
        OSError: it cannot be read, which says nothing about what is in it.
    """
    path = folder / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        found = state["format"]
        if found == FORMAT:
            files = {str(name): (int(size), int(crc)) for name, (size, crc) in state["files"].items()}
            return CheckpointMetadata(folder, TrainState(**state["train_state"]), dict(state["run_identity"]), files)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    raise CheckpointError(f"{path}: got format {found}, expected {FORMAT}: another version of this code wrote it")


def verify_files(saved: CheckpointMetadata, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with the files of a checkpoint, a line each; with ``parts``, of one share of their bytes only.

    Raises:
        OSError: a file that is there cannot be read, which says nothing about what is in it.
    """
    wrong = []
    for name in partition_by_size({name: size for name, (size, _) in saved.files.items()}, parts)[part]:
        expected = saved.files[name]
        try:
            got = size_and_crc(saved.folder / name)
        except FileNotFoundError:
            wrong.append(f"{saved.folder / name} is missing")
            continue
        if got != expected:
            wrong.append(
                f"{saved.folder / name} is damaged: got {got[0]:,} bytes with CRC-32 {got[1]:08x}, "
                f"expected {expected[0]:,} with {expected[1]:08x}"
            )
    return wrong


def partition_by_size(sizes: dict[str, int], parts: int) -> list[list[str]]:
    """Names in ``parts`` lists whose sizes sum up as evenly as giving each, largest first, to the least makes them."""
    lists: list[list[str]] = [[] for _ in range(parts)]
    totals = [0] * parts
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = totals.index(min(totals))
        lists[least].append(name)
        totals[least] += sizes[name]
    return lists
