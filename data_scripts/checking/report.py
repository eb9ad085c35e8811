"""Results of a verification, and the JSON report that keeps them."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from gptoss20b.data.verification_report import REPORT_KIND
from system_info.version import __version__

from ..c4 import PREFIXES
from .expectations import Expectations
from .findings import Finding


@dataclass(frozen=True)
class Scope:
    """Which checks to make besides the structure, and the number of reading threads."""

    checksums: bool
    tokens: bool
    threads: int


@dataclass
class DatasetFacts:
    """Counts of one indexed dataset, and its smallest and largest token; None where they could not be checked.

    `sequences` counts entries of the index, `windows` the sequences that a run reads.
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
    """All results of a verification.

    Attributes:
        expected, scope: its inputs.
        findings: everything wrong; empty if the set is as expected.
        sizes: bytes of every file by name; None where the file is missing.
        digests: checksums (hex) of the files that were read, by name and algorithm.
        datasets: counts by prefix.
        eval_tokens_sha256: hash of the evaluation sequences, as in a training log; None if they cannot be read.
        checked, skipped: names of files by check: structure, checksums, tokens.
    """

    expected: Expectations
    scope: Scope
    findings: list[Finding] = field(default_factory=list)
    sizes: dict[str, int | None] = field(default_factory=dict)
    digests: dict[str, dict[str, str]] = field(default_factory=dict)
    datasets: dict[str, DatasetFacts] = field(default_factory=lambda: {prefix: DatasetFacts() for prefix in PREFIXES})
    eval_tokens_sha256: str | None = None
    checked: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """Return the JSON report. It does not depend on machine, folder or time, so that two reports compare."""
        expected = self.expected
        return {
            "kind": REPORT_KIND,
            "format": 1,
            "verdict": "fail" if self.findings else "pass",
            "quick": not self.scope.checksums and not self.scope.tokens,
            "expected": {
                "source": expected.source,
                "vocab_size": expected.vocab_size,
                "documents": expected.documents,
                "sequences": expected.eval_samples,
                "sequence_length": expected.sequence_length,
            },
            "eval_tokens_sha256": self.eval_tokens_sha256,
            "pairs": {prefix: asdict(facts) for prefix, facts in self.datasets.items()},
            "files": {name: {"bytes": size, **self.digests.get(name, {})} for name, size in self.sizes.items()},
            "checked": self.checked,
            "not_checked": self.skipped,
            "findings": [finding._asdict() for finding in self.findings],
            "versions": {"gptoss20b": __version__, "python": platform.python_version(), "numpy": version("numpy")},
        }
