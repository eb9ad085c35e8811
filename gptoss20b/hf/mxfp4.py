"""Dequantize MXFP4, in which the released gpt-oss stores its expert matrices, to bf16.

OCP Microscaling Formats v1.0: 32 values share a scale. A value is E2M1: four bits of sign, exponent and mantissa. A
scale is E8M0: a power of two with bias 127, where 255 is NaN. In the released checkpoint a byte holds two values, the
first in its low half.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

BLOCK_SIZE = 32
"""Values that share a scale."""

# E2M1 without sign, by code: 0 and 0.5 are subnormal, then (1 + mantissa / 2) x 2^(exponent - 1).
_E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E8M0_BIAS, _E8M0_NAN = 127, 255


@cache
def _value_pairs() -> Tensor:
    """Return the two values of each byte under each scale: bf16 [256 scales, 256 bytes, 2].

    All are exact in bf16, except 6 x 2^127 and 4 x 2^127, which become infinite.
    """
    codes = torch.tensor([*_E2M1_MAGNITUDES, *(-x for x in _E2M1_MAGNITUDES)], dtype=torch.float64)
    byte = torch.arange(256)
    scale = torch.exp2(torch.arange(256, dtype=torch.float64) - _E8M0_BIAS)
    scale[_E8M0_NAN] = torch.nan
    values = codes[torch.stack([byte & 0xF, byte >> 4], dim=-1)]
    return (scale[:, None, None] * values).to(torch.bfloat16)


def dequantize(blocks: Tensor, scales: Tensor) -> Tensor:
    """Return the bf16 values [..., number of blocks x 32] of packed ones.

    Args:
        blocks: uint8 [..., number of blocks, 16], two values per byte.
        scales: uint8 [..., number of blocks].
    """
    return _value_pairs()[scales.int()[..., None], blocks.int()].flatten(-3)
