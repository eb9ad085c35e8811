"""Make a small data set of real English text without a network: `python -m data_scripts.make_sample_data [DIR]`.

The text is the documentation inside Python's own standard library: the topics that `help()` shows and the docstrings of
every module's source, which is parsed and never imported. Tokens are UTF-8 bytes (vocabulary 256). Names and format are
those of the published C4 set, so a run reads either with the same code. A given Python version always gives the same
files.
"""

import ast
import hashlib
import json
import platform
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from data_scripts.dataset_writer import IndexedDatasetWriter
from data_scripts.errors import CommandError, told
from gptoss20b.data.files import with_suffix
from gptoss20b.data.indexed_dataset import IndexedDataset
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX, Windows

VOCAB_SIZE = 256
SEQUENCE_LENGTH = 8192
MANIFEST = "sample.json"
# raise when the documents or their order change for another reason than Python's version
_FORMAT = 1
_PREFIXES = (TRAIN_PREFIX, VALIDATION_PREFIX)
# no prose for readers, or only in some installations
_SKIPPED_MODULES = frozenset({"idlelib", "lib2to3", "test", "turtledemo"})
_SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})

Manifest = dict[str, Any]


class Document(NamedTuple):
    """A text with a unique name; the name alone decides its split and its place."""

    name: str
    text: str

    def data(self) -> bytes:
        """The document's tokens, one byte each: its text and a blank line."""
        # Docstrings may spell lone surrogates, which UTF-8 cannot hold: write them as escapes.
        return (self.text.strip() + "\n\n").encode("utf-8", "backslashreplace")


class SampleError(CommandError):
    """The sample data cannot be made; the message says why and how to fix it."""


def collect_documents(stdlib: Path | None = None) -> list[Document]:
    """The help topics and module docstrings of this Python, sorted by name; modules without docstrings are left out.

    Args:
        stdlib: folder of the standard library's source; None is this interpreter's.

    Raises:
        SampleError: there is no source, as in a stripped or zipped Python.
    """
    from pydoc_data.topics import topics

    folder = Path(sysconfig.get_path("stdlib")) if stdlib is None else stdlib
    modules = [document for document in _module_documents(folder) if document.text.strip()]
    if not modules:
        raise SampleError(
            f"{folder}: got no module with docstrings; expected the standard library's source. "
            "To fix: use a Python installed with its .py files."
        )
    return sorted([*(Document(f"topic:{name}", text) for name, text in topics.items()), *modules])


def _module_documents(folder: Path) -> Iterator[Document]:
    # Only names that Python itself lists: whatever else lies in the folder (a distribution's patches, installed
    # packages, the machine's build settings) differs between machines.
    for name in sorted(sys.stdlib_module_names - _SKIPPED_MODULES):
        for path in [folder / f"{name}.py", *sorted((folder / name).rglob("*.py"))]:
            parts = path.relative_to(folder).with_suffix("").parts
            if path.is_file() and not _SKIPPED_FOLDERS.intersection(parts):
                yield Document("module:" + ".".join(parts).removesuffix(".__init__"), _docstrings(path))


def _docstrings(path: Path) -> str:
    """All docstrings of a source file in the order they stand, parted by blank lines."""
    with warnings.catch_warnings():
        # what old source may warn about (unknown escapes) is not this command's business
        warnings.simplefilter("ignore")
        tree = ast.parse(path.read_bytes(), filename=path.name)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.append((getattr(node, "lineno", 0), ast.get_docstring(node) or ""))
    found.sort(key=lambda item: item[0])
    return "\n\n".join(text for _, text in found if text)


def split_documents(documents: list[Document]) -> dict[str, list[Document]]:
    """Documents by file prefix: about a tenth for validation, each split shuffled, both by hashes of the names."""

    def digest(purpose: str, document: Document) -> bytes:
        return hashlib.sha256(f"{purpose}:{document.name}".encode()).digest()

    splits: dict[str, list[Document]] = {prefix: [] for prefix in _PREFIXES}
    for document in sorted(documents, key=lambda document: digest("order", document)):
        held_out = int.from_bytes(digest("split", document)[:8], "big") % 10 == 0
        splits[VALIDATION_PREFIX if held_out else TRAIN_PREFIX].append(document)
    return splits


def make(directory: Path, documents: list[Document], *, force: bool = False) -> bool:
    """Write both pairs and the manifest into `directory`; False if they were there already, byte for byte.

    Everything is written beside its final place and renamed, the manifest last, so that a killed run leaves no broken
    file under a final name.

    Raises:
        SampleError: files of these names with other content exist and `force` is False.
        OSError: the directory cannot be written.
    """
    splits = split_documents(documents)
    manifest = _describe(splits)
    saved = _load_manifest(directory)
    if not force and saved == {**manifest, "files": saved.get("files")} and _files_match(directory, saved["files"]):
        return False
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sample-", dir=directory) as name:
        built = Path(name)
        for prefix, chosen in splits.items():
            _write_pair(built / prefix, chosen)
        manifest["files"] = {path.name: _fingerprint(path) for path in sorted(built.iterdir())}
        if not force:
            _refuse_others(directory, manifest["files"])
        (directory / MANIFEST).unlink(missing_ok=True)
        for file in manifest["files"]:
            (built / file).replace(directory / file)
        (built / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        (built / MANIFEST).replace(directory / MANIFEST)
    return True


def _describe(splits: dict[str, list[Document]]) -> Manifest:
    """The manifest without its files: what a reader needs to know, and nothing of the machine or the hour."""
    source = hashlib.sha256()
    counts: dict[str, dict[str, int]] = {}
    for prefix, chosen in splits.items():
        tokens = 0
        for document in chosen:
            data = document.data()
            tokens += len(data)
            source.update(f"{prefix} {document.name} {len(data)}\n".encode() + data)
        counts[prefix] = {
            "documents": len(chosen),
            "tokens": tokens,
            f"sequences_of_{SEQUENCE_LENGTH}": max(0, tokens - 1) // SEQUENCE_LENGTH,
        }
    return {
        "format": _FORMAT,
        "python": platform.python_version(),
        "vocab_size": VOCAB_SIZE,
        "source_sha256": source.hexdigest(),
        "splits": counts,
    }


def _load_manifest(directory: Path) -> Manifest:
    """The saved manifest; empty if there is none or it is not one."""
    try:
        saved = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return saved if isinstance(saved, dict) else {}


def _fingerprint(path: Path) -> dict[str, int | str]:
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _differs(path: Path, entry: dict[str, int | str]) -> bool:
    # Size first: under the same name may lie the 80 GB of the real set, which take minutes to hash.
    return path.stat().st_size != entry["bytes"] or _fingerprint(path) != entry


def _files_match(directory: Path, files: object) -> bool:
    names = {f"{prefix}{suffix}" for prefix in _PREFIXES for suffix in (".bin", ".idx")}
    if not isinstance(files, dict) or set(files) != names:
        return False
    entries = ((directory / name, entry) for name, entry in files.items())
    return all(
        isinstance(entry, dict) and path.is_file() and "bytes" in entry and not _differs(path, entry)
        for path, entry in entries
    )


def _refuse_others(directory: Path, files: dict[str, dict[str, int | str]]) -> None:
    others = [
        name for name, entry in files.items() if (directory / name).exists() and _differs(directory / name, entry)
    ]
    if others:
        raise SampleError(
            f"{directory}: got {', '.join(others)} with other content; expected no such file, or one this command "
            "made with this Python. To fix: name another folder, or pass --force to overwrite them."
        )


def _write_pair(prefix: Path, documents: list[Document]) -> None:
    """Write `PREFIX.bin` and `PREFIX.idx` as int32, one sequence per document."""
    lengths = with_suffix(prefix, ".lengths")
    with IndexedDatasetWriter(with_suffix(prefix, ".bin"), lengths) as pair:
        for document in documents:
            # no end-of-document token: the published set has none
            tokens = np.frombuffer(document.data(), np.uint8)
            pair.add(tokens, np.array([tokens.size]))
        pair.write_index(with_suffix(prefix, ".idx"))
    lengths.unlink()


def _summary(directory: Path) -> Iterator[str]:
    """One line per split, read back through the reader that a run uses."""
    for prefix in _PREFIXES:
        with IndexedDataset.open(directory / prefix) as tokens:
            windows = Windows(tokens, SEQUENCE_LENGTH, VOCAB_SIZE)
            size = tokens.path.stat().st_size / 1e6
            yield (
                f"{prefix}: {tokens.document_count:,} documents, {tokens.token_count:,} tokens, "
                f"{windows.count:,} sequences of {SEQUENCE_LENGTH}, {size:.1f} MB"
            )


def main(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.")] = Path("data/sample"),
    force: Annotated[bool, typer.Option("--force", help="Write again, over files of any content.")] = False,
) -> None:
    """Make a small data set of real English text, without a network.

    It holds the documentation of Python's standard library as UTF-8 bytes (vocabulary 256), split by document into
    training and validation, under the names and in the format of the published C4 set.
    """
    started = time.monotonic()
    with told():
        written = make(directory, collect_documents(), force=force)
        for line in _summary(directory):
            typer.echo(line)
        outcome = "written" if written else "already there and unchanged, nothing written"
        typer.echo(f"{directory}: {outcome}, {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    typer.run(main)
