"""Describe this machine as a submission must: ``python -m compliance system-description``.

Each of the 33 required fields is read from this machine, given, or marked as still to be written. MLCommons' own
mlperf-sysinfo (1.0.0a12) is not used. It is an alpha release, pinned to an alpha release of mlc-scripts, whose steps
ask for sudo and install system packages on the machine that they describe. Its profile for training needs division,
submitter, status, framework, cooling and topology in a configuration file before it reads anything.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from system_info.cpu import read_processors

from .file_tree import printable
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
_MINIMA = {"number_of_nodes": 1, "accelerators_per_node": 0}


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
    """Describe this machine. Values that are ``given``, by field, replace the machine's. See `check_values`."""
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
        minimum = _MINIMA.get(name)
        if minimum is not None and not (value.isascii() and value.isdigit() and minimum <= int(value[:10]) < 10**9):
            problems.append(f"{name} is {value!r}, expected a whole number of at least {minimum}")
        if name in ("submitter", "system_name") and not value.strip():
            problems.append(f"{name} is empty, expected a name")
    return problems


def main(
    submitter: Annotated[str | None, typer.Option(metavar="ORG", help="Organisation.")] = None,
    division: Annotated[str | None, typer.Option(help=f"{' or '.join(DIVISIONS)}. Default: {DIVISIONS[0]}.")] = None,
    status: Annotated[str | None, typer.Option(help=f"{' | '.join(STATUSES)}. Default: {STATUSES[0]}.")] = None,
    system_name: Annotated[str | None, typer.Option(metavar="NAME", help="The system's name.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes that one run uses. Default: 1.")] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Give any field; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New file to write, instead of stdout.")] = None,
) -> None:
    """Describe this machine: systems/NAME.json on stdout, and on stderr the fields to write or to confirm."""
    options = {
        "submitter": submitter, "division": division, "status": status, "system_name": system_name,
        "number_of_nodes": nodes,
    }  # fmt: skip
    given = _collect_values({name: str(value) for name, value in options.items() if value is not None}, values or [])
    # Before the machine is read, which may take a while.
    if out is not None and (out.exists() or out.is_symlink() or not out.parent.is_dir()):
        raise typer.BadParameter(f"{printable(out)}: name a new file in a folder that exists", param_hint="--out")
    description = describe(given)
    text = json.dumps(description.fields, indent=2) + "\n"  # ASCII, which every encoding of stdout can write
    if out is None:
        sys.stdout.write(text)
    else:
        try:
            with out.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise typer.BadParameter(f"{printable(out)}: {error.strerror}", param_hint="--out") from error
    print("\n".join(list_open_fields(description)), file=sys.stderr)


def list_open_fields(description: Description) -> list[str]:
    """Return a line for each field to write, one for each to confirm, and one with their numbers."""
    unknown, assumed = description.unknown, description.assumed
    return [
        *(f"TODO {name}: {expected}" for name, expected in unknown.items()),
        *(f"confirm {name}: {DEFAULTS[name]!r} unless given; {FIELD_HELP[name]}" for name in assumed),
        f"{len(unknown)} of {len(description.fields)} fields to write (--set FIELD=VALUE), {len(assumed)} to confirm",
    ]


def _collect_values(options: dict[str, str], values: list[str]) -> dict[str, str]:
    """Return the values of the options and of --set together.

    Raises:
        typer.BadParameter: a value is wrong. The message names all of them.
    """
    given, problems = dict(options), []
    for value in values:
        name, equals, text = value.partition("=")
        if not equals:
            problems.append(f"{value}: expected FIELD=VALUE")
        elif name in given:
            problems.append(f"{name} is given twice")
        else:
            given[name] = text
    if problems := problems + check_values(given):
        raise typer.BadParameter("; ".join(problems), param_hint="--set" if values else None)
    return given
