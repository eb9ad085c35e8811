"""What a data set must be: as MLCommons publishes it, or as the manifest beside sample data says."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from data_scripts.c4 import (
    EVALUATION_SEQUENCES,
    PREFIXES,
    SEQUENCE_LENGTH,
    VALIDATION_DOCUMENTS,
    VOCABULARY,
)
from data_scripts.checking.lists import Listed
from data_scripts.errors import CommandError
from data_scripts.make_sample_data import MANIFEST
from gptoss20b.data.samples import VALIDATION_PREFIX

FILES = tuple(f"{prefix}{suffix}" for prefix in PREFIXES for suffix in (".bin", ".idx"))
# The sample's validation file holds a few dozen.
SAMPLE_SEQUENCES = 16


@dataclass(frozen=True)
class Expectations:
    """What a data set must be.

    Attributes:
        source: where this comes from: "published", or the name of the manifest.
        vocabulary: token ids are below it.
        documents: documents by prefix; any number where there is none.
        sequences: validation sequences that are evaluated, at least.
        sequence_length: tokens of a sequence, and one more for its last label.
        listed: files that the manifest lists.
    """

    source: str = "published"
    vocabulary: int = VOCABULARY
    documents: dict[str, int] = field(default_factory=lambda: {VALIDATION_PREFIX: VALIDATION_DOCUMENTS})
    sequences: int = EVALUATION_SEQUENCES
    sequence_length: int = SEQUENCE_LENGTH
    listed: tuple[Listed, ...] = ()


class _Split(BaseModel):
    documents: Annotated[int, Field(ge=1)]


class _File(BaseModel):
    size: Annotated[int, Field(alias="bytes", ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Manifest(BaseModel):
    vocab_size: Annotated[int, Field(ge=1)]
    splits: dict[str, _Split]
    files: dict[str, _File]


def expected_in(directory: Path) -> Expectations:
    """What the files in `directory` must be: its manifest's word if there is one, else the published set.

    Raises:
        CommandError: there is a manifest, but it does not say.
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
            f"expected the four files and two splits of a data set. To fix: {fix}."
        )
    # without the folder's name: fixes go into reports
    make = "make it again: python -m data_scripts.make_sample_data DIR --force"
    return Expectations(
        source=MANIFEST,
        vocabulary=manifest.vocab_size,
        documents={prefix: split.documents for prefix, split in manifest.splits.items()},
        sequences=SAMPLE_SEQUENCES,
        listed=tuple(
            Listed(name, "sha256", entry.sha256, entry.size, MANIFEST, make) for name, entry in manifest.files.items()
        ),
    )
