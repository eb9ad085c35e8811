"""The MLPerf log: complete, in order, by one rank, never over an existing result, accepted by the official checker."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import inspect
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from mlperf_logging.compliance_checker import mlp_compliance, mlp_parser

from gptoss20b.config import Config, resolve
from gptoss20b.mlperf_log import LogWriteError, RunClock, RunLog, TruncatedLogError, hyperparameters
from tests.support.paths import ROOT

THIS_FILE = "tests/unit/test_mlperf_log.py"
RULES = Path(mlp_compliance.__file__).parent
SHA = "0" * 64

# The reference run's records of ruleset 6.1.0, each required exactly once except target_accuracy.
REFERENCE_RUN = {
    "submission_benchmark": "gpt_oss_20b",
    "submission_division": "closed",
    "submission_org": "Somebody",
    "submission_platform": "box",
    "submission_status": "onprem",
    "seed": 17,
    "global_batch_size": 16,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_sequence_length": 8192,
    "train_samples": 19_200_000,
    "eval_samples": 1024,
    "target_accuracy": 3.34,
    "init_checkpoint_step": 0,
    "opt_name": "adamw",
    "opt_base_learning_rate": 4e-4,
    "opt_end_learning_rate": pytest.approx(4e-5, rel=1e-12),
    "opt_learning_rate_warmup_steps": 128,
    "opt_learning_rate_decay_steps": 1_199_872,
    "opt_learning_rate_decay_schedule": "cosine with linear warmup",
    "opt_adamw_beta_1": 0.9,
    "opt_adamw_beta_2": 0.95,
    "opt_adamw_epsilon": 1e-5,
    "opt_adamw_weight_decay": 0.1,
    "opt_gradient_clip_norm": 1.0,
    "max_steps": 1_200_000,
    "lowest_numerical_precision_in_linear": "bfloat16",
    "lowest_numerical_precision_in_attn": "bfloat16",
    "lowest_numerical_precision_in_comm": "bfloat16",
    "tensor_parallelism": 1,
    "pipeline_parallelism": 1,
    "context_parallelism": 1,
    "expert_parallelism": 8,
    "config_filename": "config_box.sh",
}

pytestmark = pytest.mark.usefixtures("no_settings")


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    return RunLog(tmp_path / "result_0.txt")


def records(path: Path) -> list[dict[str, Any]]:
    """Return the file's records, read by the official parser. The file must hold nothing else."""
    lines, failed = mlp_parser.parse_file(str(path), ruleset="6.1.0")
    assert not failed
    assert len(lines) == len(path.read_text().splitlines())
    return [json.loads(line.full_string.removeprefix(":::MLLOG ")) for line in lines]


def write_run(log: RunLog, config: Config, losses: list[float]) -> None:
    """Call the log as a whole run does, with an evaluation for each loss."""
    interval = config.eval_interval_steps * config.free.global_batch_size
    log.init_start(config)
    log.describe(config, seed=1)
    log.run_start()
    log.data_opened(SHA)
    for number, loss in enumerate(losses, 1):
        samples = number * interval
        log.block_start(samples - interval)
        log.train_loss(samples, loss + 0.1, 4e-4)
        log.block_stop(samples, 12.5)
        log.eval_start(samples)
        log.eval_stop(samples, loss)
    reached = losses[-1] <= config.fixed.target_loss
    log.run_stop(success=reached, reason=None if reached else "target not reached")
    log.close()


def test_the_records_follow_the_timeline(log: RunLog, tmp_path: Path) -> None:
    write_run(log, resolve(), [5.0, 3.3])
    seen = records(tmp_path / "result_0.txt")
    keys = [record["key"] for record in seen]
    start = keys.index("eval_tokens_sha256")
    assert keys[:start] == [
        *("cache_clear", "init_start"),
        *hyperparameters(resolve(), 1),
        *("init_stop", "run_start"),
    ]
    kinds = {kind: {r["key"] for r in seen if r["event_type"] == f"INTERVAL_{kind}"} for kind in ("START", "END")}
    for kind, suffix in {"START": "start", "END": "stop"}.items():
        assert kinds[kind] == {f"{interval}_{suffix}" for interval in ("init", "run", "block", "eval")}
    times = [record["time_ms"] for record in seen]
    assert times == sorted(times)

    details = [{k: v for k, v in r["metadata"].items() if k not in ("file", "lineno")} for r in seen]
    training = [(r["key"], r["value"], detail) for r, detail in zip(seen, details, strict=True)][start:]
    expected: list[tuple[str, Any, dict[str, Any]]] = [("eval_tokens_sha256", SHA, {})]
    for samples, loss, evaluated in ((12_288, 5.1, 5.0), (24_576, 3.4, 3.3)):
        expected += [
            ("block_start", None, {"samples_count": samples - 12_288}),
            ("train_loss", loss, {"samples_count": samples, "lr": 4e-4}),
            ("tracked_stats", {"throughput": 12.5}, {"step": samples}),
            ("block_stop", None, {"samples_count": samples}),
            ("eval_start", None, {"samples_count": samples}),
            ("eval_accuracy", evaluated, {"samples_count": samples}),
            ("eval_stop", None, {"samples_count": samples}),
        ]
    assert training == [*expected, ("run_stop", None, {"samples_count": 24_576, "status": "success"})]


def checker_requires_once(ruleset: str) -> set[str]:
    required = set()
    for name in ("common", "closed_common", "closed_gpt_oss_20b"):
        for entry in yaml.safe_load((RULES / f"training_{ruleset}" / f"{name}.yaml").read_text()):
            if entry.get("KEY", {}).get("REQ") == "EXACTLY_ONE":
                required.add(entry["KEY"]["NAME"])
    return required


def test_every_required_key_is_logged_exactly_once(log: RunLog, tmp_path: Path) -> None:
    write_run(log, resolve(), [5.0, 4.0, 3.3])
    counts = Counter(record["key"] for record in records(tmp_path / "result_0.txt"))
    required = {*REFERENCE_RUN, *checker_requires_once("6.0.0"), *checker_requires_once("6.1.0")}
    assert len(required) > len(REFERENCE_RUN)  # with init_stop, run_start, ...
    assert {key: counts[key] for key in required} == dict.fromkeys(required, 1)
    assert counts["cache_clear"] == counts["init_start"] == 1


def test_the_reference_run_logs_the_rules_values() -> None:
    assert hyperparameters(resolve({"DGXSYSTEM": "box", "SUBMISSION_ORG": "Somebody"}), seed=17) == REFERENCE_RUN


def test_another_run_logs_its_own_values() -> None:
    described = hyperparameters(
        resolve(
            {
                "GLOBAL_BATCH_SIZE": "24",
                "MICRO_BATCH_SIZE": "1",
                "LEARNING_RATE": "5e-4",
                "WARMUP_STEPS": "256",
                "CONTEXT_PARALLEL": "2",
                "EXPERT_PARALLEL": "4",
                "PIPELINE_PARALLEL": "2",
                "DGXNNODES": "2",
                "PRECISION": "fp32",
            }
        ),
        seed=1,
    )
    assert described["gradient_accumulation_steps"] == 6
    assert described["opt_end_learning_rate"] == pytest.approx(5e-5)
    assert described["opt_learning_rate_decay_steps"] == 1_199_744
    assert [described[f"{kind}_parallelism"] for kind in ("tensor", "pipeline", "context", "expert")] == [1, 2, 2, 4]
    assert described["lowest_numerical_precision_in_comm"] == "fp32"


@pytest.mark.parametrize("precision", ["fp8", "mxfp8"])
def test_eight_bit_layers_are_logged_under_a_name_of_the_ruleset(precision: str) -> None:
    from compliance.benchmark import PRECISIONS

    described = hyperparameters(resolve({"PRECISION": precision}), seed=1)
    lowest = [described[f"lowest_numerical_precision_in_{part}"] for part in ("linear", "attn", "comm")]
    assert lowest == ["fp8", "bfloat16", "bfloat16"]
    assert set(lowest) <= PRECISIONS


@pytest.mark.parametrize(("given", "logged"), [("1", True), ("0", False)])
def test_cache_clear_is_the_launchers(log: RunLog, tmp_path: Path, given: str, logged: bool) -> None:
    log.init_start(resolve({"CACHE_CLEARED": given}))
    assert [(record["key"], record["value"]) for record in records(tmp_path / "result_0.txt")] == [
        ("cache_clear", logged),
        ("init_start", None),
    ]


def test_stdout_gets_the_same_lines_as_the_file(
    log: RunLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(log, resolve(), [3.0])
    assert capsys.readouterr().out == (tmp_path / "result_0.txt").read_text()


def test_an_existing_result_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "full").write_text("the result of another run\n")
    (tmp_path / "empty").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("full", "empty", "dangling"):
        with pytest.raises(FileExistsError):
            RunLog(tmp_path / name)
    assert (tmp_path / "full").read_text() == "the result of another run\n"


# Resumes the log in the current folder, reports that, and is killed.
HOLDER = """
import os, signal
from pathlib import Path
from gptoss20b.mlperf_log import RunLog
log = RunLog(Path("result_0.txt"), resuming=True)
print("holds", flush=True)
signal.pause()
"""


def test_two_runs_never_write_one_log(log: RunLog, tmp_path: Path) -> None:
    path = tmp_path / "result_0.txt"
    with pytest.raises(BlockingIOError, match=str(path)):
        RunLog(path, resuming=True)
    log.block_start(0)
    log.close()
    assert [file.name for file in tmp_path.iterdir()] == ["result_0.txt"]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        with pytest.raises(BlockingIOError):
            RunLog(path, resuming=True)
        holder.kill()
    resumed = RunLog(path, resuming=True)
    resumed.resumed(path.stat().st_size, samples=0)
    resumed.close()
    assert [record["key"] for record in records(path)] == ["block_start", "resumed"]
    assert [file.name for file in tmp_path.iterdir()] == ["result_0.txt"]


def test_records_after_a_checkpoint_are_kept_aside_and_a_shorter_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result_0.txt"
    for text in ("kept\nfirst\n", "kept\nsecond\n"):
        path.write_text(text)
        with contextlib.closing(RunLog(path, resuming=True)) as log:
            log.resumed(len("kept\n"), samples=0)
    assert [(tmp_path / f"cut_{k}_of_result_0.txt").read_text() for k in (1, 2)] == ["first\n", "second\n"]
    before = path.read_bytes()
    with contextlib.closing(RunLog(path, resuming=True)) as log, pytest.raises(TruncatedLogError):
        log.resumed(len(before) + 1, samples=0)
    assert path.read_bytes() == before


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / "result_0.txt"
    write_run(RunLog(path), resolve(), [3.0])
    assert records(path)[-1]["key"] == "run_stop"
    RunLog(path, resuming=True).close()


def test_a_rank_that_does_not_log_writes_nothing_and_has_a_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(RunLog(None), resolve(), [5.0, 3.0])
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert isinstance(RunLog(None).run_start(), RunClock)


def test_run_stop_is_written_once(log: RunLog, tmp_path: Path) -> None:
    log.block_start(32)
    log.run_stop(success=False, reason="first")
    log.run_stop(success=True)
    log.run_stop(success=False, reason="second")
    _, *stops = records(tmp_path / "result_0.txt")
    assert [(stop["key"], stop["metadata"]["status"], stop["metadata"]["reason"]) for stop in stops] == [
        ("run_stop", "aborted", "first")
    ]
    assert stops[0]["metadata"]["samples_count"] == 32


def test_run_stop_of_many_threads_is_written_once(log: RunLog, tmp_path: Path) -> None:
    threads = [threading.Thread(target=log.run_stop, args=(False, str(i))) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record["key"] for record in records(tmp_path / "result_0.txt")] == ["run_stop"]


class SlowStream(io.StringIO):
    """Stream whose write hangs until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.release = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        self.release.wait(5)
        return super().write(text)


def test_a_second_run_stop_waits_for_the_first(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowStream()
    monkeypatch.setattr(sys, "stdout", slow)
    first = threading.Thread(target=log.run_stop, args=(True,))
    second = threading.Thread(target=log.run_stop, args=(False, "received SIGTERM"))
    first.start()
    assert slow.entered.wait(5)
    second.start()
    second.join(0.3)
    returned_early = not second.is_alive()
    slow.release.set()
    first.join()
    second.join()
    assert not returned_early


def test_records_name_the_line_that_called_the_log_and_no_absolute_path(log: RunLog, tmp_path: Path) -> None:
    frame = inspect.currentframe()
    assert frame is not None
    log.block_start(0)
    line = frame.f_lineno - 1
    write_run(log, resolve(), [5.0, 3.3])
    first, *others = records(tmp_path / "result_0.txt")
    assert (first["metadata"]["file"], first["metadata"]["lineno"]) == (THIS_FILE, line)
    assert str(ROOT) not in (tmp_path / "result_0.txt").read_text()
    lines = Path(__file__).read_text().splitlines()
    for record in others:
        assert record["metadata"]["file"] == THIS_FILE
        assert "log." in lines[record["metadata"]["lineno"] - 1]


@pytest.mark.parametrize("folder", ["plain", "c++ (copy)"])  # mllog reads it as a regular expression
def test_no_record_holds_an_absolute_path_in_any_folder(tmp_path: Path, folder: str) -> None:
    root = tmp_path / folder
    shutil.copytree(ROOT / "gptoss20b", root / "gptoss20b", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "gptoss20b" / "caller.py").write_text(
        "from pathlib import Path\nfrom .mlperf_log import RunLog\nRunLog(Path('out')).block_start(0)\n"
    )
    subprocess.run(
        [sys.executable, "-m", "gptoss20b.caller"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        check=True,
    )
    (record,) = records(tmp_path / "out")
    assert (record["metadata"]["file"], record["metadata"]["lineno"]) == ("gptoss20b/caller.py", 3)


# --- writing fails


def run_python(code: str, tmp_path: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
        **options,
    )


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from gptoss20b.mlperf_log import RunLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes past the limit fail instead
log = RunLog(Path("result_0.txt"))
log.block_start(0)
resource.setrlimit(resource.RLIMIT_FSIZE, (Path("result_0.txt").stat().st_size + 20,) * 2)
for call in (lambda: log.block_start(1), lambda: log.run_stop(False, "full"), log.close):
    try:
        call()
        print("passed", file=sys.stderr)
    except OSError as error:
        print("raised", error.errno, file=sys.stderr)
"""


def test_a_full_disk_is_an_error_of_each_record_and_not_of_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # coverage could not write its file, either
    done = run_python(FULL_DISK, tmp_path, stdout=subprocess.PIPE)
    assert done.stderr.splitlines() == ["raised 27", "raised 27", "passed"]  # EFBIG
    assert done.stdout.splitlines()[0].startswith(":::MLLOG ")


STDOUT_GONE = """
import sys
from pathlib import Path
from gptoss20b.mlperf_log import RunLog
log = RunLog(Path("result_0.txt"))
for call in (lambda: log.block_start(0), lambda: log.run_stop(False, "stdout is gone")):
    try:
        call()
        print("passed", file=sys.stderr)
    except OSError as error:
        print("raised", error.errno, file=sys.stderr)
sys.stdout = None
"""


def test_a_stdout_that_cannot_be_written_is_an_error_and_the_file_has_the_records(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = run_python(STDOUT_GONE, tmp_path, stdout=full)
    assert done.stderr.splitlines()[:2] == ["raised 28", "raised 28"]  # ENOSPC
    assert [record["key"] for record in records(tmp_path / "result_0.txt")] == ["block_start", "run_stop"]


@pytest.mark.parametrize("proof", [None, object(), "proof", RunLog, True, RunLog(None)])
def test_only_a_started_log_creates_a_clock(proof: object) -> None:
    with pytest.raises(TypeError):
        RunClock(proof)


# --- the official checker


def checker_accepts(path: Path, ruleset: str) -> bool:
    """Run the official checker with warnings as errors."""
    checker = mlp_compliance.make_checker("training", ruleset, quiet=False, werror=True)
    valid, *_ = mlp_compliance.main(str(path), f"training_{ruleset}/common.yaml", checker)
    return bool(valid)


def without(path: Path, key: str) -> Path:
    lines = path.read_text().splitlines(keepends=True)
    shorter = path.with_name(f"without_{key}.txt")
    shorter.write_text("".join(line for line in lines if f'"key": "{key}"' not in line))
    assert len(shorter.read_text()) < len(path.read_text())
    return shorter


@pytest.mark.parametrize(
    "options",
    [
        {"DGXSYSTEM": "box"},
        {"GLOBAL_BATCH_SIZE": "24", "MICRO_BATCH_SIZE": "3"},
        {"GLOBAL_BATCH_SIZE": "32", "LEARNING_RATE": "8e-4", "PRECISION": "fp32"},
        {"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open", "SUBMISSION_STATUS": "research"},
        {"MODEL_VARIANT": "openai", "SUBMISSION_DIVISION": "open", "SUBMISSION_STATUS": "cloud"},
    ],
)
@pytest.mark.parametrize("ruleset", ["6.0.0", "6.1.0"])
def test_runs_that_reach_the_target_pass_the_checker(
    log: RunLog, tmp_path: Path, options: dict[str, str], ruleset: str
) -> None:
    write_run(log, resolve(options), [5.2, resolve(options).fixed.target_loss])
    assert checker_accepts(tmp_path / "result_0.txt", ruleset)


def test_the_checker_misses_every_required_record(log: RunLog, tmp_path: Path) -> None:
    write_run(log, resolve(), [5.2, 3.3])
    path = tmp_path / "result_0.txt"
    assert checker_accepts(path, "6.1.0")
    required = checker_requires_once("6.1.0") | {"cache_clear", "init_start", "eval_accuracy"}
    accepted = [key for key in sorted(required) if checker_accepts(without(path, key), "6.1.0")]
    assert accepted == []


@pytest.mark.parametrize("options", [{}, {"MAX_STEPS": "1000", "SUBMISSION_DIVISION": "open"}])
def test_a_run_that_missed_the_target_fails_the_checker(log: RunLog, tmp_path: Path, options: dict[str, str]) -> None:
    write_run(log, resolve(options), [5.2, 3.35])
    assert not checker_accepts(tmp_path / "result_0.txt", "6.1.0")


def test_a_value_that_cannot_be_encoded_is_an_error_and_no_line(log: RunLog, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Failed to encode"):
        log.train_loss(16, object(), 0.0)  # type: ignore[arg-type]
    assert log.path is not None
    assert log.path.read_text() == ""


def test_a_removed_log_is_an_error_at_the_next_record(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "result_0.txt")
    log.code("x")
    (tmp_path / "result_0.txt").unlink()
    with pytest.raises(LogWriteError, match="removed"):
        log.code("x")
