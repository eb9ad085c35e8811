"""The sampler of telemetry: whole rows, one warning for each fault, and an end with its parent or by a signal."""

from __future__ import annotations

import contextlib
import csv
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from gptoss20b.telemetry import beside_run, sampler
from gptoss20b.telemetry.csv_file import COLUMNS, CsvFile, format_row
from gptoss20b.telemetry.gpus import Reading
from tests.support.made_machines import made_script
from tests.support.paths import ROOT
from tests.support.waiting import is_gone, wait_until

FAKE = str(ROOT / "tests" / "support" / "fake_nvml")
HEADER = ",".join(COLUMNS)


class SteadyGpu:
    """A GPU of 500 W that does not answer every second reading, if it is unsteady."""

    def __init__(self, index: int, unsteady: bool = False) -> None:
        self.index, self.uuids, self.readings, self.unsteady = index, (f"GPU-{index}",), 0, unsteady

    def read(self) -> Reading:
        self.readings += 1
        return Reading() if self.unsteady and self.readings % 2 else Reading(power_w=500.0, throttle_reasons=())


@pytest.fixture
def stopped_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let the sampler run for as many samples as the list says, without a wait."""
    left = [1]

    def wait(signals: object, seconds: float) -> bool:
        assert 0 <= seconds <= 7
        left[0] -= 1
        return left[0] <= 0

    monkeypatch.setattr(signal, "sigtimedwait", wait)
    monkeypatch.setattr(signal, "pthread_sigmask", lambda *_: None)
    yield left
    signal.alarm(0)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as lines:
        return list(csv.DictReader(lines))


@contextlib.contextmanager
def started(folder: Path, *options: str, setup: str = "", **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start the sampler on the made-up node, 50 samples a second. Kill it at the end of the block."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    code = f"import gptoss20b.telemetry.sampler as s; import sys; from pathlib import Path\n{setup}\n"
    code += "sys.exit(not s.sample_until_signal(Path(sys.argv[1]), 0.02, None, *map(int, sys.argv[2:])))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "telemetry.csv"), *options],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": FAKE} | variables,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_end(pid: int) -> None:
    try:
        wait_until(lambda: is_gone(pid), 10, "the end of the sampler")
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()


def test_a_row_holds_known_values_only() -> None:
    assert format_row(7, 1, "GPU-1", Reading()) == "7,1,GPU-1,,,,,,,,"
    reading = Reading(612.345, 1980, 3201, 61, 70, 99, 102_400, ("sw_power_cap", "hw_slowdown"))
    assert format_row(7, 1, "GPU-1", reading) == "7,1,GPU-1,612.345,1980,3201,61,70,99,102400,sw_power_cap|hw_slowdown"


def test_rows_are_appended_after_one_header(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.csv"
    for number in range(2):
        file = CsvFile(path)
        file.append([f"row {number}", "another"])
        with pytest.raises(BlockingIOError, match=r"telemetry\.csv"):
            CsvFile(path)
        file.close()
    assert path.read_text().splitlines() == [HEADER, "row 0", "another", "row 1", "another"]


def test_a_cut_row_stays_on_its_own_line(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.csv"
    path.write_text(f"{HEADER}\n123,0,GPU-")
    file = CsvFile(path)
    file.append(["row"])
    file.close()
    assert path.read_text().splitlines() == [HEADER, "123,0,GPU-", "row"]


@pytest.mark.usefixtures("stopped_after")
def test_a_full_disk_is_one_warning_and_cuts_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stopped_after: list[int]
) -> None:
    path, stopped_after[0] = tmp_path / "telemetry.csv", 5
    row = len(format_row(1771600000000, 0, "GPU-0", Reading(500.0, throttle_reasons=()))) + 1
    monkeypatch.setattr(sampler, "open_gpus", lambda limit: [SteadyGpu(0)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(HEADER) + 1 + 3 * row + row // 2, limits[1]))
    try:
        assert sampler.sample_until_signal(path, 0.1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [each["power_w"] for each in rows_of(path)] == ["500"] * 3
    assert path.read_bytes().endswith(b"\n")


def test_a_gpu_that_does_not_answer_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stopped_after: list[int]
) -> None:
    path, stopped_after[0] = tmp_path / "new" / "telemetry.csv", 4
    monkeypatch.setattr(sampler, "open_gpus", lambda limit: [SteadyGpu(0), SteadyGpu(1, unsteady=True)])
    assert sampler.sample_until_signal(path, 0.1)
    assert [each["gpu"] for each in rows_of(path)] == ["0", "0", "1", "0", "0", "1"]
    assert {each["throttle_reasons"] for each in rows_of(path)} == {"none"}
    warned = capsys.readouterr().err.splitlines()
    assert (len(warned), "GPU-1" in warned[0]) == (1, True)


@pytest.mark.usefixtures("stopped_after")
def test_an_unexpected_error_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = SteadyGpu(0)
    monkeypatch.setattr(gpu, "read", lambda: 1 / 0)
    monkeypatch.setattr(sampler, "open_gpus", lambda limit: [gpu])
    assert not sampler.sample_until_signal(tmp_path / "telemetry.csv", 0.1)
    (tmp_path / "file").write_text("")
    assert not sampler.sample_until_signal(tmp_path / "file" / "telemetry.csv", 0.1)
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_a_whole_row(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path) as process:
        path = tmp_path / "telemetry.csv"
        wait_until(lambda: path.exists() and len(path.read_bytes()) > 2000, 20, "samples")
        process.send_signal(number)
        assert (process.wait(10), process.communicate()[1]) == (0, "")
    *rows, last = rows_of(path)
    assert [each["gpu"] for each in (*rows, last)] == ["0", "1"] * (len(rows) // 2 + 1)
    assert all(last.values())
    watts = [float(each["power_w"]) for each in rows]
    assert watts == sorted(watts)


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    code = "import subprocess, sys, os, time\n"
    code += f"p = subprocess.Popen([sys.executable, '-m', 'gptoss20b', 'telemetry', {str(tmp_path)!r}, "
    code += "'--parent', str(os.getpid())]); print(p.pid, flush=True); time.sleep(60)"
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, env=environment | {"PYTHONPATH": FAKE}, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        wait_until((tmp_path / "telemetry.csv").exists, 20, "the file")
        parent.kill()
    wait_for_end(pid)


def test_a_parent_that_has_gone_already(tmp_path: Path) -> None:
    with started(tmp_path, "1") as process:
        assert process.wait(20) == 0
    assert not (tmp_path / "telemetry.csv").exists()


def test_a_driver_that_hangs_ends_it(tmp_path: Path) -> None:
    with started(tmp_path, setup="s._MAX_WAIT_SECONDS = 1", FAKE_NVML_HANGS=str(tmp_path / "hangs")) as process:
        assert process.wait(20) == -signal.SIGALRM


@pytest.fixture
def asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_settings: None) -> Path:
    """Set TELEMETRY and LOGDIR for the launcher. Return the folder."""
    monkeypatch.setenv("PYTHONPATH", FAKE)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("TELEMETRY", "1")
    monkeypatch.setenv("LOGDIR", str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.fixture
def samplers() -> Callable[[], list[psutil.Process]]:
    """Return a function that returns the children that this process has got since. It may have had others."""
    before = set(psutil.Process().children())
    return lambda: [child for child in psutil.Process().children() if child not in before]


def test_the_launcher_does_not_wait_for_a_driver_that_hangs(
    asked_for: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samplers: Callable[[], list[psutil.Process]]
) -> None:
    monkeypatch.setenv("FAKE_NVML_HANGS", str(tmp_path / "hangs"))
    monkeypatch.setattr(beside_run, "_GRACE_SECONDS", 0.1)
    with beside_run.sampling(["train"], 0, "2"):
        wait_until((tmp_path / "hangs").exists, 20, "the start of the sampler")
        (child,) = samplers()
    wait_for_end(child.pid)


def test_options_of_the_ranks_are_read(asked_for: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TELEMETRY")
    path = tmp_path / "other" / "telemetry_node3.csv"
    options = ["train", "--telemetry", "yes", "--telemetry-interval=0.1", "--logdir", str(path.parent), "--seed", "5"]
    with beside_run.sampling(options, 3, "1"):
        wait_until(lambda: path.exists() and len(rows_of(path)) > 3, 20, "samples")
    assert {each["gpu"] for each in rows_of(path)} == {"0"}  # one of the two, as the run uses one
    assert not asked_for.exists()


@pytest.mark.parametrize(
    ("variables", "warnings"),
    [
        ({"TELEMETRY": "0"}, 0),
        ({"TELEMETRY": "no"}, 0),
        ({"TELEMETRY_INTERVAL": "often"}, 0),  # which the ranks report
        ({"LOGDIR": ""}, 1),
    ],
)
def test_runs_without_a_sampler(
    asked_for: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    samplers: Callable[[], list[psutil.Process]],
    variables: dict[str, str],
    warnings: int,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with beside_run.sampling(["train"], 0, "auto"):
        assert samplers() == []
    assert len(capsys.readouterr().err.splitlines()) == warnings


@pytest.mark.parametrize(("script", "warnings"), [("exit 1", 0), ("kill -SEGV $$", 1), (None, 1)])
def test_a_sampler_that_fails_is_at_most_one_warning(
    asked_for: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    samplers: Callable[[], list[psutil.Process]],
    script: str | None,
    warnings: int,
) -> None:
    if script:
        made_script(tmp_path, "python", script)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with beside_run.sampling(["train"], 0, "2"):
        wait_until(lambda: all(is_gone(each.pid) for each in samplers()), 10, "its end")
    assert len(capsys.readouterr().err.splitlines()) == warnings
