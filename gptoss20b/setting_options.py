"""One command-line option per setting of a run, for the commands that take a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .config import settings


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Add one option per setting to a command, named after its environment variable.

    The command's first parameter receives the options as a mapping from variable to text; None if not given.
    """
    parameters = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    generated = [
        inspect.Parameter(
            setting.option,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                str | None,
                typer.Option(
                    help=f"{setting.description} [{variable}]",
                    show_default=False,
                    metavar="VALUE",
                    rich_help_panel="Settings of a run, each also an environment variable",
                ),
            ],
        )
        for variable, setting in settings().items()
    ]

    def wrapper(**arguments: Any) -> None:
        given = {setting.variable: arguments.pop(setting.option) for setting in settings().values()}
        command(given, **arguments)

    # typer builds the options from name, docstring, signature and annotations.
    wrapper.__doc__ = command.__doc__
    wrapper.__name__ = command.__name__
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters] + generated
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper
