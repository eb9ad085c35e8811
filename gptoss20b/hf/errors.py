"""The error of conversion and loading, with all problems at once."""

from __future__ import annotations

from collections.abc import Sequence


class ConversionError(ValueError):
    """Weights that cannot be converted or loaded. `problems` lists everything wrong with them."""

    def __init__(self, context: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{count} {context}:", *(f"  {problem}" for problem in problems)]))
