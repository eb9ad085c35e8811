"""Expected properties of a dataset: the published ones, or those of the manifest beside sample data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from gptoss20b.data.samples import VALIDATION_PREFIX

from ..c4 import EVAL_SAMPLES, FILES, PREFIXES, SEQUENCE_LENGTH, VALIDATION_DOCUMENTS, VOCAB_SIZE
from ..errors import CommandError
from ..make_sample_data import MANIFEST
from .md5_lists import ExpectedFile

# The sample's validation set holds a few dozen sequences.
_EVAL_SAMPLES_OF_SAMPLE_DATA = 16


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
