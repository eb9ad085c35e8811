"""Describe this machine as a submission must: ``python -m compliance system-description``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from .file_tree import printable
from .submission import DIVISIONS, FIELD_HELP, STATUSES
from .system_fields import DEFAULTS, Description, check_values, describe


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
