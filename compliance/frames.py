"""Tables as files for a spreadsheet. Imports pandas: import this module inside the command that needs it.

Cells come from logs, which are untrusted. A spreadsheet must show them and never evaluate them.
"""

from __future__ import annotations

import unicodedata
from dataclasses import asdict, astuple
from pathlib import Path

import pandas as pd

from .compare import Comparison
from .diff import TreeDiff
from .file_tree import printable
from .findings import Spread
from .welch import WelchTest

SUFFIXES = (".csv", ".xlsx")
# Some spreadsheets evaluate a text cell that begins with one of these. NFKC also finds their full-width forms.
_FORMULA_STARTS = ("=", "+", "-", "@")
_MAX_DIGITS = 15  # a spreadsheet rounds longer numbers


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write a table without its index, as CSV or as XLSX by the suffix of the path.

    Numbers stay numbers, except that XLSX holds integers of more than 15 digits as text. Text stays text: CSV puts an
    apostrophe before a text that looks like a formula. Characters that do not print become visible escapes.

    Raises:
        ValueError: another suffix, or too many rows for a sheet.
        OSError: the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: the name must end in {' or '.join(SUFFIXES)}")
    shown = _csv_cell if path.suffix == ".csv" else _xlsx_cell
    # dtype=object: otherwise pandas makes floats of integers beside an empty cell.
    rows = [tuple(map(shown, row)) for row in frame.astype(object).itertuples(index=False, name=None)]
    frame = pd.DataFrame(rows, columns=list(map(shown, frame.columns)), dtype=object)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False, lineterminator="\n")
        return
    with pd.ExcelWriter(path, engine="openpyxl") as writer:
        frame.to_excel(writer, index=False)
        for cell in (cell for sheet in writer.book.worksheets for row in sheet.iter_rows() for cell in row):
            if isinstance(cell.value, str):
                cell.data_type = "s"  # openpyxl takes "=1" for a formula and "#N/A" for an error


def results_frame(diff: TreeDiff) -> pd.DataFrame:
    """Return a row for each figure of each result in two revisions of a tree."""
    rows = [(each.result, each.state, *astuple(figure)) for each in diff.results for figure in each.figures]
    return pd.DataFrame(rows, columns=["result", "state", "figure", "old", "new", "change", "percent"], dtype=object)


def comparison_frame(comparison: Comparison) -> pd.DataFrame:
    """Return a row for each set and one for B - A, of samples and of minutes to the target."""
    rows: list[dict[str, object]] = []
    for metric, content in (("samples", comparison.samples), ("minutes", comparison.minutes)):
        for name, spread, olympic in (("A", content.a, content.olympic_a), ("B", content.b, content.olympic_b)):
            rows.append({"metric": metric, "set": name} | _fields(spread) | {"olympic_mean": olympic})
        difference = {"mean": content.difference, "percent": content.difference_percent} | _fields(content.test)
        rows.append({"metric": metric, "set": "B - A"} | difference)
    return pd.DataFrame(rows, dtype=object)


def _fields(values: Spread | WelchTest | None) -> dict[str, object]:
    return asdict(values) if values else {}


def _csv_cell(value: object) -> object:
    text = printable(value) if isinstance(value, str) else ""
    is_formula = unicodedata.normalize("NFKC", text.lstrip()[:1]) in _FORMULA_STARTS
    return f"'{text}" if is_formula else text or value


def _xlsx_cell(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**_MAX_DIGITS:
        return str(value)
    return printable(value) if isinstance(value, str) else value
