"""A folder with `config.json` and safetensors files: inspected without reading weights, and created atomically.

Files are memory-mapped: a tensor or a slice takes memory only where it is modified.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..durable import fsync_path
from .json_object import read_object

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

Shape = tuple[int, ...]

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "U8": torch.uint8}
"""Dtypes of weights by their safetensors names."""

# More than headers, index and config.json take.
_OVERHEAD_BYTES = 16 << 20


@dataclass(frozen=True)
class TensorInfo:
    """One tensor in a file: its shape, and its dtype by its safetensors name."""

    file: str
    shape: Shape
    dtype: str


class WeightsFolder:
    """The tensors, by name, and the config.json in a folder. ``problems`` says why they are incomplete or empty."""

    def __init__(self, path: Path) -> None:
        self.path, self.problems = path, list[str]()
        self.config: dict[str, Any] = read_object(path / CONFIG, self.problems)
        self._files: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for file in self._file_names():
            self._open(file)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Return the shape of each tensor, by name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name: str, *where: int | slice) -> Tensor:
        """Return a tensor, or the part that ``where`` (a number or a slice per dimension) selects.

        The result is a view of the mapped file: parts that are not used are not read.
        """
        part = self._files[self.tensors[name].file].get_slice(name)
        return part[where or slice(None)]  # type: ignore[no-any-return]

    def _open(self, file: str) -> None:
        try:
            opened: Any = safe_open(self.path / file, framework="pt")  # safetensors does not type its methods
            self._files[file] = opened
            for name in opened.keys():  # noqa: SIM118 - not a mapping: it cannot be iterated
                part = opened.get_slice(name)
                if name in self.tensors:
                    self.problems.append(f"{name}: in {self.tensors[name].file} and in {file}, expected once")
                self.tensors[name] = TensorInfo(file, tuple(part.get_shape()), part.get_dtype())
        except (OSError, SafetensorError) as error:
            self.problems.append(f"{file}: cannot be read: {error}. Fetch or make it again.")

    def _file_names(self) -> list[str]:
        """Return the single file, or the files that the index names, as transformers does."""
        if (self.path / SINGLE_FILE).exists():
            return [SINGLE_FILE]
        weight_map = read_object(self.path / INDEX, self.problems, f" (and no {SINGLE_FILE})").get("weight_map", {})
        names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
        outside = [name for name in names if Path(name).name != name]
        self.problems += [f"{INDEX}: names {name!r}, expected a file in its own folder" for name in outside]
        return [name for name in names if name not in outside]


def check_target(path: Path, tensor_bytes: int) -> list[str]:
    """Return the reasons why a folder with this many bytes of tensors cannot be created at ``path``."""
    if os.path.lexists(path):
        return [f"{path}: exists, and nothing is ever overwritten. Name another folder."]
    if not path.parent.is_dir():
        return [f"{path}: there is no folder {path.parent} to create it in. Create that first."]
    free, needed = shutil.disk_usage(path.parent).free, tensor_bytes + _OVERHEAD_BYTES
    if free < needed:
        return [f"{path}: got {free:,} bytes free on its disk, expected {needed:,}. Free space or name another disk."]
    return []


class FolderWriter:
    """Write a folder: one file per shard of weights, then the index and config.json."""

    def __init__(self, path: Path, files: int) -> None:
        self._path, self._files = path, files
        self._weight_map: dict[str, str] = {}
        self._bytes = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the next file."""
        number = len(set(self._weight_map.values())) + 1
        name = f"model-{number:05d}-of-{self._files:05d}.safetensors"
        # transformers refuses safetensors files without this metadata.
        save_file(dict(tensors), self._path / name, metadata={"format": "pt"})
        # safetensors makes it readable by its owner alone.
        umask = os.umask(0)
        os.umask(umask)
        (self._path / name).chmod(0o666 & ~umask)
        self._weight_map |= dict.fromkeys(tensors, name)
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())

    def finish(self, config: Mapping[str, Any]) -> None:
        """Write the index and config.json, and flush everything to disk."""
        index = {"metadata": {"total_size": self._bytes}, "weight_map": self._weight_map}
        for name, value in ((INDEX, index), (CONFIG, config)):
            (self._path / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        # Files before the folder that names them, and all before the rename of `atomic_folder`.
        for path in (*self._path.iterdir(), self._path):
            fsync_path(path)


@contextmanager
def atomic_folder(path: Path, files: int) -> Iterator[FolderWriter]:
    """Create a folder atomically: rename it into place when the block succeeds, delete it when the block fails.

    A killed process leaves a hidden folder, `.<name>.<process>.unfinished`, which may be deleted.

    Raises:
        OSError: the folder cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    unfinished.mkdir()
    try:
        yield FolderWriter(unfinished, files)
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    fsync_path(path.parent)
