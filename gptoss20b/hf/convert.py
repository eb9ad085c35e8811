"""Weights of GptOssForCausalLM to a folder of ours and back, a layer at a time; bit for bit unless they come as MXFP4.

Ours is config.json with the `model` section, and a safetensors file for the embedding, for each layer and for the
head, whatever layout the weights will be trained in. Everything is checked by the files' headers before a byte is
written. Tokenizers and other files that transformers keeps beside the weights are not carried along.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..config.tree import ModelConfig
from .architecture import model_from, model_in, settings_of
from .errors import ConversionError
from .folder import DTYPES, Folder, Shape, Stored, new_folder, obstacles
from .mxfp4 import BLOCK, dequantize
from .names import Weight, shards

_FLOAT, _PACKED = ("F32", "BF16"), ("U8",)
# The released checkpoint holds expert matrices as MXFP4 under the plain tensor's name with these endings.
_BLOCKS, _SCALES = "_blocks", "_scales"

Expected = Mapping[str, tuple[Shape, tuple[str, ...]]]
"""Shape and possible element types of each tensor that there must be, by name."""


def from_hugging_face(source: Path, target: Path) -> None:
    """Make a folder of ours from one of GptOssForCausalLM: fp32 or bf16 tensors, experts plain or as MXFP4.

    Raises:
        ConversionError: with everything that is wrong; nothing was written.
        OSError: the target cannot be written; nothing of it is left.
    """
    theirs = Folder(source)
    found = list(theirs.problems)
    model = model_from(theirs.settings, found) if theirs.settings else None
    if model is not None:
        found += _differences(theirs.tensors, _expected_there(model, theirs.tensors))
        found += _mixed_types(model, theirs.tensors)
    model = _agreed(f"in {source}; {target} was not made", found, model, target, theirs.tensors)
    with new_folder(target, model.num_layers + 2) as made:
        for weights in shards(model):
            made.add({weight.ours: _to_ours(weight, theirs) for weight in weights})
        made.finish({"model": model.model_dump(mode="json")})


def to_hugging_face(source: Path, target: Path) -> None:
    """Make a folder that GptOssForCausalLM.from_pretrained (transformers 5) reads from one of ours.

    Raises: as `from_hugging_face`.
    """
    ours = Folder(source)
    found = list(ours.problems)
    model = model_here(ours, found)
    settings = settings_of(model, _common_type(ours.tensors), found) if model is not None else {}
    model = _agreed(f"in {source}; {target} was not made", found, model, target, ours.tensors)
    with new_folder(target, model.num_layers + 2) as made:
        for weights in shards(model):
            made.add({name: x for weight in weights for name, x in _to_theirs(weight, ours).items()})
        made.finish(settings)


def model_here(ours: Folder, found: list[str]) -> ModelConfig | None:
    """The model section of a folder of ours, whose tensors are compared with it; problems are added to ``found``."""
    model = model_in(ours.settings.get("model"), found) if ours.settings else None
    if model is not None:
        expected = {weight.ours: (weight.shape, _FLOAT) for weights in shards(model) for weight in weights}
        found += _differences(ours.tensors, expected)
    return model


def _agreed(
    doing: str, found: list[str], model: ModelConfig | None, target: Path, tensors: Mapping[str, Stored]
) -> ModelConfig:
    """The model, if nothing is wrong with it nor with the place where the converted weights go."""
    found += obstacles(target, 0 if found else sum(_converted_bytes(name, x) for name, x in tensors.items()))
    if found or model is None:
        raise ConversionError(doing, found)
    return model


def _converted_bytes(name: str, stored: Stored) -> int:
    if stored.dtype in _PACKED:  # two values a byte, which become bf16
        return 4 * math.prod(stored.shape) if name.endswith(_BLOCKS) else 0
    return math.prod(stored.shape) * DTYPES[stored.dtype].itemsize


def _common_type(tensors: Mapping[str, Stored]) -> str:
    """The torch name of the type of most weights; norms may be kept in fp32 beside bf16."""
    return "bfloat16" if any(stored.dtype == "BF16" for stored in tensors.values()) else "float32"


def _expected_there(model: ModelConfig, present: Mapping[str, Stored]) -> Expected:
    """What GptOssForCausalLM's files must hold; an expert matrix is packed where ``present`` has it so."""
    expected: dict[str, tuple[Shape, tuple[str, ...]]] = {}
    for weight in (weight for weights in shards(model) for weight in weights):
        for name, shape in weight.theirs.items():
            if weight.by_expert and (name + _BLOCKS in present or name + _SCALES in present):
                experts, inputs, outputs = shape
                blocks = (experts, outputs, inputs // BLOCK)
                expected[name + _BLOCKS] = ((*blocks, BLOCK // 2), _PACKED)
                expected[name + _SCALES] = (blocks, _PACKED)
            else:
                expected[name] = (shape, _FLOAT)
    return expected


def _differences(present: Mapping[str, Stored], expected: Expected) -> list[str]:
    """What is missing, has another shape or type, or should not be there, in this order."""
    found = []
    for name, (shape, types) in expected.items():
        kinds = " or ".join(types)
        if name not in present:
            found.append(f"{name}: missing, expected {list(shape)} {kinds}")
        elif present[name].shape != shape or present[name].dtype not in types:
            got = present[name]
            found.append(f"{name}: got {list(got.shape)} {got.dtype} in {got.file}, expected {list(shape)} {kinds}")
    unexpected = sorted(present.keys() - expected.keys())
    return found + [f"{name}: unexpected, in {present[name].file}; the model has no such tensor" for name in unexpected]


def _mixed_types(model: ModelConfig, present: Mapping[str, Stored]) -> list[str]:
    """Tensors that become one tensor and differ in type: the way back would not know."""
    found = []
    for weight in (weight for weights in shards(model) for weight in weights):
        types = {name: present[name].dtype for name in weight.theirs if name in present}
        if len(set(types.values())) > 1:
            found.append(f"{', '.join(types)}: got {', '.join(types.values())}, expected one type for all")
    return found


def _to_ours(weight: Weight, theirs: Folder) -> Tensor:
    if not weight.by_expert:
        return weight.to_ours([theirs.read(name) for name in weight.theirs]).contiguous()
    (name,) = weight.theirs
    return _each_expert(weight.shape, lambda expert: weight.to_ours([_their_expert(theirs, name, expert)]))


def _to_theirs(weight: Weight, ours: Folder) -> dict[str, Tensor]:
    if not weight.by_expert:
        parts = weight.to_theirs(ours.read(weight.ours))
        return {name: part.contiguous() for name, part in zip(weight.theirs, parts, strict=True)}
    ((name, shape),) = weight.theirs.items()
    return {name: _each_expert(shape, lambda expert: weight.to_theirs(ours.read(weight.ours, expert))[0])}


def _their_expert(theirs: Folder, name: str, expert: int) -> Tensor:
    """One expert's matrix [in, out]; packed ones are kept [out, in]."""
    if name in theirs.tensors:
        return theirs.read(name, expert)
    return dequantize(theirs.read(name + _BLOCKS, expert), theirs.read(name + _SCALES, expert)).mT


def _each_expert(shape: Shape, make: Callable[[int], Tensor]) -> Tensor:
    """The experts' matrices as one tensor [experts, ...]; only one of them is in memory beside it."""
    first = make(0)
    whole = torch.empty(shape, dtype=first.dtype)
    whole[0] = first
    for expert in range(1, shape[0]):
        whole[expert] = make(expert)
    return whole
