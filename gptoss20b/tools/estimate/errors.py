"""The error of `estimate`."""

from __future__ import annotations


class EstimateError(ValueError):
    """An unknown system, an impossible efficiency or an unsupported layout. The message names what to change."""
