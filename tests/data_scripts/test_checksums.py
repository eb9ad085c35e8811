"""The list of a download: every line must be right, every path unique; and the MD5 of a file."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from data_scripts.checksums import LIST_NAME, file_md5, parse_list
from data_scripts.errors import CommandError
from gptoss20b.data.md5_list import ListedFile

SUM = "0123456789abcdef" * 2


def test_reads_what_md5sum_writes(tmp_path: Path) -> None:
    files = {"a.bin": b"1", "b c.idx": b"", "d/e*f": b"3" * 5_000_000}
    (tmp_path / "d").mkdir()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    expected = tuple(ListedFile(name, hashlib.md5(data).hexdigest()) for name, data in files.items())
    for option in ("--binary", "--text"):
        listed = subprocess.run(["md5sum", option, *files], cwd=tmp_path, capture_output=True, check=True).stdout
        assert parse_list(listed, "x") == expected
    sizes: list[int] = []
    for name, md5 in expected:
        assert file_md5(tmp_path / name, sizes.append) == md5
    assert sum(sizes) == 5_000_001 and len(sizes) > 2


@pytest.mark.parametrize(
    "line", ["no list", f"{SUM}  first", f"{SUM}  ./first", f"{SUM}  .download/first.part", f"{SUM}  {LIST_NAME}"]
)
def test_refuses_and_names_the_line(line: str) -> None:
    with pytest.raises(CommandError, match=r"^x: line 3: got ") as caught:
        parse_list(f"{SUM}  first\n\n{line}\n{SUM}  last\n".encode(), "x")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_an_empty_list_is_none(data: bytes) -> None:
    with pytest.raises(CommandError, match=r"^x: got no file; expected"):
        parse_list(data, "x")
