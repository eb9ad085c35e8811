"""Tables as CSV and XLSX: numbers stay numbers, and no text from a log becomes a formula."""

from __future__ import annotations

import csv
from pathlib import Path

import openpyxl
import pandas as pd
import pytest

from compliance.frames import write_frame

HOSTILE = ["=1+1", "+1", "-1", "@A1", "\t=1", "\r=1", " =1", "\uff1d1", "#N/A", "a\x00b\x1b", "\ud800", 'x",\n=1']
# The same texts with visible escapes, and those that a spreadsheet would evaluate in a CSV.
SHOWN = [
    "=1+1", "+1", "-1", "@A1", r"\t=1", r"\r=1", " =1", "\uff1d1", "#N/A", r"a\x00b\x1b", r"\ud800", r'x",\n=1',
]  # fmt: skip
FORMULAS = {"=1+1", "+1", "-1", "@A1", " =1", "\uff1d1"}


def test_csv_text_is_never_a_formula(tmp_path: Path) -> None:
    write_frame(pd.DataFrame({"=name": HOSTILE, "number": [-1.5] * len(HOSTILE)}), tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["'=name", "number"]
    assert rows == [[f"'{text}" if text in FORMULAS else text, "-1.5"] for text in SHOWN]


def test_xlsx_text_is_text_and_numbers_are_numbers(tmp_path: Path) -> None:
    write_frame(pd.DataFrame({"=name": HOSTILE, "number": [-1.5] * len(HOSTILE)}), tmp_path / "t.xlsx")
    header, *rows = openpyxl.load_workbook(tmp_path / "t.xlsx").worksheets[0].iter_rows()
    assert [(cell.value, cell.data_type) for cell in header] == [("=name", "s"), ("number", "s")]
    assert [(text.value, text.data_type, number.value, number.data_type) for text, number in rows] == [
        (text, "s", -1.5, "n") for text in SHOWN
    ]


def test_a_file_keeps_every_digit_of_a_seed_and_empty_cells(tmp_path: Path) -> None:
    frame = pd.DataFrame({"seed": [2**63 - 1, -7, None], "loss": [3.25, float("nan"), 1.0]}, dtype=object)
    write_frame(frame, tmp_path / "t.xlsx")
    _, *rows = openpyxl.load_workbook(tmp_path / "t.xlsx").worksheets[0].iter_rows(values_only=True)
    assert rows == [(str(2**63 - 1), 3.25), (-7, None), (None, 1)]
    write_frame(frame, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().splitlines() == ["seed,loss", f"{2**63 - 1},3.25", "-7,", ",1.0"]


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"t\.txt.*\.csv"):
        write_frame(pd.DataFrame({"a": [1]}), tmp_path / "t.txt")
    assert not list(tmp_path.iterdir())
