"""The command `verify`: what passes, the report, exit statuses, progress, signals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data_scripts.checking import reading
from data_scripts.dataset_writer import write_dataset
from data_scripts.make_sample_data import collect_documents, make
from data_scripts.progress import ByteProgress
from gptoss20b.config.resolve import resolve
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX
from gptoss20b.dataloader import DataShard, build_dataloader
from gptoss20b.mlperf_log import RunClock
from tests.support.data_commands import run_data_command
from tests.support.paths import ROOT
from tests.support.small_sets import (
    FILES,
    LIST,
    OPTIONS,
    TRAIN_BIN,
    VALIDATION_BIN,
    VALIDATION_IDX,
    flip,
    put,
    read_report,
    shorten,
    table_offsets,
    verify_set,
    write_set,
)

# --- what passes


def test_a_good_set_passes_with_the_hash_of_a_run(folder: Path) -> None:
    done = verify_set(folder)
    assert done.exit_code == 0, done.output
    config = resolve(
        {"DATADIR": str(folder), "SEQUENCE_LENGTH": "16", "EVAL_SAMPLES": "3", "SUBMISSION_DIVISION": "open"}
    )
    clock = RunClock.__new__(RunClock)
    dataloader = build_dataloader(clock, config, DataShard(0, 1, 1), torch.device("cpu"), seed=1)
    expected = dataloader.eval_tokens_sha256()
    dataloader.close()
    assert f"eval_tokens_sha256 of the first 3 sequences: {expected}" in done.stdout
    assert read_report(folder)["eval_tokens_sha256"] == expected
    assert "PASS" in verify_set(folder, "--quick").stdout
    assert expected in verify_set(folder, "--quick").stdout


@pytest.fixture(scope="module")
def made_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    make(folder, collect_documents())
    return folder


@pytest.fixture
def sample(made_sample: Path, tmp_path: Path) -> Path:
    """Copy the sample data, to be damaged."""
    return Path(shutil.copytree(made_sample, tmp_path / "sample"))


def test_sample_data_is_checked_against_its_manifest(sample: Path) -> None:
    for options in ([], ["--quick"], ["--no-md5"]):
        done = run_data_command("verify", sample, *options)
        assert done.exit_code == 0, done.output
    done = run_data_command("verify", sample, "--vocab-size", "100", "--sequences", "999", "--no-md5")
    assert done.exit_code == 1
    assert "expected 0 to 99" in done.stdout
    assert "expected at least 999 for validation" in done.stdout

    flip(sample / TRAIN_BIN, 0, 1)
    done = run_data_command("verify", sample)
    assert re.search(rf"{TRAIN_BIN}: got SHA256 [0-9a-f]{{64}}; expected [0-9a-f]{{64}}.* sample.json", done.stdout)
    assert "make_sample_data DIR --force" in done.stdout
    assert done.stdout.count("; expected") == 1
    shorten(sample / VALIDATION_BIN, 4)
    done = run_data_command("verify", sample, "--quick")
    assert f"{VALIDATION_BIN}: got {(sample / VALIDATION_BIN).stat().st_size} bytes; expected " in done.stdout
    assert "sample.json" in done.stdout


@pytest.mark.parametrize("prefix", [TRAIN_PREFIX, VALIDATION_PREFIX])
def test_a_manifest_with_another_number_of_documents_is_a_finding(sample: Path, prefix: str) -> None:
    manifest = json.loads((sample / "sample.json").read_text())
    manifest["splits"][prefix]["documents"] += 1
    (sample / "sample.json").write_text(json.dumps(manifest))
    done = run_data_command("verify", sample, "--quick")
    assert done.exit_code == 1
    count = manifest["splits"][prefix]["documents"]
    assert f"{prefix}.idx: got {count - 1:,} documents; expected {count:,}" in done.stdout
    assert done.stdout.count("; expected") == 1


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        '{"vocab_size": 256}',
        '{"vocab_size": 1, "splits": {}, "files": {}}',
        [TRAIN_PREFIX],
        [TRAIN_PREFIX, VALIDATION_PREFIX, "other"],
    ],
)
def test_a_malformed_manifest_is_one_line(sample: Path, manifest: str | list[str]) -> None:
    path = sample / "sample.json"
    if isinstance(manifest, list):
        splits = {prefix: {"documents": 1} for prefix in manifest}
        manifest = json.dumps({**json.loads(path.read_text()), "splits": splits})
    path.write_text(manifest)
    done = run_data_command("verify", sample)
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert done.stderr.startswith(f"error: {path}: got ") and "; expected " in done.stderr


def test_empty_documents_are_counted_and_no_error(tmp_path: Path) -> None:
    empty = np.zeros(0, np.int64)
    write_dataset(tmp_path / VALIDATION_PREFIX, [empty, np.arange(60), empty, empty, np.arange(9), empty, empty])
    write_dataset(tmp_path / TRAIN_PREFIX, [np.arange(100)])
    done = verify_set(tmp_path, "--no-md5")
    assert done.exit_code == 0, done.output
    assert re.search(r"of them empty +5\n", done.stdout)
    facts = read_report(tmp_path)["pairs"][VALIDATION_PREFIX]
    assert (facts["empty_sequences"], facts["empty_documents"]) == (5, 0)
    put(tmp_path / VALIDATION_IDX, table_offsets(7)[2] + 8 * 3, "<q", 2)
    assert verify_set(tmp_path, "--no-md5").exit_code == 0
    assert read_report(tmp_path)["pairs"][VALIDATION_PREFIX]["empty_documents"] == 1


# --- the report


def test_the_report_has_exactly_this_and_nothing_of_the_machine(tmp_path: Path) -> None:
    for name in ("here", "there"):
        contents = write_set(tmp_path / name)
        assert verify_set(tmp_path / name).exit_code == 0
    text = (tmp_path / "here" / "verified.json").read_text()
    assert text == (tmp_path / "there" / "verified.json").read_text(), "two sites can compare them byte for byte"
    assert str(tmp_path) not in text
    report = json.loads(text)
    assert sorted(report.pop("versions")) == ["gptoss20b", "numpy", "python"]
    md5 = {line.split()[1].removeprefix("./"): line.split()[0] for line in (tmp_path / "here" / LIST).open()}
    tokens = {prefix: np.concatenate(made) for prefix, made in contents.items()}
    assert re.fullmatch("[0-9a-f]{64}", report.pop("eval_tokens_sha256"))
    assert report == {
        "kind": "data verification",
        "format": 1,
        "verdict": "pass",
        "quick": False,
        "expected": {
            "source": "published",
            "vocab_size": 128256,
            "documents": {VALIDATION_PREFIX: 7},
            "sequences": 3,
            "sequence_length": 16,
        },
        "pairs": {
            prefix: {
                "documents": len(contents[prefix]),
                "sequences": len(contents[prefix]),
                "tokens": tokens[prefix].size,
                "windows": (tokens[prefix].size - 1) // 16,
                "empty_sequences": 0,
                "empty_documents": 0,
                "token_min": 0,
                "token_max": 128_255,
            }
            for prefix in (TRAIN_PREFIX, VALIDATION_PREFIX)
        },
        "files": {name: {"bytes": (tmp_path / "here" / name).stat().st_size, "md5": md5[name]} for name in FILES},
        "checked": {"structure": FILES, "checksums": FILES, "tokens": [TRAIN_BIN, VALIDATION_BIN]},
        "not_checked": {"structure": [], "checksums": [], "tokens": []},
        "findings": [],
    }


def test_a_failing_report_names_files_only(folder: Path) -> None:
    flip(folder / TRAIN_BIN, 3, 0x40)
    (folder / VALIDATION_IDX).unlink()
    verify_set(folder)
    assert str(folder) not in (folder / "verified.json").read_text()
    saved = read_report(folder)
    assert saved["verdict"] == "fail"
    assert [finding["file"] for finding in saved["findings"]] == [VALIDATION_IDX, TRAIN_BIN, TRAIN_BIN]
    assert all(sorted(finding) == ["file", "message"] for finding in saved["findings"])
    assert saved["eval_tokens_sha256"] is None
    assert saved["files"][VALIDATION_IDX] == {"bytes": None}
    assert saved["not_checked"]["structure"] == [VALIDATION_BIN, VALIDATION_IDX]


def test_a_quick_report_lists_what_was_not_checked(folder: Path) -> None:
    assert verify_set(folder, "--quick").exit_code == 0
    saved = read_report(folder)
    assert saved["quick"] is True
    assert saved["checked"] == {"structure": FILES, "checksums": [], "tokens": []}
    assert saved["not_checked"] == {"structure": [], "checksums": FILES, "tokens": [TRAIN_BIN, VALIDATION_BIN]}
    assert saved["pairs"][TRAIN_PREFIX]["token_max"] is None
    assert saved["files"][TRAIN_BIN] == {"bytes": (folder / TRAIN_BIN).stat().st_size}


@pytest.mark.parametrize("less", ["--no-md5", "--quick"])
def test_a_lesser_pass_does_not_replace_the_report_of_a_full_one(folder: Path, tmp_path: Path, less: str) -> None:
    verify_set(folder)
    full = (folder / "verified.json").read_bytes()
    done = verify_set(folder, less)
    assert done.exit_code == 0
    assert "verified.json: not written" in done.stderr and "--report" in done.stderr
    assert (folder / "verified.json").read_bytes() == full
    verify_set(folder, less, "--report", str(tmp_path / "less.json"))
    assert json.loads((tmp_path / "less.json").read_text())["quick"] is (less == "--quick")
    shorten(folder / TRAIN_BIN, 4)
    assert verify_set(folder, less).exit_code == 1
    assert read_report(folder)["verdict"] == "fail", "an old pass must not stay"


@pytest.mark.parametrize(
    "before",
    ["", "mine", '"text"', "{}", "[" * 200_000, '["\\ud800"]', '{"kind": "data verification"}'],
    ids=["empty", "text", "string", "object", "deep", "surrogate", "report"],
)
def test_a_file_that_is_no_report_stays_and_changes_no_verdict(folder: Path, before: str) -> None:
    (folder / "verified.json").write_text(before)
    done = verify_set(folder)
    assert done.exit_code == 0
    kept = "kind" not in before
    assert ((folder / "verified.json").read_text() == before) == kept
    assert ("verified.json: not written" in done.stderr) == kept
    assert not list(folder.glob(".*")), "no temporary file stays"


def test_a_report_that_cannot_be_written_changes_no_verdict(folder: Path) -> None:
    (folder / "verified.json").mkdir()
    done = verify_set(folder)
    assert done.exit_code == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{folder}/verified.json: not written: Is a directory") and "--report" in line


FULL_DISK = "error: stdout: got No space left on device"


@pytest.mark.parametrize(
    ("redirection", "status", "error"),
    [("| true; exit ${PIPESTATUS[0]}", 0, ""), ("> /dev/full", 1, FULL_DISK), (">&-", 0, "")],
    ids=["reader gone", "full", "closed"],
)
def test_the_report_is_saved_whatever_becomes_of_the_output(
    folder: Path, redirection: str, status: int, error: str
) -> None:
    words = [sys.executable, "-m", "data_scripts.verify", str(folder), *OPTIONS]
    script = ["bash", "-c", f'"$@" {redirection}', "bash", *words]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stderr.startswith(error) and bool(done.stderr) == bool(error)
    assert read_report(folder)["verdict"] == "pass"


# --- usage, progress, signals


@pytest.mark.parametrize(
    "path", ["sample.json", "set.md5", "nowhere/report.json", "mine.json", "/proc/report.json"], ids=str
)
def test_a_report_path_that_cannot_be_used_is_refused_before_anything_is_read(folder: Path, path: str) -> None:
    (folder / "mine.json").write_text("{}")
    done = verify_set(folder, "--report", str(folder / path))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--report" in done.stderr
    assert (folder / "mine.json").read_text() == "{}"


def test_a_folder_that_is_not_there(folder: Path) -> None:
    done = verify_set(folder / "nowhere")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {folder}/nowhere: got no folder")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_promptly_and_leaves_no_report(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int
) -> None:
    # 80 GB of nothing: sparse, and minutes to hash
    os.truncate(folder / TRAIN_BIN, 80_000_000_000)
    sent: list[float] = []

    def send_signal(progress: ByteProgress, size: int) -> None:
        if size == reading.PIECE and not sent:
            sent.append(time.monotonic())
            os.kill(os.getpid(), number)

    monkeypatch.setattr(ByteProgress, "advance", send_signal)
    done = verify_set(folder)
    assert time.monotonic() - sent[0] < 10
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (status, "", 1)
    assert not (folder / "verified.json").exists()
