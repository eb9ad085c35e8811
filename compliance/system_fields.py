"""The 33 required fields of a system description: each read from this machine, given, or marked as still to be written.

MLCommons' own mlperf-sysinfo (1.0.0a12) is not used. It is an alpha release, pinned to an alpha release of mlc-scripts,
whose steps ask for sudo and install system packages on the machine that they describe. Its profile for training needs
division, submitter, status, framework, cooling and topology in a configuration file before it reads anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from system_info.cpu import read_processors

from .machine_fields import (
    accelerator_fields,
    device_fields,
    hardware_notes,
    memory_fields,
    processor_fields,
    software_fields,
)
from .submission import DIVISIONS, FIELD_HELP, REQUIRED_FIELDS, STATUSES

TODO_MARK = "TODO: "
# Without its persistence daemon, nvidia-smi initialises each GPU first.
_TOOL_LIMIT_S = 30.0
# Valid values that the submitter has to confirm: the first of each vocabulary, and the one machine that was read.
DEFAULTS = {"division": DIVISIONS[0], "status": STATUSES[0], "number_of_nodes": "1"}
_CHOICES = {"division": DIVISIONS, "status": STATUSES}
_COUNTS = ("number_of_nodes", "accelerators_per_node")


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


def describe(given: Mapping[str, str], root: Path = Path("/"), limit_s: float = _TOOL_LIMIT_S) -> Description:
    """Describe this machine. Values that are ``given``, by field, replace the machine's.

    Raises:
        ValueError: ``given`` has unknown fields, or values that the rules do not allow. The message names all of them.
    """
    if problems := check_values(given):
        raise ValueError("; ".join(problems))
    processors = read_processors(root, limit_s)
    accelerators = accelerator_fields(root, limit_s)
    known = {
        **DEFAULTS,
        **processor_fields(processors),
        **memory_fields(limit_s),
        **device_fields(root),
        **software_fields(root, accelerators.pop("driver", None)),
        **accelerators,
        "hw_notes": hardware_notes(processors, root),
        "sw_notes": "",
        **({"host_networking_topology": "N/A (one node)"} if given.get("number_of_nodes") == "1" else {}),
        **given,
    }
    fields = {name: known.get(name, TODO_MARK + FIELD_HELP[name]) for name in REQUIRED_FIELDS}
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
