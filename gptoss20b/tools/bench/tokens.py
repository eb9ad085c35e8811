"""The tokens of a timed step, the same for every baseline."""

from __future__ import annotations

import torch

from ...batches import DeviceBatch
from ...config import Config


def micro_batches(config: Config, device: torch.device) -> list[DeviceBatch]:
    """Return the micro batches of a step: uniformly random tokens, the same for every baseline and micro batch size.

    A sequence depends only on its number in the step. The last token has no label, as in Hugging Face's loss.
    """
    shape = (1, config.fixed.sequence_length)
    rows = []
    for number in range(config.free.global_batch_size):
        generator = torch.Generator().manual_seed(number)
        rows.append(torch.randint(config.model.vocab_size, shape, generator=generator))
    batches = []
    for tokens in torch.split(torch.cat(rows).to(device), config.execution.micro_batch_size):
        mask = torch.ones(tokens.shape, device=device)
        mask[:, -1] = 0.0
        batches.append(DeviceBatch(tokens, tokens.roll(-1, dims=1), mask))
    return batches
