"""Make a small dataset of real English text without a network: `python -m data_scripts.make_sample_data [DIR]`.

The text is the documentation in Python's standard library: the topics of `help()` and the docstrings of every module's
source, which is parsed and never imported. Tokens are UTF-8 bytes (vocabulary 256). Names and format are those of the
published C4 set, so a run reads either with the same code. One Python version always gives the same files.
"""

from __future__ import annotations

import ast
import filecmp
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

from gptoss20b.data.indexed_dataset import IndexedDataset
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX, Windows, count_windows

from .c4 import PREFIXES, SEQUENCE_LENGTH
from .dataset_writer import write_dataset
from .errors import CommandError, cli_errors

VOCAB_SIZE = 256
MANIFEST = "sample.json"
# Increase when the documents or their order change for another reason than Python's version.
_FORMAT = 1
# without prose for readers, or only in some installations
_SKIPPED_MODULES = frozenset({"idlelib", "lib2to3", "test", "turtledemo"})
_SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


class Document(NamedTuple):
    """A text with a unique name, which alone decides its split and its position."""

    name: str
    text: str

    def data(self) -> bytes:
        """Return the document's tokens, one byte each: its text and a blank line."""
        # Docstrings may contain lone surrogates, which UTF-8 cannot encode: write them as escapes.
        return (self.text.strip() + "\n\n").encode("utf-8", "backslashreplace")


def collect_documents(stdlib: Path | None = None) -> list[Document]:
    """Return the help topics and module docstrings of this Python, sorted by name.

    Args:
        stdlib: folder of the standard library's source; None is this interpreter's.

    Raises:
        CommandError: no source found, as in a stripped or zipped Python.
    """
    from pydoc_data.topics import topics

    folder = Path(sysconfig.get_path("stdlib")) if stdlib is None else stdlib
    modules = [document for document in _module_documents(folder) if document.text.strip()]
    if not modules:
        raise CommandError(
            f"{folder}: got no module with docstrings; expected the standard library's source. "
            "To fix: use a Python installed with its .py files."
        )
    return sorted([*(Document(f"topic:{name}", text) for name, text in topics.items()), *modules])


def _module_documents(folder: Path) -> Iterator[Document]:
    # Only names that Python itself lists. Whatever else is in the folder (a distribution's patches, installed packages,
    # the machine's build settings) differs between machines.
    for name in sorted(sys.stdlib_module_names - _SKIPPED_MODULES):
        for path in [folder / f"{name}.py", *sorted((folder / name).rglob("*.py"))]:
            parts = path.relative_to(folder).with_suffix("").parts
            if path.is_file() and not _SKIPPED_FOLDERS.intersection(parts):
                yield Document("module:" + ".".join(parts).removesuffix(".__init__"), _docstrings(path))


def _docstrings(path: Path) -> str:
    """Return all docstrings of a source file in source order, separated by blank lines."""
    with warnings.catch_warnings():
        # Old source may contain unknown escapes, about which the parser warns.
        warnings.simplefilter("ignore")
        tree = ast.parse(path.read_bytes(), filename=path.name)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.append((getattr(node, "lineno", 0), ast.get_docstring(node) or ""))
    found.sort(key=lambda item: item[0])
    return "\n\n".join(text for _, text in found if text)


def split_documents(documents: list[Document]) -> dict[str, list[Document]]:
    """Split documents by prefix: about a tenth for validation, each split shuffled, both by hashes of the names."""

    def digest(purpose: str, document: Document) -> bytes:
        return hashlib.sha256(f"{purpose}:{document.name}".encode()).digest()

    splits: dict[str, list[Document]] = {prefix: [] for prefix in PREFIXES}
    for document in sorted(documents, key=lambda document: digest("order", document)):
        held_out = int.from_bytes(digest("split", document)[:8], "big") % 10 == 0
        splits[VALIDATION_PREFIX if held_out else TRAIN_PREFIX].append(document)
    return splits


def make(directory: Path, documents: list[Document], *, force: bool = False) -> bool:
    """Write both datasets and the manifest into `directory`; return False if they were there already, byte for byte.

    Everything is written to a temporary folder and renamed, the manifest last. A killed run leaves no broken file under
    a final name.

    Raises:
        CommandError: files of these names with other content exist, and `force` is False.
    """
    splits = split_documents(documents)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sample-", dir=directory) as name:
        built = Path(name)
        for prefix, chosen in splits.items():
            # No end-of-document token: the published set has none.
            write_dataset(built / prefix, (np.frombuffer(document.data(), np.uint8) for document in chosen))
        files = {path.name: _size_and_sha256(path) for path in sorted(built.iterdir())}
        manifest = json.dumps({**_describe(splits), "files": files}, indent=2) + "\n"
        (built / MANIFEST).write_text(manifest, encoding="utf-8")
        if not force:
            existing = [name for name in files if (directory / name).exists()]
            # filecmp compares sizes first: a file may be the 80 GB of the published set, which take minutes to read.
            changed = [name for name in existing if not filecmp.cmp(built / name, directory / name, shallow=False)]
            if changed:
                raise CommandError(
                    f"{directory}: got {', '.join(changed)} with other content; expected no such file, or one this "
                    "command made with this Python. To fix: name another folder, or pass --force to overwrite them."
                )
            before = directory / MANIFEST
            if len(existing) == len(files) and before.exists() and before.read_bytes() == manifest.encode():
                return False
        (directory / MANIFEST).unlink(missing_ok=True)
        for file in [*files, MANIFEST]:
            (built / file).replace(directory / file)
    return True


def _describe(splits: dict[str, list[Document]]) -> dict[str, Any]:
    """Return the manifest without its files; it depends neither on the machine nor on the time."""
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
            f"sequences_of_{SEQUENCE_LENGTH}": count_windows(tokens, SEQUENCE_LENGTH),
        }
    return {
        "format": _FORMAT,
        "python": platform.python_version(),
        "vocab_size": VOCAB_SIZE,
        "source_sha256": source.hexdigest(),
        "splits": counts,
    }


def _size_and_sha256(path: Path) -> dict[str, int | str]:
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _summary(directory: Path) -> Iterator[str]:
    """Yield one line per split, read back with the reader that a run uses."""
    for prefix in PREFIXES:
        with IndexedDataset.open(directory / prefix) as dataset:
            windows = Windows(dataset, SEQUENCE_LENGTH, VOCAB_SIZE)
            size = dataset.path.stat().st_size / 1e6
            yield (
                f"{prefix}: {dataset.document_count:,} documents, {dataset.token_count:,} tokens, "
                f"{windows.count:,} sequences of {SEQUENCE_LENGTH}, {size:.1f} MB"
            )


def main(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.")] = Path("data/sample"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files, whatever they hold.")] = False,
) -> None:
    """Make a small dataset of real English text, without a network.

    The text is the documentation of Python's standard library, as UTF-8 bytes (vocabulary 256). Documents are split
    into training and validation. Names and format are those of the published C4 set.
    """
    started = time.monotonic()
    with cli_errors():
        written = make(directory, collect_documents(), force=force)
        for line in _summary(directory):
            typer.echo(line)
        outcome = "written" if written else "already there and unchanged, nothing written"
        typer.echo(f"{directory}: {outcome}, {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    typer.run(main)
