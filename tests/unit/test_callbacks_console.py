"""What a person sees: the line's content, its estimates, and where it goes."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from gptoss20b.callbacks import console
from gptoss20b.callbacks.console import ConsoleProgress
from gptoss20b.config import Config, resolve, settings
from tests.support.paths import ROOT

# What makes rich take a pipe for a terminal, or a terminal for a pipe.
ONE_SAMPLE_A_STEP = {"GLOBAL_BATCH_SIZE": "1", "MICRO_BATCH_SIZE": "1", "DGXNGPU": "1", "EXPERT_PARALLEL": "1"}
FOR_RICH = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


class Clock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    for name in settings():
        for prefix in ("", "MLPERF_", "MLLOG_"):
            monkeypatch.delenv(prefix + name, raising=False)
    for name in FOR_RICH:
        monkeypatch.delenv(name, raising=False)
    # A batch of one makes steps samples: an evaluation every 12,288; 8,192 tokens a sample; target 3.34.
    return resolve(ONE_SAMPLE_A_STEP)


# Seconds that pass, then (samples, training loss) or (samples, evaluation loss).
Event = tuple[float, str, int, float]
FIRST = (0, "eval", 12_288, 5.34)  # speed is measured from here
CURVE: list[Event] = [
    (0, kind, n, 3 + 100 * n**-0.5) for n in range(4_096, 49_153, 4_096) for kind in ("train", "eval")
]
LOW: list[Event] = [(0, kind, n, loss - 0.15) for _, kind, n, loss in CURVE]
EVENTS: dict[str, tuple[list[Event], str]] = {
    # 16 samples a second; 12,128 samples to the next evaluation take 758 s.
    "speed and next evaluation": (
        [FIRST, (10, "train", 12_448, 4.9876)],
        "12,448 samples | loss 4.9876 | last evaluation 5.3400 | 131,072 tokens/s | next evaluation in 12.6 min"
        " | time to target unknown",
    ),
    # Ten seconds each at 1, then at 16 samples a second.
    "speed of the last lines": (
        [
            FIRST,
            *((10.0, "train", 12_288 + 10 * n, 5.0) for n in range(1, 41)),
            *((10.0, "train", 12_688 + 160 * n, 5.0) for n in range(1, 41)),
        ],
        "| 131,072 tokens/s |",
    ),
    "an evaluation does not slow the speed": (
        [FIRST, (10, "train", 12_448, 4.9), (1000, "eval", 12_448, 5.4), (10, "train", 12_608, 4.7)],
        "| 131,072 tokens/s |",
    ),
    "setting up does not slow the speed": (
        [(600, "train", 16, 11.9), (10, "train", 176, 11.8)],
        "| 131,072 tokens/s |",
    ),
    # The curve reaches 3.34 at 86,505 samples, so the evaluation at 98,304 passes.
    "the passing evaluation": ([*CURVE, (10, "train", 49_312, 4.26)], "| target in about 51.0 min"),
    "no evaluation, no estimate": ([*CURVE[::2], (10, "train", 49_312, 4.26)], "| time to target unknown"),
    # The fit has passed the target, and the evaluation has not.
    "a target in the past": (
        [*LOW, (0, "eval", 49_152, 3.35), (10, "train", 49_312, 3.1)],
        "| next evaluation in 12.6 min | target in about 12.6 min",
    ),
    "an evaluation in half a second": ([*LOW, (600, "train", 61_439, 3.1)], "in 1 s | target in about 1 s"),
    "an evaluation is due": ([*LOW, (10, "train", 61_440, 3.1)], "| 10,066,330 tokens/s | evaluating"),
}


def line_after(config: Config, clock: Clock, events: list[Event]) -> str:
    display = ConsoleProgress(config)
    for seconds, kind, samples, loss in events:
        clock.now += seconds
        if kind == "train":
            display.on_train_loss(samples, loss, 0.0)
        else:
            display.on_eval_stop(samples, loss, converged=False)
    return display.line()


@pytest.mark.parametrize("case", EVENTS)
def test_the_line(case: str, config: Config, clock: Clock) -> None:
    events, expected = EVENTS[case]
    assert expected in line_after(config, clock, events)


def test_in_a_pipe_every_report_is_one_plain_line(
    config: Config, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    display = ConsoleProgress(config)
    display.message("reference on 8 ranks [not markup]")
    display.on_train_loss(16, 11.8, 0.0)
    display.on_eval_stop(12_288, 3.5, converged=False)
    display.on_eval_stop(24_576, 3.34, converged=True)
    display.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    assert "\r" not in err
    lines = err.splitlines()
    assert len(lines) == 4
    assert lines[0] == "reference on 8 ranks [not markup]"
    assert lines[2:] == [
        "evaluation at 12,288 samples: loss 3.5000 (target 3.34)",
        "evaluation at 24,576 samples: loss 3.3400 (target reached)",
    ]


ON_A_TERMINAL = f"""
import sys, time
from gptoss20b.config import resolve
from gptoss20b.callbacks.console import ConsoleProgress
display = ConsoleProgress(resolve({ONE_SAMPLE_A_STEP!r} | {{"MLLOG_STDOUT": sys.argv[1]}}))
display.start({{"model": "[small]"}}, "the plain line")
display.detail("a detail")
display.message("log: results/[red]")
for step in range(1, 6):
    display.echo(f":::MLLOG record {{step}} " + 200 * "x")  # wider than the terminal
    display.on_train_loss(16 * step, 10.0, 0.0)
    time.sleep(0.15)  # the live line is drawn four times a second
display.on_eval_stop(80, 9.0, converged=False)
display.close()
display.finish("[the last words]")
"""


def on_a_terminal(stdout_too: bool, records: str = "") -> tuple[str, str]:
    """Return what the script writes to a terminal, and to a pipe if its stdout is one."""
    leader, follower = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in {*FOR_RICH, *settings()}}
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, records],
        cwd=ROOT,
        env={**environment, "TERM": "xterm", "COLUMNS": "150"},
        stdout=follower if stdout_too else subprocess.PIPE,
        stderr=follower,
        text=True,
    )
    os.close(follower)
    seen = b""
    try:
        while part := os.read(leader, 65_536):
            seen += part
    except OSError:
        pass  # how Linux says that the other side of a terminal is closed
    finally:
        os.close(leader)
    piped = process.stdout.read() if process.stdout is not None else ""
    assert process.wait(30) == 0
    return seen.decode(), piped


def test_a_real_terminal_with_stdout_in_a_pipe() -> None:
    seen, piped = on_a_terminal(stdout_too=False)
    assert piped == "".join(f":::MLLOG record {step} {200 * 'x'}\n" for step in range(1, 6))
    assert ":::MLLOG" not in seen
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert re.search(r"(16|32|48|64|80) samples \| loss 10\.0000", plain)
    assert "\x1b[2K" in seen  # the line is drawn over itself
    assert "evaluation at 80 samples: loss 9.0000 (target 3.34)" in plain
    assert (
        "[small]" in plain
        and "log: results/[red]" in plain
        and "the plain line" not in plain
        and "a detail" not in plain
    )
    _, _, end = seen.rpartition("\x1b[2K")  # the line is removed before the plot and the result
    assert re.fullmatch(r"[^[]*3\.34 \|-+[^[]*80 samples\r\n\[the last words\]\r\n", end, re.DOTALL)


def test_records_are_shown_above_the_live_line_of_a_real_terminal_on_demand() -> None:
    assert ":::MLLOG" not in on_a_terminal(stdout_too=True)[0]
    seen, _ = on_a_terminal(stdout_too=True, records="1")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    positions = [plain.index(f":::MLLOG record {step} {200 * 'x'}\r\n") for step in range(1, 6)]
    assert positions == sorted(positions)
    # A record starts its own line instead of continuing the live one.
    assert all(plain[position - 1] in "\r\n" for position in positions[1:])


def test_a_pipe_stays_a_pipe_whatever_force_color_says(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    display = ConsoleProgress(config)
    display.on_train_loss(16, 11.8, 0.0)
    display.close()
    assert capsys.readouterr().err == "16 samples | loss 11.8000\n"


def test_a_reader_of_stderr_that_has_gone_ends_nothing() -> None:
    code = "import os\nfrom gptoss20b.callbacks.console import ConsoleProgress\nfrom gptoss20b.config import resolve\n"
    code += "progress = ConsoleProgress(resolve())\nos.read(0, 1)\nprogress.message('lost')\nprint('goes on')\n"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stderr is not None
        run.stderr.close()
        assert run.communicate(b"x", timeout=60)[0] == b"goes on\n"
