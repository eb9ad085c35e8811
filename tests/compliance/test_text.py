"""Text of a report for a terminal: what it shows, and that nothing a log holds breaks it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import rich.console
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from compliance.file_tree import printable
from compliance.findings import (
    Divergence,
    Official,
    OfficialResult,
    Rcp,
    RcpTest,
    Report,
    Severity,
    Status,
    Verdict,
)
from compliance.render.text import text_report
from tests.support.made_reports import (
    ANY_REPORT,
    FOLDER,
    UNVERIFIABLE,
    failing_report,
    made_finding,
    made_report,
    made_run,
    made_set,
    passing_report,
)


def lines(report: Report, **options: Any) -> list[str]:
    return text_report(report, **options).splitlines()


def section(report: Report, heading: str, **options: Any) -> list[str]:
    """Return the lines below a heading, up to the empty one that ends the section."""
    shown = lines(report, **options)
    start = shown.index(heading) + 1
    return shown[start : [*shown, ""].index("", start)]


def test_the_verdict_comes_first() -> None:
    unread = made_report(verdict=Verdict.ERROR, findings=(made_finding(),))
    strict = passing_report(verdict=Verdict.FAIL, ruleset="6.0.0", findings=(made_finding("a", Severity.WARNING),))
    two = passing_report(sets=(made_set(name="a"), made_set([made_run(0), made_run(1)])))
    for report, words in (
        (passing_report(), "PASS: 0 errors, 0 warnings in 10 runs (gpt_oss_20b, 6.1.0)"),
        (failing_report(), "FAIL: 14 errors, 2 warnings in 10 runs (gpt_oss_20b, 6.1.0)"),
        (strict, "FAIL: 0 errors, 1 warning in 10 runs (gpt_oss_20b, 6.0.0); --strict"),
        (two, "PASS: 0 errors, 0 warnings in 12 runs of 2 sets (gpt_oss_20b, 6.1.0)"),
        (unread, "ERROR: 1 error, 0 warnings in 0 runs (gpt_oss_20b, 6.1.0); "),
    ):
        assert lines(report)[0].startswith(words)


def test_errors_are_grouped_by_rule_message_and_value() -> None:
    assert section(failing_report(), "Errors (14)") == [
        "  benchmark-name x 10  [closed_gpt_oss_20b.yaml]",
        "    the benchmark's name is spelt with underscores",
        f"      expected gpt_oss_20b, got 'gpt-oss-20b': {FOLDER}/result_0.txt:27,",
        "      result_1.txt:27, result_2.txt:27, result_3.txt:27, result_4.txt:27, result_5.txt:27,",
        "      result_6.txt:27, result_7.txt:27, result_8.txt:27, result_9.txt:27",
        "  eval-after-pass x 3  [training_rules.adoc, section 9.3]",
        "    1 evaluations too many",
        f"      {FOLDER}/result_0.txt:301",
        "    2 evaluations too many",
        f"      {FOLDER}/result_1.txt:302",
        "    3 evaluations too many",
        f"      {FOLDER}/result_2.txt:303",
        "  seed-repeated  [6.1]",
        "    two runs have seed 16979",
        "      expected 10 seeds, got 9",
    ]
    late = [made_finding(file=f"{n}.txt", line=n, expected="60 s", got=f"{n % 2 + 60} s") for n in range(1, 5)]
    silent = made_finding(file=None, line=None, expected="60 s", got=None)
    assert section(made_report(findings=(*late, silent)), "Errors (5)")[1:] == [
        "    some-rule is broken",
        "      expected 60 s, got 61 s: 1.txt:1, 3.txt:3",
        "      expected 60 s, got 60 s: 2.txt:2, 4.txt:4",
        "      expected 60 s",
    ]


def test_sections_come_in_order_of_severity() -> None:
    headings = [line for line in lines(failing_report())[1:] if line and not line.startswith(" ")]
    assert headings == [
        "Errors (14)",
        "Warnings (2)",
        "Notes (1)",
        "Not verifiable from a log",
        f"Runs in {FOLDER}",
        "No score: the set is not valid. For information only:",
        "Variance",
        "Convergence against the reference (RCP) at GBS 32",
        "Official tools (mlperf-logging 4.1.68): timeout",
    ]


def test_a_folder_is_named_again_when_it_changes() -> None:
    files = ("a/x.txt", "a/y.txt", "b/x.txt", "z.txt", None)
    same = tuple(made_finding(file=file, line=7, expected=None, got=None) for file in files)
    assert "      a/x.txt:7, y.txt:7, b/x.txt:7, z.txt:7" in lines(made_report(findings=same))


def test_each_unverifiable_point_is_listed_once() -> None:
    everywhere = tuple(replace(each, file=f"{n}.txt") for n in range(10) for each in UNVERIFIABLE)
    shown = section(made_report(findings=everywhere), "Not verifiable from a log")
    assert shown == ["  dropout: dropout is not in a log", "  data-order: the order of the training data"]


def test_a_long_list_ends_after_twenty() -> None:
    many = tuple(made_finding(message=f"message {number}") for number in range(1, 26))
    shown = section(made_report(findings=many), "Errors (25)")
    assert "    message 20" in shown
    assert "    message 21" not in shown
    assert shown[-1].startswith("    ... and 5 more")
    assert "..." not in text_report(made_report(findings=many[:20]))
    values = tuple(made_finding(file=None, expected=None, got=str(number)) for number in range(24))
    last, rest = section(made_report(findings=values), "Errors (24)")[-2:]
    assert last == "      got 19" and rest.startswith("      ... and 4 more")
    places = tuple(made_finding(file=f"{number}.txt", line=None) for number in range(23))
    assert any(line.endswith("19.txt, and 3 more") for line in lines(made_report(findings=places)))
    talker = OfficialResult("compliance_checker", "x", "fail", tuple(f"complaint {n}" for n in range(22)), 1.0)
    shown = section(
        made_report(official=Official("4", "fail", (talker,), ())), "Official tools (mlperf-logging 4): fail"
    )
    assert shown[-3] == "      complaint 19" and shown[-2].startswith("      ... and 2 more")


def test_long_values_are_cut() -> None:
    shown = text_report(made_report(findings=(made_finding(message="m" * 2000, expected="e" * 2000, got="g" * 2000),)))
    assert shown.count("m" * 50) < 15
    assert len(shown) < 6000


def test_the_runs_are_listed() -> None:
    first = made_run(0, seed=2**63 - 1)
    empty = made_run(1, status=Status.NOT_CONVERGED, seed=None, global_batch_size=None, samples_to_target=None,
                     minutes=None, final_eval_loss=None)  # fmt: skip
    wild = made_run(2, status=Status.INVALID, seed=2**70, minutes=float("nan"), final_eval_loss=1e20,
                    samples_to_target=10**400)  # fmt: skip
    table = [line.split() for line in section(made_report(made_set([first, empty, wild])), f"Runs in {FOLDER}")]
    assert table == [
        ["samples", "final"],
        ["file", "status", "seed", "GBS", "to", "target", "minutes", "loss"],
        ["result_0.txt", "converged", "9223372036854775807", "32", "233,472", f"{first.minutes:.3f}",
         f"{first.final_eval_loss:.5f}"],
        ["result_1.txt", "not", "converged", "-", "-", "-", "-", "-"],
        ["result_2.txt", "invalid", "1.181e+21", "32", "over", "1e308", "nan", "1e+20"],
    ]  # fmt: skip
    scattered = section(made_report(made_set([made_run(0, folder="a"), made_run(1, folder="b")])), "Runs")
    assert [line.split()[0] for line in scattered][1:] == ["file", "a/result_0.txt", "b/result_1.txt"]


def test_the_score() -> None:
    result = made_set(accelerators=8, system="MI355X")
    assert result.score is not None
    minutes = result.score.olympic_minutes or 0
    assert section(made_report(result), "Score") == [
        f"  normalised: {minutes * 1.25:.3f} minutes, by the RCP test's 1.250000",
        f"  raw: {minutes:.3f} minutes, olympic mean of run_start to run_stop",
        "  system: MI355X; accelerators: 8; seconds per sample: 0.0925",
        "  olympic mean to the first passing evaluation: 359.973 minutes, 233,472.0 samples",
        "  window: all 10 runs",
        f"  dropped as fastest and slowest: {FOLDER}/result_9.txt, result_4.txt",
    ]
    shorter = replace(result.score, window=tuple(run.file for run in result.runs[2:5]))
    window = f"  window: 3 of 10 runs: {FOLDER}/result_2.txt, result_3.txt, result_4.txt"
    assert window in lines(made_report(replace(result, score=shorter)))
    invalid = section(failing_report(), "No score: the set is not valid. For information only:")
    assert not any(line.startswith(("  raw: ", "  normalised")) for line in invalid)


def test_variance_and_rcp() -> None:
    shown = section(passing_report(), "Variance")
    table = [line.split() for line in shown]
    assert table[1] == ["runs", "mean", "sd", "CV", "%", "least", "most", "quantum", "%"]
    assert table[2] == ["samples", "10", "233,472.0", "12,953.1", "5.55", "208,896", "258,048", "12,288", "5.26"]
    assert table[3] == ["minutes", "10", "361.200", "10.100", "2.80", "322.500", "398.250", "-", "-"]
    assert "ddof 1" in " ".join(shown)
    heading = "Convergence against the reference (RCP) at GBS 32"
    tests = [line.split() for line in section(passing_report(), heading)]
    assert tests[:4] == [
        ["olympic", "mean:", "233,472.0", "samples"],
        ["test", "result", "point", "RCP", "mean", "minimum", "margin", "normalisation"],
        ["pruned", "pass", "interpolated", "230,058.7", "222,720.8", "+10,751.2", "1.000000"],
        ["full", "pass", "exact", "234,837.3", "229,258.6", "+4,213.4", "1.000000"],
    ]
    absent = RcpTest("missing", None, None, 9e5, False, None, None)
    short = RcpTest("exact", 301_056.0, 290_308.3, 290_304.0, None, -4.3, 1.04)
    other = made_report(made_set(rcp=Rcp(100, absent, short), variance=None))
    tests = [line.split() for line in section(other, heading.replace("32", "100"))]
    assert tests[0] == ["olympic", "mean:", "900,000.0", "samples"]
    assert tests[2] == ["pruned", "FAIL", "missing", "-", "-", "-", "-"]
    assert tests[3] == ["full", "not", "tested", "exact", "301,056.0", "290,308.3", "-4.3", "1.040000"]
    assert "Variance" not in lines(other)


def test_tables_fit_eighty_columns_whole() -> None:
    report = passing_report()
    assert "…" not in text_report(report, width=80)
    for heading in (f"Runs in {FOLDER}", "Convergence against the reference (RCP) at GBS 32", "Variance"):
        narrow, wide = (section(report, heading, width=width)[:4] for width in (80, 200))
        assert narrow == wide


def test_little_space_breaks_names_and_no_figures() -> None:
    shown = lines(made_report(made_set(), findings=(made_finding(message="x" * 150),)), width=60)
    assert "".join(shown).count("x") >= 150
    run = made_run(0)
    first = next(line for line in shown if "converged " in line)
    figures = ["converged", "1000", "32", "233,472", f"{run.minutes:.3f}", f"{run.final_eval_loss:.5f}"]
    assert first.split()[1:] == figures


def test_the_official_tools() -> None:
    heading = "Official tools (mlperf-logging 4.1.68): "
    passed = section(passing_report(), heading + "pass")
    assert passed[:2] == ["  compliance_checker: 10 pass (11.0 s)", "  rcp_checker: 1 pass (2.3 s)"]
    assert len(passed) == 3
    assert section(failing_report(), heading + "timeout") == [
        "  compliance_checker: 10 fail (11.0 s)",
        f"    {FOLDER}/result_0.txt, result_1.txt, result_2.txt, result_3.txt, result_4.txt,",
        "    result_5.txt, result_6.txt, result_7.txt, result_8.txt, result_9.txt",
        "      submission_benchmark: gpt-oss-20b not known",
        "  rcp_checker: 1 pass (2.0 s)",
        "  package_checker: 1 timeout (120.0 s)",
        "    results",
        "      no answer within 120 s",
        "  DIVERGENCE rcp_checker: ours fail, official pass",
        "    it takes the evaluation of lowest loss",
        f"      {FOLDER}",
    ]
    assert not any(line.startswith("Official") for line in lines(made_report()))
    uneven = tuple(
        OfficialResult("compliance_checker", f"{n}.txt", "fail", ("first", f"only {n}", "last"), 1.0) for n in range(2)
    )
    shown = section(made_report(official=Official("4", "fail", uneven, ())), "Official tools (mlperf-logging 4): fail")
    assert [line.strip() for line in shown[1:8]] == [
        "0.txt, 1.txt", "first", "last", "0.txt", "only 0", "1.txt", "only 1",
    ]  # fmt: skip
    chatty = OfficialResult("rcp_checker", "x", "pass", ("RCP test passed",), 1.0)
    assert "RCP test passed" not in text_report(made_report(official=Official("4", "pass", (chatty,), ())))
    same = tuple(Divergence("compliance_checker", f"{n}.txt", "fail", "pass", "no such rule") for n in range(3))
    shown = section(made_report(official=Official("4", "pass", (), same)), "Official tools (mlperf-logging 4): pass")
    assert [line.strip() for line in shown] == [
        "DIVERGENCE compliance_checker: ours fail, official pass", "no such rule", "0.txt, 1.txt, 2.txt",
    ]  # fmt: skip


def test_each_of_several_sets_is_named() -> None:
    shown = lines(made_report(made_set(name="results/a"), made_set(name="results/b")))
    assert shown.index("Set results/a") < shown.index("Runs in results/a") < shown.index("Set results/b")
    assert not any(line.startswith("Set ") for line in lines(made_report(made_set())))


def test_markup_and_control_characters_of_a_log_are_shown_as_text() -> None:
    message = "[bold red]x[/bold red] [/] :smile: \x1b[31m\x9b2J\u202e \ud800 a\nb"
    shown = text_report(made_report(findings=(made_finding(message=message, file="[b]f\x1b.txt", expected=None),)))
    assert "    [bold red]x[/bold red] [/] :smile: \\x1b[31m\\x9b2J\\u202e \\ud800 a\\nb\n" in shown
    assert "[b]f\\x1b.txt" in shown
    assert printable("plain é 漢") == "plain é 漢"


@settings(max_examples=100, deadline=None)
@given(ANY_REPORT, st.integers(min_value=40, max_value=200))
def test_any_report_prints_and_fits(report: Report, width: int) -> None:
    shown = text_report(report, width=width)
    assert shown.endswith("\n")
    for line in shown.splitlines():
        assert line.isprintable()
        assert cell_len(line) <= width
    shown.encode("utf-8")


def test_colours_are_there_only_when_asked_for() -> None:
    plain, coloured = text_report(failing_report()), text_report(failing_report(), colour=True)
    assert "\x1b" not in plain
    assert coloured.startswith("\x1b[1;31mFAIL: 14 errors")
    bare = re.sub(r"\x1b\[[\d;]*m", "", coloured)
    assert [line.rstrip() for line in bare.splitlines()] == plain.splitlines()


def test_text_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def both() -> list[str]:
        return [text_report(failing_report(), width=120, colour=colour) for colour in (False, True)]

    names = ("TERM", "COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    before = both()
    for name, value in zip(names, ("dumb", "40", "1", "1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    assert both() == before
