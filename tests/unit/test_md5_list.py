"""Lines of MD5 lists: what is accepted, and that no path leads out of the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss20b.data.files import printable
from gptoss20b.data.md5_list import ListedFile, list_lines, parse_line

SUM = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (f"{SUM}  ./a/b.bin", "a/b.bin"),
        (f"{SUM} *./b.bin", "b.bin"),
        (f"{SUM.upper()}\tb.bin\r", "b.bin"),
        (f"{SUM} a/b \r", "a/b"),
        (f"{SUM}  ...", "..."),
        (f"{SUM}  ä b", "ä b"),
    ],
)
def test_accepts(line: str, path: str) -> None:
    ((number, text),) = list_lines(f"\n \n{line}\n\n".encode())
    assert (number, parse_line(text)) == (3, ListedFile(path, SUM))


@pytest.mark.parametrize(
    "line",
    [
        b"no list",
        SUM.encode(),
        f"{SUM}  ".encode(),
        f"{SUM[1:]}  a".encode(),
        f"{SUM}0  a".encode(),
        f"g{SUM[1:]}  a".encode(),
        f" {SUM}  a".encode(),
        f"# {SUM}  a".encode(),
        f"{SUM}  /etc/passwd".encode(),
        f"{SUM}  ../a".encode(),
        f"{SUM}  a/../../b".encode(),
        f"{SUM}  a/..".encode(),
        f"{SUM}  .".encode(),
        f"{SUM}  ./".encode(),
        f"{SUM}  ././a".encode(),
        f"{SUM}  a//b".encode(),
        f"{SUM}  a/".encode(),
        f"{SUM}  a\\b".encode(),
        f"\\{SUM}  a\\nb".encode(),
        f"{SUM}  a\0b".encode(),
        f"{SUM}  a\x1b[31m".encode(),
        f"{SUM}  a\rb".encode(),
        f"{SUM}  a\u2028b".encode(),
        f"{SUM}  ".encode() + b"\xff",
    ],
)
def test_refuses(line: bytes) -> None:
    ((_, text),) = list_lines(line)
    with pytest.raises(ValueError, match=r"^got .*; expected ") as caught:
        parse_line(text)
    assert str(caught.value).isprintable()


@given(
    st.one_of(st.binary(max_size=80), st.text(max_size=40).map(lambda text: f"{SUM}  {text}".encode(errors="ignore")))
)
def test_no_line_leads_out_of_the_folder(data: bytes) -> None:
    root = Path("/anywhere/data")
    for _, line in list_lines(data):
        try:
            path, md5 = parse_line(line)
        except ValueError as error:
            assert str(error).isprintable()
            continue
        assert (root / path).is_relative_to(root)
        assert ".." not in (root / path).parts
        assert len(md5) == 32


def test_printable_is_one_short_line() -> None:
    assert printable("a\n\x1b[31mä" + "x" * 1000) == r"a\n\x1b[31m\xe4" + "x" * 185
