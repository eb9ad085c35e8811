"""A folder with `config.json` and safetensors files: looked into without reading weights, and made whole or not at all.

Files are mapped, not read: a tensor or a slice of one costs memory only where it is changed.
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

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

Shape = tuple[int, ...]

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "U8": torch.uint8}
"""The element types of weights, as safetensors calls them."""

# Headers, index and config.json take less.
_OVERHEAD_BYTES = 16 << 20


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: its shape, and its element type as safetensors calls it."""

    file: str
    shape: Shape
    dtype: str


class Folder:
    """The weights and the settings in a folder.

    Attributes:
        path: the folder.
        settings: its config.json; empty if that cannot be read.
        tensors: what its files hold, by name.
        problems: what kept the above from being complete.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.problems = path, list[str]()
        self.settings: dict[str, Any] = self._json(CONFIG)
        self._files: dict[str, Any] = {}
        self.tensors: dict[str, Stored] = {}
        for file in self._file_names():
            self._look_into(file)

    def read(self, name: str, *where: int | slice) -> Tensor:
        """A tensor, or the part of it that ``where`` (a number or a slice per dimension) selects.

        A view of the mapped file: what is not used is not read.
        """
        part = self._files[self.tensors[name].file].get_slice(name)
        return part[where or slice(None)]  # type: ignore[no-any-return]

    def _look_into(self, file: str) -> None:
        try:
            opened: Any = safe_open(self.path / file, framework="pt")  # whose methods have no types
            self._files[file] = opened
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                part = opened.get_slice(name)
                if name in self.tensors:
                    self.problems.append(f"{name}: in {self.tensors[name].file} and in {file}, expected once")
                self.tensors[name] = Stored(file, tuple(part.get_shape()), part.get_dtype())
        except (OSError, SafetensorError) as error:
            self.problems.append(f"{file}: cannot be read: {error}. Fetch or make it again.")

    def _file_names(self) -> list[str]:
        """The single file, or those that the index names, as transformers looks for them."""
        if (self.path / SINGLE).exists():
            return [SINGLE]
        places = self._json(INDEX, f" (and no {SINGLE})").get("weight_map", {})
        names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
        outside = [name for name in names if Path(name).name != name]
        self.problems += [f"{INDEX}: names {name!r}, expected a file in its own folder" for name in outside]
        return [name for name in names if name not in outside]

    def _json(self, name: str, otherwise: str = "") -> dict[str, Any]:
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            self.problems.append(f"{name}: missing{otherwise}")
            return {}
        except (OSError, ValueError) as error:
            self.problems.append(f"{name}: cannot be read: {error}")
            return {}
        if not isinstance(value, dict):
            self.problems.append(f"{name}: got a JSON {type(value).__name__}, expected an object")
            return {}
        return value


def obstacles(path: Path, tensor_bytes: int) -> list[str]:
    """Why no folder with so many bytes of tensors can be made at ``path``; nothing if it can."""
    if os.path.lexists(path):
        return [f"{path}: exists, and nothing is ever overwritten. Name another folder."]
    if not path.parent.is_dir():
        return [f"{path}: there is no folder {path.parent} to make it in. Make that first."]
    free, needed = shutil.disk_usage(path.parent).free, tensor_bytes + _OVERHEAD_BYTES
    if free < needed:
        return [f"{path}: got {free:,} bytes free on its disk, expected {needed:,}. Make room or name another disk."]
    return []


class NewFolder:
    """A folder in the making: a file per portion of weights, then the index and config.json."""

    def __init__(self, path: Path, files: int) -> None:
        self._path, self._count = path, files
        self._places: dict[str, str] = {}
        self._bytes = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the next file."""
        number = len(set(self._places.values())) + 1
        name = f"model-{number:05d}-of-{self._count:05d}.safetensors"
        # Readers of transformers ask the metadata for this word.
        save_file(dict(tensors), self._path / name, metadata={"format": "pt"})
        self._places |= dict.fromkeys(tensors, name)
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())

    def finish(self, settings: Mapping[str, Any]) -> None:
        """Write the index and config.json, and put all on the disk."""
        index = {"metadata": {"total_size": self._bytes}, "weight_map": self._places}
        for name, value in ((INDEX, index), (CONFIG, settings)):
            (self._path / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        for path in (*self._path.iterdir(), self._path):
            fsync_path(path)


@contextmanager
def new_folder(path: Path, files: int) -> Iterator[NewFolder]:
    """A folder that gets its name when the block is through, and is gone if it fails.

    A killed process leaves a hidden folder, `.<name>.<process>.unfinished`, which may be removed.

    Raises:
        OSError: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    unfinished.mkdir()
    try:
        yield NewFolder(unfinished, files)
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    fsync_path(path.parent)
