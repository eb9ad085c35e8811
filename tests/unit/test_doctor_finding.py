"""The doctor's findings, for people and for programs, and the exit status of a bad configuration."""

from __future__ import annotations

import json
import subprocess
import sys

from rich.console import Console

from gptoss20b.tools.doctor.finding import (
    Verdict,
    as_document,
    as_table,
    failed,
    judged,
    overall_verdict,
    passed,
    skipped,
    summary_line,
    warned,
)
from tests.support.configs import BARE
from tests.support.paths import ROOT

FINDINGS = [
    passed("clock", "right"),
    warned("swap", "1.0 GiB in use", "swapoff"),
    failed("data", "/data/[a].bin: got no file", "download it"),
    skipped("collectives", "no GPU"),
]


def test_a_failure_is_worse_than_a_warning_and_only_these_have_a_fix() -> None:
    assert judged("data", "no file", "download", fails=True, warns=True) == failed("data", "no file", "download")
    assert judged("swap", "in use", "swapoff", warns=True) == warned("swap", "in use", "swapoff")
    assert judged("clock", "right", "set it") == passed("clock", "right")


def test_the_document_has_the_stable_form() -> None:
    data = {"name": "data", "verdict": "fail", "found": "/data/[a].bin: got no file", "fix": "download it"}
    document = json.loads(json.dumps(as_document(FINDINGS)))
    assert (document["verdict"], document["checks"][2]) == ("fail", data)
    assert [check["verdict"] for check in document["checks"]] == ["pass", "warn", "fail", "skipped"]
    assert document["checks"][0]["fix"] == ""


def test_warnings_pass() -> None:
    assert overall_verdict(FINDINGS[:2]) is Verdict.PASS
    assert [summary_line(FINDINGS[:count]) for count in (1, 2)] == ["pass", "pass, 1 warning"]
    assert summary_line(FINDINGS) == "to fix: data, 1 warning"
    assert as_document([])["verdict"] == "pass"


def test_the_table_shows_each_finding_with_its_fix() -> None:
    console = Console(width=100)
    with console.capture() as shown:
        console.print(as_table(FINDINGS))
    for finding in FINDINGS:
        # Square brackets are not taken for rich's markup.
        assert all(text in shown.get() for text in (finding.name, finding.verdict, finding.found, finding.fix))


def test_a_bad_configuration_is_an_error_as_for_a_run() -> None:
    environment = BARE | {"GLOBAL_BATCH_SIZE": "13", "EXPERT_PARALLEL": "7", "DGXNGPU": "none"}
    doctor, train = (
        subprocess.run(
            [sys.executable, "-m", "gptoss20b", *command], env=environment, cwd=ROOT, capture_output=True, check=False
        )
        for command in (["doctor", "--json"], ["train", "--dry-run"])
    )
    assert (doctor.returncode, doctor.stdout) == (2, b"")
    assert doctor.stderr == train.stderr
    assert b"DGXNGPU" in doctor.stderr
