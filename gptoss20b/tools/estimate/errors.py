"""What an estimate cannot be made of."""

from __future__ import annotations


class EstimateError(ValueError):
    """An unknown system, an impossible efficiency, or a layout that the model does not cover; says what to change."""
