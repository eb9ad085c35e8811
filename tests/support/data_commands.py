"""Run `python -m data_scripts` in this process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from data_scripts.cli import app


def run_data_command(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
