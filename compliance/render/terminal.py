"""Templates as text for a terminal, drawn by rich.

A line of a template becomes a paragraph, and its leading blanks the indent. Empty lines do not count. Templates have
`blank` for an empty line, ``style("bold red")`` at the beginning of a line for its style, and ``row(...)`` for a row of
a table. The first row of a table holds the titles; ">" before a title marks a column of numbers, and "/" breaks it.
Every value passes `printable`, and none is read as rich's markup. jinja2 and rich are imported on the first drawing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..file_tree import printable

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.console import Console

# Marks before a style and between cells. `printable` leaves neither in a value.
_STYLE, _CELL = "\x01", "\t"
_MAX_INDENT = 8


def template_environment(finalize: Callable[[Any], object]) -> Environment:
    """Return the environment of the templates of this package. ``finalize`` escapes every value."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def draw(template: str, width: int, colour: bool, filters: dict[str, Callable[..., Any]], **values: object) -> str:
    """Return a filled template as lines of at most ``width`` columns, each ending in a newline."""
    from markupsafe import Markup
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    environment = template_environment(lambda value: value if isinstance(value, Markup) else Markup(printable(value)))
    environment.filters.update(filters)
    text = environment.get_template(template).render(
        blank=Markup(_STYLE + _STYLE),
        style=lambda style: Markup(_STYLE + style + _STYLE),
        row=lambda *cells: Markup("".join(_CELL + printable(cell) for cell in cells)),
        **values,
    )
    out = StringIO()
    # Set everything that rich would take from the environment. Without a height, TERM=dumb would override the width.
    console = Console(
        file=out,
        width=width,
        height=25,
        color_system="standard" if colour else None,
        no_color=False,
        force_jupyter=False,
    )
    lines = (line for line in text.split("\n") if line.strip(" "))
    for is_table, block in groupby(lines, key=lambda line: line.startswith(_CELL)):
        if is_table:
            _print_table(console, block)
            continue
        for line in block:
            style, content = line.split(_STYLE)[1:] if line.startswith(_STYLE) else ("", line)
            indent = min(len(content) - len(content.lstrip(" ")), _MAX_INDENT)
            paragraph = Text(content[indent:], style=style, overflow="fold")
            # Padding drops an empty line.
            console.print(Padding(paragraph, (0, 0, 0, indent), expand=False) if content else "")
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def _print_table(console: Console, lines: Iterable[str]) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    titles, *rows = (line.split(_CELL)[1:] for line in lines)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column, title in enumerate(titles):
        # A wrapped number is misread. Only the names in the first column wrap where space is short.
        justify: Literal["left", "right"] = "right" if title.startswith(">") else "left"
        table.add_column(title.removeprefix(">").replace("/", "\n"), justify=justify, no_wrap=column > 0)
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))
