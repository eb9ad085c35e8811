"""Any log has a verdict, without traceback, internal error or hang, and executes nothing."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compliance.check import Options, check_run, check_set
from compliance.documents import report_document, to_json
from compliance.findings import Report, Verdict
from compliance.render.junit_report import junit_report
from compliance.render.report_file import report_file
from compliance.render.text import text_report
from tests.support.commands import command
from tests.support.made_logs import MadeLog, compliant_log, compliant_set, write_set
from tests.support.schemas import check_document

BASE = compliant_log(64, steps_between_train_loss=96)
TEXT = BASE.text().encode()
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([10**400, -1, 2**63]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
QUICK = settings(
    max_examples=50,
    deadline=60_000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def judge(folder: Path, content: bytes) -> Report:
    """Judge a log of these bytes, and render the report in every format."""
    log = folder / "result_0.txt"
    log.write_bytes(content)
    report = check_run(log, Options(official=False))
    assert report.verdict in (Verdict.PASS, Verdict.FAIL)
    check_document("report", json.loads(to_json(report_document(report))))
    assert text_report(report)
    assert junit_report(report)
    return report


@given(st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 40), st.binary(max_size=12)), max_size=12))
@QUICK
def test_bytes_inserted_and_deleted(tmp_path: Path, edits: list[tuple[int, int, bytes]]) -> None:
    content = TEXT
    for place, deleted, inserted in edits:
        content = content[:place] + inserted + content[place + deleted :]
    judge(tmp_path, content)


@given(st.randoms(use_true_random=False), st.integers(0, 30))
@QUICK
def test_lines_shuffled_dropped_and_doubled(tmp_path: Path, rng: random.Random, dropped: int) -> None:
    lines = TEXT.splitlines(keepends=True)
    lines = rng.sample(lines, len(lines) - dropped) + rng.sample(lines, dropped)
    judge(tmp_path, b"".join(lines))


@given(st.data())
@QUICK
def test_any_value_of_any_type_anywhere(tmp_path: Path, data: st.DataObject) -> None:
    log = MadeLog(copy.deepcopy(BASE.events))
    for _ in range(data.draw(st.integers(1, 4))):
        record: dict[str, Any] = data.draw(st.sampled_from(log.events))
        part = record["metadata"] if data.draw(st.booleans()) and isinstance(record.get("metadata"), dict) else record
        name = data.draw(st.sampled_from([*part, "status", "samples_count", "lr"]))
        part[name] = data.draw(JSON)
    judge(tmp_path, log.text().encode("utf-8", "surrogatepass"))


@given(st.sampled_from(["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7", "cp500"]), st.integers(0, len(TEXT)))
@QUICK
def test_other_encodings(tmp_path: Path, encoding: str, end: int) -> None:
    judge(tmp_path, TEXT.decode()[:end].encode(encoding))


@given(st.binary(max_size=2000))
@QUICK
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    judge(tmp_path, content.removeprefix(b"\x1f\x8b"))


@given(st.data())
@settings(QUICK, max_examples=8)
def test_any_value_in_a_set_and_its_document(tmp_path: Path, data: st.DataObject) -> None:
    logs = [MadeLog(copy.deepcopy(log.events)) for log in SET]
    for _ in range(data.draw(st.integers(1, 6))):
        log = data.draw(st.sampled_from(logs))
        record = data.draw(st.sampled_from(log.events))
        part = data.draw(st.sampled_from(["value", "time_ms", "samples_count"]))
        if part == "samples_count":
            record["metadata"][part] = data.draw(JSON)
        else:
            record[part] = data.draw(JSON if part == "value" else st.integers(1, 10**13))
    write_set(tmp_path, logs)
    report = check_set([tmp_path], Options(official=False, runs=3))
    check_document("report", json.loads(to_json(report_document(report))))
    assert text_report(report) and junit_report(report)
    assert report_file(report, data.draw(st.sampled_from(["html", "md"])))  # its charts are most of the time


SET = compliant_set(64, runs=3, steps_between_train_loss=192)


@pytest.mark.parametrize("form", ["text", "json", "junit"])
def test_a_division_that_names_a_path_executes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """The unguarded official checker would execute the code in the file."""
    proof = tmp_path / "executed"
    planted = tmp_path / "evil_common.yaml"
    planted.write_text(f"- BEGIN:\n    CODE: \"open('{proof}', 'w').close()\"\n", encoding="utf-8")
    log = compliant_log()
    log.set("submission_division", f"../../../../../../../../../../../../..{tmp_path}/evil")
    found = command(capsys, "check-run", log.write(tmp_path / "result_0.txt"), "--format", form)
    assert found.status == 1
    assert not proof.exists()
    assert "submission-division" in found.out


@pytest.mark.parametrize("name", ["[red]x.txt", "a b\n.txt", "\x1b[31mred.txt", "ünï.txt", "-dash.txt"])
def test_any_name_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / name).write_bytes(TEXT)
    for form in ("text", "json", "junit"):
        found = command(capsys, "check-run", "--no-official", "--format", form, tmp_path / name)
        assert found.status == 0
        assert "\x1b" not in found.out
