"""The report file, HTML and Markdown: complete, safe with hostile logs, self-contained and deterministic."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import warnings
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib
import pytest
from markdown_it import MarkdownIt

from compliance.findings import (
    Curve,
    Divergence,
    Energy,
    Evaluation,
    Official,
    OfficialResult,
    Phase,
    Rcp,
    Report,
    RunEnergy,
    RunSummary,
    Score,
    SetResult,
    Severity,
    Spread,
    Status,
    Variance,
    Verdict,
)
from compliance.render import report_file as report_file_module
from compliance.render.report_file import report_file
from tests.support.made_reports import (
    FULL,
    GBS,
    HOSTILE_MARKUP,
    INTERVAL,
    LENGTHS,
    MISSING,
    NO_CURVE,
    PRUNED,
    START_MS,
    made_finding,
    made_report,
    made_run,
    made_set,
    mixed_set,
)
from tests.support.paths import ROOT

Kind = Literal["html", "md"]
KINDS: tuple[Kind, ...] = ("html", "md")
OFFICIAL = Official(
    "4.1.68",
    "fail",
    (OfficialResult("package_checker", "results", "fail", ("no scaling.json", "no code"), 11.3),),
    (Divergence("rcp_checker", "results", "fail", "pass", "it trusts the shipped scaling.json"),),
)


class Page:
    """Content of a page. Raises ParseError on a tag that is not closed or not opened."""

    def __init__(self, text: str) -> None:
        # Well-formed HTML is XML, once the tags that have no content are closed.
        text = text.replace("<wbr/>", "")  # where a path may break
        root = ElementTree.fromstring(re.sub(r"<(meta|img)\b([^>]*[^>/])>", r"<\1\2/>", text))
        for style in root.iter("style"):
            style.text = ""
        self.elements = list(root.iter())
        self.tags = [each.tag for each in self.elements]
        self.headings = ["".join(each.itertext()) for each in self.elements if re.fullmatch("h[1-4]", each.tag)]
        self.tables = [
            [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")] for table in root.iter("table")
        ]
        self.rows = [row for table in self.tables for row in table]
        self.text = "".join(root.itertext())
        # Between term and value Markdown has a colon, HTML has tags.
        self.words = re.sub(r":?\s+", " ", " ".join(root.itertext()))

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [each.attrib for each in self.elements if each.tag == tag]

    def ids(self) -> list[str]:
        return [each.attrib["id"] for each in self.elements if "id" in each.attrib]


def page(report: Report, kind: Kind = "html") -> Page:
    """Return the file as a reader sees it; markdown-it is the parser of rich and of Jupyter."""
    text = report_file(report, kind)
    return Page(text if kind == "html" else f"<div>{MarkdownIt('commonmark').enable('table').render(text)}</div>")


@cache
def ten_runs(kind: Kind) -> tuple[str, Page]:
    """Return the file of a set of ten, with its pictures, and its page."""
    report = made_report(made_set(), findings=(made_finding("a", got=HOSTILE_MARKUP),), official=OFFICIAL)
    return report_file(report, kind), page(report, kind)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Omit the pictures, which take a second, in tests of the text."""
    monkeypatch.setattr(report_file_module, "PICTURES", ())


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_sections_come_in_order() -> None:
    severities = zip("abcd", (Severity.ERROR, Severity.WARNING, Severity.INFO, Severity.UNVERIFIABLE), strict=True)
    findings = tuple(made_finding(rule, severity) for rule, severity in severities)
    assert page(made_report(made_set(), findings=findings, official=OFFICIAL)).headings == [
        "gpt_oss_20b: compliance report",
        "Score",
        *("Findings", "Errors", "a", "Warnings", "b", "Notes", "c"),
        "Runs of results/big/gpt_oss_20b",
        *("Evaluation loss", "Samples to target and the reference", "Learning rate", "Timeline"),
        *("The pictures in numbers", "Variance between the runs", "Convergence against the reference (RCP)"),
        *("Command and versions", "Official tools", "Differences from our verdict"),
        *("Not verifiable from logs", "d"),
    ]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verdict", Verdict)
def test_the_verdict_has_its_counts_and_inputs(verdict: Verdict, kind: Kind) -> None:
    severities = [Severity.ERROR, Severity.ERROR, Severity.WARNING, Severity.UNVERIFIABLE]
    findings = tuple(made_finding("a", severity) for severity in severities)
    shown = page(made_report(made_set(), findings=findings, verdict=verdict, official=OFFICIAL), kind).words
    for part in (
        verdict.upper(),
        "2 errors, 1 warning, 0 notes, 1 point",
        "Command check-set",
        "Ruleset 6.1.0",
        "Runs 10",
        "Versions compliance 0.1, mlperf-logging 4.1.68",
        "Official tools fail, 1 divergence",
        "Options cv-limit 5.0, runs 10, strict no Versions",
    ):
        assert part in shown


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", KINDS)
def test_the_score_its_window_and_its_dropped_runs(kind: Kind) -> None:
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


def ten_with(status: Status, *indexes: int) -> list[RunSummary]:
    return [made_run(i, status=status if i in indexes else Status.CONVERGED) for i in range(10)]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("runs", "rcp", "reason"),
    [
        ([made_run(0)], None, "1 run; a score needs 10."),
        (ten_with(Status.INVALID, 1, 2, 4), None, "3 runs invalid: 2-3, 5."),
        (ten_with(Status.NOT_CONVERGED, 0, 1), None, "2 runs did not converge, at most one may: 1-2."),
        (ten_with(Status.INVALID), Rcp(GBS, replace(PRUNED, passed=False), FULL), "the RCP test is not passed."),
        (ten_with(Status.INVALID), Rcp(GBS, PRUNED, replace(FULL, passed=False)), "the errors below."),
        (ten_with(Status.NOT_CONVERGED, 0), None, "the errors below."),
        ([], None, "0 runs; a score needs 10."),
    ],
)
def test_the_reasons_without_a_score(runs: list[RunSummary], rcp: Rcp | None, reason: str) -> None:
    invalid = Score(False, None, None, None, 233_472.0, 359.973, (), ())
    for score in (None, invalid, replace(invalid, olympic_minutes=361.2)):
        assert f"No score: {reason}" in page(made_report(SetResult("logs", tuple(runs), score, None, rcp))).text


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", KINDS)
def test_every_finding_is_shown_in_full(kind: Kind) -> None:
    findings = [
        made_finding(
            f"rule-{n}", severity, message=f"message {n}", line=n or None, expected=f"right {n}", citation=f"§ {n}"
        )
        for n, severity in enumerate([*Severity, *Severity])
    ]
    of_set = made_finding("set", file=None, line=None)
    shown = page(made_report(made_set(), findings=(*findings, of_set)), kind)
    rows = [row[:4] for row in shown.rows]  # waived findings have a fifth column
    for n, finding in enumerate(findings):
        place = f"logs/result_0.txt:{n}" if n else "logs/result_0.txt"
        assert [place, f"message {n}", f"right {n}", "actual value"] in rows
        assert finding.rule in shown.headings
        assert f"Source: § {n}" in shown.text
    assert ["whole set", "set is broken", "expected value", "actual value"] in rows


def test_equal_findings_share_a_row_and_unequal_ones_do_not() -> None:
    equal = [made_finding("a", file=f"logs/result_{n}.txt", line=n) for n in range(1, 4)]
    shown = page(made_report(findings=(*equal, made_finding("a", file="b.txt"), made_finding("a", got="other"))))
    assert shown.tables[0] == [
        ["Where", "What", "Expected", "Got"],
        ["logs/result_1.txt:1, result_2.txt:2, result_3.txt:3, b.txt:12", "a is broken", "expected value",
         "actual value"],
        ["logs/result_0.txt:12", "a is broken", "expected value", "other"],
    ]  # fmt: skip
    assert "5 findings" in shown.text


@pytest.mark.usefixtures("no_pictures")
def test_unverifiable_points_are_apart() -> None:
    shown = page(made_report(made_set(), findings=(made_finding("dropout", Severity.UNVERIFIABLE),)))
    before, after = shown.text.split("Not verifiable from logs")[-2:]
    assert "dropout is broken" in after
    assert "dropout" not in before
    assert "Nothing was found" in before


@pytest.mark.usefixtures("no_pictures")
def test_the_runs_table_has_what_differs_and_the_terms_have_the_rest() -> None:
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
def test_the_numbers_behind_the_pictures_are_in_tables(kind: Kind) -> None:
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
def test_variance_and_rcp_tables(kind: Kind) -> None:
    shown = page(made_report(made_set(rcp=Rcp(GBS, PRUNED, MISSING))), kind)
    rows = {row[0]: row[1:] for row in shown.rows if len(row) == 3}
    expected = {
        "Mean": ["233,472.00", "361.20"],
        "Standard deviation": ["12,953.10", "10.10"],
        "Coefficient of variation (CV)": ["5.548 %", "2.796 %"],
        "Limit of the CV": ["5 %, exceeded", "5 %, kept"],
        "Smallest": ["208,896", "322.50"],
        "Largest": ["258,048", "398.25"],
        "Quantum": ["12,288", "-"],
        "Quantum of the mean": ["5.26 %", "-"],
        "RCP": ["interpolated", "missing"],
        "Its mean": ["230,058.667", "-"],
        "Smallest accepted mean": ["222,720.776", "-"],
        "Margin": ["10,751.224", "-"],
        "Outcome": ["passed", "nothing to test"],
    }
    assert {name: rows[name] for name in expected} == expected
    assert "CV = sd / mean; sd with ddof 1." in shown.text


@pytest.mark.usefixtures("no_pictures")
def test_the_official_verdicts_stand_beside_ours() -> None:
    shown = page(made_report(made_set(), official=OFFICIAL))
    assert ["package_checker", "results", "fail", "11.3", "no scaling.json; no code"] in shown.rows
    assert ["rcp_checker", "results", "fail", "pass", "it trusts the shipped scaling.json"] in shown.rows
    assert "mlperf-logging 4.1.68: fail." in shown.text
    assert "mlperf-logging 4.1.68: " not in page(made_report()).text
    same = tuple(OfficialResult("compliance_checker", f"logs/{n}.txt", "pass", (), 0.5) for n in range(3))
    shown = page(made_report(official=Official("4.1.68", "pass", same, ())))
    assert ["compliance_checker", "logs/0.txt, 1.txt, 2.txt", "pass", "1.5", "-"] in shown.tables[0]


def test_every_set_has_a_section_and_four_pictures() -> None:
    two = [made_run(0), made_run(1)]
    sets = [made_set(two, "results/one"), made_set(two, "results/two"), SetResult("results/none", (), None, None, None)]
    for kind in KINDS:
        shown = page(made_report(*sets), kind)
        names = [text for text in shown.headings if text.startswith("Runs of")]
        assert names == [f"Runs of results/{name}" for name in ("one", "two", "none")]
        assert len(shown.attributes("img")) == 8
        assert "No run could be read." in shown.text


@pytest.mark.usefixtures("no_pictures")
def test_ids_are_unique_and_links_lead_to_them() -> None:
    energy = Energy(None, None, tuple(RunEnergy(run.file, None, 0, 0, 0, 0) for run in made_set(name="a").runs))
    sets = made_set(name="results/one"), made_set(name="a", energy=energy)
    shown = page(made_report(*sets, findings=(made_finding("a"), made_finding("b", Severity.INFO))))
    assert len(shown.ids()) == len(set(shown.ids())) == 5 + 2 + 2 * 3 + 1
    assert {attributes["href"] for attributes in shown.attributes("a")} == {f"#{name}" for name in shown.ids()}


@pytest.mark.usefixtures("no_pictures")
def test_html_and_markdown_have_the_same_tables() -> None:
    findings = (made_finding("a"), made_finding("b", Severity.WARNING, got=HOSTILE_MARKUP))
    report = made_report(made_set(), mixed_set(), findings=findings, official=OFFICIAL)
    assert page(report, "md").tables == page(report).tables
    assert len(page(report).tables) == 14


def test_html_and_markdown_have_the_same_alternative_texts() -> None:
    html, markdown = ([image["alt"] for image in ten_runs(kind)[1].attributes("img")] for kind in KINDS)
    assert html == markdown
    assert len(set(html)) == 4
    assert all(re.search(r"\d", text) and text.endswith(".") for text in html)


@pytest.mark.usefixtures("no_pictures")
def test_a_path_may_break_after_a_slash_and_its_copy_has_no_other_character() -> None:
    long = "A_Long_Name_Of_An_Organisation"
    finding = made_finding(file="logs/deep/result_0.txt", got=long)
    text = report_file(made_report(made_set(), findings=(finding,)), "html")
    assert long.replace("_", "_<wbr/>") in text
    text = text.replace("_<wbr/>", "")
    assert "logs/<wbr/>deep/<wbr/>result_0.txt:12" in text
    assert "results/<wbr/>big/<wbr/>gpt_oss_20b" in text
    assert set(re.findall(r"(.)<wbr/>", text)) == {"/"}
    assert "\u200b" not in text


def test_contents_list_every_picture() -> None:
    shown = ten_runs("html")[1]
    targets = {attributes["href"].removeprefix("#") for attributes in shown.attributes("a")}
    pictures = [attributes["id"] for attributes in shown.attributes("figure")]
    assert len(pictures) == 4
    assert set(pictures) < targets


# --- hostile logs, self-containment, determinism ----------------------------------------------------------------------


def hostile_report(text: Any) -> Report:
    """Return a report with the text wherever a log, a file name or a tool can put it."""
    runs = [made_run(n, platform=f"{text}{n}", organisation=text, division=text) for n in range(3)]
    runs[0] = replace(runs[0], file=text)
    variance = Variance(5.0, text, None, Spread(3, 1, 1, 1, 1, 1, None, None))
    result = made_set(runs, text, variance=variance)
    official = Official(text, text, (OfficialResult(text, text, text, (text, text), 1.0),), (Divergence(*[text] * 5),))
    findings = tuple(
        made_finding(text, each, message=text, file=text, expected=text, got=text, citation=text) for each in Severity
    )
    return Report(text, text, Verdict.FAIL, findings, (result, result), official, {text: text}, {"x": text})


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_text_stays_text(kind: Kind) -> None:
    shown = page(hostile_report(HOSTILE_MARKUP), kind)
    harmless = page(hostile_report("harmless"), kind)
    assert shown.tags == harmless.tags
    assert shown.text.count(HOSTILE_MARKUP) == harmless.text.count("harmless") > 50


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", KINDS)
def test_invisible_characters_become_visible(kind: Kind) -> None:
    shown = page(hostile_report("a\x00b\x1bc\ud800d\u202ee\nf\u2028g"), kind)
    assert "a\\x00b\\x1bc\\ud800d\\u202ee\\nf\\u2028g" in shown.text
    report_file(hostile_report("a\ud800"), kind).encode()


def test_the_page_loads_nothing() -> None:
    text, shown = ten_runs("html")
    policy = next(meta["content"] for meta in shown.attributes("meta") if "http-equiv" in meta)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not set(shown.tags) & {"script", "link", "iframe", "object", "embed", "base", "svg", "form"}
    for each in shown.elements:
        assert not any(name.startswith("on") or name in {"srcset", "style", "action"} for name in each.attrib)
        assert "src" not in each.attrib or (each.tag == "img" and each.attrib["src"].startswith("data:image/svg+xml;"))
        assert each.get("href", "#").startswith("#")
    styles = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in styles and "@import" not in styles


def test_markdown_loads_nothing() -> None:
    _, shown = ten_runs("md")
    assert set(shown.tags) <= {"div", "h1", "h2", "h3", "h4", "p", "strong", "ul", "li", "img", "table",
                                              "thead", "tbody", "tr", "th", "td"}  # fmt: skip
    assert [image["src"][:22] for image in shown.attributes("img")] == ["data:image/png;base64,"] * 4


def test_pictures_are_valid_svg_without_dates_or_links() -> None:
    for image in page(made_report(mixed_set())).attributes("img"):
        source = b64decode(image["src"].partition(",")[2]).decode()
        ElementTree.fromstring(source)
        assert "<metadata" not in source
        assert not re.search(r'href="(?!#)', source)


def test_the_same_report_makes_the_same_bytes_whatever_the_settings() -> None:
    report = made_report(made_set(), findings=(made_finding("a", got=HOSTILE_MARKUP),), official=OFFICIAL)
    for kind in KINDS:
        with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.facecolor": "black"}):
            assert report_file(report, kind) == ten_runs(kind)[0]
            assert len(ten_runs(kind)[0].encode()) < 700_000
            assert matplotlib.rcParams["lines.linewidth"] == 9


def test_another_process_makes_the_same_bytes_without_pyplot() -> None:
    code = (
        "import sys, hashlib; from tests.support.made_reports import made_report, mixed_set;"
        "from compliance.render.report_file import report_file;"
        "text = report_file(made_report(mixed_set()), 'html');"
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


def test_a_hundred_thousand_evaluations_stay_small() -> None:
    evaluations = tuple(Evaluation(n, 5.0, START_MS, n) for n in range(100_000))
    phases = tuple(Phase("evaluation", START_MS + n * 100.0, START_MS + n * 100.0 + 50) for n in range(100_000))
    endless = made_run(0, evaluations=evaluations, phases=phases)
    text = report_file(made_report(made_set([endless, made_run(1)])), "html")
    assert len(text.encode()) < 2_000_000
    table = next(table for table in Page(text).tables if table[0][0] == "Samples")
    assert len(table) == 202
    assert table[1] == ["..."] * 3
    assert table[-1][0] == "233,472"


# --- degenerate input -------------------------------------------------------------------------------------------------

BAD_NUMBERS = (math.nan, math.inf, -math.inf, 1e300, -5.0, 0.0)


def run_of(value: float) -> RunSummary:
    """Return a run with one number in every field."""
    numbers: dict[str, Any] = {
        field.name: value
        for field in fields(RunSummary)
        if "float" in str(field.type) and field.name not in ("target", "tracked")
    }
    whole = int(value) if math.isfinite(value) else 10**400
    numbers |= dict.fromkeys(("samples_to_target", "global_batch_size", "warmup_steps", "seed"), whole)
    curve = Curve((value, 32.0), (value, 8e-4))
    return made_run(
        0,
        **numbers,
        evaluations=(Evaluation(whole, value, value, 1), Evaluation(INTERVAL, 4.0, value, 1)),
        logged_learning_rates=curve,
        expected_learning_rates=curve,
        phases=(Phase("training", value, value), Phase("init", 0.0, value), Phase("odd", 0.0, 1.0)),
    )


def empty_run() -> RunSummary:
    changes: dict[str, Any] = {field.name: None for field in fields(RunSummary) if "None" in str(field.type)}
    changes |= dict.fromkeys(("train_loss", "logged_learning_rates", "expected_learning_rates"), NO_CURVE)
    return made_run(0, **changes, evaluations=(), phases=(), status=Status.INVALID)


def alone(run: RunSummary) -> SetResult:
    return SetResult("", (run,), None, None, None)


POINT = Curve((0.0,), (0.0,))
DEGENERATE: dict[str, Sequence[SetResult]] = {
    "no set": (),
    "no run": (SetResult("", (), None, None, None),),
    "an empty run": (alone(empty_run()),),
    "an empty run beside others": (made_set([empty_run(), made_run(0)]),),
    "one point": (alone(made_run(0, 1, logged_learning_rates=POINT, expected_learning_rates=POINT)),),
    "losses of twenty": (made_set([made_run(0, evaluations=(Evaluation(INTERVAL, 20.0, 0.0, 1),))] * 2),),
    "other letters": (made_set([made_run(0, file="x/日本\u0007\U0001f600$x_{1$.txt")] * 2),),
    **{f"all {value}": (made_set([run_of(value), made_run(1)]),) for value in BAD_NUMBERS},
    **{f"only {value}": (alone(run_of(value)),) for value in (math.nan, 1e300, 0.0)},
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_input_still_makes_a_file(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    report = made_report(*DEGENERATE[case], findings=(made_finding("a"),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = page(report)
    monkeypatch.setattr(report_file_module, "PICTURES", ())
    for each in (shown, page(report, "md")):
        assert "a is broken" in each.text
        assert {"Score", "Findings", "Official tools", "Not verifiable from logs"} < set(each.headings)


def test_pictures_without_data_are_named() -> None:
    shown = page(made_report(*DEGENERATE["an empty run"]))
    missing = "Evaluation loss, Samples to target and the reference, Learning rate, Timeline"
    assert f"Nothing to draw for: {missing}." in shown.text
    assert shown.attributes("img") == []
    assert "Nothing to draw" not in ten_runs("html")[1].text
