"""The command `verify` run in this process on small sets, and what it tells."""

import json
from pathlib import Path
from typing import Any

import typer
from click.testing import Result
from typer.testing import CliRunner

from data_scripts.verify import main
from tests.support.small_sets import OPTIONS

app = typer.Typer()
app.command()(main)


def verify(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(app, [str(folder), *OPTIONS, *options])


def findings(folder: Path, *options: str) -> list[str]:
    """What the command tells of a set that must fail, each line without the folder's path."""
    done = verify(folder, *options)
    told = [line.removeprefix(f"{folder}/") for line in done.stdout.splitlines() if "; expected " in line]
    assert done.exit_code == (1 if told else 0), done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    verdict = f"FAIL, {len(told)} finding" if told else "PASS"
    assert f"{folder}: {verdict}" in done.stdout.splitlines()[-1]
    assert all("got " in line and ". To fix: " in line for line in told)
    return told


def report(folder: Path) -> dict[str, Any]:
    """The report beside the data."""
    found: dict[str, Any] = json.loads((folder / "verified.json").read_text())
    return found
