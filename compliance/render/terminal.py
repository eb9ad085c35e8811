"""Lines and tables of plain text, drawn for a terminal by rich.

Every string passes `printable` on its way out, and none is read as rich's markup. rich is imported on the first
drawing: its import costs some hundredths of a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from typing import Literal

from ..file_tree import printable


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text. Lines longer than the terminal are wrapped."""

    text: str = ""
    indent: int = 0
    style: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table. A column whose title begins with ">" holds numbers, and is aligned to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Block = Line | Table


def draw(blocks: Iterable[Block], width: int, colour: bool = False) -> str:
    """Return the blocks as lines of at most ``width`` columns, each ending in a newline."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table as RichTable
    from rich.text import Text

    def text(string: str, style: str = "") -> Text:
        return Text(printable(string), style=style, overflow="fold")

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
    for block in blocks:
        if isinstance(block, Line):
            # Padding drops an empty line.
            line = text(block.text, block.style)
            console.print(Padding(line, (0, 0, 0, block.indent), expand=False) if block.text else "")
            continue
        table = RichTable(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for column, title in enumerate(block.columns):
            # A wrapped number is misread. Only the names in the first column wrap where space is short.
            justify: Literal["left", "right"] = "right" if title.startswith(">") else "left"
            table.add_column(title.removeprefix(">"), justify=justify, no_wrap=column > 0)
        for row in block.rows:
            table.add_row(*map(text, row))
        console.print(Padding(table, (0, 0, 0, 2), expand=False))
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())
