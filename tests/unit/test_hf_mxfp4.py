"""MXFP4 to bf16, against the definition in OCP Microscaling Formats v1.0 and against transformers."""

from __future__ import annotations

import math

import pytest
import torch

from gptoss20b.hf.mxfp4 import dequantize


def e2m1_value(code: int, scale: int) -> float:
    """Return the value of a code under its scale.

    E2M1 is a sign, two bits of exponent with bias 1 and a bit of mantissa; exponent 0 is subnormal.
    """
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    magnitude = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return math.copysign(magnitude * 2.0 ** (scale - 127), -sign or 1)


@pytest.mark.parametrize("half", ["low", "high"])
def test_every_value_under_every_scale(half: str) -> None:
    for scale in range(256):
        codes = torch.arange(16, dtype=torch.uint8)
        packed = codes if half == "low" else codes << 4
        out = dequantize(packed[None], torch.tensor([scale], dtype=torch.uint8))
        assert (out.dtype, out.shape) == (torch.bfloat16, (32,))
        values = out.double()[(0 if half == "low" else 1) :: 2].tolist()
        if scale == 255:
            assert all(math.isnan(value) for value in values)
            continue
        for code, value in enumerate(values):
            expected = e2m1_value(code, scale)
            if abs(expected) >= 2.0**128:  # 4 and 6 times 2^127
                expected = math.copysign(math.inf, expected)
            assert (value, math.copysign(1, value)) == (expected, math.copysign(1, expected)), (code, scale)


def test_a_scale_serves_32_values_and_the_low_half_of_a_byte_comes_first() -> None:
    blocks = torch.full((2, 3, 16), 0x12, dtype=torch.uint8)  # 1.0 then 0.5
    scales = torch.tensor([[127, 128, 129], [126, 125, 124]], dtype=torch.uint8)
    factors = torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.25, 0.125]])
    expected = (factors[..., None] * torch.tensor([1.0, 0.5]).repeat(16)).flatten(1)
    assert torch.equal(dequantize(blocks, scales).float(), expected)


def test_values_equal_transformers() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(1)
    blocks = torch.randint(0, 256, (3, 8, 2, 16), dtype=torch.uint8)
    scales = torch.randint(0, 255, (3, 8, 2), dtype=torch.uint8)  # without 255: NaN here, 2^128 in transformers
    theirs = convert_moe_packed_tensors(blocks, scales)
    assert torch.equal(dequantize(blocks, scales).mT.view(torch.int16), theirs.view(torch.int16))
