"""The weights in a checkpoint of a run, under this project's names, whatever layout the run had.

A checkpoint holds the tensors of all layers as one, in chunks of a layer and a rank's experts. A chunk is read whole,
and the last ones are kept: their experts are asked for one after another.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from ..checkpoint.files import CheckpointError, read_metadata, verify_files
from .folder import DTYPES, TensorInfo

# Megatron-Core's names of a layer's norms in a checkpoint, which are the same for every back end.
_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
_LAYERS = "decoder.layers."
_SAFETENSORS_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class CheckpointWeights:
    """The weights of a checkpoint: read as from a `WeightsFolder`. ``problems`` says why they cannot be.

    Attributes:
        config: the `model` section of the run, as in this project's folders.
        tensors: the model's tensors by name; not the optimizer's.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.problems = path, list[str]()
        self.config: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        # Name in the checkpoint, layer, and description of what is stored.
        self._places: dict[str, tuple[str, int | None, TensorStorageMetadata]] = {}
        try:
            checkpoint = read_metadata(path)
            self.problems += verify_files(checkpoint)
        except (CheckpointError, OSError) as error:
            self.problems.append(f"{error}. Name a folder step_<number> of a run's checkpoints")
            return
        if self.problems:
            return
        identity = checkpoint.run_identity.items()
        self.config = {"model": {name.removeprefix("model."): x for name, x in identity if name.startswith("model.")}}
        self._metadata = FileSystemReader(path).read_metadata()
        for name, stored in self._metadata.state_dict_metadata.items():
            if isinstance(stored, TensorStorageMetadata) and not name.startswith("optimizer."):
                for ours, layer in _our_names(name, stored.size):
                    shape = tuple(stored.size[1:] if layer is not None else stored.size)
                    self._places[ours] = name, layer, stored
                    dtype = _SAFETENSORS_NAMES.get(stored.properties.dtype, str(stored.properties.dtype))
                    self.tensors[ours] = TensorInfo(str(path), shape, dtype)

    def read(self, name: str, *where: int) -> Tensor:
        """Return a tensor, or the part that ``where`` (the first indices) selects."""
        stored_name, layer, stored = self._places[name]
        indices = (*(() if layer is None else (layer,)), *where)
        begin = [*indices, *[0] * (len(stored.size) - len(indices))]
        size = [*[1] * len(indices), *stored.size[len(indices) :]]
        out = torch.empty(size, dtype=stored.properties.dtype)
        for number, chunk in enumerate(stored.chunks):
            starts = [max(a, b) for a, b in zip(begin, chunk.offsets, strict=True)]
            ends = [min(a + n, b + m) for a, n, b, m in zip(begin, size, chunk.offsets, chunk.sizes, strict=True)]
            if all(start < end for start, end in zip(starts, ends, strict=True)):
                part = self._read_chunk(MetadataIndex(stored_name, chunk.offsets, number))
                out[_slices(starts, ends, begin)] = part[_slices(starts, ends, list(chunk.offsets))]
        return out.view(self.tensors[name].shape[len(where) :])

    @functools.lru_cache(maxsize=4)  # noqa: B019 - lives as long as the conversion
    def _read_chunk(self, index: MetadataIndex) -> Tensor:
        place = self._metadata.storage_data[index]
        with (self.path / place.relative_path).open("rb") as file:
            file.seek(place.offset)
            loaded: Tensor = torch.load(io.BytesIO(file.read(place.length)), map_location="cpu", weights_only=True)
        return loaded


def _our_names(stored_name: str, size: torch.Size) -> Iterator[tuple[str, int | None]]:
    """Yield the names of a stored tensor in this project, each with its layer's number.

    >>> list(_our_names("decoder.layers.mlp.router.weight", torch.Size((1, 8, 64))))
    [('decoder.layers.0.mlp.router.weight', 0)]
    """
    if not stored_name.startswith(_LAYERS) or re.match(r"decoder\.layers\.\d", stored_name):
        yield stored_name, None
        return
    rest = stored_name.removeprefix(_LAYERS)
    for layer in range(size[0]):
        yield f"{_LAYERS}{layer}.{_NORMS.get(rest, rest)}", layer


def _slices(starts: list[int], ends: list[int], origin: list[int]) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(starts, ends, origin, strict=True))
