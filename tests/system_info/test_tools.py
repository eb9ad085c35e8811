"""Running tools: output, failures, and time limits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from system_info.tools import ToolOutput, run_tool
from tests.support.made_machines import made_script, made_tool


@pytest.mark.parametrize("limit_s", [20.0, None])
def test_output_and_failures_of_a_tool(tools: Path, limit_s: float | None) -> None:
    made_tool(tools, "tool", {"--good": "an answer"})
    assert run_tool("tool", "--good", limit_s=limit_s) == ToolOutput("an answer\n")
    assert run_tool("tool", "--bad", limit_s=limit_s) == ToolOutput(failure="exit status 9")
    made_tool(tools, "tool", "two\nlines", status=1)
    assert run_tool("tool", limit_s=limit_s) == ToolOutput(failure="two lines")
    made_script(tools, "tool", r"printf '\377'")
    assert run_tool("tool", limit_s=limit_s) == ToolOutput("\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize("kind", ["absent", "a folder", "not executable"])
def test_a_tool_that_cannot_be_run_is_missing(tools: Path, kind: str) -> None:
    if kind == "a folder":
        (tools / "tool").mkdir()
    elif kind == "not executable":
        (tools / "tool").write_text("#!/bin/sh\n")
    assert run_tool("tool").is_missing
    assert run_tool("tool", limit_s=20.0).is_missing


def test_tools_answer_in_english(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    made_script(tools, "tool", 'echo "$LC_ALL"')
    assert run_tool("tool").answer == "C\n"


def test_a_hanging_tool_fails_at_its_limit(tools: Path) -> None:
    made_script(tools, "slow", "/bin/sleep 60")
    assert run_tool("slow", limit_s=0.5) == ToolOutput(failure="no answer within 0.5 s")


def test_without_a_limit_a_tool_stays_in_the_callers_process_group(tools: Path) -> None:
    # The caller's own limit then ends it: the doctor kills the process group of a check.
    made_script(tools, "tool", "read -r _ _ _ _ group _ < /proc/$$/stat\necho $group")
    assert int(run_tool("tool").answer) == os.getpgrp()
    assert int(run_tool("tool", limit_s=20.0).answer) != os.getpgrp()
