"""All that a verification found, and the JSON report that keeps it."""

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_scripts.c4 import PREFIXES
from data_scripts.checking.expectations import Expectations
from data_scripts.checking.findings import Finding
from gptoss20b import __version__
from gptoss20b.data.verification_report import REPORT_KIND
from gptoss20b.durable import atomic_write


@dataclass(frozen=True)
class Scope:
    """What to check.

    Attributes:
        checksums: read every file and compare its checksum.
        tokens: read every token.
        threads: threads that read.
    """

    checksums: bool
    tokens: bool
    threads: int


@dataclass
class PairFacts:
    """What is known of a pair; None where it was not checked or could not be.

    Attributes:
        documents, sequences: as the index counts them.
        tokens: in the `.bin`.
        windows: training or evaluation sequences that the tokens make.
        empty_sequences: without a token.
        empty_documents: without a sequence.
        token_min, token_max: smallest and largest id.
    """

    documents: int | None = None
    sequences: int | None = None
    tokens: int | None = None
    windows: int | None = None
    empty_sequences: int | None = None
    empty_documents: int | None = None
    token_min: int | None = None
    token_max: int | None = None


@dataclass
class Verification:
    """All that a verification found.

    Attributes:
        expected, scope: what it was asked for.
        findings: everything wrong; empty if the set is as expected.
        sizes: bytes of every file by name; None where there is no file.
        digests: checksums (hex) of the files that were read, by name and algorithm.
        pairs: facts by prefix.
        eval_tokens_sha256: of the evaluation sequences, as a training log has it; None if there are none.
        checked, skipped: names of files by check: structure, checksums, tokens.
    """

    expected: Expectations
    scope: Scope
    findings: list[Finding] = field(default_factory=list)
    sizes: dict[str, int | None] = field(default_factory=dict)
    digests: dict[str, dict[str, str]] = field(default_factory=dict)
    pairs: dict[str, PairFacts] = field(default_factory=lambda: {prefix: PairFacts() for prefix in PREFIXES})
    eval_tokens_sha256: str | None = None
    checked: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)

    @property
    def quick(self) -> bool:
        """Whether no file was to be read as a whole."""
        return not self.scope.checksums and not self.scope.tokens


def report_content(verification: Verification) -> dict[str, Any]:
    """The report: the same for the same data whatever the machine, the folder and the hour, so that two compare."""
    expected = verification.expected
    return {
        "kind": REPORT_KIND,
        "format": 1,
        "verdict": "fail" if verification.findings else "pass",
        "quick": verification.quick,
        "expected": {
            "source": expected.source,
            "vocab_size": expected.vocabulary,
            "documents": expected.documents,
            "sequences": expected.sequences,
            "sequence_length": expected.sequence_length,
        },
        "eval_tokens_sha256": verification.eval_tokens_sha256,
        "pairs": {prefix: asdict(facts) for prefix, facts in verification.pairs.items()},
        "files": {
            name: {"bytes": size, **verification.digests.get(name, {})} for name, size in verification.sizes.items()
        },
        "checked": verification.checked,
        "not_checked": verification.skipped,
        "findings": [finding._asdict() for finding in verification.findings],
        "versions": {"gptoss20b": __version__, "python": platform.python_version(), "numpy": version("numpy")},
    }


def write_report(path: Path, content: dict[str, Any]) -> None:
    """Write a report atomically.

    Raises:
        OSError: the folder cannot be written.
    """
    atomic_write(path, json.dumps(content, indent=2) + "\n")
