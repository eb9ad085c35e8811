"""README of a submission tree: facts of the report, TODO for the rest, and no markup of a log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compliance.findings import Official, Report, Severity, Verdict
from compliance.package_readme import package_readme
from compliance.submission import SystemDescription, read_system_description
from tests.support.made_logs import system_description
from tests.support.made_reports import UNVERIFIABLE, made_finding, made_report, made_set

CODE = ("run_and_time.sh", "pack/train.py")


def readme(folder: Path, report: Report, code: Sequence[str] = CODE, **description: Any) -> str:
    """Return the README of a report's only set, whose logs are numbered in order."""
    file = folder / "sys_1x8.json"
    file.write_text(json.dumps(system_description(**description)))
    system = read_system_description(file)
    assert isinstance(system, SystemDescription)
    names = {run.file: f"result_{number}.txt" for number, run in enumerate(report.sets[0].runs)}
    return package_readme(report, system, "sys_1x8", names, code)


def test_it_has_the_facts_of_the_report(tmp_path: Path) -> None:
    result = made_set()
    text = readme(tmp_path, made_report(result, findings=UNVERIFIABLE))
    assert text.startswith("# gpt_oss_20b on sys_1x8\n")
    assert result.score is not None
    facts = [
        "Submitter: Example Laboratory. Division: closed. Status: Available on-premise.",
        "The logs pass. Checked by `compliance` 0.1, ruleset 6.1.0.",
        f"Score: {result.score.olympic_minutes:.3f} minutes",
        f"Normalised by 1.250000: {result.score.normalized_minutes:.3f} minutes",
        "| global batch size | 32 |",
        "| base learning rate | 0.0008 |",
        "| warm-up steps | 128 |",
        "1. Hardware: 1 x 8 accelerators",
        "5. Run 10 times: `run_and_time.sh`. TODO: ",
        *(f"- unverifiable: {finding.rule}: " for finding in UNVERIFIABLE),
    ]
    for number, run in enumerate(result.runs):
        row = f"| result_{number}.txt | converged | {run.seed} | {run.minutes:.3f} | {run.samples_to_target:,} | "
        facts.append(f"{row}{run.final_eval_loss:.4f} |")
    for fact in facts:
        assert fact in text
    assert text.count("TODO:") == 5
    assert "$" not in text
    # The submitter's folders are not named.
    assert str(Path(result.runs[0].file).parent) not in text


def test_the_logged_commit_and_configuration_are_named(tmp_path: Path) -> None:
    result = made_set()
    logged = {"git_commit": "0123abc-dirty", "config_filename": "config_$x.sh"}
    runs = tuple(replace(run, disclosed=logged) for run in result.runs)
    text = readme(tmp_path, made_report(replace(result, runs=runs)))
    assert "Commit 0123abc-dirty." in text and r"Load first: config_\$x.sh." in text
    assert text.count("TODO:") == 3


def test_it_has_the_official_verdict(tmp_path: Path) -> None:
    text = readme(tmp_path, made_report(made_set(), official=Official("4.1.68", "pass", (), ())))
    assert "(mlperf-logging 4.1.68): pass." in text
    assert "mlperf-logging 4" not in readme(tmp_path, made_report(made_set()))


@pytest.mark.parametrize(("verdict", "words"), [(Verdict.FAIL, "FAIL: 1 findings."), (Verdict.ERROR, "not be judged")])
def test_it_states_a_failure(tmp_path: Path, verdict: Verdict, words: str) -> None:
    findings = (made_finding("a"), made_finding("b", Severity.WARNING))
    text = readme(tmp_path, made_report(made_set(score=None), verdict=verdict, findings=findings))
    assert words in text and "built with --force" in text
    assert "The logs pass" not in text
    assert "- error: a: a is broken" in text


def test_unknown_facts_are_left_to_do(tmp_path: Path) -> None:
    result = made_set()
    unknown: dict[str, Any] = dict.fromkeys(("seed", "minutes", "samples_to_target", "final_eval_loss"))
    runs = (replace(result.runs[0], learning_rate=5e-4, **unknown), *result.runs[1:])
    text = readme(tmp_path, made_report(replace(result, runs=runs), tool={}), ["start.sh"], framework={"a": 1})
    assert "| result_0.txt | converged | TODO | TODO | TODO | TODO |" in text
    assert "| base learning rate | 0.0005, 0.0008 |" in text
    assert "Checked by `compliance` TODO" in text
    assert "2. Software: TODO on example." in text
    assert "Run 10 times: TODO: the command." in text
    assert text.endswith("## Findings\n\nNone.\n")


def test_only_a_valid_score_is_given(tmp_path: Path) -> None:
    result = made_set()
    assert result.score is not None
    for score in (None, replace(result.score, valid=False)):
        text = readme(tmp_path, made_report(replace(result, score=score)))
        assert "There is no valid score." in text
        assert "Score:" not in text


def test_no_text_of_a_log_or_a_description_is_markup(tmp_path: Path) -> None:
    evil = "# a|b\n<b>*x*</b> [l](u) `c` $ruleset ${x}"
    files = [run.file for run in made_set().runs]
    finding = made_finding("r", Severity.INFO, message=f"{files[2]} is a copy of {files[1]}: {evil}")
    report = made_report(made_set(), findings=(finding, replace(finding, message="another")))
    text = readme(tmp_path, report, system_name=evil)
    escaped = r"# a\|b\\n\<b\>\*x\*\</b\> \[l\](u) \`c\` \$ruleset \${x}"
    assert text.startswith(f"# gpt_oss_20b on {escaped}\n")
    assert text.endswith(f"## Findings\n\n- info: r: result_2.txt is a copy of result_1.txt: {escaped}\n")
