"""Log files: found in folders, ordered, read."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from compliance.log_files import InputError, find_logs, read_log
from tests.support.made_logs import compliant_log

LOG = compliant_log(64, steps_between_train_loss=96).text().encode()


def folder(path: Path, *names: str) -> Path:
    """Make files, and folders for names that end in a slash. Return the path."""
    for name in names:
        if name.endswith("/"):
            (path / name).mkdir(parents=True)
        else:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("names", "logs"),
    [
        (["result_0.txt", "result_1.txt"], ["result_0.txt", "result_1.txt"]),
        (["result_10.txt", "result_2.txt", "result_1.txt"], ["result_1.txt", "result_2.txt", "result_10.txt"]),
        (["result_0.txt", "result_1.txt.gz"], ["result_0.txt", "result_1.txt.gz"]),
        # The name of the rules excludes all others.
        (["result_0.txt", "run_1.log", "notes.txt"], ["result_0.txt"]),
        (["result_0.txt.gz", "run_1.log"], ["result_0.txt.gz"]),
        (["run_1.log", "run_0.log.gz", "b.txt", "c.txt.gz"], ["b.txt", "c.txt.gz", "run_0.log.gz", "run_1.log"]),
        (["9.log", "10.log", "a.log"], ["9.log", "10.log", "a.log"]),
        (["a10b2.log", "a10b10.log", "a9.log"], ["a9.log", "a10b2.log", "a10b10.log"]),
        # Output of the official tools, folders, deeper files and other names are no logs.
        (["run.log", "compliance_checker.log", "rcp_checker.log", "compliance_0.out"], ["run.log"]),
        (["compliance_checker.log.txt", "my_checker.logs.log"], ["compliance_checker.log.txt", "my_checker.logs.log"]),
        (["result_0.txt", "result_1.txt/"], ["result_0.txt"]),
        (["result_1.txt/", "run.log"], ["run.log"]),
        (["a.log", "deeper/b.log", "c.json", "README.md", "d.out"], ["a.log"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_the_logs_of_a_folder(tmp_path: Path, names: list[str], logs: list[str]) -> None:
    where = folder(tmp_path / "logs", *names)
    assert find_logs([where]) == [where / name for name in logs]


@pytest.mark.parametrize(
    "names", [[], ["notes.md"], ["rcp_checker.log"], ["deeper/result_0.txt"], ["compliance_1.out"]]
)
def test_a_folder_without_logs(tmp_path: Path, names: list[str]) -> None:
    folder(tmp_path, *names)
    with pytest.raises(InputError, match="no logs in this folder"):
        find_logs([tmp_path])


def test_files_are_unchanged_and_in_the_given_order(tmp_path: Path) -> None:
    folder(tmp_path, "b.json", "a.log", "set/result_1.txt", "set/result_0.txt", "rcp_checker.log")
    given = [tmp_path / "b.json", tmp_path / "set", tmp_path / "rcp_checker.log", tmp_path / "a.log"]
    found = [path.name for path in find_logs(given)]
    assert found == ["b.json", "result_0.txt", "result_1.txt", "rcp_checker.log", "a.log"]
    assert find_logs([]) == []


def test_missing_paths_are_named(tmp_path: Path) -> None:
    folder(tmp_path, "a.log")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for name in ("missing", "gone", "a.log/b"):
        with pytest.raises(InputError, match=f"{name}: no such file"):
            find_logs([tmp_path / "a.log", tmp_path / name])


@pytest.mark.parametrize("given", [["a.log", "a.log"], ["a.log", "b.log", "a.log"], [".", "b.log"], ["b.log", "."]])
def test_each_log_is_given_once(tmp_path: Path, given: list[str]) -> None:
    folder(tmp_path, "a.log", "b.log")
    with pytest.raises(InputError, match=r"(a|b)\.log: given twice"):
        find_logs([tmp_path / name for name in given])


@pytest.mark.parametrize(("name", "packed"), [("x.txt", False), ("x.gz", True), ("x.txt", True), ("x.gz", False)])
def test_the_content_determines_decompression_not_the_name(tmp_path: Path, name: str, packed: bool) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(LOG) if packed else LOG)
    log = read_log(path)
    assert log.parse_errors == [] and log.size == len(LOG)
    assert log.name == str(path)


def test_several_archives_in_one_are_one_log(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(LOG[:5000]) + gzip.compress(LOG[5000:]))
    assert read_log(path).size == len(LOG)


def test_an_empty_file_is_readable(tmp_path: Path) -> None:
    for name, content in (("x", b""), ("y", gzip.compress(b"")), ("z", b"\x1f")):
        (tmp_path / name).write_bytes(content)
        assert [error.rule for error in read_log(tmp_path / name).parse_errors] == ["file-empty"]


PACKED = gzip.compress(LOG)


@pytest.mark.parametrize(
    "content",
    [
        PACKED[:-100],  # cut
        PACKED[:2],
        PACKED[:500] + b"\xff" * 500 + PACKED[1000:],
        PACKED[:-8] + bytes(8),  # the checksum
        PACKED + b"garbage",
        b"\x1f\x8b\x09" + PACKED[3:],  # unknown method
    ],
    ids=["cut", "two bytes", "overwritten", "checksum", "garbage", "method"],
)
def test_a_damaged_archive_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.gz: damaged gzip file \(.+\)"):
        read_log(path)


def test_only_regular_files_are_logs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path(os.devnull)):
        with pytest.raises(InputError, match=f"{path}: not a regular file"):
            read_log(path)
    (tmp_path / "x").write_bytes(LOG)
    (tmp_path / "link").symlink_to(tmp_path / "x")
    assert read_log(tmp_path / "link").size == len(LOG)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="x: No such file or directory"):
        read_log(tmp_path / "x")
