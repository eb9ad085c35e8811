"""Runs whose self-test finds a wrong kernel on one rank."""

from __future__ import annotations

import os
from typing import Any
from unittest.mock import patch

from torch import Tensor

from tests.support import jobs

Variables = dict[str, str]


def train(variables: Variables, broken: list[str], rank: int) -> tuple[int, str]:
    """Run like `jobs.train`, but full attention is wrong on one rank, in the self-test only.

    Args:
        variables: the configuration.
        broken: values of ATTENTION_KERNEL with which it is wrong.
        rank: the rank with the wrong kernel.
    """
    from gptoss20b.model import attention

    right = attention.dot_product_attention

    def wrong(*arguments: Any) -> Tensor:
        kernels = arguments[6]  # on a CPU the self-test names the setting, and a layer has none
        return right(*arguments) * (1.1 if kernels and kernels[0] in broken else 1.0)

    here = os.environ["RANK"] == str(rank)
    with patch.object(attention, "dot_product_attention", wrong if here else right):
        return jobs.train(variables)
