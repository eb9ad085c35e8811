"""Running tools and modules in child processes: output, failures, and time limits."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from system_info.tools import run_module, run_tool
from tests.support.made_machines import made_tool


def test_output_and_status_of_a_tool(tools: Path) -> None:
    made_tool(tools, "tool", {"--good": "an answer"})
    good = run_tool("tool", "--good")
    assert (good.status, good.answer, good.failure) == (0, "an answer\n", None)
    bad = run_tool("tool", "--bad")
    assert (bad.status, bad.answer, bad.is_missing) == (9, "", False)
    assert bad.failure is not None
    assert "9" in bad.failure
    made_tool(tools, "tool", "two\nlines", status=1)
    failed = run_tool("tool")
    assert (failed.stdout, failed.answer, failed.failure) == ("two\nlines\n", "", "two lines")


@pytest.mark.parametrize("kind", ["absent", "a folder", "not executable"])
def test_a_tool_that_cannot_be_run_is_missing(tools: Path, kind: str) -> None:
    if kind == "a folder":
        (tools / "tool").mkdir()
    elif kind == "not executable":
        (tools / "tool").write_text("#!/bin/sh\n")
    assert run_tool("tool").is_missing


def test_tools_answer_in_english(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    (tools / "tool").write_text('#!/bin/sh\necho "$LC_ALL $MORE"\n')
    (tools / "tool").chmod(0o755)
    assert run_tool("tool", env={"MORE": "more"}).answer == "C more\n"


def test_a_hanging_tool_ends_at_its_limit_and_leaves_no_process(tmp_path: Path, tools: Path) -> None:
    pid_file = tmp_path / "pid"
    (tools / "slow").write_text(f"#!/bin/sh\n/bin/sleep 60 & echo $! > {pid_file}\nwait\n", encoding="utf-8")
    (tools / "slow").chmod(0o755)
    output = run_tool("slow", limit_s=1.0)
    assert (output.status, output.timed_out, output.is_missing) == (None, True, False)
    assert output.failure is not None
    assert "1 s" in output.failure
    child = int(pid_file.read_text())
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    os.kill(child, 9)
    pytest.fail("the tool's child outlived it")


def test_without_a_limit_a_tool_stays_in_the_callers_process_group(tools: Path) -> None:
    # The caller's own limit then ends it: the doctor kills the process group of a check.
    (tools / "tool").write_text("#!/bin/sh\nread -r _ _ _ _ group _ < /proc/$$/stat\necho $group\n")
    (tools / "tool").chmod(0o755)
    assert int(run_tool("tool").answer) == os.getpgrp()
    assert int(run_tool("tool", limit_s=20.0).answer) != os.getpgrp()


def test_a_module_is_not_taken_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "system_info").mkdir()
    for name in ("__init__", "nvml"):
        (tmp_path / "system_info" / f"{name}.py").write_text("print('another one')")
    monkeypatch.chdir(tmp_path)
    assert "another one" not in run_module("nvml").stdout
    assert run_module("no_such_module").status == 1
