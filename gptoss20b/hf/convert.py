"""Convert weights between GptOssForCausalLM's folders and this project's, one layer at a time.

Conversion is bit-exact, except from MXFP4. A folder of this project holds config.json with the `model` section, and a
safetensors file for the embedding, for each layer and for the head, whatever layout the weights will be trained in.
All headers are checked before a byte is written. Tokenizers and other files beside the weights are not converted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..config.tree import ModelConfig
from .architecture import from_hf_config, parse_model_section, to_hf_config
from .checkpoint import CheckpointWeights
from .folder import DTYPES, Shape, TensorInfo, WeightsFolder, atomic_folder, check_target
from .mxfp4 import BLOCK_SIZE, dequantize
from .weight_mapping import WeightMapping, weight_shards

_FLOAT_DTYPES, _PACKED_DTYPES = ("F32", "BF16"), ("U8",)
# The released checkpoint stores expert matrices as MXFP4 under the plain tensor's name with these suffixes.
_BLOCKS, _SCALES = "_blocks", "_scales"

ExpectedTensors = Mapping[str, tuple[Shape, tuple[str, ...]]]
"""Shape and allowed dtypes of each required tensor, by name."""


class ConversionError(ValueError):
    """Weights that cannot be converted or loaded. `problems` lists everything wrong with them."""

    def __init__(self, context: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{count} {context}:", *(f"  {problem}" for problem in problems)]))


def from_hugging_face(source: Path, target: Path) -> None:
    """Create this project's folder from one of GptOssForCausalLM: fp32 or bf16 tensors, experts plain or as MXFP4.

    Raises:
        ConversionError: lists everything that is wrong; nothing was written.
        OSError: the target cannot be written; nothing is left of it.
    """
    folder = WeightsFolder(source)
    problems = list(folder.problems)
    model = check_hf_folder(folder, problems)
    model = _require_convertible(source, target, problems, model, folder.tensors)
    _write_folder(target, model, HuggingFaceWeights(folder, model))


def to_hugging_face(source: Path, target: Path, is_checkpoint: bool = False) -> None:
    """Create a folder for GptOssForCausalLM.from_pretrained from one of this project, or from a checkpoint.

    Raises:
        ConversionError: lists everything that is wrong; nothing was written.
        OSError: the target cannot be written; nothing is left of it.
    """
    folder = CheckpointWeights(source) if is_checkpoint else WeightsFolder(source)
    problems = list(folder.problems)
    model = check_folder_model(folder, problems)
    hf_config = to_hf_config(model, _main_dtype(folder.tensors), problems) if model is not None else {}
    model = _require_convertible(source, target, problems, model, folder.tensors)
    with atomic_folder(target, model.num_layers + 2) as writer:
        for shard in weight_shards(model):
            writer.add({name: x for weight in shard for name, x in _convert_to_hf(weight, folder).items()})
        writer.finish(hf_config)


def from_checkpoint(source: Path, target: Path) -> None:
    """Create this project's folder from a checkpoint of a run of any layout. Every model has one.

    Raises:
        ConversionError: lists everything that is wrong; nothing was written.
        OSError: the target cannot be written; nothing is left of it.
    """
    weights = CheckpointWeights(source)
    problems = list(weights.problems)
    model = check_folder_model(weights, problems)
    model = _require_convertible(source, target, problems, model, weights.tensors)
    _write_folder(target, model, weights)


def _write_folder(target: Path, model: ModelConfig, weights: HuggingFaceWeights | CheckpointWeights) -> None:
    with atomic_folder(target, model.num_layers + 2) as writer:
        for shard in weight_shards(model):
            writer.add({weight.name: weights.read(weight.name) for weight in shard})
        writer.finish({"model": model.model_dump(mode="json")})


class HuggingFaceWeights:
    """The tensors of a GptOssForCausalLM's folder under this project's names, converted when they are read.

    Attributes:
        shapes: of each tensor, by name.
    """

    def __init__(self, folder: WeightsFolder, model: ModelConfig) -> None:
        self._folder = folder
        self._weights = {weight.name: weight for shard in weight_shards(model) for weight in shard}
        self.shapes = {name: weight.shape for name, weight in self._weights.items()}

    def read(self, name: str, *where: int | slice) -> Tensor:
        """Return a tensor, or the part that ``where`` (a number or a slice per dimension) selects."""
        weight = self._weights[name]
        if not weight.by_expert:
            whole = weight.from_hf([self._folder.read(each) for each in weight.hf_shapes])
            return whole[where or ...].contiguous()
        first, *rest = where or (slice(None),)
        chosen = range(weight.shape[0])[first]
        if isinstance(chosen, int):
            return self._read_expert(weight, chosen)[tuple(rest) or ...]
        stacked = _stack_experts(weight.shape[1:], chosen, lambda expert: self._read_expert(weight, expert))
        return stacked[(slice(None), *rest)]

    def _read_expert(self, weight: WeightMapping, expert: int) -> Tensor:
        ((name, _),) = weight.hf_shapes.items()
        return weight.from_hf([_read_hf_expert(self._folder, name, expert)])


def check_hf_folder(folder: WeightsFolder, problems: list[str]) -> ModelConfig | None:
    """Return the model of a GptOssForCausalLM's folder, and append problems of its config.json and tensors."""
    model = from_hf_config(folder.config, problems) if folder.config else None
    if model is not None:
        problems += _compare_tensors(folder.tensors, _expected_hf_tensors(model, folder.tensors))
        problems += _mixed_dtypes(model, folder.tensors)
    return model


def check_folder_model(folder: WeightsFolder | CheckpointWeights, problems: list[str]) -> ModelConfig | None:
    """Return the model section of this project's folder, and append problems of it and of the folder's tensors."""
    model = parse_model_section(folder.config.get("model"), problems) if folder.config else None
    if model is not None:
        expected = {weight.name: (weight.shape, _FLOAT_DTYPES) for shard in weight_shards(model) for weight in shard}
        problems += _compare_tensors(folder.tensors, expected)
    return model


def _require_convertible(
    source: Path, target: Path, problems: list[str], model: ModelConfig | None, tensors: Mapping[str, TensorInfo]
) -> ModelConfig:
    """Return the model if there are no problems with the source nor with the target; else raise ConversionError."""
    # While tensors are missing or malformed, their size is unknown and only the target itself is checked.
    problems += check_target(target, 0 if problems else sum(_converted_bytes(name, x) for name, x in tensors.items()))
    if problems or model is None:
        raise ConversionError(f"in {source}; {target} was not created", problems)
    return model


def _converted_bytes(name: str, tensor: TensorInfo) -> int:
    if tensor.dtype in _PACKED_DTYPES:  # two values per byte, each of which becomes bf16
        return 4 * math.prod(tensor.shape) if name.endswith(_BLOCKS) else 0
    return math.prod(tensor.shape) * DTYPES[tensor.dtype].itemsize


def _main_dtype(tensors: Mapping[str, TensorInfo]) -> str:
    """Return torch's name of the dtype of most weights; norms may be fp32 beside bf16."""
    return "bfloat16" if any(tensor.dtype == "BF16" for tensor in tensors.values()) else "float32"


def _expected_hf_tensors(model: ModelConfig, present: Mapping[str, TensorInfo]) -> ExpectedTensors:
    """Return the tensors that GptOssForCausalLM's files must hold. Expert matrices may be packed, as in ``present``."""
    expected: dict[str, tuple[Shape, tuple[str, ...]]] = {}
    for weight in (weight for shard in weight_shards(model) for weight in shard):
        for name, shape in weight.hf_shapes.items():
            if weight.by_expert and (name + _BLOCKS in present or name + _SCALES in present):
                # Packed matrices are [out, in], with blocks along the input dimension.
                experts, inputs, outputs = shape
                blocks = (experts, outputs, inputs // BLOCK_SIZE)
                expected[name + _BLOCKS] = ((*blocks, BLOCK_SIZE // 2), _PACKED_DTYPES)
                expected[name + _SCALES] = (blocks, _PACKED_DTYPES)
            else:
                expected[name] = (shape, _FLOAT_DTYPES)
    return expected


def _compare_tensors(present: Mapping[str, TensorInfo], expected: ExpectedTensors) -> list[str]:
    """Return a message per tensor that is missing, has another shape or dtype, or is unexpected."""
    problems = []
    for name, (shape, dtypes) in expected.items():
        allowed = " or ".join(dtypes)
        if name not in present:
            problems.append(f"{name}: missing, expected {list(shape)} {allowed}")
        elif present[name].shape != shape or present[name].dtype not in dtypes:
            got = present[name]
            problems.append(
                f"{name}: got {list(got.shape)} {got.dtype} in {got.file}, expected {list(shape)} {allowed}"
            )
    unexpected = sorted(present.keys() - expected.keys())
    return problems + [
        f"{name}: unexpected, in {present[name].file}; the model has no such tensor" for name in unexpected
    ]


def _mixed_dtypes(model: ModelConfig, present: Mapping[str, TensorInfo]) -> list[str]:
    """Return a message per group of tensors that are merged but differ in dtype: converting back would lose it."""
    problems = []
    for weight in (weight for shard in weight_shards(model) for weight in shard):
        dtypes = {name: present[name].dtype for name in weight.hf_shapes if name in present}
        if len(set(dtypes.values())) > 1:
            problems.append(f"{', '.join(dtypes)}: got {', '.join(dtypes.values())}, expected one dtype for all")
    return problems


def _convert_to_hf(weight: WeightMapping, folder: WeightsFolder | CheckpointWeights) -> dict[str, Tensor]:
    if not weight.by_expert:
        parts = weight.to_hf(folder.read(weight.name))
        return {name: part.contiguous() for name, part in zip(weight.hf_shapes, parts, strict=True)}
    ((name, shape),) = weight.hf_shapes.items()
    experts, *matrix = shape
    return {name: _stack_experts(tuple(matrix), range(experts), lambda i: weight.to_hf(folder.read(weight.name, i))[0])}


def _read_hf_expert(folder: WeightsFolder, name: str, expert: int) -> Tensor:
    """Return one expert's matrix [in, out]. Packed matrices are stored as [out, in]."""
    if name in folder.tensors:
        return folder.read(name, expert)
    return dequantize(folder.read(name + _BLOCKS, expert), folder.read(name + _SCALES, expert)).mT


def _stack_experts(shape: Shape, experts: range, make: Callable[[int], Tensor]) -> Tensor:
    """Stack the experts' matrices to [experts, *shape]. Only one of them is in memory beside the result."""
    first = make(experts[0])
    stacked = torch.empty((len(experts), *shape), dtype=first.dtype)
    stacked[0] = first
    for i, expert in enumerate(experts[1:], 1):
        stacked[i] = make(expert)
    return stacked
