"""The report document: whole, safe with hostile logs, the same bytes every time, and its pictures true to the runs."""

from __future__ import annotations

import itertools
import math
import random
import re
import subprocess
import sys
import warnings
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache
from html.parser import HTMLParser
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from markdown_it import MarkdownIt
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from compliance.findings import (
    Curve,
    Divergence,
    Evaluation,
    Finding,
    Official,
    OfficialResult,
    Phase,
    Rcp,
    RcpTest,
    Report,
    RunSummary,
    Score,
    SetResult,
    Severity,
    Spread,
    Status,
    Variance,
    Verdict,
)
from compliance.render import figures, panels
from compliance.render import report_file as document_module
from compliance.render.report_file import report_file as document
from tests.support.paths import ROOT

KINDS: tuple[Literal["html", "md"], ...] = ("html", "md")
INTERVAL, GBS, TARGET = 12_288, 32, 3.34
START_MS = 1_771_600_000_000.0
PRUNED = RcpTest("interpolated", 230058.666667, 222720.776251, 233_472.0, True, 10751.223749, 1.0)
FULL = RcpTest("exact", 234837.333333, 229258.556210, 233_472.0, True, 4213.443790, 1.0)
MISSING = RcpTest("missing", None, None, 233_472.0, None, None, None)
NOWHERE = Curve((), ())
# Evaluations until the first pass, of ten runs; olympic mean 19 x 12,288 = 233,472 samples.
LENGTHS = (19, 18, 20, 19, 21, 19, 18, 19, 20, 17)
DRAWINGS = (figures.losses, figures.samples, figures.rates, figures.timeline, figures.minutes)
HOSTILE = (
    "<script>alert('x')</script><img src=http://evil.example/x.png> & |a| `b` *c* [d](http://evil.example) $e$ _f_"
)


def made_run(index: int, evaluations: int = 19, status: Status = Status.CONVERGED) -> RunSummary:
    """A run like the reference's that stops at its first pass, or above the target if it has not converged."""
    noise = random.Random(index)
    end = (3.36 if status is Status.NOT_CONVERGED else TARGET) - noise.uniform(0.001, 0.012)
    # The shape of the reference's curve: 5.26 at the first evaluation, 0.016 from one to the next at the target.
    losses = [end + 2.66 * (n**-0.429 - evaluations**-0.429) for n in range(1, evaluations + 1)]
    start = START_MS + index * 25_000_000.0
    block, evaluation = 1_080_000.0 + noise.uniform(-9_000, 9_000), 58_000.0
    phases, points, now = [Phase("init", start - 200_000, start)], [], start
    for n, loss in enumerate(losses, 1):
        phases += [Phase("training", now, now + block), Phase("evaluation", now + block, now + block + evaluation)]
        now += block + evaluation
        points.append(Evaluation(n * INTERVAL, loss, now, 100 * n))
    passed = losses[-1] <= TARGET
    steps = np.linspace(1, evaluations * INTERVAL / GBS, 1000).round()
    at, rates = tuple((steps * GBS).tolist()), tuple((8e-4 * np.minimum(steps / 128, 1)).tolist())
    return RunSummary(
        file=f"results/big/gpt_oss_20b/result_{index}.txt",
        status=status,
        seed=1000 + 7 * index,
        global_batch_size=GBS,
        learning_rate=8e-4,
        warmup_steps=128,
        samples_to_target=evaluations * INTERVAL if passed else None,
        minutes=(now + 900 - start) / 60_000,
        minutes_to_target=(now - start) / 60_000 if passed else None,
        first_eval_loss=losses[0],
        final_eval_loss=losses[-1],
        target=TARGET,
        start_ms=start,
        evaluations=tuple(points),
        train_loss=Curve(at, tuple(11.0 / (1 + s / 3e4) + 3 for s in at)),
        logged_learning_rates=Curve(at, rates),
        expected_learning_rates=Curve(at, rates),
        phases=tuple(phases),
        platform="MI355X",
        division="closed",
        organisation="Example",
    )


def made_set(runs: Sequence[RunSummary] | None = None, name: str = "results/big/gpt_oss_20b") -> SetResult:
    runs = tuple(made_run(i, n) for i, n in enumerate(LENGTHS)) if runs is None else tuple(runs)
    by_time = sorted(runs, key=lambda run: run.minutes or math.inf)
    olympic = sum(run.minutes or 0 for run in by_time[1:-1]) / max(len(runs) - 2, 1)
    files, dropped = tuple(run.file for run in runs), (by_time[0].file, by_time[-1].file)
    score = Score(True, olympic, olympic * 1.25, 1.25, 233_472.0, 359.973, files, dropped)
    samples = Spread(10, 233_472.0, 12_953.1, 5.548, 208_896, 258_048, INTERVAL, 5.263)
    clock = Spread(10, 361.2, 10.1, 2.796, 322.5, 398.25, None, None)
    variance = Variance(5.0, "CV = sd / mean; sd with ddof 1. The limit is this project's.", samples, clock)
    return SetResult(name, runs, score, variance, Rcp(GBS, PRUNED, FULL), INTERVAL)


def mixed_set() -> SetResult:
    """Twelve runs: one that does not converge, two invalid ones, and a window that leaves out two."""
    runs = [made_run(i, n) for i, n in enumerate((*LENGTHS, 22, 16))]
    runs[3] = made_run(3, 26, Status.NOT_CONVERGED)
    runs[5] = made_run(5, 19, Status.INVALID)
    runs[7] = replace(made_run(7, 15, Status.INVALID), file="/a" * 300 + "/" + HOSTILE.replace("/", "") + ".txt")
    result = made_set(runs)
    assert result.score
    return replace(result, score=replace(result.score, window=tuple(run.file for run in runs[1:11])))


def made_report(*sets: SetResult, findings: Sequence[Finding] = (), verdict: Verdict = Verdict.PASS) -> Report:
    results = (OfficialResult("package_checker", "results", "fail", ("no scaling.json", "no code"), 11.3),)
    divergences = (Divergence("rcp_checker", "results", "fail", "pass", "it trusts the shipped scaling.json"),)
    options = {"runs": 10, "cv_limit": 5.0, "strict": False, "system": None}
    tool = {"compliance": "0.1", "mlperf-logging": "4.1.68"}
    official = Official("4.1.68", results, divergences)
    return Report("check-set", "6.1.0", verdict, tuple(findings), sets, official, tool, options)


def finding(rule: str, severity: Severity = Severity.ERROR, **changed: Any) -> Finding:
    told = Finding(
        rule, severity, f"{rule} is broken", "logs/result_0.txt", 12, "what is right", "what is there", "6.1"
    )
    return replace(told, **changed)


class Page(HTMLParser):
    """What a page holds; fails on a tag that is not closed or not opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.pieces: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = "".join(self.pieces)
        # Terms and values are apart by a colon in Markdown and by tags in HTML.
        self.words = re.sub(r":?\s+", " ", " ".join(self.pieces))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br", "hr", "link", "input"}:
            self.open.append(tag)
        if tag in {"h1", "h2", "h3", "h4"}:
            self.headings.append("")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in {"th", "td"}:
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.pieces.append(data)
        if any(tag in {"h1", "h2", "h3", "h4"} for tag in self.open):
            self.headings[-1] += data
        if any(tag in {"th", "td"} for tag in self.open):
            self.tables[-1][-1][-1] += data

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


def page(report: Report, kind: Literal["html", "md"] = "html") -> Page:
    """The document as a reader sees it; Markdown goes through the reader that rich and Jupyter build on."""
    text = document(report, kind)
    return Page(text if kind == "html" else MarkdownIt("commonmark").enable("table").render(text))


def drawn(draw: figures.Draw, result: SetResult) -> Figure:
    """One picture as matplotlib's objects, laid out."""
    with style.context(["default", panels.STYLE]):
        figure = Figure(layout="constrained")
        assert draw(figure, figures.drawable(result))
        FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    return figure


def xs(line: Line2D) -> list[float]:
    return list(np.asarray(line.get_xdata(), float))


def ys(line: Line2D) -> list[float]:
    return list(np.asarray(line.get_ydata(), float))


def labelled(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Curves by the label of their run."""
    lines = [line for line in axes.get_lines() if str(line.get_label()).isdigit()]
    return {str(line.get_label()): (xs(line), ys(line)) for line in lines}


def uprights(axes: Axes) -> list[float]:
    """Where the vertical lines stand."""
    return [xs(line)[0] for line in axes.get_lines() if ys(line) == [0, 1]]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


@cache
def ten_runs(kind: Literal["html", "md"]) -> tuple[str, Page]:
    """The document of the plain set of ten, which many tests look at, and what a reader sees of it."""
    report = made_report(made_set(), findings=[finding("a", got=HOSTILE)])
    return document(report, kind), page(report, kind)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the text: drawing takes a second."""
    monkeypatch.setattr(document_module, "PICTURES", ())


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_sections_come_in_order() -> None:
    found = [finding("a"), finding("b", Severity.WARNING), finding("c", Severity.INFO)]
    headings = page(made_report(made_set(), findings=[*found, finding("d", Severity.UNVERIFIABLE)])).headings
    assert headings == [
        "gpt_oss_20b: compliance report",
        "Score",
        *("Findings", "Errors", "a", "Warnings", "b", "Notes", "c"),
        "Runs of results/big/gpt_oss_20b",
        *("Evaluation loss", "Samples to target and the reference", "Learning rate", "Timeline", "Minutes per run"),
        *("The pictures in numbers", "Variance between the runs", "Convergence against the reference (RCP)"),
        *("Official tools", "Where they and we differ"),
        *("Not verifiable from logs", "d"),
    ]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verdict", Verdict)
def test_the_verdict_says_what_it_rests_on(verdict: Verdict, kind: Literal["html", "md"]) -> None:
    severities = [Severity.ERROR, Severity.ERROR, Severity.WARNING, Severity.UNVERIFIABLE]
    report = made_report(made_set(), findings=[finding("a", each) for each in severities], verdict=verdict)
    shown = page(report, kind).words
    assert verdict.upper() in shown
    assert "2 errors, 1 warning, 0 notes, 1 point that no log can prove" in shown
    for part in ("Command check-set", "Ruleset 6.1.0", "Runs 10", "Versions compliance 0.1, mlperf-logging 4.1.68"):
        assert part in shown
    assert "Official tools fail, 1 divergence from ours" in shown
    assert "Options cv-limit 5.0, runs 10, strict no Versions" in shown


def test_generated_is_printed_when_given() -> None:
    assert "12 May" in Page(document(made_report(), "html", "12 May")).text
    assert "Generated" not in page(made_report()).text


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", KINDS)
def test_the_score_its_window_and_what_it_drops(kind: Literal["html", "md"]) -> None:
    result = mixed_set()
    assert result.score and result.score.olympic_minutes
    mixed_minutes = result.score.olympic_minutes
    result = replace(result, score=replace(result.score, olympic_minutes=361.2345))
    shown = page(made_report(result), kind).words
    assert "361.23 minutes" in shown
    assert f"Normalised {mixed_minutes * 1.25:,.3f} minutes" in shown
    assert "Normalisation factor 1.250000" in shown
    assert "Window, by start time runs 2-11" in shown
    assert "Dropped from it run 8 (fastest), run 4 (slowest)" in shown
    assert "No score" not in shown


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("runs", "rcp", "reason"),
    [
        ([made_run(0)], None, "1 run; a score needs 10."),
        ([made_run(i, status=Status.INVALID if i in {1, 2, 4} else Status.CONVERGED) for i in range(10)], None,
         "3 runs invalid: 2-3, 5."),
        ([made_run(i, status=Status.NOT_CONVERGED if i < 2 else Status.CONVERGED) for i in range(10)], None,
         "2 runs did not converge, at most one may: 1-2."),
        ([made_run(i) for i in range(10)], Rcp(GBS, replace(PRUNED, passed=False), FULL),
         "the RCP test is not passed."),
        ([made_run(i) for i in range(10)], Rcp(GBS, PRUNED, replace(FULL, passed=False)), "the errors below."),
        ([made_run(i, status=Status.CONVERGED if i else Status.NOT_CONVERGED) for i in range(10)], None,
         "the errors below."),
        ([], None, "0 runs; a score needs 10."),
    ],
)  # fmt: skip
def test_why_there_is_no_score(runs: list[RunSummary], rcp: Rcp | None, reason: str) -> None:
    result = SetResult("logs", tuple(runs), None, None, rcp)
    assert f"No score: {reason}" in page(made_report(result)).text
    invalid = Score(False, None, None, None, 233_472.0, 359.973, (), ())
    assert f"No score: {reason}" in page(made_report(replace(result, score=invalid))).text
    timed = replace(invalid, olympic_minutes=361.2)
    assert f"No score: {reason}" in page(made_report(replace(result, score=timed))).text


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", KINDS)
def test_every_finding_is_told_in_full(kind: Literal["html", "md"]) -> None:
    found = [
        finding(f"rule-{n}", severity, message=f"message {n}", line=n or None, expected=f"right {n}", citation=f"§ {n}")
        for n, severity in enumerate([*Severity, *Severity])
    ]
    shown = page(made_report(made_set(), findings=[*found, finding("set", file=None, line=None)]), kind)
    rows = [row for table in shown.tables for row in table]
    for n, each in enumerate(found):
        place = f"logs/result_0.txt:{n}" if n else "logs/result_0.txt"
        assert [place, f"message {n}", f"right {n}", "what is there"] in rows
        assert each.rule in shown.headings
        assert f"Source: § {n}" in shown.text
    assert ["whole set", "set is broken", "what is right", "what is there"] in rows


def test_equal_findings_share_a_row_and_unequal_ones_do_not() -> None:
    found = [finding("a", file=f"logs/result_{n}.txt", line=n) for n in range(1, 4)]
    shown = page(made_report(findings=[*found, finding("a", file="b.txt"), finding("a", got="other")]))
    assert shown.tables[0] == [
        ["Where", "What", "Expected", "Got"],
        ["result_1.txt:1, result_2.txt:2, result_3.txt:3 (in logs/), b.txt:12", "a is broken", "what is right",
         "what is there"],
        ["logs/result_0.txt:12", "a is broken", "what is right", "other"],
    ]  # fmt: skip
    assert "5 findings" in shown.text


@pytest.mark.usefixtures("no_pictures")
def test_what_no_log_proves_is_told_apart() -> None:
    shown = page(made_report(made_set(), findings=[finding("dropout", Severity.UNVERIFIABLE)]))
    before, after = shown.text.split("Not verifiable from logs")[-2:]
    assert "dropout is broken" in after
    assert "dropout" not in before
    assert "Nothing was found" in before


@pytest.mark.usefixtures("no_pictures")
def test_the_runs_table_says_what_differs_and_the_rest_once() -> None:
    runs = [made_run(i, n) for i, n in enumerate(LENGTHS)]
    runs[2] = replace(runs[2], learning_rate=1e-3, seed=None, status=Status.NOT_CONVERGED, samples_to_target=None)
    shown = page(made_report(made_set(runs[::-1])))
    table = shown.tables[0]
    assert table[0][:4] == ["Run", "File", "Status", "Seed"]
    assert table[0][-1] == "Learning rate"
    assert [row[1] for row in table[1:]] == [f"result_{n}.txt" for n in range(10)]
    assert table[3][:5] == ["3", "result_2.txt", "not converged", "-", "-"]
    assert table[3][-1] == "0.001"
    assert table[1] == ["1", "result_0.txt", "converged", "1000", "233,472", f"{runs[0].minutes:.3f}",
                        f"{runs[0].minutes_to_target:.3f}", f"{runs[0].final_eval_loss:.4f}", "0.0008"]  # fmt: skip
    for part in ("Folder results/big/gpt_oss_20b", "Platform MI355X", "Global batch size 32", "Warm-up steps 128"):
        assert part in shown.words


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_behind_the_pictures_are_in_tables(kind: Literal["html", "md"]) -> None:
    runs = list(made_set().runs)
    runs[1] = replace(runs[1], logged_learning_rates=Curve(runs[1].logged_learning_rates.samples, (4e-4,) * 1000))
    tables = page(made_report(made_set(runs)), kind).tables
    numbers = next(table for table in tables if "Largest rate" in table[0])
    trained = sum(each.stop_ms - each.start_ms for each in runs[0].phases if each.name == "training") / 60_000
    assert numbers[1] == ["1", "3.3", f"{trained:,.1f}", f"{19 * 58 / 60:.1f}", "19",
                          f"{runs[0].first_eval_loss:.4f}", "0.0008", "equal"]  # fmt: skip
    assert numbers[2][-2:] == ["0.0004", "0.98"]
    losses = next(table for table in tables if table[0][:2] == ["Samples", "Run 1"])
    assert losses[1][:2] == ["12,288", f"{runs[0].evaluations[0].loss:.4f}"]
    assert losses[-1][0] == "258,048"
    assert losses[-1][1:] == ["-"] * 4 + [f"{runs[4].evaluations[-1].loss:.4f}"] + ["-"] * 5


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", KINDS)
def test_variance_and_rcp_tables(kind: Literal["html", "md"]) -> None:
    shown = page(made_report(replace(made_set(), rcp=Rcp(GBS, PRUNED, MISSING))), kind)
    rows = {row[0]: row[1:] for table in shown.tables for row in table if len(row) == 3}
    assert rows["Mean"] == ["233,472.00", "361.20"]
    assert rows["Standard deviation"] == ["12,953.10", "10.10"]
    assert rows["Coefficient of variation (CV)"] == ["5.548 %", "2.796 %"]
    assert rows["Limit of the CV"] == ["5 %, exceeded", "5 %, kept"]
    assert rows["Smallest"] == ["208,896", "322.50"]
    assert rows["Largest"] == ["258,048", "398.25"]
    assert rows["Quantum"] == ["12,288", "-"]
    assert rows["Quantum of the mean"] == ["5.26 %", "-"]
    assert "CV = sd / mean; sd with ddof 1. The limit is this project's." in shown.text
    assert rows["RCP"] == ["interpolated", "missing"]
    assert rows["Its mean"] == ["230,058.667", "-"]
    assert rows["Smallest accepted mean"] == ["222,720.776", "-"]
    assert rows["Margin"] == ["10,751.224", "-"]
    assert rows["Outcome"] == ["passed", "nothing to test"]


@pytest.mark.usefixtures("no_pictures")
def test_the_official_verdicts_stand_beside_ours() -> None:
    shown = page(made_report(made_set()))
    rows = [row for table in shown.tables for row in table]
    assert ["package_checker", "results", "fail", "11.3", "no scaling.json; no code"] in rows
    assert ["rcp_checker", "results", "fail", "pass", "it trusts the shipped scaling.json"] in rows
    assert "mlperf-logging 4.1.68: fail." in shown.text
    assert "They were not run." in page(replace(made_report(), official=None)).text


def test_official_results_that_say_the_same_share_a_row() -> None:
    same = tuple(OfficialResult("compliance_checker", f"logs/{n}.txt", "pass", (), 0.5) for n in range(3))
    report = replace(made_report(), official=Official("4.1.68", same, ()))
    assert ["compliance_checker", "0.txt, 1.txt, 2.txt (in logs/)", "pass", "1.5", "-"] in page(report).tables[0]


def test_a_tree_has_a_section_and_five_pictures_for_every_set() -> None:
    two = [made_run(0), made_run(1)]
    sets = [made_set(two, "results/one"), made_set(two, "results/two"), SetResult("results/none", (), None, None, None)]
    for kind in KINDS:
        shown = page(made_report(*sets), kind)
        assert [text for text in shown.headings if text.startswith("Runs of")] == [
            f"Runs of results/{name}" for name in ("one", "two", "none")
        ]
        assert len(shown.images()) == 10
        assert "No run could be read." in shown.text


@pytest.mark.usefixtures("no_pictures")
def test_names_of_sections_are_used_once() -> None:
    sets = [made_set(name="results/one"), made_set(name="results/two")]
    names = [attributes["id"] for _, attributes in page(made_report(*sets)).tags if "id" in attributes]
    assert len(names) == len(set(names)) == 4 + 2


@pytest.mark.usefixtures("no_pictures")
def test_html_and_markdown_have_the_same_tables() -> None:
    report = made_report(made_set(), mixed_set(), findings=[finding("a"), finding("b", Severity.WARNING, got=HOSTILE)])
    assert page(report, "md").tables == page(report).tables
    assert len(page(report).tables) == 14


def test_html_and_markdown_describe_the_pictures_alike() -> None:
    alternatives = [[image["alt"] for image in ten_runs(kind)[1].images()] for kind in KINDS]
    assert alternatives[0] == alternatives[1]
    assert len(set(alternatives[0])) == 5
    assert all(re.search(r"\d", str(text)) and str(text).endswith(".") for text in alternatives[0])


# --- hostile logs, self-containment, determinism ----------------------------------------------------------------------


def hostile_report(text: str) -> Report:
    """The text wherever a log, a file name or a tool can put it."""
    runs = [replace(made_run(n), platform=f"{text}{n}", organisation=text, division=text) for n in range(3)]
    runs[0] = replace(runs[0], file=text)
    result = replace(made_set(runs, text), variance=Variance(5.0, text, None, Spread(3, 1, 1, 1, 1, 1, None, None)))
    official = Official(text, (OfficialResult(text, text, text, (text, text), 1.0),), (Divergence(*[text] * 5),))
    found = [finding(text, each, message=text, file=text, expected=text, got=text, citation=text) for each in Severity]
    return Report(text, text, Verdict.FAIL, tuple(found), (result, result), official, {text: text}, {"x": text})


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_text_stays_text(kind: Literal["html", "md"]) -> None:
    shown = page(hostile_report(HOSTILE), kind)
    harmless = page(hostile_report("harmless"), kind)
    assert [tag for tag, _ in shown.tags] == [tag for tag, _ in harmless.tags]
    assert shown.text.count(HOSTILE) == harmless.text.count("harmless") > 50


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", KINDS)
def test_characters_without_a_shape_are_made_visible(kind: Literal["html", "md"]) -> None:
    shown = page(hostile_report("a\x00b\x1bc\ud800d\u202ee\nf\u2028g"), kind)
    assert "a\\x00b\\x1bc\\ud800d\\u202ee\\nf\\u2028g" in shown.text
    document(hostile_report("a\ud800"), kind).encode()


def test_the_page_loads_nothing() -> None:
    text, shown = ten_runs("html")
    policy = next(a["content"] for tag, a in shown.tags if tag == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not {tag for tag, _ in shown.tags} & {"script", "link", "iframe", "object", "embed", "base", "svg", "form"}
    for tag, attributes in shown.tags:
        assert not any(name.startswith("on") or name in {"srcset", "style", "action"} for name in attributes)
        assert "src" not in attributes or (tag == "img" and str(attributes["src"]).startswith("data:image/svg+xml;"))
        assert "href" not in attributes or str(attributes["href"]).startswith("#")
    styles = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in styles and "@import" not in styles


def test_markdown_loads_nothing() -> None:
    _, shown = ten_runs("md")
    assert {tag for tag, _ in shown.tags} <= {"h1", "h2", "h3", "h4", "p", "strong", "ul", "li", "img", "table",
                                              "thead", "tbody", "tr", "th", "td"}  # fmt: skip
    assert [str(image["src"])[:22] for image in shown.images()] == ["data:image/png;base64,"] * 5


@pytest.mark.usefixtures("no_pictures")
def test_links_within_the_page_lead_somewhere() -> None:
    tags = page(made_report(made_set(), made_set(name="other"))).tags
    targets = {f"#{attributes['id']}" for _, attributes in tags if "id" in attributes}
    assert {attributes["href"] for tag, attributes in tags if tag == "a"} == targets


def test_pictures_are_sound_undated_and_described() -> None:
    for image in page(made_report(mixed_set())).images():
        source = b64decode(str(image["src"]).partition(",")[2]).decode()
        ElementTree.fromstring(source)
        assert "<metadata" not in source
        assert not re.search(r'href="(?!#)', source)


def test_the_same_report_makes_the_same_bytes_whatever_the_settings() -> None:
    report = made_report(made_set(), findings=[finding("a", got=HOSTILE)])
    for kind in KINDS:
        before = ten_runs(kind)[0]
        with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.facecolor": "black"}):
            assert document(report, kind) == before
            assert matplotlib.rcParams["lines.linewidth"] == 9


def test_another_process_makes_the_same_bytes_without_pyplot() -> None:
    code = (
        "import sys, hashlib; from tests.compliance.test_document import *;"
        "text = document(made_report(mixed_set()), 'html');"
        "loaded = {'matplotlib.pyplot', 'torch', 'megatron', 'pandas', 'scipy'} & set(sys.modules);"
        "print(hashlib.sha256(text.encode()).hexdigest(), sorted(loaded))"
    )
    outcomes = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed}, text=True, check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(outcomes) == 1
    assert outcomes.pop().endswith(" []\n")


def test_ten_runs_with_restless_curves_stay_small() -> None:
    noise = np.random.default_rng(1)

    def restless(run: RunSummary) -> RunSummary:
        at = run.logged_learning_rates.samples
        wild = tuple((8e-4 * noise.random(len(at))).tolist())
        tame = replace(run, logged_learning_rates=Curve(at, wild))
        return replace(tame, expected_learning_rates=Curve(at, tuple((8e-4 * noise.random(len(at))).tolist())))

    report = made_report(made_set([restless(run) for run in made_set().runs]))
    assert len(document(report, "html").encode()) < 2_000_000
    assert all(len(ten_runs(kind)[0].encode()) < 700_000 for kind in KINDS)


def test_a_hundred_thousand_evaluations_stay_small() -> None:
    run = made_run(0)
    many = [Evaluation(n, 5.0, run.start_ms or 0, n) for n in range(100_000)]
    phases = [Phase("evaluation", START_MS + n * 100.0, START_MS + n * 100.0 + 50) for n in range(100_000)]
    endless = replace(run, evaluations=tuple(many), phases=tuple(phases))
    text = document(made_report(made_set([endless, made_run(1)])), "html")
    assert len(text.encode()) < 2_000_000
    table = next(table for table in Page(text).tables if table[0][0] == "Samples")
    assert len(table) == 202
    assert table[1] == ["..."] * 3
    assert table[-1][0] == "233,472"


# --- the pictures -----------------------------------------------------------------------------------------------------


def test_loss_curves_are_the_evaluations_with_the_target_and_the_first_passes() -> None:
    result = made_set()
    trained_on = (*result.runs[0].evaluations, Evaluation(20 * INTERVAL, 3.32, 0.0, 1))
    runs = (replace(result.runs[0], evaluations=trained_on), *result.runs[1:])
    whole, near = drawn(figures.losses, replace(result, runs=runs)).axes
    for panel in (whole, near):
        curves = labelled(panel)
        assert len(curves) == 10
        for number, run in enumerate(runs, 1):
            assert curves[str(number)] == ([e.samples for e in run.evaluations], [e.loss for e in run.evaluations])
        flat = [line for line in panel.get_lines() if xs(line) == [0, 1]]
        assert [ys(line) for line in flat] == [[TARGET, TARGET]]
        marks = {(xs(line)[0], ys(line)[0]) for line in panel.get_lines() if len(xs(line)) == 1}
        assert marks == {(n * INTERVAL, run.evaluations[n - 1].loss) for n, run in zip(LENGTHS, runs, strict=True)}
    assert near.get_ylim()[0] < 3.32 < TARGET < near.get_ylim()[1] < 3.45
    assert near.get_xlim()[0] < 17 * INTERVAL < 21 * INTERVAL < near.get_xlim()[1]
    below = {text.get_position()[0]: text.get_text() for text in near.texts if "target" not in text.get_text()}
    assert below == {n * INTERVAL: names for n, names in
                     ((17, "10"), (18, "2, 7"), (19, "1, 4\n6, 8"), (20, "3, 9"), (21, "5"))}  # fmt: skip
    assert "target\n3.34" in texts(near)


def test_loss_curves_tell_what_became_of_a_run_without_colour() -> None:
    figure = drawn(figures.losses, mixed_set())
    lines = {str(line.get_label()): line for line in figure.axes[0].get_lines()}
    kinds = {lines[str(number)].get_linestyle() for number in (1, 4, 6)}
    assert len(kinds) == 3
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["converged: 1-3, 5, 7, 9-12", "not converged: 4", "invalid: 6, 8", "first pass"]


def test_samples_stand_in_columns_over_the_references() -> None:
    dots, rows = drawn(figures.samples, made_set()).axes
    at = {text.get_text(): text.get_position() for text in dots.texts}
    assert {name: x for name, (x, _) in at.items()} == {str(i): n * INTERVAL for i, n in enumerate(LENGTHS, 1)}
    assert sorted(at[name] for name in ("1", "4", "6", "8")) == [(233_472, n) for n in (1, 2, 3, 4)]
    bars = [tuple(xs(line)) for line in rows.get_lines() if len(xs(line)) == 2]
    assert (PRUNED.minimum, PRUNED.mean) in bars
    assert (FULL.minimum, FULL.mean) in bars
    for panel in (dots, rows):
        assert uprights(panel) == [233_472.0, PRUNED.minimum]
    assert [tick.get_text() for tick in rows.get_yticklabels()] == ["this set", "RCP, pruned", "RCP, full"]
    assert texts(rows) == ["olympic mean 233,472.0", "minimum 222,720.8", "mean 230,058.7", "minimum 229,258.6",
                           "mean 234,837.3"]  # fmt: skip
    assert all(tick % INTERVAL == 0 for tick in rows.get_xticks())


def shrunk(result: SetResult, by: int, step: int | None) -> SetResult:
    """The set of the open division that the same losses at a fraction of the samples make."""

    def run(whole: RunSummary) -> RunSummary:
        at = tuple(replace(each, samples=each.samples // by) for each in whole.evaluations)
        return replace(whole, evaluations=at, samples_to_target=at[-1].samples, division="open")

    return replace(result, runs=tuple(map(run, result.runs)), rcp=None, score=None, eval_interval_samples=step)


def test_pictures_are_laid_out_by_the_interval_of_the_logs() -> None:
    _, rows = drawn(figures.samples, made_set()).axes
    assert rows.get_xlabel() == "training samples (an evaluation every 12,288)"
    small = shrunk(made_set(), 128, 96)
    _, rows = drawn(figures.samples, small).axes
    assert rows.get_xlabel() == "training samples (an evaluation every 96)"
    assert rows.get_xlim() == (14 * 96, 24 * 96)
    assert all(tick % 96 == 0 for tick in rows.get_xticks())
    _, near = drawn(figures.losses, small).axes
    assert near.get_xlim() == (13 * 96, 22.5 * 96)
    for step in (INTERVAL, 12_320, 2 * INTERVAL):
        large = replace(made_set(), eval_interval_samples=step)
        assert drawn(figures.losses, large).axes[1].get_xlim() == (13 * INTERVAL, 22.5 * INTERVAL)
        assert f"(an evaluation every {step:,})" in drawn(figures.samples, large).axes[1].get_xlabel()


@pytest.mark.parametrize("step", [None, 10**11])
def test_an_interval_that_no_log_shows_is_on_no_picture(step: int | None) -> None:
    for result in (shrunk(made_set(), 128, step), replace(made_set(), eval_interval_samples=step)):
        _, rows = drawn(figures.samples, result).axes
        assert rows.get_xlabel() == "training samples"
        _, near = drawn(figures.losses, result).axes
        low, high = near.get_xlim()
        assert low < min(run.samples_to_target or 0 for run in result.runs) < high < 30 * INTERVAL


def test_an_impossible_loss_is_no_pass() -> None:
    run = made_run(0)
    points = (Evaluation(INTERVAL, 0.0, 0.0, 1), Evaluation(2 * INTERVAL, -1.0, 0.0, 1), *run.evaluations[2:])
    whole, _ = drawn(figures.losses, SetResult("", (replace(run, evaluations=points),), None, None, None)).axes
    assert [xs(line) for line in whole.get_lines() if len(xs(line)) == 1] == [[19 * INTERVAL]]


def test_samples_axis_starts_no_earlier_than_the_run_and_dots_keep_apart() -> None:
    dots, rows = drawn(figures.samples, CASES["far apart"]()).axes
    assert rows.get_xlim() == (0, 80 * INTERVAL)
    assert {text.get_text(): text.get_position()[1] for text in dots.texts} == {
        str(n): 2 if n == 2 else 1 for n in range(1, 11)
    }
    assert "square" not in dots.get_title("left")
    assert drawn(figures.samples, mixed_set()).axes[0].get_title("left").endswith("; square: not valid")


def test_samples_without_a_reference_or_a_score() -> None:
    _, rows = drawn(figures.samples, replace(made_set(), rcp=Rcp(96, MISSING, MISSING))).axes
    assert texts(rows) == ["olympic mean 233,472.0", *["no RCP for this batch size"] * 2]
    assert uprights(rows) == [233_472.0]
    _, rows = drawn(figures.samples, replace(made_set(), rcp=None, score=None)).axes
    assert texts(rows) == ["no olympic mean"]


def test_rates_show_the_logged_the_expected_and_how_far_they_differ() -> None:
    result = made_set([made_run(0), made_run(1)])
    at, values = result.runs[1].logged_learning_rates.samples, result.runs[1].logged_learning_rates.values
    off = replace(
        result.runs[1],
        logged_learning_rates=Curve(at, tuple(v * 1.25 if x > 1e5 else v for x, v in zip(at, values, strict=True))),
    )
    figure = drawn(figures.rates, replace(result, runs=(result.runs[0], off)))
    warm_up, whole, warm_up_difference, difference = figure.axes
    assert warm_up.get_xlim() == (0, 2 * 128 * GBS)
    assert whole.get_xlim() == (0, 233_472)
    assert labelled(whole)["2"] == (list(at), list(off.logged_learning_rates.values))
    expected = [line for line in whole.get_lines() if not str(line.get_label()).isdigit()]
    assert [ys(line) for line in expected] == [list(values)] * 2
    assert set(labelled(difference)["1"][1]) == {panels.RATE_FLOOR}
    assert {round(y, 12) for y in labelled(difference)["2"][1]} == {0.0, 0.2}
    assert max(labelled(warm_up_difference)["2"][0]) <= 2 * 128 * GBS
    low, high = difference.get_ylim()
    assert low < panels.RATE_FLOOR and high > 2
    assert warm_up_difference.get_yticklabels()[0].get_text() == "equal"
    assert difference.get_yscale() == "log"


def test_the_floor_of_the_differences_hides_none() -> None:
    at, expected = (32.0, 64.0, 96.0), (8e-4, 8e-4, 0.0)
    logged = (8e-4, math.nextafter(8e-4, 1), 5e-324)
    run = replace(made_run(0), logged_learning_rates=Curve(at, logged), expected_learning_rates=Curve(at, expected))
    one = SetResult("", (run,), None, None, None)
    (_, difference) = drawn(figures.rates, one).axes
    equal, smallest, beside_zero = labelled(difference)["1"][1]
    assert equal == panels.RATE_FLOOR < smallest / 10
    assert beside_zero == 1


def test_rates_without_an_expected_schedule() -> None:
    run = replace(made_run(0), expected_learning_rates=NOWHERE)
    figure = Figure()
    alternative = figures.rates(figure, SetResult("", (run,), None, None, None))
    assert alternative.endswith("by run: - in 1.")
    assert np.isnan(labelled(figure.axes[-1])["1"][1]).all()


def test_the_timeline_is_the_phases_in_minutes_from_run_start() -> None:
    result = made_set(made_set().runs[::-1])
    (axes,) = drawn(figures.timeline, result).axes
    first = figures.start_order(result.runs)[0]
    bars = [patch.get_extents() for bar in axes.collections[:3] for patch in bar.get_paths()]
    wanted = [((p.start_ms - START_MS) / 6e4, (p.stop_ms - START_MS) / 6e4) for p in first.phases]
    assert np.allclose(sorted((bar.x0, bar.x1) for bar in bars), sorted(wanted))
    marks = {(line.get_marker(), xs(line)[0], ys(line)[0]) for line in axes.get_lines()}
    for row, run in enumerate(made_set().runs):
        assert ("|", run.minutes, row) in marks
        assert ("D", run.minutes_to_target, row) in marks
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [f"result_{n}.txt   {n + 1}" for n in range(10)]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_the_timeline_leaves_out_what_no_clock_can_show() -> None:
    run = made_run(0)
    odd = [Phase("training", 1.0, 2.0), Phase("evaluation", START_MS + 9e4, START_MS), Phase("x", START_MS, START_MS)]
    bars = panels.phase_bars(replace(run, phases=(*odd, Phase("training", START_MS, START_MS + 6e4))))
    assert bars == {"training": [(0.0, 1.0)]}
    assert panels.phase_bars(replace(run, start_ms=None))["training"][0][0] == 0.0


def test_minutes_are_marked_with_the_mean_and_what_it_leaves_out() -> None:
    result = mixed_set()
    assert result.score
    figure = drawn(figures.minutes, result)
    (axes,) = figure.axes
    marks = {ys(line)[0]: line for line in axes.get_lines() if len(xs(line)) == 1}
    assert [xs(marks[row])[0] for row in range(12)] == [run.minutes for run in result.runs]
    hollow = {row for row, line in marks.items() if line.get_markerfacecolor() == "white"}
    assert hollow == {0, 3, 7, 11}
    notes = texts(axes)
    assert notes[0] == f"{result.runs[0].minutes:,.2f}, outside the window"
    assert notes[3] == f"{result.runs[3].minutes:,.2f}, slowest, dropped"
    assert notes[7] == f"{result.runs[7].minutes:,.2f}, fastest, dropped"
    assert notes[4] == f"{result.runs[4].minutes:,.2f}"
    assert uprights(axes) == [result.score.olympic_minutes]
    assert f"{result.score.olympic_minutes:,.2f} minutes" in axes.get_title("left")
    (axes,) = drawn(figures.minutes, replace(result, score=replace(result.score, valid=False))).axes
    assert uprights(axes) == []


def shown_boxes(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text that can be seen, with its place in pixels; ticks outside an axis's limits are not seen."""
    unseen = {
        id(label)
        for axis in itertools.chain.from_iterable((axes.xaxis, axes.yaxis) for axes in figure.axes)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    found = []
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        box = text.get_window_extent()
        clipped = text.get_clip_on() and text.axes and not text.axes.bbox.overlaps(box)
        if text.get_visible() and text.get_text() and id(text) not in unseen and not clipped:
            found.append((text.get_text(), box))
    return found


CASES: dict[str, Callable[[], SetResult]] = {
    "ten": made_set,
    "mixed": mixed_set,
    "one": lambda: SetResult("", (made_run(0),), None, None, None),
    "same column": lambda: made_set([made_run(i) for i in range(12)]),
    "far apart": lambda: made_set([made_run(i, n) for i, n in enumerate((3, 5, 9, 14, 19, 24, 30, 36, 44, 60))]),
    "none passes": lambda: made_set([made_run(i, status=Status.NOT_CONVERGED) for i in range(10)]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("draw", DRAWINGS)
def test_no_text_leaves_its_picture_or_lies_on_its_neighbour(draw: figures.Draw, case: str) -> None:
    result = CASES[case]()
    if draw is figures.samples and case == "none passes":
        assert draw(Figure(), result) == ""
        return
    figure = drawn(draw, result)
    boxes = shown_boxes(figure)
    width, height = figure.bbox.width, figure.bbox.height
    for name, box in boxes:
        assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1, name
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.padded(-1).overlaps(b.padded(-1)), (one, other)


# --- degenerate input -------------------------------------------------------------------------------------------------

BAD_NUMBERS = (math.nan, math.inf, -math.inf, 1e300, -5.0, 0.0)


def spoilt(value: float) -> RunSummary:
    """A run with one number everywhere."""
    changed: dict[str, Any] = {
        field.name: value for field in fields(RunSummary) if "float" in str(field.type) and field.name not in {"target"}
    }
    whole = int(value) if math.isfinite(value) else 10**400
    return replace(
        made_run(0),
        **changed,
        evaluations=(Evaluation(whole, value, value, 1), Evaluation(INTERVAL, 4.0, value, 1)),
        samples_to_target=whole,
        global_batch_size=whole,
        warmup_steps=whole,
        logged_learning_rates=Curve((value, 32.0), (value, 8e-4)),
        expected_learning_rates=Curve((value, 32.0), (value, 8e-4)),
        phases=(Phase("training", value, value), Phase("init", 0.0, value), Phase("odd", 0.0, 1.0)),
        seed=whole,
    )


def empty_run() -> RunSummary:
    nothing = dict.fromkeys(
        ("seed", "global_batch_size", "learning_rate", "warmup_steps", "samples_to_target", "minutes", "start_ms",
         "minutes_to_target", "first_eval_loss", "final_eval_loss", "platform", "division", "organisation")
    )  # fmt: skip
    curves = dict.fromkeys(("train_loss", "logged_learning_rates", "expected_learning_rates"), NOWHERE)
    changed: dict[str, Any] = {**nothing, **curves, "evaluations": (), "phases": (), "status": Status.INVALID}
    return replace(made_run(0), **changed)


DEGENERATE: dict[str, tuple[SetResult, ...]] = {
    "no set": (),
    "no run": (SetResult("", (), None, None, None),),
    "an empty run": (SetResult("", (empty_run(),), None, None, None),),
    "an empty run beside others": (made_set([empty_run(), made_run(0)]),),
    "one point": (SetResult("", (replace(made_run(0, 1), logged_learning_rates=Curve((0.0,), (0.0,)),
                                         expected_learning_rates=Curve((0.0,), (0.0,))),), None, None, None),),
    "losses of twenty": (made_set([replace(made_run(0), evaluations=(Evaluation(INTERVAL, 20.0, 0.0, 1),))] * 2),),
    "other letters": (made_set([replace(made_run(0), file="x/日本\u0007\U0001f600$x_{1$.txt")] * 2),),
    **{f"all {value}": (made_set([spoilt(value), made_run(1)]),) for value in BAD_NUMBERS},
    **{f"only {value}": (SetResult("", (spoilt(value),), None, None, None),) for value in (math.nan, 1e300, 0.0)},
}  # fmt: skip


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_input_still_makes_a_document(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    report = made_report(*DEGENERATE[case], findings=[finding("a")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = page(report)
    monkeypatch.setattr(document_module, "PICTURES", ())
    for each in (shown, page(report, "md")):
        assert "a is broken" in each.text
        assert {"Score", "Findings", "Official tools", "Not verifiable from logs"} < set(each.headings)


def test_what_no_axis_can_show_is_not_drawn() -> None:
    run = made_run(0)
    absurd = (Evaluation(10**15, 3.5, 0.0, 1), Evaluation(-1, 3.5, 0.0, 1), Evaluation(INTERVAL, 1e9, 0.0, 1))
    rates = Curve((32.0, 1e15, 64.0), (1e-4, 1e-4, 1e12))
    result = SetResult(
        "", (replace(run, evaluations=(*run.evaluations, *absurd), logged_learning_rates=rates),), None, None, None
    )
    assert labelled(drawn(figures.losses, result).axes[0])["1"][0] == [n * INTERVAL for n in range(1, 20)]
    assert labelled(drawn(figures.rates, result).axes[0])["1"][0] == [32.0]
    high = replace(run, evaluations=tuple(Evaluation(n * INTERVAL, 20.0 + n, 0.0, 1) for n in range(3)))
    low, top = drawn(figures.losses, replace(result, runs=(high,))).axes[0].get_ylim()
    assert low < TARGET < top == panels.MOST_LOSS
    above = replace(high, target=18.0)
    low, top = drawn(figures.losses, replace(result, runs=(above,))).axes[0].get_ylim()
    assert low < 18
    assert top > 22


def test_what_cannot_be_drawn_is_named() -> None:
    shown = page(made_report(*DEGENERATE["an empty run"]))
    missing = "Evaluation loss, Samples to target and the reference, Learning rate, Timeline, Minutes per run"
    assert f"Nothing to draw for: {missing}." in shown.text
    assert shown.images() == []
    assert "Nothing to draw" not in ten_runs("html")[1].text


def test_runs_without_a_start_come_last() -> None:
    runs = [replace(made_run(0), start_ms=None), replace(made_run(1), start_ms=math.nan), made_run(3), made_run(2)]
    assert [run.file[-5] for run in figures.start_order(runs)] == ["2", "3", "0", "1"]
