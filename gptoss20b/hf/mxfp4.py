"""MXFP4, in which the released gpt-oss stores its expert matrices, to bf16.

OCP Microscaling Formats v1.0: 32 values share a scale. A value is E2M1, four bits of sign, exponent and mantissa; the
scale is E8M0, a power of two with bias 127, of which 255 means not a number. In the released checkpoint a byte holds
two values, the first one in its low half.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

BLOCK = 32
"""Values that share a scale."""

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BIAS, _NOT_A_NUMBER = 127, 255


@cache
def _pairs() -> Tensor:
    """The two values of each byte under each scale: bf16 [256 scales, 256 bytes, 2].

    All but 6 x 2^127 and 4 x 2^127, which become infinite, are exact in bf16.
    """
    codes = torch.tensor([*_MAGNITUDES, *(-x for x in _MAGNITUDES)], dtype=torch.float64)
    byte = torch.arange(256)
    factor = torch.exp2(torch.arange(256, dtype=torch.float64) - _BIAS)
    factor[_NOT_A_NUMBER] = torch.nan
    values = codes[torch.stack([byte & 0xF, byte >> 4], dim=-1)]
    return (factor[:, None, None] * values).to(torch.bfloat16)


def dequantize(blocks: Tensor, scales: Tensor) -> Tensor:
    """Packed values to bf16.

    Args:
        blocks: uint8 [..., number of blocks, 16], two values a byte.
        scales: uint8 [..., number of blocks].

    Returns:
        bf16 [..., number of blocks x 32].
    """
    return _pairs()[scales.int()[..., None], blocks.int()].flatten(-3)
