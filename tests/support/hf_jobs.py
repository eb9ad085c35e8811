"""Jobs that compare the model with transformers' GptOssForCausalLM and load its weights. See `jobs`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from gptoss20b.batches import DeviceBatch
from gptoss20b.config import Config, ModelConfig
from gptoss20b.hf import load as load_module
from gptoss20b.hf.convert import ConversionError, from_hugging_face
from gptoss20b.hf.folder import WeightsFolder
from gptoss20b.hf.load import load_weights
from gptoss20b.hf.weight_mapping import weight_shards
from gptoss20b.model.build import build_model
from tests.support.jobs import Variables, layouts, make_trainer, token_losses, with_global_names
from tests.support.model_jobs import build_without_sequence_parallel

BATCH = 2


def compare_models(
    cases: dict[str, dict[str, Any]], folder: str, variables: list[Variables]
) -> list[dict[str, dict[str, float]]]:
    """Return the largest relative differences between GptOssForCausalLM and our model with the same weights.

    Args:
        cases: arguments of GptOssConfig, and "sequence".
        folder: an empty folder for converted weights.
        variables: settings of each layout.

    Returns:
        By layout and case: "loss" and "norm" (of all gradients), as the trainer computes them. Without pipeline stages
        also "logits", and each gradient by its parameter's name in the whole model.
    """
    with layouts(variables) as configs:
        return [
            {
                name: _compare(layout, Path(folder) / f"{number}_{name.replace(' ', '_')}", **case)
                for name, case in cases.items()
            }
            for number, layout in enumerate(configs)
        ]


def _compare(layout: Config, folder: Path, sequence: int, **architecture: Any) -> dict[str, float]:
    hf_model = make_hf_model(architecture)
    if dist.get_rank() == 0:
        hf_model.save_pretrained(f"{folder}_hf")
        from_hugging_face(Path(f"{folder}_hf"), folder)
    dist.barrier()
    tokens = torch.randint(0, architecture["vocab_size"], (BATCH, sequence))
    expected = hf_model(input_ids=tokens, labels=tokens)
    expected.loss.backward()

    config = configure_for(layout, folder, sequence)
    trainer = make_trainer(config)
    load_weights(trainer.model.module, folder, config)
    local_tokens = tokens.chunk(config.parallel.data)[parallel_state.get_data_parallel_rank()]
    differences = {}
    if config.parallel.pipeline == 1:
        logits, gradients = _forward_and_backward(trainer.model.module, local_tokens, counted=BATCH * (sequence - 1))
        expected_logits = expected.logits.detach().chunk(config.parallel.data)[dist.get_rank()]
        differences["logits"] = largest_difference(logits, expected_logits)
        hf_gradients = convert_gradients(hf_model, config.model)
        assert gradients.keys() == hf_gradients.keys()
        differences |= {name: largest_difference(x, hf_gradients[name]) for name, x in gradients.items()}
    result = trainer.step(iter([make_batch(row[None]) for row in local_tokens]))
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in hf_model.parameters()])
    differences["loss"] = largest_difference(torch.tensor(result.loss()), expected.loss.detach())
    differences["norm"] = largest_difference(result.grad_norm, norm)
    return differences


def make_hf_model(architecture: dict[str, Any]) -> Any:
    """Return a GptOssForCausalLM whose weights make every feature show: biases, sinks, routing, clamped activations."""
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(5)
    hf_config = GptOssConfig(**architecture)
    hf_model = GptOssForCausalLM._from_config(hf_config, attn_implementation="eager", experts_implementation="eager")
    inverse_root = hf_config.hidden_size**-0.5
    with torch.no_grad():
        for name, parameter in hf_model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.3)
            elif name.endswith(("embed_tokens.weight", "sinks")):
                parameter.normal_(0.0, 1.0)
            elif name.endswith(("bias", "down_proj")):
                parameter.normal_(0.0, 0.3)
            else:
                # Gate and up then have a deviation of 3, so that both clamps at 7 are met.
                parameter.normal_(0.0, 3.0 * inverse_root if "gate_up" in name else inverse_root)
    return hf_model


def configure_for(layout: Config, folder: Path, sequence: int) -> Config:
    """Return the layout with the folder's model and this sequence length."""
    model = ModelConfig.model_validate(json.loads((folder / "config.json").read_text())["model"])
    fixed = layout.fixed.model_copy(update={"sequence_length": sequence})
    return layout.model_copy(update={"model": model, "fixed": fixed})


def make_batch(tokens: Tensor) -> DeviceBatch:
    """Return a batch in which each token's label is the next token; the last has none."""
    mask = torch.ones(tokens.shape)
    mask[:, -1] = 0.0
    return DeviceBatch(tokens, tokens.roll(-1, 1), mask)


def _forward_and_backward(gpt: Any, tokens: Tensor, counted: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return logits of this rank's sequences, and gradients of the mean loss over all ranks', by whole tensors."""
    batch = make_batch(tokens)
    positions = torch.arange(tokens.shape[1])[None].expand_as(tokens)
    with torch.no_grad():
        logits = gpt(input_ids=tokens, position_ids=positions, attention_mask=None)
    losses = token_losses(gpt, batch)
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


def convert_gradients(hf_model: Any, model: ModelConfig) -> dict[str, Tensor]:
    """Return the gradients of GptOssForCausalLM under our names and in our layout."""
    gradients = {name: parameter.grad for name, parameter in hf_model.named_parameters()}
    return {
        weight.name: weight.from_hf([gradients[name] for name in weight.hf_shapes])
        for shard in weight_shards(model)
        for weight in shard
    }


def largest_difference(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest value."""
    assert got.shape == expected.shape
    return float((got.detach() - expected).abs().max() / expected.abs().max())


class _OpenFolder(WeightsFolder):
    """A folder that stays mapped after loading, so that the pages that were read can be counted."""

    instances: ClassVar[list[WeightsFolder]] = []

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.instances.append(self)


def load_layouts(folder: str, variables: list[Variables], backends: list[Any]) -> list[dict[str, Any]]:
    """Load a converted folder into this rank's model shard, in one layout and back end after the other.

    Returns:
        By layout: "weights" as NumPy arrays by their names in the whole model, experts one by one; "held_bytes" of the
        weights; "read_bytes" of the files that came into memory.
    """
    vars(load_module)["WeightsFolder"] = _OpenFolder
    with layouts(variables) as configs:
        return [
            _load(configure_for(config, Path(folder), 16), folder, backend)
            for config, backend in zip(configs, backends, strict=True)
        ]


def _load(config: Config, folder: str, backend: Any) -> dict[str, Any]:
    gpt = build_without_sequence_parallel(config, backend)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.fill_(torch.nan)
    load_weights(gpt, Path(folder), config)
    read_bytes = _resident_bytes(folder)
    _OpenFolder.instances.clear()
    named = with_global_names(gpt, config, gpt.named_parameters())
    return {
        "weights": {name: weight.detach().numpy().copy() for name, weight in named},
        "held_bytes": sum(parameter.nbytes for parameter in gpt.parameters()),
        "read_bytes": read_bytes,
    }


def _resident_bytes(folder: str) -> int:
    """Return the bytes of the folder's mapped files that are in this process's memory."""
    resident, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = folder in line
        elif inside and line.startswith("Rss:"):
            resident += 1024 * int(line.split()[1])
    return resident


def load_into_changed_model(folder: str, variables: Variables, changes: dict[str, Any]) -> tuple[str, ...]:
    """Return the problems of loading into a model that differs by ``changes`` from the folder's."""
    with layouts([variables]) as configs:
        config = configure_for(next(configs), Path(folder), 16)
        config = config.model_copy(update={"model": config.model.model_copy(update=changes)})
        gpt = build_model(config, "torch", on_gpu=False)
        with torch.no_grad():
            for parameter in gpt.parameters():
                parameter.fill_(1.0)
        try:
            load_weights(gpt, Path(folder), config)
        except ConversionError as error:
            assert all(bool((parameter == 1.0).all()) for parameter in gpt.parameters()), "nothing may be loaded"
            return error.problems
        return ()
