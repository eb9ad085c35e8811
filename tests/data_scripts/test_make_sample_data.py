"""The sample data: real text, deterministic, never half-written, never over other files."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from data_scripts import c4, make_sample_data
from data_scripts.errors import CommandError
from data_scripts.make_sample_data import Document, collect_documents, make, split_documents
from gptoss20b.data.indexed_dataset import IndexedDataset
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX, Windows
from tests.support.data_commands import run_data_command
from tests.support.small_sets import flip

FEW = [Document(f"module:m{number}", f"Text number {number}, with an accent: é.") for number in range(40)]
FILES = sorted(c4.FILES)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return collect_documents()


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory, documents: list[Document]) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    assert make(folder, documents)
    return folder


def test_collects_topics_and_docstrings_once(documents: list[Document]) -> None:
    names = [document.name for document in documents]
    assert names == sorted(set(names))
    assert {"topic:assert", "module:json", "module:json.decoder", "module:argparse"} <= set(names)
    parts = {part for name in names for part in name.removeprefix("module:").split(".") if name.startswith("module:")}
    assert not parts & {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "torch", "numpy", "__init__"}
    by_name = dict(documents)
    assert by_name["module:json"].startswith("JSON (JavaScript Object Notation)")
    assert "Deserialize" in by_name["module:json"], "docstrings of functions too"
    assert "import codecs" not in by_name["module:json"], "documentation, not code"
    assert all(text.strip() for text in by_name.values())


def test_docstrings_come_in_source_order_from_any_encoding(tmp_path: Path) -> None:
    source = """# -*- coding: latin-1 -*-
'One é.'
class A:
    'Two.'
    async def f(self):
        'Three.'
def g():
    'Four \\d.'
"""
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").write_bytes(source.encode("latin-1"))
    (tmp_path / "notpartofpython.py").write_text('"""Installed by somebody."""')
    modules = [document for document in collect_documents(tmp_path) if document.name.startswith("module:")]
    assert modules == [Document("module:json", "One é.\n\nTwo.\n\nThree.\n\nFour \\d.")]


def test_modules_are_parsed_not_imported_and_there_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"\.py files"):
        collect_documents(tmp_path)
    (tmp_path / "this.py").write_text('"""Text."""\nraise SystemExit("imported")\n')
    assert Document("module:this", "Text.") in collect_documents(tmp_path)


def test_split_depends_on_names_alone(documents: list[Document]) -> None:
    splits = split_documents(documents)
    train, validation = splits[TRAIN_PREFIX], splits[VALIDATION_PREFIX]
    assert not set(train) & set(validation)
    assert sorted(train + validation) == documents
    assert 0.05 < len(validation) / len(documents) < 0.15
    assert train != sorted(train), "shuffled"
    fewer = split_documents([Document(name, "other text") for name, _ in reversed(documents[::2])])
    kept = {name for name, _ in documents[::2]}
    for prefix, chosen in fewer.items():
        assert [name for name, _ in chosen] == [name for name, _ in splits[prefix] if name in kept]


def test_documents_are_bytes_with_a_blank_line() -> None:
    assert Document("a", "  é\n").data() == b"\xc3\xa9\n\n"
    assert Document("a", "\ud800").data() == b"\\ud800\n\n"


def test_files_hold_the_documents_in_order_and_suffice_for_a_tiny_run(sample: Path, documents: list[Document]) -> None:
    for prefix, chosen in split_documents(documents).items():
        with IndexedDataset.open(sample / prefix) as dataset:
            assert (dataset.document_count, dataset.dtype) == (len(chosen), np.dtype("int32"))
            assert bytes(dataset.read(0, dataset.token_count).tolist()) == b"".join(one.data() for one in chosen)
            assert Windows(dataset, 8192, 256).count >= {TRAIN_PREFIX: 120, VALIDATION_PREFIX: 16}[prefix]


def test_manifest_describes_the_files_and_not_the_machine(sample: Path) -> None:
    text = (sample / "sample.json").read_text()
    manifest = json.loads(text)
    assert manifest["python"] == platform.python_version()
    assert sorted(manifest["files"]) == FILES
    for name, entry in manifest["files"].items():
        data = (sample / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with IndexedDataset.open(sample / TRAIN_PREFIX) as dataset:
        assert manifest["splits"][TRAIN_PREFIX] == {
            "documents": dataset.document_count,
            "tokens": dataset.token_count,
            "sequences_of_8192": Windows(dataset, 8192, 256).count,
        }
    assert os.sep not in text


def test_is_deterministic_and_a_second_run_writes_nothing(tmp_path: Path) -> None:
    assert make(tmp_path / "one", FEW)
    assert make(tmp_path / "two", list(reversed(FEW)))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sorted(contents(tmp_path / "one")) == sorted([*FILES, "sample.json"])
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()}
    assert not make(tmp_path / "one", FEW)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()} == times
    assert make(tmp_path / "one", FEW, force=True)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()} != times


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_neither_accepted_nor_overwritten(tmp_path: Path, name: str) -> None:
    make(tmp_path, FEW)
    good = contents(tmp_path)
    flip(tmp_path / name, -1, 1)
    changed = contents(tmp_path)
    with pytest.raises(CommandError, match="--force") as caught:
        make(tmp_path, FEW)
    assert name in str(caught.value)
    assert contents(tmp_path) == changed
    assert make(tmp_path, FEW, force=True)
    assert contents(tmp_path) == good


@pytest.mark.parametrize("manifest", ["", None])
def test_a_broken_manifest_is_made_again(tmp_path: Path, manifest: str | None) -> None:
    make(tmp_path, FEW)
    good = contents(tmp_path)
    (tmp_path / "sample.json").unlink()
    if manifest is not None:
        (tmp_path / "sample.json").write_text(manifest)
    assert make(tmp_path, FEW)
    assert contents(tmp_path) == good


def stop_after(monkeypatch: pytest.MonkeyPatch, renames: int, folder: Path, documents: list[Document]) -> None:
    """Make sample data over what is there, interrupted after some renames."""
    real, calls = Path.replace, iter(range(9))

    def replace(source: Path, target: Path) -> None:
        if next(calls) == renames:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", replace)
        make(folder, documents, force=True)


@pytest.mark.parametrize("renames", range(5))
def test_stopped_between_renames_leaves_whole_files_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    make(tmp_path / "good", FEW)
    good = contents(tmp_path / "good")
    stop_after(monkeypatch, renames, tmp_path / "stopped", FEW)
    assert contents(tmp_path / "stopped") == {name: good[name] for name in FILES[:renames]}
    assert make(tmp_path / "stopped", FEW)
    assert contents(tmp_path / "stopped") == good
    # A forced run that is stopped at once leaves no outdated manifest.
    stop_after(monkeypatch, 0, tmp_path / "stopped", FEW[:-1])
    assert sorted(contents(tmp_path / "stopped")) == FILES


def test_stopped_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(prefix: Path, documents: Iterable[object]) -> None:
        Path(f"{prefix}.bin").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(make_sample_data, "write_dataset", stop)
    with pytest.raises(OSError, match="No space"):
        make(tmp_path, FEW)
    assert contents(tmp_path) == {}


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: list[Document]) -> None:
    monkeypatch.setattr(make_sample_data, "collect_documents", lambda: documents)
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / f"{TRAIN_PREFIX}.bin").write_bytes(b"the real set")
    (tmp_path / "file").write_text("")
    for name, options, status, words in [
        ("new/folder", [], 0, [TRAIN_PREFIX, VALIDATION_PREFIX, "sequences of 8192", "written"]),
        ("new/folder", [], 0, ["already there"]),
        ("real", [], 1, ["error: ", f"{TRAIN_PREFIX}.bin", "--force"]),
        ("real", ["--force"], 0, ["written"]),
        ("file", [], 1, ["error: "]),
    ]:
        done = run_data_command("sample", tmp_path / name, *options)
        assert done.exit_code == status
        assert all(word in done.output for word in words)
