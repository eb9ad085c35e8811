"""MD5 lists: what is read of them, and which lines are refused by name."""

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_scripts.checksums import LIST_NAME, file_md5, parse_list
from data_scripts.errors import CommandError
from gptoss20b.data.md5_list import ListedFile

SUM = "0123456789abcdef" * 2


def test_reads_what_md5sum_writes(tmp_path: Path) -> None:
    files = {"a.bin": b"1", "b c.idx": b"", "d/e*f": b"3" * 5_000_000}
    (tmp_path / "d").mkdir()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for option in ("--binary", "--text"):
        listed = subprocess.run(["md5sum", option, *files], cwd=tmp_path, capture_output=True, check=True).stdout
        expected = tuple(ListedFile(name, hashlib.md5(data).hexdigest()) for name, data in files.items())
        assert parse_list(listed, "x") == expected
    seen: list[int] = []
    for name, md5 in expected:
        assert file_md5(tmp_path / name, seen.append) == md5
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (1, 5_000_000)


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (f"{SUM}  ./a/b.bin", "a/b.bin"),
        (f"{SUM} *./b.bin", "b.bin"),
        (f"{SUM.upper()}\tb.bin\r", "b.bin"),
        (f"{SUM}  ...", "..."),
        (f"{SUM}  ä b", "ä b"),
    ],
)
def test_accepts(line: str, path: str) -> None:
    assert parse_list(f"\n{line}\n \n".encode(), "x") == (ListedFile(path, SUM),)


@pytest.mark.parametrize(
    "line",
    [
        "no list",
        f"{SUM}",
        f"{SUM}  ",
        f"{SUM[1:]}  a",
        f"{SUM}0  a",
        f"g{SUM[1:]}  a",
        f" {SUM}  a",
        f"{SUM}  /etc/passwd",
        f"{SUM}  ../a",
        f"{SUM}  a/../../b",
        f"{SUM}  a/..",
        f"{SUM}  .",
        f"{SUM}  ./",
        f"{SUM}  ././a",
        f"{SUM}  a//b",
        f"{SUM}  a/",
        f"{SUM}  a\\b",
        f"\\{SUM}  a\\nb",
        f"{SUM}  a\0b",
        f"{SUM}  a\x1b[31m",
        f"{SUM}  a\rb",
        f"{SUM}  a\u2028b",
        f"{SUM}  first",
        f"{SUM}  ./first",
        f"{SUM}  .download/first.part",
        f"{SUM}  {LIST_NAME}",
    ],
)
def test_refuses_and_names_the_line(line: str) -> None:
    with pytest.raises(CommandError, match=r"^x: line 3: got ") as caught:
        parse_list(f"{SUM}  first\n\n{line}\n{SUM}  last\n".encode(), "x")
    assert str(caught.value).isprintable()


def test_refuses_bytes_that_are_no_text() -> None:
    with pytest.raises(CommandError, match=r"^x: line 1: got ") as caught:
        parse_list(f"{SUM}  ".encode() + b"\xff\n", "x")
    str(caught.value).encode()


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_an_empty_list_is_none(data: bytes) -> None:
    with pytest.raises(CommandError, match=r"^x: got no file; expected"):
        parse_list(data, "x")


@given(
    st.one_of(st.binary(max_size=80), st.text(max_size=40).map(lambda text: f"{SUM}  {text}".encode(errors="ignore")))
)
def test_no_list_leads_out_of_the_folder(data: bytes) -> None:
    root = Path("/anywhere/data")
    try:
        listed = parse_list(data, "x")
    except CommandError as error:
        assert str(error).isprintable()
        return
    for path, md5 in listed:
        assert (root / path).is_relative_to(root)
        assert ".." not in (root / path).parts
        assert len(md5) == 32
