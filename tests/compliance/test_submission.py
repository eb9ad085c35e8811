"""Submission trees: results, system descriptions, divisions, paths in messages."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance.file_tree import Link, printable
from compliance.records import ParseError
from compliance.run import Machine
from compliance.submission import MAX_DESCRIPTION_BYTES, SystemDescription, read_submission, read_system_description
from tests.support.made_logs import MadeLog, system_description, write_tree

RESULTS = "results/sys_1x8/gpt_oss_20b"
CODE = "benchmarks/gpt_oss_20b/implementations/sys_1x8"


def tree(tmp_path: Path, logs: int = 2) -> Path:
    return write_tree(tmp_path / "tree", [MadeLog([])] * logs)


def system_file(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "sys_1x8.json"
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(data)
    return path


def described(tmp_path: Path, **changes: Any) -> SystemDescription:
    system = read_system_description(system_file(tmp_path, system_description(**changes)))
    assert isinstance(system, SystemDescription)
    return system


def parse_error(path: Path) -> ParseError:
    error = read_system_description(path)
    assert isinstance(error, ParseError)
    assert error.rule == "package-system-description"
    return error


def test_a_tree_is_listed(tmp_path: Path) -> None:
    root = tree(tmp_path, 11)
    submission = read_submission(root)
    assert submission.root == root
    assert list(submission.systems) == list(submission.system_names) == ["sys_1x8"]
    (folder,) = submission.results
    assert (folder.system, folder.path, folder.others) == ("sys_1x8", str(root / RESULTS), ())
    # In order of their numbers: 2 comes before 10.
    assert folder.logs == tuple(root / RESULTS / f"result_{number}.txt" for number in range(11))
    assert [file.name for file in submission.code] == [
        f"{CODE}/{name}" for name in ("README.md", "run_and_time.sh", "train.py")
    ]
    assert submission.code[0].size == (root / CODE / "README.md").stat().st_size
    assert (submission.links, submission.problems) == ((), ())


def test_other_files_beside_the_logs(tmp_path: Path) -> None:
    root = tree(tmp_path)
    for name in ("result_1.log", "results_1.txt", "result_a.txt", "result_٣.txt", "scaling.json"):
        (root / RESULTS / name).write_text("")
    (root / RESULTS / "power").mkdir()
    (root / RESULTS / "power" / "node_0.txt").write_text("")
    (folder,) = read_submission(root).results
    assert [log.name for log in folder.logs] == ["result_0.txt", "result_1.txt"]
    assert folder.others == ("power", "result_1.log", "result_a.txt", "result_٣.txt", "results_1.txt", "scaling.json")


def test_other_benchmarks_and_version_control_are_not_entered(tmp_path: Path) -> None:
    root = tree(tmp_path)
    for folder in ("benchmarks/bert", "results/sys_1x8/bert", ".git"):
        (root / folder).mkdir()
        (root / folder / "file.txt").write_text("")
    submission = read_submission(root)
    assert {"benchmarks/bert", "results/sys_1x8/bert", ".git"} <= submission.folders
    assert not [file for file in submission.files if file.name.endswith("file.txt")]
    assert submission.subfolders("results/sys_1x8") == ["bert", "gpt_oss_20b"]
    assert len(submission.results) == 1


def test_messages_name_files_by_the_given_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path)
    (root / "systems" / "bad.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    submission = read_submission(Path("tree"))
    assert submission.systems["sys_1x8"].path == "tree/systems/sys_1x8.json"
    assert submission.results[0].path == f"tree/{RESULTS}"
    assert submission.results[0].logs[0] == Path("tree", RESULTS, "result_0.txt")
    assert [file for file, _ in submission.problems] == ["tree/systems/bad.json"]
    assert submission.system_names == ("bad", "sys_1x8")
    # Messages can name another root. The logs are opened where they are.
    moved = read_submission(Path("tree"), display_root=Path("later"))
    assert moved.systems["sys_1x8"].path == "later/systems/sys_1x8.json"
    assert moved.results[0].path == f"later/{RESULTS}"
    assert moved.problems[0][0] == "later/systems/bad.json"
    assert moved.path("x") == "later/x"
    assert moved.results[0].logs[0].is_file()


@pytest.mark.parametrize("missing", ["nothing", "file"])
def test_a_root_that_is_no_folder(tmp_path: Path, missing: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=f"{missing}: no such folder"):
        read_submission(tmp_path / missing)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("closed/org", "closed"),
        ("Open/org", "open"),
        ("open/closed", "closed"),
        ("closed/open/org", "open"),
        ("enclosed/org", None),
        ("closed/../org", None),
    ],
)
def test_the_division_of_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, expected: str | None
) -> None:
    (tmp_path / place.partition("/")[0]).mkdir()
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    assert read_submission(tmp_path / place).folder_division == expected
    monkeypatch.chdir(tmp_path / place)
    assert read_submission(Path()).folder_division == expected


def test_a_system_description(tmp_path: Path) -> None:
    system = described(tmp_path, number_of_nodes=" 4 ", accelerators_per_node="8")
    assert (system.name, system.path) == ("sys_1x8", str(tmp_path / "sys_1x8.json"))
    assert (system.text("division"), system.text("submitter")) == ("closed", "Example Laboratory")
    assert (system.count("number_of_nodes"), system.machine) == (4, Machine(32, system.path))
    assert system.raw["cooling"] == "example"


@pytest.mark.parametrize("count", ["0", "-1", "8.0", "eight", "", "٣", "9" * 5000, 0, -2, 8.0, True, None, [8], {}])
def test_counts_that_are_not_positive_whole_numbers(tmp_path: Path, count: object) -> None:
    system = described(tmp_path, number_of_nodes=count)
    assert (system.count("number_of_nodes"), system.count("accelerators_per_node"), system.machine) == (None, 8, None)
    system = described(tmp_path, accelerators_per_node=count)
    assert (system.count("number_of_nodes"), system.count("accelerators_per_node"), system.machine) == (1, None, None)


def test_a_count_may_be_a_number(tmp_path: Path) -> None:
    assert described(tmp_path, number_of_nodes=3).machine == Machine(24, str(tmp_path / "sys_1x8.json"))


@pytest.mark.parametrize("value", [None, 7, ["closed"], {"a": 1}, True])
def test_texts_that_are_not_strings(tmp_path: Path, value: object) -> None:
    system = described(tmp_path, division=value)
    assert system.text("division") is None
    assert system.raw["division"] == value


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b"", 1, "not JSON: Expecting value in column 1"),
        (b'{\n"a": 1,\n"b" 2}', 3, "not JSON: Expecting ':' delimiter in column 5"),
        (b'{"a": 1}\n{"b": 2}', 2, "not JSON: Extra data"),
        (b"\xef\xbb\xbf{}", 1, "not JSON: Unexpected UTF-8 BOM"),
        (b'{"a": "b",\n\n"c": "\xff"}', 3, "not UTF-8"),
        (b"\xff\xfe{\x00}\x00", 1, "not UTF-8"),
        (b'["division"]', 1, "not a JSON object"),
        (b"null", 1, "not a JSON object"),
        (b"[" * 100_000, None, "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", None, "4300 digits"),
    ],
)
def test_descriptions_that_cannot_be_read(tmp_path: Path, content: bytes, line: int | None, message: str) -> None:
    error = parse_error(system_file(tmp_path, content))
    assert error.line == line
    assert message in error.message


def test_the_line_with_the_json_error_is_quoted(tmp_path: Path) -> None:
    assert parse_error(system_file(tmp_path, b'{\n  "a": 1,\n  b: 2}')).got == "b: 2}"
    assert len(parse_error(system_file(tmp_path, b"x" * 5000)).got or "") == 80
    assert parse_error(system_file(tmp_path, b"{\n")).got is None


def test_a_description_has_a_largest_size(tmp_path: Path) -> None:
    largest = json.dumps(system_description()).encode().ljust(MAX_DESCRIPTION_BYTES)
    assert isinstance(read_system_description(system_file(tmp_path, largest)), SystemDescription)
    assert "larger than 1,048,576 bytes" in parse_error(system_file(tmp_path, largest + b" ")).message


def test_irregular_files_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("pipe.json", "missing.json", "", "\0"):
        assert "no such file" in parse_error(tmp_path / name).message


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = system_file(tmp_path, {})
    monkeypatch.setattr(Path, "open", deny)
    assert parse_error(path).message == "cannot be read: Permission denied"


@given(st.binary(max_size=300) | st.from_regex(rb'\A\{("[a-z]{1,3}": ?[\[\]{}"0-9eE.+-]{1,9},?\n?){0,9}\}?\Z'))
def test_no_bytes_raise(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    read_system_description(system_file(folder, content))


def test_links_out_of_the_tree_are_listed_and_not_followed(tmp_path: Path) -> None:
    root = tree(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.json").write_text(json.dumps(system_description()))
    (outside / "result_9.txt").write_text("")
    (root / "systems" / "out.json").symlink_to(outside / "secret.json")
    (root / RESULTS / "result_9.txt").symlink_to("../../../../outside/result_9.txt")
    (root / CODE / "folder").symlink_to(outside)
    (root / CODE / "nowhere").symlink_to(tmp_path / "missing")
    submission = read_submission(root)
    assert submission.links == (
        Link(f"{CODE}/folder", str(outside), "outside"),
        Link(f"{CODE}/nowhere", str(tmp_path / "missing"), "outside"),
        Link(f"{RESULTS}/result_9.txt", "../../../../outside/result_9.txt", "outside"),
        Link("systems/out.json", str(outside / "secret.json"), "outside"),
    )
    assert list(submission.system_names) == list(submission.systems) == ["sys_1x8"]
    assert [log.name for log in submission.results[0].logs] == ["result_0.txt", "result_1.txt"]
    assert not [file for file in submission.files if "secret" in file.name or "result_9" in file.name]


def test_a_folder_whose_name_begins_like_the_root_is_outside(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (tmp_path / "tree2").mkdir()
    (root / CODE / "folder").symlink_to(tmp_path / "tree2")
    assert [link.kind for link in read_submission(root).links] == ["outside"]


def test_links_within_the_tree(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / RESULTS / "result_2.txt").symlink_to("result_0.txt")
    (root / CODE / "again").symlink_to("..")
    (root / CODE / "broken").symlink_to("missing")
    (root / CODE / "loop").symlink_to("loop")
    submission = read_submission(root)
    assert [log.name for log in submission.results[0].logs][-1] == "result_2.txt"
    kinds = {link.name.rpartition("/")[2]: link.kind for link in submission.links}
    assert kinds == {"again": "folder", "broken": "broken", "loop": "broken"}


def test_a_tree_reached_by_a_link(tmp_path: Path) -> None:
    tree(tmp_path)
    (tmp_path / "link").symlink_to("tree")
    submission = read_submission(tmp_path / "link")
    assert submission.systems["sys_1x8"].path == str(tmp_path / "link" / "systems" / "sys_1x8.json")
    assert submission.links == ()


def test_pipes_are_reported_and_not_opened(tmp_path: Path) -> None:
    root = tree(tmp_path)
    os.mkfifo(root / RESULTS / "result_2.txt")
    os.mkfifo(root / "systems" / "pipe.json")
    submission = read_submission(root)
    assert [log.name for log in submission.results[0].logs] == ["result_0.txt", "result_1.txt"]
    assert [(Path(file).name, error.rule) for file, error in submission.problems] == [
        ("result_2.txt", "package-structure"),
        ("pipe.json", "package-structure"),
    ]


def test_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path)
    scandir = os.scandir

    def deny(path: Path) -> Any:
        if Path(path).name == "systems":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("compliance.file_tree.os.scandir", deny)
    submission = read_submission(root)
    ((file, error),) = submission.problems
    assert (file, error.message) == (str(root / "systems"), "cannot be listed: Permission denied")
    assert len(submission.results) == 1


def test_messages_show_names_on_one_printable_line(tmp_path: Path) -> None:
    assert printable(Path("a/é b")) == "a/é b"
    assert printable("a\n\x1b[31m\udcff") == "a\\n\\x1b[31m\\udcff"
    root = tree(tmp_path)
    (root / "systems" / "a\nb.json").write_text("{}")
    submission = read_submission(root)
    assert submission.systems["a\nb"].path == str(root / "systems") + "/a\\nb.json"


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "systems" / os.fsdecode(b"\xff.json")).write_text("{")
    ((file, _),) = read_submission(root).problems
    assert file.endswith("\\udcff.json")
    file.encode("utf-8")
