"""The doctor's answer: for people, for programs, and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from rich.console import Console

from gptoss20b.tools.doctor import as_document, as_table, overall_verdict, summary_line
from gptoss20b.tools.doctor.finding import Verdict, failed, passed, skipped, warned
from tests.support.configs import BARE
from tests.support.paths import ROOT

FINDINGS = [
    passed("clock", "right"),
    warned("swap", "1.0 GiB in use", "swapoff"),
    failed("data", "/data/[a].bin: got no file", "download it"),
    skipped("collectives", "no GPU"),
]


def test_the_document_has_the_stable_form() -> None:
    data = {"name": "data", "verdict": "fail", "found": "/data/[a].bin: got no file", "fix": "download it"}
    document = json.loads(json.dumps(as_document(FINDINGS)))
    assert (document["verdict"], document["checks"][2]) == ("fail", data)
    assert [check["verdict"] for check in document["checks"]] == ["pass", "warn", "fail", "skipped"]
    assert document["checks"][0]["fix"] == ""


def test_warnings_pass() -> None:
    assert overall_verdict(FINDINGS[:2]) is Verdict.PASS
    assert summary_line(FINDINGS[:2]) == "pass, 1 warning"
    assert summary_line(FINDINGS[:1]) == "pass"
    assert summary_line(FINDINGS) == "to fix: data, 1 warning"
    assert as_document([])["verdict"] == "pass"


def test_the_table_shows_each_finding_with_its_fix() -> None:
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(as_table(FINDINGS))
    shown = console.export_text()
    for finding in FINDINGS:
        # Square brackets are not taken for rich's markup.
        assert all(text in shown for text in (finding.name, finding.verdict, finding.found, finding.fix))


def test_a_bad_configuration_is_an_error_as_for_a_run() -> None:
    environment = {**BARE, "GLOBAL_BATCH_SIZE": "13", "EXPERT_PARALLEL": "7", "DGXNGPU": "none"}
    answers = [
        subprocess.run(
            [sys.executable, "-m", "gptoss20b", *command],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )
        for command in (["doctor", "--json"], ["train", "--dry-run"])
    ]  # fmt: skip
    assert answers[0].returncode == 2
    assert answers[0].stderr == answers[1].stderr
    assert "DGXNGPU" in answers[0].stderr
    assert answers[0].stdout == ""
