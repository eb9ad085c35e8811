"""What ranks do to compare this project's model with transformers' GptOssForCausalLM, and to load its weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from gptoss20b.batches import DeviceBatch
from gptoss20b.config import Config, ModelConfig
from gptoss20b.hf import load as load_module
from gptoss20b.hf.convert import from_hugging_face
from gptoss20b.hf.errors import ConversionError
from gptoss20b.hf.folder import WeightsFolder
from gptoss20b.hf.load import load_weights
from gptoss20b.hf.weight_mapping import weight_shards
from gptoss20b.model import build as build_module
from gptoss20b.model.megatron_config import build_transformer_config
from tests.support.jobs import Variables, with_global_names, layouts, make_trainer

BATCH = 2


def compared(
    cases: dict[str, dict[str, Any]], folder: str, variables: list[Variables]
) -> list[dict[str, dict[str, float]]]:
    """For each layout and architecture the largest relative differences between the same weights there and here.

    Args:
        cases: arguments of GptOssConfig, and "sequence".
        folder: for converted weights; empty.
        variables: the layouts.

    Returns:
        By layout and case: "loss" and "norm" (of all gradients), as the trainer sees them; without pipeline stages
        "logits" too, and each gradient by its parameter's name in the whole model.
    """
    with layouts(variables) as configs:
        return [
            {
                name: _compared(layout, Path(folder) / f"{number}_{name.replace(' ', '_')}", **case)
                for name, case in cases.items()
            }
            for number, layout in enumerate(configs)
        ]


def _compared(layout: Config, folder: Path, sequence: int, **architecture: Any) -> dict[str, float]:
    peer = make_peer(architecture)
    if dist.get_rank() == 0:
        peer.save_pretrained(f"{folder}_there")
        from_hugging_face(Path(f"{folder}_there"), folder)
    dist.barrier()
    tokens = torch.randint(0, architecture["vocab_size"], (BATCH, sequence))
    theirs = peer(input_ids=tokens, labels=tokens)
    theirs.loss.backward()

    config = configured(layout, folder, sequence)
    trainer = make_trainer(config)
    load_weights(trainer.model.module, folder, config)
    own_rows = tokens.chunk(config.parallel.data)[parallel_state.get_data_parallel_rank()]
    found = {}
    if config.parallel.pipeline == 1:
        logits, gradients = _forward_and_backward(trainer.model.module, own_rows, counted=BATCH * (sequence - 1))
        found["logits"] = relative(logits, theirs.logits.detach().chunk(config.parallel.data)[dist.get_rank()])
        their_gradients = in_our_names(peer, config.model)
        assert gradients.keys() == their_gradients.keys()
        found |= {name: relative(x, their_gradients[name]) for name, x in gradients.items()}
    result = trainer.step(iter([_batch(row[None]) for row in own_rows]))
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in peer.parameters()])
    found["loss"] = relative(torch.tensor(result.loss()), theirs.loss.detach())
    found["norm"] = relative(result.grad_norm, norm)
    return found


def make_peer(architecture: dict[str, Any]) -> Any:
    """A GptOssForCausalLM with weights that make every feature show: biases, sinks, routing, clamped activations."""
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(5)
    config = GptOssConfig(**architecture)
    peer = GptOssForCausalLM._from_config(config, attn_implementation="eager", experts_implementation="eager")
    inverse_root = config.hidden_size**-0.5
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.3)
            elif name.endswith(("embed_tokens.weight", "sinks")):
                parameter.normal_(0.0, 1.0)
            elif name.endswith(("bias", "down_proj")):
                parameter.normal_(0.0, 0.3)
            else:
                # Gate and up then have a deviation of 3, so that both clamps at 7 are met.
                parameter.normal_(0.0, 3.0 * inverse_root if "gate_up" in name else inverse_root)
    return peer


def configured(layout: Config, folder: Path, sequence: int) -> Config:
    """The layout with the folder's model and this sequence length."""
    model = ModelConfig.model_validate(json.loads((folder / "config.json").read_text())["model"])
    rules = layout.fixed.model_copy(update={"sequence_length": sequence})
    return layout.model_copy(update={"model": model, "fixed": rules})


def _batch(tokens: Tensor) -> DeviceBatch:
    """Each token's label is the next; the last has none."""
    mask = torch.ones(tokens.shape)
    mask[:, -1] = 0.0
    return DeviceBatch(tokens, tokens.roll(-1, 1), mask)


def _forward_and_backward(gpt: Any, tokens: Tensor, counted: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of this rank's rows, and gradients of the mean loss over all ranks' rows, by whole tensors."""
    batch = _batch(tokens)
    positions = torch.arange(tokens.shape[1])[None].expand_as(tokens)
    with torch.no_grad():
        logits = gpt(input_ids=tokens, position_ids=positions, attention_mask=None)
    losses = gpt(input_ids=tokens, position_ids=positions, attention_mask=None, labels=batch.labels)
    names, parameters = zip(*gpt.named_parameters(), strict=True)
    gradients = torch.autograd.grad((losses * batch.loss_mask).sum() / counted, parameters)
    whole = {}
    for name, gradient in zip(names, gradients, strict=True):
        if ".experts." in name:  # the tokens of all ranks came to each expert
            parts = [torch.empty_like(gradient) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, gradient)
            whole[name] = torch.cat(parts)
        else:
            dist.all_reduce(gradient)
            whole[name] = gradient
    return logits, whole


def in_our_names(peer: Any, model: ModelConfig) -> dict[str, Tensor]:
    """The peer's gradients under our names and in our arrangement."""
    theirs = {name: parameter.grad for name, parameter in peer.named_parameters()}
    return {
        weight.name: weight.from_hf([theirs[name] for name in weight.hf_shapes])
        for shard in weight_shards(model)
        for weight in shard
    }


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value."""
    assert ours.shape == theirs.shape
    return float((ours.detach() - theirs).abs().max() / theirs.abs().max())


class _Watched(WeightsFolder):
    """A folder that stays mapped after loading, so that what was read of it can be seen."""

    all: ClassVar[list[WeightsFolder]] = []

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.all.append(self)


def loaded(folder: str, variables: list[Variables], backends: list[Any]) -> list[dict[str, Any]]:
    """Load a converted folder into this rank's part of the model, in one layout and back end after the other.

    Returns:
        By layout: "weights" as NumPy arrays by their names in the whole model, experts one by one, "held", the bytes
        of the weights, and "read", the bytes of the files that came into memory.
    """
    load_module.WeightsFolder = _Watched  # type: ignore[misc]
    build_module.build_transformer_config = _with_whole_sequences
    with layouts(variables) as configs:
        return [
            _loaded(configured(config, Path(folder), 16), folder, backend)
            for config, backend in zip(configs, backends, strict=True)
        ]


def _with_whole_sequences(config: Config, on_gpu: bool) -> TransformerConfig:
    """Sequence parallelism goes with tensor parallelism; torch's norms refuse it, and weights are cut alike without."""
    built = build_transformer_config(config, on_gpu)
    built.sequence_parallel = False
    return built


def _loaded(config: Config, folder: str, backend: Any) -> dict[str, Any]:
    gpt = build_module.build_model(config, backend, on_gpu=False)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.fill_(torch.nan)
    load_weights(gpt, Path(folder), config)
    read = _resident(folder)
    _Watched.all.clear()
    held = with_global_names(gpt, config, gpt.named_parameters())
    return {
        "weights": {name: weight.detach().numpy().copy() for name, weight in held},
        "held": sum(parameter.nbytes for parameter in gpt.parameters()),
        "read": read,
    }


def _resident(folder: str) -> int:
    """Bytes of the folder's files that this process has mapped and looked at."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = folder in line
        elif inside and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


def refused(folder: str, variables: Variables, changes: dict[str, Any]) -> str:
    """What loading into a model says that differs by ``changes`` from the folder's."""
    with layouts([variables]) as configs:
        config = configured(next(configs), Path(folder), 16)
        config = config.model_copy(update={"model": config.model.model_copy(update=changes)})
        gpt = build_module.build_model(config, "torch", on_gpu=False)
        with torch.no_grad():
            for parameter in gpt.parameters():
                parameter.fill_(1.0)
        try:
            load_weights(gpt, Path(folder), config)
        except ConversionError as error:
            assert all(bool((parameter == 1.0).all()) for parameter in gpt.parameters()), "nothing may be loaded"
            return str(error)
        return "loaded"
