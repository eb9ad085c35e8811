"""Lines and tables of plain strings, drawn for a terminal by rich, which costs a few hundredths of a second to import.

Every string passes `visible` on its way out, and none is read as rich's markup.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from typing import Literal


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text, indented by so many columns; longer ones are wrapped."""

    text: str = ""
    indent: int = 0
    style: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns whose title begins with ">" are numbers, on the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Block = Line | Table


def visible(text: str) -> str:
    """The text with every character that does not print (controls, directions, lone surrogates) as its escape.

    >>> visible("a\\x1b[2J\\n\\u202eb")
    'a\\\\x1b[2J\\\\n\\\\u202eb'
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
    )


def draw(blocks: Iterable[Block], width: int, colour: bool = False) -> str:
    """The blocks as lines that end in newlines, no wider than so many columns; with ANSI colours if wanted."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table as RichTable
    from rich.text import Text

    def text(string: str, style: str = "") -> Text:
        return Text(visible(string), style=style, overflow="fold")

    out = StringIO()
    # Everything that rich would otherwise take from the environment is given; the height only keeps TERM=dumb from
    # overruling the width.
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
            # Padding would swallow an empty line.
            line = text(block.text, block.style)
            console.print(Padding(line, (0, 0, 0, block.indent), expand=False) if block.text else "")
            continue
        table = RichTable(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for column, title in enumerate(block.columns):
            # A figure that wraps is misread; where space is short the names in the first column make it.
            justify: Literal["left", "right"] = "right" if title.startswith(">") else "left"
            table.add_column(title.removeprefix(">"), justify=justify, no_wrap=column > 0)
        for row in block.rows:
            table.add_row(*map(text, row))
        console.print(Padding(table, (0, 0, 0, 2), expand=False))
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())
