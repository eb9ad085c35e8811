"""Progress: a bar on a terminal, else a line every ten seconds; the rate leaves out what an earlier run had done."""

from __future__ import annotations

import io

import pytest

from data_scripts.progress import ByteProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    for name, value in {"TERM": "xterm", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    with ByteProgress("tokenizing") as progress:
        progress.begin(5_000_000_000, done=1_000_000_000)
        progress.update(2_000_000_000, "3 M tokens/s")
    assert "tokenizing, 3 M tokens/s" in terminal.getvalue() and "2.0/5.0 GB" in terminal.getvalue()


def test_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr("data_scripts.progress.time.monotonic", lambda: clock["now"])
    with ByteProgress("tokenizing") as progress:
        progress.begin(5_000_000_000, done=1_000_000_000)
        for now, done, note in ((9, 1.9e9, "a"), (10, 2e9, "b"), (11, 2.1e9, "c"), (20, 3e9, "")):
            clock["now"] = float(now)
            progress.update(int(done), note)
        clock["now"] = 30.0
        progress.advance(-2_000_000_000)
    assert capsys.readouterr().err == (
        "tokenizing: 2.0 GB of 5.0 GB, b, 100.0 MB/s, 30 s left\n"
        "tokenizing: 3.0 GB of 5.0 GB, 100.0 MB/s, 20 s left\n"
        "tokenizing: 1.0 GB of 5.0 GB, 0 bytes/s, time left unknown\n"
    )
