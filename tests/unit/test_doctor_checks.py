"""How the doctor runs its checks and says what they found: limits, crashes, what is left behind, words and JSON."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from gptoss20b.config import resolve
from gptoss20b.tools.doctor import as_document, as_table, last_line, read_node_context
from gptoss20b.tools.doctor.finding import Finding, Verdict, failed, passed, skipped, verdict_of, warned
from gptoss20b.tools.doctor.limits import Check, run_all
from gptoss20b.tools.doctor.place import Place, runs_on_gpus
from tests.support.configs import BARE
from tests.support.paths import ROOT

FINDINGS = [
    passed("clock", "right"),
    warned("swap", "1.0 GiB in use", "swapoff"),
    failed("data", "/data/[a].bin: got no file", "download it"),
    skipped("collectives", "no GPU"),
]


def test_checks_run_at_the_same_time_and_answer_in_their_order() -> None:
    together = multiprocessing.get_context("fork").Barrier(4)

    def meet() -> list[Finding]:
        together.wait(5)
        return [passed("met", str(os.getpid()))]

    found = run_all([Check(str(n), lambda n=n: [*meet(), passed(str(n), "")], 20, "") for n in range(4)])
    assert [finding.name for finding in found] == ["met", "0", "met", "1", "met", "2", "met", "3"]
    pids = {finding.found for finding in found if finding.name == "met"}
    assert len(pids) == 4
    assert str(os.getpid()) not in pids


def test_a_check_that_hangs_fails_at_its_limit_and_leaves_nothing_running(tmp_path: Path) -> None:
    told = tmp_path / "pid"

    def hang() -> list[Finding]:
        # A tool with a child that holds its output, as a hanging driver's tool has.
        script = f"{sys.executable} -c 'import time; time.sleep(300)' & echo $! > {told}; wait"
        subprocess.run(["sh", "-c", script], capture_output=True, check=False)
        return []

    began = time.monotonic()
    (found, other) = run_all([Check("GPUs", hang, 2, "restart the node"), Check("clock", lambda: FINDINGS[:1], 2, "")])
    assert time.monotonic() - began < 20
    assert found == failed("GPUs", "no answer within 2 s", "restart the node")
    assert other == FINDINGS[0]
    wait_for_the_end(int(told.read_text()))


def wait_for_the_end(pid: int) -> None:
    """Until a process is gone, or dead and not yet collected."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state in "ZX":
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} is still there")


# A doctor with one check, which prints its own process id and hangs.
HANGING_DOCTOR = """
import os, signal, threading
from gptoss20b.tools.doctor.limits import Check, run_all

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored

told = os.dup(1)

def hang():
    os.write(told, f"{os.getpid()}\\n".encode())
    threading.Event().wait(300)

run_all([Check("hang", hang, 300, "")])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_checks_end_with_the_doctor(number: signal.Signals) -> None:
    command = [sys.executable, "-c", HANGING_DOCTOR]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as doctor:
        assert doctor.stdout is not None
        pid = int(doctor.stdout.readline())
        doctor.send_signal(number)
        doctor.wait(20)
        wait_for_the_end(pid)


def test_a_check_that_crashes_is_a_failed_check_with_its_error() -> None:
    def raise_it() -> list[Finding]:
        raise ValueError("two\nlines")

    def end_it() -> list[Finding]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []

    def leave() -> list[Finding]:
        sys.exit("at once")

    found = run_all(
        [Check("a", raise_it, 9, ""), Check("b", end_it, 9, ""), Check("c", leave, 9, ""), Check("d", list, 9, "")]
    )
    assert [(each.name, each.verdict) for each in found] == [(name, Verdict.FAIL) for name in "abc"]
    assert found[0].found == "ValueError: two lines"
    assert "SIGKILL" in found[1].found
    assert "without an answer" in found[2].found
    assert all(each.fix for each in found)


def test_what_a_check_prints_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    def talk() -> list[Finding]:
        os.system("echo from a tool; echo from a tool >&2")
        os.write(1, b"from a library")
        os.write(2, b"from a library")
        return FINDINGS[:1]

    assert run_all([Check("talk", talk, 9, "")]) == FINDINGS[:1]
    assert capfd.readouterr() == ("", "")


def test_many_findings_with_long_texts_arrive_whole() -> None:
    long = [warned(f"{n}", "ä" * 5000, "x" * 5000) for n in range(50)]  # more than a pipe holds
    assert run_all([Check("long", lambda: long, 20, "")]) == long


def test_the_document_has_the_stable_form() -> None:
    document = json.loads(json.dumps(as_document(FINDINGS)))
    assert document["verdict"] == "fail"
    assert document["checks"][2] == {
        "name": "data",
        "verdict": "fail",
        "found": "/data/[a].bin: got no file",
        "fix": "download it",
    }
    assert [check["verdict"] for check in document["checks"]] == ["pass", "warn", "fail", "skipped"]
    assert all(set(check) == {"name", "verdict", "found", "fix"} for check in document["checks"])


def test_warnings_pass() -> None:
    assert verdict_of(FINDINGS[:2]) is Verdict.PASS
    assert last_line(FINDINGS[:2]) == "pass, 1 warning"
    assert last_line(FINDINGS[:1]) == "pass"
    assert last_line(FINDINGS) == "to fix: data, 1 warning"
    assert as_document([])["verdict"] == "pass"


def test_the_table_shows_each_finding_with_its_fix_as_it_is() -> None:
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(as_table(FINDINGS))
    shown = console.export_text()
    for finding in FINDINGS:
        assert finding.name in shown
        assert finding.verdict in shown
        assert finding.found in shown  # square brackets are no marks of rich's
        assert finding.fix in shown


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place(None, None, "29500", "0", False)),
        ({"NODE_RANK": "1", "SLURM_NODEID": "2"}, Place(node_rank="1")),
        ({"NODE_RANK": "", "SLURM_NODEID": "2"}, Place(node_rank="2")),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "7"}, Place(master_address="a", master_port="7")),
        ({"CLEAR_CACHES": "1"}, Place(clear_caches="1")),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, Place(gpus_hidden=True)),
        ({"CUDA_VISIBLE_DEVICES": ""}, Place(gpus_hidden=True)),
        ({"HIP_VISIBLE_DEVICES": "-1"}, Place(gpus_hidden=True)),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, Place()),
    ],
)
def test_the_launchers_variables(environment: dict[str, str], place: Place) -> None:
    assert read_node_context(environment) == place


def test_a_run_is_meant_for_gpus_unless_they_are_hidden_or_the_model_is_small(tmp_path: Path) -> None:
    tiny = resolve({"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open"})
    assert runs_on_gpus(resolve({}), Place(), tmp_path)
    assert not runs_on_gpus(resolve({}), Place(gpus_hidden=True), tmp_path)
    assert not runs_on_gpus(tiny, Place(), tmp_path)
    for driver in ("dev/kfd", "proc/driver/nvidia/version"):
        root = tmp_path / driver.replace("/", "-")
        (root / driver).parent.mkdir(parents=True)
        (root / driver).touch()
        assert runs_on_gpus(tiny, Place(), root)
        assert not runs_on_gpus(tiny, Place(gpus_hidden=True), root)


def test_a_bad_configuration_is_refused_with_the_words_and_the_status_of_a_run() -> None:
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
