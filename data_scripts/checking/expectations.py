"""Expected properties of a dataset: the published ones, or those of the manifest beside sample data, and MD5 lists."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from gptoss20b.data.files import REBUILD, DataError, open_binary
from gptoss20b.data.samples import VALIDATION_PREFIX

from ..c4 import EVAL_SAMPLES, FILES, PREFIXES, SEQUENCE_LENGTH, VALIDATION_DOCUMENTS, VOCAB_SIZE
from ..errors import CommandError
from ..make_sample_data import MANIFEST
from ..md5_list import LIST_AGAIN, parse_list
from .findings import Finding

# The sample's validation set holds a few dozen sequences.
_EVAL_SAMPLES_OF_SAMPLE_DATA = 16


class ExpectedFile(NamedTuple):
    """Checksum and size that a file must have.

    Attributes:
        file: path relative to the folder.
        algorithm: name of the checksum, as in hashlib.
        digest: the checksum, lower-case hex.
        size: bytes; None where the list does not give it.
        source: the list, for messages.
        fix: how to get the right file.
    """

    file: str
    algorithm: str
    digest: str
    size: int | None
    source: str
    fix: str = REBUILD


@dataclass(frozen=True)
class Expectations:
    """Properties that a dataset must have.

    Attributes:
        source: where they come from: "published", or the name of the manifest.
        vocab_size: token ids are below it.
        documents: number of documents by prefix; any number where there is none.
        eval_samples: validation sequences that are evaluated; there must be as many.
        sequence_length: tokens per sequence, without the one for the last label.
        files: files that the manifest lists.
    """

    source: str = "published"
    vocab_size: int = VOCAB_SIZE
    documents: dict[str, int] = field(default_factory=lambda: {VALIDATION_PREFIX: VALIDATION_DOCUMENTS})
    eval_samples: int = EVAL_SAMPLES
    sequence_length: int = SEQUENCE_LENGTH
    files: tuple[ExpectedFile, ...] = ()


class _Split(BaseModel):
    documents: Annotated[int, Field(ge=1)]


class _File(BaseModel):
    size: Annotated[int, Field(alias="bytes", ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Manifest(BaseModel):
    vocab_size: Annotated[int, Field(ge=1)]
    splits: dict[str, _Split]
    files: dict[str, _File]


def load_expectations(directory: Path) -> Expectations:
    """Return the properties in the folder's manifest, or without one those of the published set.

    Raises:
        CommandError: the manifest is malformed.
    """
    path = directory / MANIFEST
    fix = f"remove it, or make the data again: python -m data_scripts.make_sample_data {directory} --force"
    try:
        manifest = _Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Expectations()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise CommandError(
            f"{path}: got {first['msg']} for {place}; expected a manifest of sample data. To fix: {fix}."
        ) from None
    if set(manifest.files) != set(FILES) or set(manifest.splits) != set(PREFIXES):
        raise CommandError(
            f"{path}: got {', '.join([*manifest.files, *manifest.splits])[:200]}; "
            f"expected the four files and two splits of a dataset. To fix: {fix}."
        )
    # Fixes go into reports, which must not depend on the folder's name.
    make_again = "make it again: python -m data_scripts.make_sample_data DIR --force"
    return Expectations(
        source=MANIFEST,
        vocab_size=manifest.vocab_size,
        documents={prefix: split.documents for prefix, split in manifest.splits.items()},
        eval_samples=_EVAL_SAMPLES_OF_SAMPLE_DATA,
        files=tuple(
            ExpectedFile(name, "sha256", entry.sha256, entry.size, MANIFEST, make_again)
            for name, entry in manifest.files.items()
        ),
    )


def read_lists(directory: Path) -> tuple[list[ExpectedFile], list[Finding]]:
    """Read every `*.md5` of a folder; return its entries and what is wrong with the lists.

    Two lists may name a file with the same MD5.
    """
    expected: dict[str, ExpectedFile] = {}
    findings: list[Finding] = []
    # Hidden files are unfinished downloads of other tools.
    for path in sorted(path for path in directory.glob("*.md5") if not path.name.startswith(".")):
        try:
            with open_binary(path) as stream:
                listed = parse_list(stream.read(), path.name)
        except DataError as error:
            findings.append(Finding.from_error(error, directory))
            continue
        except OSError as error:
            findings.append(Finding.about(path.name, f"{error.strerror}", "a readable file", LIST_AGAIN))
            continue
        for file, md5 in listed:
            known = expected.setdefault(file, ExpectedFile(file, "md5", md5, None, path.name))
            if known.digest != md5:
                got, other = f"MD5 {md5} for {file}", f"{known.digest}, as in {known.source}"
                findings.append(Finding.about(path.name, got, other, LIST_AGAIN))
    return list(expected.values()), findings
