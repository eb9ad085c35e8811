"""The command: what passes, reports, progress, exit statuses, the script."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from data_scripts import progress
from data_scripts.checking.report import write_report
from data_scripts.make_sample_data import collect_documents, make
from gptoss20b.config.resolve import resolve
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX
from gptoss20b.dataloader import DataShard, build_dataloader
from gptoss20b.mlperf_log import RunClock
from tests.support.paths import ROOT
from tests.support.small_sets import (
    FILES,
    HEADER,
    LIST,
    OPTIONS,
    WRITERS,
    cut,
    exchange,
    flip,
    put,
    tables_at,
    write_by_us,
    write_set,
)
from tests.support.verify_runs import app, report, verify

SCRIPT = ROOT / "data_scripts" / "verify_dataset.sh"
TRAIN_BIN, TRAIN_IDX, VALIDATION_BIN, VALIDATION_IDX = FILES


@pytest.fixture(params=sorted(WRITERS))
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    write_set(tmp_path / "set", WRITERS[request.param])
    return tmp_path / "set"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    write_set(tmp_path / "set")
    return tmp_path / "set"


# --- what is right passes


def test_a_good_set_passes_and_its_hash_is_a_runs(folder: Path) -> None:
    done = verify(folder)
    assert done.exit_code == 0, done.output
    config = resolve(
        {"DATADIR": str(folder), "SEQUENCE_LENGTH": "16", "EVAL_SAMPLES": "3", "SUBMISSION_DIVISION": "open"}
    )
    clock = RunClock.__new__(RunClock)
    feed = build_dataloader(clock, config, DataShard(0, 1, 1), torch.device("cpu"), seed=1)
    expected = feed.eval_tokens_sha256()
    feed.close()
    assert f"eval_tokens_sha256 of the first 3 sequences: {expected}" in done.stdout
    assert report(folder)["eval_tokens_sha256"] == expected
    assert "PASS" in verify(folder, "--quick").stdout
    assert expected in verify(folder, "--quick").stdout


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    make(folder, collect_documents())
    return folder


def test_sample_data_passes_as_it_is_and_by_its_manifest_alone(sample: Path, tmp_path: Path) -> None:
    shutil.copytree(sample, tmp_path, dirs_exist_ok=True)
    for options in ([], ["--quick"], ["--no-md5"]):
        done = CliRunner().invoke(app, [str(tmp_path), *options])
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, [str(tmp_path), "--vocab-size", "100", "--sequences", "999", "--no-md5"])
    assert done.exit_code == 1
    assert "expected 0 to 99" in done.stdout
    assert "expected at least 999 for validation" in done.stdout

    flip(tmp_path / TRAIN_BIN, 0, 1)
    done = CliRunner().invoke(app, [str(tmp_path)])
    assert re.search(rf"{TRAIN_BIN}: got SHA256 [0-9a-f]{{64}}; expected [0-9a-f]{{64}}, as sample.json", done.stdout)
    assert "make_sample_data DIR --force" in done.stdout
    assert done.stdout.count("; expected") == 1
    cut(tmp_path / VALIDATION_BIN, 4)
    done = CliRunner().invoke(app, [str(tmp_path), "--quick"])
    assert f"{VALIDATION_BIN}: got {(tmp_path / VALIDATION_BIN).stat().st_size} bytes; expected " in done.stdout
    assert "as sample.json has it" in done.stdout


def test_sample_sets_that_are_swapped_are_one_finding(sample: Path, tmp_path: Path) -> None:
    shutil.copytree(sample, tmp_path, dirs_exist_ok=True)
    exchange(tmp_path, ".bin", ".idx")
    for options in ([], ["--quick"]):
        done = CliRunner().invoke(app, [str(tmp_path), *options])
        assert done.stdout.count("; expected") == 1
        assert "two sets swapped" in done.stdout


@pytest.mark.parametrize("text", ["", "{", "[]", '{"vocab_size": 256}', '{"vocab_size": 1, "splits": {}, "files": {}}'])
def test_a_manifest_that_does_not_say_what_to_expect_is_told_in_one_line(ours: Path, text: str) -> None:
    (ours / "sample.json").write_text(text)
    done = verify(ours)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {ours}/sample.json: got ")
    assert "; expected " in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("prefix", [TRAIN_PREFIX, VALIDATION_PREFIX])
def test_a_manifest_with_another_number_of_documents_is_a_finding(sample: Path, tmp_path: Path, prefix: str) -> None:
    shutil.copytree(sample, tmp_path, dirs_exist_ok=True)
    manifest = json.loads((tmp_path / "sample.json").read_text())
    manifest["splits"][prefix]["documents"] += 1
    (tmp_path / "sample.json").write_text(json.dumps(manifest))
    done = CliRunner().invoke(app, [str(tmp_path), "--quick"])
    assert done.exit_code == 1
    count = manifest["splits"][prefix]["documents"]
    assert f"{prefix}.idx: got {count - 1:,} documents; expected {count:,}" in done.stdout
    assert done.stdout.count("; expected") == 1


@pytest.mark.parametrize("splits", [[TRAIN_PREFIX], [TRAIN_PREFIX, VALIDATION_PREFIX, "other"]])
def test_a_manifest_with_other_splits_is_refused(sample: Path, tmp_path: Path, splits: list[str]) -> None:
    manifest = json.loads((sample / "sample.json").read_text())
    manifest["splits"] = {prefix: {"documents": 1} for prefix in splits}
    (tmp_path / "sample.json").write_text(json.dumps(manifest))
    done = CliRunner().invoke(app, [str(tmp_path)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "expected the four files and two splits of a data set" in done.stderr


def test_empty_documents_are_counted_and_no_error(tmp_path: Path) -> None:
    empty = np.zeros(0, np.int64)
    contents = [empty, np.arange(60), empty, empty, np.arange(9)]
    write_by_us(tmp_path / VALIDATION_PREFIX, [*contents, empty, empty])
    write_by_us(tmp_path / TRAIN_PREFIX, [np.arange(100)])
    done = verify(tmp_path, "--no-md5")
    assert done.exit_code == 0, done.output
    assert re.search(r"of them empty +5\n", done.stdout)
    facts = report(tmp_path)["pairs"]
    assert facts[VALIDATION_PREFIX]["empty_sequences"] == 5
    assert facts[VALIDATION_PREFIX]["empty_documents"] == 0
    put(tmp_path / VALIDATION_IDX, tables_at(7)[2] + 8 * 3, "<q", 2)
    assert verify(tmp_path, "--no-md5").exit_code == 0
    facts = report(tmp_path)["pairs"]
    assert facts[VALIDATION_PREFIX]["empty_documents"] == 1


# --- the report


def test_the_report_has_exactly_this_and_nothing_of_the_machine(tmp_path: Path) -> None:
    for name in ("here", "there"):
        contents = write_set(tmp_path / name, WRITERS["megatron" if name == "here" else "ours"])
        assert verify(tmp_path / name).exit_code == 0
    text = (tmp_path / "here" / "verified.json").read_text()
    assert text == (tmp_path / "there" / "verified.json").read_text(), "two sites can compare them byte for byte"
    assert str(tmp_path) not in text
    found = json.loads(text)
    versions = found.pop("versions")
    assert sorted(versions) == ["gptoss20b", "numpy", "python"]
    md5 = {line.split()[1].removeprefix("./"): line.split()[0] for line in (tmp_path / "here" / LIST).open()}
    tokens = {prefix: np.concatenate(made) for prefix, made in contents.items()}
    digest = found.pop("eval_tokens_sha256")
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert found == {
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


def test_a_failing_report_names_files_only(ours: Path) -> None:
    flip(ours / TRAIN_BIN, 3, 0x40)
    (ours / VALIDATION_IDX).unlink()
    verify(ours)
    text = (ours / "verified.json").read_text()
    assert str(ours) not in text
    saved = json.loads(text)
    assert saved["verdict"] == "fail"
    assert [finding["file"] for finding in saved["findings"]] == [VALIDATION_IDX, TRAIN_BIN, TRAIN_BIN]
    assert all(sorted(finding) == ["file", "message"] for finding in saved["findings"])
    assert saved["eval_tokens_sha256"] is None
    assert saved["files"][VALIDATION_IDX] == {"bytes": None}
    assert saved["not_checked"]["structure"] == [VALIDATION_BIN, VALIDATION_IDX]


def test_a_quick_report_says_what_was_not_checked(ours: Path) -> None:
    assert verify(ours, "--quick").exit_code == 0
    saved = report(ours)
    assert saved["quick"] is True
    assert saved["checked"] == {"structure": FILES, "checksums": [], "tokens": []}
    assert saved["not_checked"] == {"structure": [], "checksums": FILES, "tokens": [TRAIN_BIN, VALIDATION_BIN]}
    assert saved["pairs"][TRAIN_PREFIX]["token_max"] is None
    assert saved["files"][TRAIN_BIN] == {"bytes": (ours / TRAIN_BIN).stat().st_size}


def test_a_quick_pass_does_not_replace_the_report_of_a_full_verification(ours: Path, tmp_path: Path) -> None:
    verify(ours)
    full = (ours / "verified.json").read_text()
    done = verify(ours, "--quick")
    assert done.exit_code == 0
    assert (ours / "verified.json").read_text() == full
    assert "not written: it holds the report of a full verification" in done.stderr
    verify(ours, "--quick", "--report", str(tmp_path / "quick.json"))
    assert json.loads((tmp_path / "quick.json").read_text())["quick"] is True
    cut(ours / TRAIN_BIN, 4)
    assert verify(ours, "--quick").exit_code == 1
    assert report(ours)["verdict"] == "fail", "an old pass must not stay"


@pytest.mark.parametrize("before", ["", "mine", "{}", '{"kind": "data verification"}', '["\\ud800"]'])
def test_what_lies_there_changes_no_outcome_and_another_file_is_kept(ours: Path, before: str) -> None:
    (ours / "verified.json").write_text(before)
    done = verify(ours)
    assert done.exit_code == 0
    kept = "kind" not in before
    assert ((ours / "verified.json").read_text() == before) == kept
    assert ("not written: another file has this name" in done.stderr) == kept
    assert "PASS" in verify(ours).stdout
    assert not list(ours.glob(".*")), "no temporary file stays"


def test_a_report_that_cannot_take_its_name_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "verified.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_report(tmp_path / "verified.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["verified.json"]


def test_a_folder_that_cannot_be_written_is_said_in_one_line(ours: Path) -> None:
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
    command = [sys.executable, "-m", "data_scripts.verify", str(ours), *OPTIONS]
    isolated = ["unshare", "--mount", "bash", "-c", script, "bash", str(ours)]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*isolated, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a folder read-only")
    done = subprocess.run([*isolated, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        f"{ours}/verified.json: not written: Read-only file system. To keep the report, pass --report FILE."
    ]
    assert sorted(path.name for path in ours.iterdir()) == sorted([*FILES, LIST])


# --- usage, progress, signals


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("sample.json", "is not sample.json"),
        ("set.md5", "ends in .json"),
        ("nowhere/report.json", "cannot be written"),
        ("mine.json", "is no report of this command"),
    ],
)
def test_a_report_where_it_would_do_harm_is_refused_before_anything_is_read(ours: Path, place: str, words: str) -> None:
    (ours / "mine.json").write_text("{}")
    done = verify(ours, "--report", str(ours / place))
    assert done.exit_code == 2
    assert words in " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stderr).split())
    assert done.stdout == ""
    assert (ours / "mine.json").read_text() == "{}"


def test_wrong_use(ours: Path) -> None:
    for options in (["--threads", "0"], ["--vocab-size", "0"], ["--sequences", "0"], ["--sequence-length", "0"]):
        assert verify(ours, *options).exit_code == 2
    done = verify(ours / "nowhere")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {ours}/nowhere: got no folder; expected one with the data set. To fix: ")


def test_plain_progress_lines_go_to_stderr(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verify(ours).stderr == "", "nothing in the first ten seconds"
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    lines = verify(ours).stderr.splitlines()
    # two parts of each index, then each file
    assert len(lines) == 8
    size = r"[\d.,]+ (?:bytes|[kMG]B)"
    form = re.compile(rf"verifying: {size} of {size}, {size}/s, \d+ s left")
    assert all(form.fullmatch(line) for line in lines)


def read_terminal(terminal: FileIO, wanted: bytes | None, seconds: float) -> bytes:
    """What is shown until `wanted` (a pattern; None: the other end closes) is there, which fails after `seconds`."""
    shown, end = b"", time.monotonic() + seconds
    while wanted is None or not re.search(wanted, shown):
        left = end - time.monotonic()
        assert left > 0 and select.select([terminal], [], [], left)[0], f"not in {seconds} s: {shown[-1000:]!r}"
        try:
            shown += terminal.read(1 << 16)
        except OSError:
            assert wanted is None, f"ended: {shown!r}"
            break
    return shown


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_promptly_while_a_terminal_shows_rate_and_time(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    write_by_us(tmp_path / VALIDATION_PREFIX, [np.arange(100)])
    count = 10_000
    lengths = np.full(count, 500_000)
    index = tmp_path / TRAIN_IDX
    write_by_us(tmp_path / TRAIN_PREFIX, [np.zeros(1, np.int64)] * count)
    pointers = (np.cumsum(lengths) - lengths) * 4
    data = bytearray(index.read_bytes())
    data[HEADER : HEADER + 12 * count] = lengths.astype("<i4").tobytes() + pointers.astype("<i8").tobytes()
    index.write_bytes(data)
    # 20 GB of nothing: sparse, and many seconds to hash
    os.truncate(tmp_path / TRAIN_BIN, 4 * 500_000 * count)
    (tmp_path / LIST).write_text("".join(f"{'0' * 32}  {name}\n" for name in FILES))
    leader, follower = pty.openpty()
    # A background job of a shell ignores SIGINT, and so would its children.
    code = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('data_scripts.verify', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(tmp_path), *OPTIONS]
    with (
        FileIO(leader) as terminal,
        subprocess.Popen(
            command,
            cwd=ROOT,
            stderr=follower,
            stdout=subprocess.PIPE,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        ) as process,
    ):
        os.close(follower)
        try:
            shown = read_terminal(terminal, rb"/20\.0 GB.*[1-9][0-9.]* [GM]B/s.*0:0\d:\d\d", 60)
            process.send_signal(number)
            shown += read_terminal(terminal, None, 30)
            assert process.wait(timeout=30) == status, shown
            assert process.stdout is not None
            assert process.stdout.read() == b""
        finally:
            process.kill()
    assert (b"error: interrupted" if number == signal.SIGINT else b"error: terminated") in shown
    assert not (tmp_path / "verified.json").exists()
