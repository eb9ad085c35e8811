"""Checkpoint on disk: a folder `step_<number>` with Megatron-Core's files and `state.json`.

`state.json` holds the position of the run, and the size and CRC-32 of each file. A folder is renamed to its final name
last, so a process killed at any moment leaves complete checkpoints only. Nothing here needs torch.
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
STATE_FILE = "state.json"
_CHUNK_BYTES = 1 << 24
# Disk space reserved for the files that rank 0 writes last: the index of tensors, a few MB. Rank 0 writes them inside
# Megatron's collectives. If it met a full disk there, the other ranks would wait for it until they time out.
_RESERVED_BYTES = 1 << 25


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or resumed from."""


@dataclass(frozen=True)
class TrainState:
    """Position of a run after ``step`` steps.

    Attributes:
        seed: of the run.
        log_bytes: length of its log.
        eval_tokens_sha256: hash of the evaluated tokens.
        skipped_samples: training sequences left out of the data order so far.
    """

    step: int
    seed: int
    log_bytes: int
    eval_tokens_sha256: str
    skipped_samples: int = 0


@dataclass(frozen=True)
class CheckpointMetadata:
    """Complete checkpoint in a folder, with (bytes, CRC-32) of each file by name.

    ``run_identity`` holds the settings that must not change when the run resumes.
    """

    folder: Path
    train_state: TrainState
    run_identity: dict[str, Any]
    files: dict[str, tuple[int, int]]


def bytes_on_disk(config: Config, parameters: int) -> int:
    """Return the size of a checkpoint: per parameter a weight, an fp32 main weight and two fp32 moments."""
    return parameters * ((2 if config.execution.bf16_weights else 4) + 12)


def host_bytes_to_save(config: Config, parameters: int) -> int:
    """Return the peak host memory of a save on one node, in bytes: the gathered state and its copy."""
    return 2 * bytes_on_disk(config, parameters) // config.parallel.nodes


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, newest first."""
    return sorted(folder.glob("step_????????"), reverse=True)


def should_resume(folder: Path, log: Path, resume: bool) -> bool:
    """Return whether a run resumes from a checkpoint, or starts from scratch. The log exists if it was started before.

    Raises:
        CheckpointError: the run cannot resume, or the folder holds the checkpoints of another run.
    """
    started, checkpoints = log.exists(), list_checkpoints(folder)
    if checkpoints and not started:
        raise CheckpointError(
            f"SAVE_DIR: {folder} holds checkpoints of a run whose log is not {log}. "
            "Name another folder, or that run's LOGDIR"
        )
    if not (resume and started):
        return False
    result = read_result(log)
    if result.exit_code in (ExitCode.CONVERGED, ExitCode.NOT_CONVERGED):
        raise CheckpointError(f"RESUME: this run has ended: {result}. Name another LOGDIR to start a new one")
    if not checkpoints:
        raise CheckpointError(
            f"RESUME: {log} exists, but {folder} has no checkpoint. Name another LOGDIR to start from scratch"
        )
    return True


def prepare_save(folder: Path, step: int, needed_bytes: int, needed_host_bytes: int) -> Path:
    """Create an empty folder for a new checkpoint after ``step`` steps, and remove what an interrupted save left.

    Raises:
        OSError: the folder cannot be created.
        CheckpointError: too little disk space, or too little memory on this node, is free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".step_*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    free, needed = shutil.disk_usage(folder).free, needed_bytes + _RESERVED_BYTES
    if free < needed:
        raise CheckpointError(f"{folder} has {_gib(free)} free, a checkpoint takes {_gib(needed)}")
    memory = psutil.virtual_memory().available
    if memory < needed_host_bytes:
        raise CheckpointError(
            f"this node has {_gib(memory)} of memory available, saving a checkpoint takes {_gib(needed_host_bytes)}"
        )
    part = folder / f".step_{step:08d}.part"
    part.mkdir()
    _reserve_file(part).write_bytes(bytes(_RESERVED_BYTES))
    return part


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def release_reserved_space(part: Path) -> None:
    """Free the disk space that `prepare_save` reserved for the last files of this checkpoint."""
    _reserve_file(part).unlink()


def _reserve_file(part: Path) -> Path:
    # Beside the folder: Megatron-Core expects an empty one.
    return part.with_suffix(".reserve")


def size_and_crc(path: Path) -> tuple[int, int]:
    """Return the length in bytes and the CRC-32 of a file."""
    size = crc = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc


def file_checksums(part: Path, known: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Return (bytes, CRC-32) of every file in a folder by name. Read only those that are not in ``known``."""
    return known | {path.name: size_and_crc(path) for path in part.iterdir() if path.name not in known}


def commit(part: Path, checkpoint: CheckpointMetadata) -> None:
    """Complete a written checkpoint: add `state.json`, flush everything to disk, then rename the folder.

    Raises:
        OSError: the checkpoint keeps its temporary name.
    """
    state = {
        "format": FORMAT,
        "train_state": asdict(checkpoint.train_state),
        "run_identity": checkpoint.run_identity,
        "files": checkpoint.files,
    }
    (part / STATE_FILE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    # The rename makes the checkpoint complete, so everything must be on disk before.
    for path in (*part.iterdir(), part):
        fsync_path(path)
    part.rename(checkpoint.folder)
    fsync_path(checkpoint.folder.parent)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` complete checkpoints."""
    for old in list_checkpoints(folder)[keep:]:
        # A half-removed checkpoint must not keep the name of a complete one.
        removed = folder / f".{old.name}.old"
        old.rename(removed)
        shutil.rmtree(removed)


def quarantine(damaged: Path) -> None:
    """Rename a damaged checkpoint to ``damaged_*``, for a person to inspect or remove."""
    candidates = (damaged.with_name(f"damaged_{damaged.name}" + (f"_{k}" if k else "")) for k in itertools.count())
    damaged.rename(next(path for path in candidates if not path.exists()))


def read_metadata(folder: Path) -> CheckpointMetadata:
    """Read a checkpoint's `state.json`.

    Raises:
        CheckpointError: the file is missing or damaged, or has another format.
        OSError: the file cannot be read, which is no evidence of damage.
    """
    path = folder / STATE_FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        file_format = state["format"]
        if file_format == FORMAT:
            files = {str(name): (int(size), int(crc)) for name, (size, crc) in state["files"].items()}
            return CheckpointMetadata(folder, TrainState(**state["train_state"]), dict(state["run_identity"]), files)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    raise CheckpointError(f"{path}: got format {file_format}, expected {FORMAT}: another version of this code wrote it")


def verify_files(checkpoint: CheckpointMetadata, part: int = 0, parts: int = 1) -> list[str]:
    """Verify sizes and CRC-32s. Return one message per bad file. With ``parts`` above 1, check a share of the bytes.

    Raises:
        OSError: an existing file cannot be read, which is no evidence of damage.
    """
    messages = []
    # Shares of similar size: in turn, the largest file first.
    for name in sorted(checkpoint.files, key=lambda name: checkpoint.files[name], reverse=True)[part::parts]:
        path, expected = checkpoint.folder / name, checkpoint.files[name]
        try:
            got = size_and_crc(path)
        except FileNotFoundError:
            messages.append(f"{path} is missing")
            continue
        if got != expected:
            messages.append(
                f"{path} is damaged: got {got[0]:,} bytes with CRC-32 {got[1]:08x}, "
                f"expected {expected[0]:,} with {expected[1]:08x}"
            )
    return messages
