"""The 33 required fields of a system description: each read from this machine, given, or marked as still to be written.

MLCommons' own mlperf-sysinfo (1.0.0a12) is not used. It is an alpha release, pinned to an alpha release of mlc-scripts,
whose steps ask for sudo and install system packages on the machine that they describe. Its profile for training needs
division, submitter, status, framework, cooling and topology in a configuration file before it reads anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from system_info.cpu import read_processors
from system_info.software import read_operating_system

from .machine_fields import (
    accelerator_fields,
    hardware_notes,
    memory_fields,
    network_fields,
    processor_fields,
    software_fields,
    storage_fields,
)
from .submission import DIVISIONS, REQUIRED_FIELDS, STATUSES

TODO_MARK = "TODO: "
# Without its persistence daemon, nvidia-smi initialises each GPU first.
_TOOL_LIMIT_S = 30.0
# Valid values that the submitter has to confirm: the first of each vocabulary, and the one machine that was read.
DEFAULTS = {"division": DIVISIONS[0], "status": STATUSES[0], "number_of_nodes": "1"}
_CHOICES = {"division": DIVISIONS, "status": STATUSES}
_COUNTS = ("number_of_nodes", "accelerators_per_node")
# Help texts. Without commas where the official summary quotes the field, whose values are separated by commas.
EXPECTED = {
    "submitter": "organisation that submits; spelled as submission_org in the logs",
    "division": f"one of {', '.join(DIVISIONS)}",
    "status": f"one of {' | '.join(STATUSES)}",
    "system_name": "name of the system; e.g. 1xNODE_8xACCELERATOR",
    "number_of_nodes": "nodes that one run uses, a whole number",
    "host_processors_per_node": "processors (sockets) in one node, a whole number",
    "host_processor_model_name": "maker and model of the processor",
    "host_processor_core_count": "processors x cores in one node; e.g. 2 x 64 cores",
    "host_processor_vcpu_count": "processors x logical processors in one node, e.g. 2 x 128 threads",
    "host_processor_frequency": "base and highest frequency, e.g. 2.40 GHz base, 3.80 GHz max",
    "host_processor_caches": "caches with their sizes, e.g. L2: 128 x 1 MiB, L3: 16 x 32 MiB",
    "host_processor_interconnect": "link between the processors and its speed, e.g. 4 x xGMI 32 GT/s",
    "host_memory_capacity": "installed memory of one node, e.g. 2304 GB",
    "host_storage_type": "kind of storage that one node uses, e.g. NVMe SSD",
    "host_storage_capacity": "number and size of the disks in one node, e.g. 8 x 3.84 TB",
    "host_networking": "ports of one node and their rates, e.g. 8 x InfiniBand 400 Gb/s",
    "host_networking_topology": "how the nodes are connected, e.g. fat tree; N/A for one node",
    "host_memory_configuration": "memory modules of one node, e.g. 24 x 96 GB DDR5 5600 MT/s (root may read it)",
    "accelerators_per_node": "accelerators in one node as a whole number; without any the training processes per node",
    "accelerator_model_name": "maker and model of the accelerator",
    "accelerator_host_interconnect": "link between processor and accelerator, e.g. PCIe 5.0 x16",
    "accelerator_frequency": "highest clock, e.g. 1965 MHz max",
    "accelerator_on-chip_memories": "caches and on-chip memories from the data sheet, e.g. L2: 50 MB",
    "accelerator_memory_configuration": "kind of memory, e.g. HBM3e",
    "accelerator_memory_capacity": "memory of one accelerator, e.g. 140.4 GiB",
    "accelerator_interconnect": "link between accelerators and its speed, e.g. NVLink 5, 900 GB/s per direction",
    "accelerator_interconnect_topology": "how accelerators are connected, e.g. all to all by NVSwitch",
    "cooling": "air or liquid",
    "hw_notes": "remarks on the hardware, or nothing",
    "framework": "framework and version; e.g. PyTorch 2.9.0 + Megatron-Core 0.16.1",
    "other_software_stack": "libraries and drivers with versions, e.g. CUDA 13.0, NCCL 2.27, driver 580.95",
    "operating_system": "distribution, version and kernel, e.g. Ubuntu 24.04 LTS, Linux 6.8.0",
    "sw_notes": "remarks on the software, or nothing",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Description:
    """A system description.

    Attributes:
        fields: the 33 required fields in the official order, all of them texts. Unknown ones begin with `TODO_MARK`.
        assumed: names of the fields of `DEFAULTS` that were not given.
    """

    fields: dict[str, str]
    assumed: tuple[str, ...]

    @property
    def unknown(self) -> dict[str, str]:
        """Help text of each field that is still to be written."""
        return {
            name: value.removeprefix(TODO_MARK) for name, value in self.fields.items() if value.startswith(TODO_MARK)
        }


def describe(
    given: Mapping[str, str], root: Path = Path("/"), site: Sequence[str] | None = None, limit_s: float = _TOOL_LIMIT_S
) -> Description:
    """Describe this machine.

    Args:
        given: values that replace the machine's, by field.
        root: folder that holds ``proc``, ``sys`` and ``etc``.
        site: folders of installed Python packages; None: those of this Python.
        limit_s: time limit in seconds of each tool.

    Raises:
        ValueError: ``given`` has unknown fields, or values that the rules do not allow. The message names all of them.
    """
    if problems := check_values(given):
        raise ValueError("; ".join(problems))
    processors = read_processors(root, limit_s)
    accelerators = accelerator_fields(root, limit_s)
    read = {
        **DEFAULTS,
        **processor_fields(processors),
        **memory_fields(limit_s),
        **storage_fields(root),
        **network_fields(root),
        **software_fields(root, site, accelerators.pop("driver", None)),
        **accelerators,
        "hw_notes": hardware_notes(processors, root),
        "sw_notes": "",
    }
    if system := read_operating_system(root):
        read["operating_system"] = system
    if given.get("number_of_nodes") == "1":
        read["host_networking_topology"] = "N/A (one node)"
    known = {**read, **given}
    fields = {name: known.get(name, TODO_MARK + EXPECTED[name]) for name in REQUIRED_FIELDS}
    return Description(fields, tuple(name for name in DEFAULTS if name not in given))


def check_values(given: Mapping[str, str]) -> list[str]:
    """Return one message per problem: unknown fields, and words and counts that the rules do not allow."""
    unknown = [name for name in given if name not in REQUIRED_FIELDS]
    problems = [f"{name}: no such field" for name in unknown]
    if unknown:
        problems.append(f"the fields are {', '.join(REQUIRED_FIELDS)}")
    for name, value in given.items():
        choices = _CHOICES.get(name, (value,))
        if value not in choices:
            problems.append(f"{name} is {value!r}, expected one of {' | '.join(choices)}")
        if name in _COUNTS and not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) > 0):
            problems.append(f"{name} is {value!r}, expected a positive whole number")
        if name in ("submitter", "system_name") and not value.strip():
            problems.append(f"{name} is empty, expected a name")
    return problems
