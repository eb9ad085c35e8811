"""The accelerators of this node, by whichever vendor's tool answers."""

from __future__ import annotations

from pathlib import Path

from .amd import amd_fields
from .devices import has_accelerator
from .nvidia import nvidia_fields
from .sources import LIMIT_S

_ABSENT = (
    "accelerator_model_name", "accelerator_host_interconnect", "accelerator_frequency", "accelerator_on-chip_memories",
    "accelerator_memory_configuration", "accelerator_memory_capacity", "accelerator_interconnect",
    "accelerator_interconnect_topology",
)  # fmt: skip
_ALONE = ("accelerator_interconnect", "accelerator_interconnect_topology")


def accelerator_fields(root: Path = Path("/"), limit_s: float = LIMIT_S) -> dict[str, str]:
    """The fields `accelerator*` that are known, and `driver`, which belongs into other_software_stack.

    Without an accelerator on the PCI bus the fields say so, except accelerators_per_node: the rules want a positive
    number, which only the submitter can give. With one that no tool describes, all are unknown.

    Args:
        root: folder that holds `sys`.
        limit_s: time limit in seconds of each tool.
    """
    fields = nvidia_fields(limit_s) or amd_fields(limit_s)
    if fields:
        alone = fields["accelerators_per_node"] == "1"
        return dict.fromkeys(_ALONE, "N/A (one accelerator)") | fields if alone else fields
    return dict.fromkeys(_ABSENT, "N/A (no accelerator)") if has_accelerator(root) is False else {}
