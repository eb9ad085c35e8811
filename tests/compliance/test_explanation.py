"""The paragraph that explains a verdict: what it is made of, and that every form of the report has it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from compliance.documents import report_document
from compliance.findings import Official, Rcp, SetResult, Severity, Status, Verdict
from compliance.render import report_file as report_file_module
from compliance.render.explanation import explain, headline, margin_in_words
from compliance.render.report_file import report_file
from compliance.render.text import text_report
from tests.support.made_reports import (
    FULL,
    GBS,
    MISSING,
    PRUNED,
    failing_report,
    made_finding,
    made_report,
    made_run,
    made_set,
    passing_report,
)


def test_every_form_has_the_same_paragraph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_file_module, "PICTURES", ())
    for report in (passing_report(), failing_report()):
        text = explain(report)
        shown = [report_file(report, "html").replace("<wbr/>", ""), report_file(report, "md")]
        words = text_report(report).split()
        assert all(text in each for each in shown)
        assert text in " ".join(words)
        assert report_document(report).explanation == text


def test_the_rules_that_decide_are_named_with_their_findings() -> None:
    for part in ("14 errors", "benchmark-name (10)", "eval-after-pass (3)", "seed-repeated", "10 runs invalid: 1-10"):
        assert part in explain(failing_report())
    assert "cv-limit" not in explain(failing_report())  # a warning decides nothing here
    many = tuple(made_finding(f"rule-{n}") for n in range(9))
    shown = explain(made_report(findings=many, verdict=Verdict.FAIL))
    assert "rule-5" in shown and "rule-6" not in shown and "3 more" in shown


def test_warnings_decide_only_if_they_count() -> None:
    warning = made_finding("late-stop", Severity.WARNING)
    strict, plain = (
        explain(made_report(findings=(warning,), verdict=verdict)) for verdict in (Verdict.FAIL, Verdict.PASS)
    )
    assert "fail because --strict" in strict and "late-stop" in strict
    assert "fail because" not in plain and "late-stop" in plain


def test_the_score_is_normalised_and_beside_it_is_the_raw_one() -> None:
    score = made_set().score
    assert score is not None
    score = replace(score, olympic_minutes=361.2345, normalized_minutes=451.543125)
    assert headline(score)[0] == "451.54 minutes"
    assert "361.23" in headline(score)[1] and "1.25" in headline(score)[1]
    assert headline(replace(score, normalized_minutes=None, normalization=None))[0] == "361.23 minutes"
    assert headline(replace(score, valid=False)) == headline(None)
    for part in ("451.54 minutes", "361.23", "8 runs", "of 10"):
        assert part in explain(made_report(made_set(score=score)))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        # 10,751.2 samples are 6.9 evaluations of one of eight runs: 12,288 / 8 samples each.
        ({}, ["10,751.2", "4.8 %", "above", "222,720.8", "8 runs", "6 evaluations"]),
        ({"submission_mean": 222_721.0, "margin_samples": 0.2}, ["0.2", "above", "one evaluation fewer would fail"]),
        ({"submission_mean": 222_000.0, "margin_samples": -720.8}, ["720.8", "0.3 %", "below"]),
    ],
)
def test_the_margin_in_words(changes: dict[str, Any], parts: list[str]) -> None:
    rcp = Rcp(GBS, replace(PRUNED, **changes), FULL)
    shown = margin_in_words(rcp, made_set(rcp=rcp))
    assert [part for part in parts if part not in shown] == []
    assert ("evaluation" in shown) == ("above" in shown)


def test_a_test_without_a_reference_or_a_mean_says_so() -> None:
    texts = {
        margin_in_words(rcp, made_set(rcp=rcp))
        for rcp in (None, Rcp(GBS, MISSING, FULL), Rcp(GBS, replace(PRUNED, submission_mean=None), FULL))
    }
    assert len(texts) == 3
    assert not any("above" in text or "below" in text for text in texts)


def test_a_single_run_is_described_by_its_outcome() -> None:
    passed, missed = (made_run(0, status=status) for status in (Status.CONVERGED, Status.NOT_CONVERGED))
    for run, part in ((passed, "233,472 samples"), (missed, "misses the target")):
        assert part in explain(made_report(SetResult("", (run,), None, None, None)))


def test_an_input_that_cannot_be_judged_says_why() -> None:
    unread = made_report(verdict=Verdict.ERROR, findings=(made_finding(message="logs: no such folder" + "x" * 9999),))
    assert "logs: no such folder" in explain(unread)
    assert len(explain(unread)) < 500


def test_the_official_verdict_is_named() -> None:
    assert "official tools were not run" in explain(made_report(made_set()))
    assert "official tools is crashed" in explain(made_report(made_set(), official=Official("4", "crashed", (), ())))
    assert "1 difference " in explain(failing_report())


def test_each_of_several_sets_is_named() -> None:
    sets = [made_set(name=f"results/{n}") for n in range(6)]
    shown = explain(made_report(*sets))
    assert "results/3" in shown and "results/4" not in shown and "2 more sets" in shown
    assert "results/0" not in explain(made_report(sets[0]))


def test_a_set_of_the_open_division_is_named_as_such() -> None:
    closed, open_ = (replace(made_set(), rcp=None, runs=(made_run(0, division=name),)) for name in ("closed", "open"))
    assert "open division" in margin_in_words(None, open_) and "open division" not in margin_in_words(None, closed)
