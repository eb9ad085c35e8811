"""The doctor's findings on the data: real datasets and real reports of their verification."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_scripts.checking.checks import verify
from data_scripts.checking.expectations import Expectations
from data_scripts.checking.report import Scope
from data_scripts.dataset_writer import write_dataset
from data_scripts.progress import ByteProgress
from gptoss20b.config import resolve
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX
from gptoss20b.data.verification_report import REPORT_NAME
from gptoss20b.tools.doctor.dataset import check_dataset
from gptoss20b.tools.doctor.finding import Finding, Verdict
from tests.support.findings import assert_finding

LENGTH, SEQUENCES = 64, 10
EXPECTED = Expectations(vocab_size=256, documents={}, eval_samples=SEQUENCES, sequence_length=LENGTH)
TINY = {
    "MODEL_VARIANT": "tiny",
    "SUBMISSION_DIVISION": "open",
    "SEQUENCE_LENGTH": str(LENGTH),
    "EVAL_SAMPLES": str(SEQUENCES),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make both datasets of random bytes: 50 windows to train and 12 to validate."""
    data = tmp_path / "data"
    data.mkdir()
    random = np.random.default_rng(3)
    for prefix, windows in ((TRAIN_PREFIX, 50), (VALIDATION_PREFIX, 12)):
        write_dataset(data / prefix, random.integers(0, 256, (windows * 2, LENGTH // 2 + 1)))
    return data


def verified(folder: Path, expected: Expectations = EXPECTED, tokens: bool = True) -> dict[str, Any]:
    """Verify the folder and write the report there, as `python -m data_scripts verify` does."""
    scope = Scope(checksums=False, tokens=tokens, threads=1)
    written = verify(folder, expected, scope, ByteProgress("verifying")).report()
    (folder / REPORT_NAME).write_text(json.dumps(written))
    return written


def verified_fully(folder: Path, **changes: Any) -> None:
    """Write a report of all checks. It pretends checksums, for which there is no list here."""
    written = verified(folder)
    assert written["verdict"] == "pass"
    written["not_checked"]["checksums"] = []
    (folder / REPORT_NAME).write_text(json.dumps({**written, **changes}))


def check(folder: Path, **options: str) -> dict[str, Finding]:
    found = check_dataset(resolve(TINY | {"DATADIR": str(folder)} | options))
    return {finding.name: finding for finding in found}


def test_verified_data_pass(folder: Path) -> None:
    verified_fully(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    found = check(folder)
    assert {name: finding.verdict for name, finding in found.items()} == dict.fromkeys(
        ("data", "data verified", "data speed"), Verdict.PASS
    )
    assert f"{50 * 66 // 64:,} and {12 * 66 // 64:,} sequences of 64 tokens" in found["data"].found
    assert "evaluated tokens and sizes are still the same" in found["data verified"].found
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("prefix", [TRAIN_PREFIX, VALIDATION_PREFIX])
@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "a folder"])
def test_a_damaged_dataset_fails_by_its_name(folder: Path, prefix: str, suffix: str, damage: str) -> None:
    verified_fully(folder)
    path = folder / f"{prefix}{suffix}"
    if damage == "truncated":
        os.truncate(path, path.stat().st_size - 4)
    else:
        path.unlink()
    if damage == "a folder":
        path.mkdir()
    found = check(folder)
    assert_finding(found["data"], Verdict.FAIL, prefix, fix=f"verify {folder}")
    assert_finding(found["data verified"], Verdict.SKIPPED)


def test_a_missing_folder_and_too_few_sequences_and_foreign_tokens_fail(folder: Path, tmp_path: Path) -> None:
    assert check(tmp_path / "nowhere")["data"].verdict is Verdict.FAIL
    assert_finding(check(folder, EVAL_SAMPLES="1000")["data"], Verdict.FAIL, "at least 1000")
    assert_finding(check(folder, VOCAB_SIZE="100")["data"], Verdict.FAIL, "expected 0 to 99")


def test_data_that_this_user_cannot_read_fail(folder: Path) -> None:
    (folder / f"{TRAIN_PREFIX}.bin").chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # nobody: root reads everything
    try:
        found = check(folder)["data"]
    finally:
        os.seteuid(user)
    assert_finding(found, Verdict.FAIL, "Permission denied")


def test_unverified_and_partly_verified_data_are_a_warning(folder: Path) -> None:
    assert_finding(check(folder)["data verified"], Verdict.WARN, fix=f"python -m data_scripts verify {folder}")
    for tokens, unchecked in ((True, "checksums"), (False, "checksums, tokens")):
        verified(folder, tokens=tokens)
        assert_finding(check(folder)["data verified"], Verdict.WARN, f"not checked: {unchecked}")
    for text in ("", "{", "[]", '{"kind": "menu"}', "[" * 100_000):
        (folder / REPORT_NAME).write_text(text)
        assert check(folder)["data verified"].verdict is Verdict.WARN


def test_a_report_of_faults_fails(folder: Path) -> None:
    written = verified(folder, replace(EXPECTED, documents={VALIDATION_PREFIX: 91_205}))
    assert written["verdict"] == "fail"
    assert_finding(check(folder)["data verified"], Verdict.FAIL, "says fail")


def test_data_that_changed_since_they_were_verified_fail(folder: Path) -> None:
    verified_fully(folder)
    path = folder / f"{VALIDATION_PREFIX}.bin"
    with path.open("r+b") as stream:
        first = stream.read(1)
        stream.seek(0)
        stream.write(bytes([first[0] ^ 1]))
    assert_finding(check(folder)["data verified"], Verdict.FAIL, "evaluated tokens hash to")
    # Another evaluation than the report's is another hash, and nothing to compare.
    assert check(folder, EVAL_SAMPLES="9")["data verified"].verdict is Verdict.PASS
    assert check(folder, SEQUENCE_LENGTH="32")["data verified"].verdict is Verdict.PASS


def test_a_file_of_another_size_than_the_report_says_fails(folder: Path) -> None:
    verified_fully(folder)
    name = f"{TRAIN_PREFIX}.bin"
    files = json.loads((folder / REPORT_NAME).read_text())["files"]
    verified_fully(folder, files={**files, name: {"bytes": 17}})
    assert_finding(check(folder)["data verified"], Verdict.FAIL, f"{name}: 13,200 bytes, expected 17")
    verified_fully(folder, files={**files, "more.bin": {"bytes": 1}})
    assert "more.bin: no file, expected 1" in check(folder)["data verified"].found


def test_slow_storage_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = itertools.count(step=0.4)  # each window takes 0.4 s
    monkeypatch.setattr("gptoss20b.tools.doctor.dataset.time.monotonic", lambda: next(readings))
    assert_finding(check(folder)["data speed"], Verdict.WARN, "expected 0.12 for 2 ranks", "in 2 random windows")
