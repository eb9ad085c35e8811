"""The doctor's findings on the data: real datasets and real reports of their verification."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from gptoss20b.config import resolve
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX
from gptoss20b.data.verification_report import REPORT_NAME
from gptoss20b.tools.doctor.dataset import check_dataset
from gptoss20b.tools.doctor.finding import Finding, Verdict
from tests.support.findings import assert_finding
from tests.support.small_sets import EVAL_SAMPLES, FILES, LENGTH, flip, read_report, shorten, verify_set, write_set

TINY = {
    "MODEL_VARIANT": "tiny",
    "SUBMISSION_DIVISION": "open",
    "SEQUENCE_LENGTH": str(LENGTH),
    "EVAL_SAMPLES": str(EVAL_SAMPLES),
    "VOCAB_SIZE": "128256",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make both datasets, and the report of a verification of all of them."""
    write_set(tmp_path / "data")
    assert verify_set(tmp_path / "data").exit_code == 0
    return tmp_path / "data"


def check(folder: Path, **options: str) -> dict[str, Finding]:
    found = check_dataset(resolve(TINY | {"DATADIR": str(folder)} | options))
    return {finding.name: finding for finding in found}


def test_verified_data_pass_and_nothing_is_written(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    found = check(folder)
    verdicts = {name: finding.verdict for name, finding in found.items()}
    assert verdicts == dict.fromkeys(("data", "data verified", "data speed"), Verdict.PASS)
    assert "sequences of 16 tokens" in found["data"].found
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "a folder"])
def test_a_damaged_dataset_fails_by_its_name(folder: Path, name: str, damage: str) -> None:
    if damage == "truncated":
        shorten(folder / name, 4)
    else:
        (folder / name).unlink()
    if damage == "a folder":
        (folder / name).mkdir()
    found = check(folder)
    assert_finding(found["data"], Verdict.FAIL, name.rsplit(".", 1)[0], fix=f"verify {folder}")
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
    for option, unchecked in (("--no-md5", "checksums"), ("--quick", "checksums, tokens")):
        (folder / REPORT_NAME).unlink()  # a lesser verification would leave it
        verify_set(folder, option)
        assert_finding(check(folder)["data verified"], Verdict.WARN, f"not checked: {unchecked}", fix=option)
    for text in ("", "{", "[]", '{"kind": "menu"}', "[" * 100_000):
        (folder / REPORT_NAME).write_text(text)
        assert check(folder)["data verified"].verdict is Verdict.WARN
    (folder / REPORT_NAME).unlink()
    assert_finding(check(folder)["data verified"], Verdict.WARN, fix=f"python -m data_scripts verify {folder}")


def test_a_report_of_faults_fails(folder: Path) -> None:
    verify_set(folder, "--validation-documents", "91205")
    assert_finding(check(folder)["data verified"], Verdict.FAIL, "says fail")


def test_data_that_changed_since_they_were_verified_fail(folder: Path) -> None:
    flip(folder / f"{VALIDATION_PREFIX}.bin", 4, 1)
    assert_finding(check(folder)["data verified"], Verdict.FAIL, "evaluated tokens hash to")
    # Another evaluation than the report's is another hash, and nothing to compare.
    assert check(folder, EVAL_SAMPLES="2")["data verified"].verdict is Verdict.PASS
    assert check(folder, SEQUENCE_LENGTH="8")["data verified"].verdict is Verdict.PASS


@pytest.mark.parametrize(("name", "size"), [(f"{TRAIN_PREFIX}.bin", "bytes"), ("more.bin", "None bytes")])
def test_a_file_of_another_size_than_the_report_says_fails(folder: Path, name: str, size: str) -> None:
    report = read_report(folder)
    report["files"][name] = {"bytes": 17}
    (folder / REPORT_NAME).write_text(json.dumps(report))
    assert_finding(check(folder)["data verified"], Verdict.FAIL, name, size, "expected 17")


def test_slow_storage_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = itertools.count(step=0.4)  # each window takes 0.4 s
    monkeypatch.setattr("gptoss20b.tools.doctor.dataset.time.monotonic", lambda: next(readings))
    assert_finding(check(folder)["data speed"], Verdict.WARN, "expected 0.12 for 2 ranks", "in 2 random windows")
