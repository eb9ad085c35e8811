"""Two sets of logs side by side: figures, differing settings, warnings and notes, the JSON document, the command."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats  # type: ignore[import-untyped]

from compliance.cli import ExitCode
from compliance.compare import Comparison, NotComparableError, compare
from compliance.documents import to_json
from compliance.render.text import comparison_text
from compliance.welch import Outcome
from tests.support.commands import command
from tests.support.judging import judged
from tests.support.made_logs import MadeLog, compliant_log, event, write_set
from tests.support.paths import REFERENCE_LOGS
from tests.support.schemas import check_document

INTERVAL = 12_288
Capture = pytest.CaptureFixture[str]


def runs_of(counts: Sequence[int], first: int = 0, gbs: int = 16, **options: Any) -> list[MadeLog]:
    """Return logs that meet the target at these evaluations. Other values of ``first`` give other seeds."""
    interval = -(-INTERVAL // gbs) * gbs
    return [
        compliant_log(gbs, first + number, samples_to_target=interval * count, **options)
        for number, count in enumerate(counts)
    ]


def compared(a: Sequence[MadeLog], b: Sequence[MadeLog], **options: Any) -> Comparison:
    sets = [
        [judged(log, f"{name}/result_{number}.txt") for number, log in enumerate(logs)]
        for name, logs in (("a", a), ("b", b))
    ]
    return compare(sets[0], sets[1], "6.1.0", **options)


def read_json(text: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
    check_document("comparison", made)
    return made


def one_line(text: str) -> str:
    return " ".join(text.split())


# The sets


def test_figures_of_the_logs() -> None:
    a, b = [16, 17, 15, 16, 18, 16, 15, 17, 16, 16], [14, 15, 13, 14, 15]
    found = compared(runs_of(a), runs_of(b, first=20), names=("before", "after"))
    first = (found.a.name, found.a.runs, found.a.converged, found.a.eval_interval_samples, found.a.left_out)
    assert first == ("before", 10, 10, INTERVAL, ())
    assert (found.b.name, found.b.runs, found.b.converged) == ("after", 5, 5)
    theirs = stats.ttest_ind([each * INTERVAL for each in b], [each * INTERVAL for each in a], equal_var=False)
    assert found.samples.test is not None and found.samples.test.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert found.samples.outcome is found.minutes.outcome is Outcome.FEWER
    assert found.samples.olympic_a == sum(sorted(a)[1:-1]) / 8 * INTERVAL
    assert found.samples.olympic_b is None and found.minutes.olympic_b is None
    assert found.settings == () and found.warnings == ()


def test_minutes_are_those_to_the_target_and_not_to_run_stop() -> None:
    logs = runs_of([15, 16, 17])
    expected = []
    for log in logs:
        log.shift(log.index("run_stop"), 50_000)
        start, met = log.find("run_start")["time_ms"], log.find("eval_accuracy", -1)["time_ms"]
        expected.append((met - start) / 60_000)
    found = compared(logs, runs_of([15, 16, 17], first=20)).minutes
    assert found.a is not None and found.a.mean == pytest.approx(statistics.mean(expected), rel=1e-12)


def test_runs_that_missed_the_target_are_excluded_with_a_warning() -> None:
    logs = runs_of([16, 17, 15, 16, 18, 16, 15, 17, 16]) + runs_of([21], first=9, converged=False)
    found = compared(logs, runs_of([16, 17, 15], first=20))
    assert (found.a.runs, found.a.converged, found.a.left_out) == (10, 9, ("a/result_9.txt",))
    assert found.samples.a is not None and (found.samples.a.runs, found.samples.a.maximum) == (9, 18 * INTERVAL)
    # The olympic mean drops it as the slowest.
    assert found.samples.olympic_a == sum([15, 16, 16, 16, 16, 17, 17, 18]) / 8 * INTERVAL
    (warning,) = found.warnings
    assert "1 of 10 runs of A" in warning
    assert "A without a/result_9.txt" in comparison_text(found)


def test_an_aborted_run_or_one_at_no_samples_has_not_converged() -> None:
    logs = runs_of([16, 17, 15, 16])
    logs[0].find("run_stop")["metadata"]["status"] = "aborted"
    for log, samples in ((logs[1], 0), (logs[2], 10**300)):
        for record in log.all("eval_accuracy"):
            record["metadata"]["samples_count"] = samples
    with pytest.raises(NotComparableError, match=r"A \(A\): 1 of 4 runs"):
        compared(logs, runs_of([16, 17], first=20))


def test_logs_of_another_benchmark_are_not_compared() -> None:
    logs = runs_of([16, 17, 15])
    logs[1].set("submission_benchmark", "llama31_8b")
    with pytest.raises(NotComparableError, match="a log of llama31_8b"):
        compared(runs_of([16, 17], first=20), logs)


def test_broken_rules_are_named_and_the_runs_compared() -> None:
    logs = runs_of([16, 17, 15])
    logs[0].set("cache_clear", False)
    logs[2].set("cache_clear", False).set("opt_adamw_beta_2", 0.9)
    found = compared(logs, runs_of([16, 17], first=20))
    broken = {each.rule: each.files for each in found.a.broken}
    assert broken["cache-clear"] == ("a/result_0.txt", "a/result_2.txt")
    assert broken["hyperparameter-fixed"] == ("a/result_2.txt",)
    assert broken["set-alike"] == ("a/result_2.txt",)
    assert found.b.broken == ()  # a set may be too small for a result
    assert found.samples.a is not None and found.samples.a.runs == 3
    text = one_line(comparison_text(found))
    assert "A breaks cache-clear (2 runs), hyperparameter-fixed (1 run), set-alike (1 run)" in text
    assert "B breaks no rule" in text


def test_rcp_rules_apply_to_ten_runs_only() -> None:
    ten, nine = [8, 9] * 5, [8, 9, 8] * 3
    found = compared(runs_of(ten), runs_of(nine, first=20))
    assert [each.rule for each in found.a.broken] == ["rcp-pruned"] and found.b.broken == ()
    assert "A breaks rcp-pruned (the set)" in comparison_text(found)


def test_without_a_clock_only_samples_are_compared() -> None:
    logs = runs_of([16, 17, 15])
    logs[0].drop("run_start")
    logs[1].find("run_start")["time_ms"] += 10**10  # it starts after it ends
    found = compared(logs, runs_of([16, 17], first=20))
    assert found.samples.a is not None and found.samples.a.runs == 3
    assert found.minutes.outcome is Outcome.UNTESTED and "1 in A and 2 in B" in found.minutes.verdict
    read_json(to_json(found))
    assert found.minutes.verdict in comparison_text(found)


# The settings


def test_settings_that_differ_are_side_by_side() -> None:
    b = runs_of([16, 17], first=20, gbs=32)
    for log in b:
        log.set("submission_platform", "other_1x8").set("lowest_numerical_precision_in_linear", "fp8")
        log.set("expert_parallelism", 4).set("max_steps", 1_200_000.0).drop("config_filename")
    found = {each.key: (each.a, each.b) for each in compared(runs_of([16, 17]), b).settings}
    assert found == {
        "submission_platform": (('"sys_1x8"',), ('"other_1x8"',)),
        "global_batch_size": (("16",), ("32",)),
        "gradient_accumulation_steps": (("1",), ("2",)),
        "opt_base_learning_rate": (("0.0004",), ("0.0008",)),
        "opt_end_learning_rate": (("4e-05",), ("8e-05",)),
        "lowest_numerical_precision_in_linear": (('"bfloat16"',), ('"fp8"',)),
        "expert_parallelism": (("8",), ("4",)),
        "config_filename": (('"config_sys_1x8.sh"',), ()),
    }


def test_another_key_is_shown_if_it_has_one_value_per_set() -> None:
    a, b = runs_of([16, 17]), runs_of([16, 17], first=20)
    for number, log in enumerate([*a, *b]):
        log.insert_before("run_start", 0, event("attention_kernel", "v2" if number < 2 else "v3", 1_790_000_000_000))
        log.insert_before("run_start", 0, event("host_of_the_day", f"node{number}", 1_790_000_000_000))
        log.insert_after("run_start", 0, event("moment", "a" if number < 2 else "b", log.find("run_start")["time_ms"]))
    found = compared(a, b)
    assert [(each.key, each.a, each.b) for each in found.settings] == [("attention_kernel", ('"v2"',), ('"v3"',))]
    assert 'attention_kernel: "v2" in A, "v3" in B' in comparison_text(found)


def test_a_set_of_several_values_shows_up_to_four_in_the_text() -> None:
    steps = [64 + number for number in range(6)]
    a = [log for number, each in enumerate(steps) for log in runs_of([16], first=number, warmup_steps=each)]
    found = compared(a, runs_of([16, 17], first=20))
    settings = {each.key: (each.a, each.b) for each in found.settings}
    assert settings["opt_learning_rate_warmup_steps"] == (tuple(map(str, steps)), ("128",))
    assert "opt_learning_rate_warmup_steps: 64, 65, 66, 67, and 2 more in A, 128 in B" in comparison_text(found)


# Evaluation intervals, and sets that are not independent


def test_the_interval_of_each_set() -> None:
    def notes(gbs: int) -> str:
        return " ".join(compared(runs_of([15, 16]), runs_of([15, 16], first=20, gbs=gbs)).notes)

    assert "12,288 samples in A (6.5 % of the mean) and 12,288 samples in B (6.5 % of the mean)" in notes(16)
    assert "GBS" not in notes(16)
    assert "GBS differs (16 and 32)" in notes(32)
    assert "12,288 samples in A (6.5 % of the mean) and 12,320 samples in B" in notes(40)
    assert "GBS 16 and 40" in notes(40) and "+16 samples" in notes(40)


def test_a_set_of_two_batch_sizes_has_no_single_interval() -> None:
    found = compared([*runs_of([15, 16]), *runs_of([16], first=3, gbs=40)], runs_of([15, 16], first=20))
    assert found.a.eval_interval_samples is None and found.b.eval_interval_samples == INTERVAL
    assert "of no single size in A and 12,288 samples in B" in found.notes[0]
    assert not any("GBS" in note for note in found.notes[1:])


def test_a_set_without_spread_has_a_note() -> None:
    found = compared(runs_of([16, 16]), runs_of([15, 17, 16], first=20))
    assert [note for note in found.notes if "196,608 samples" in note and " A " in note]


def test_a_run_that_never_evaluated_leaves_the_interval_known() -> None:
    a = runs_of([16, 17, 15], division="open")
    a[0].events = [record for record in a[0].events if not record["key"].startswith("eval_")]
    found = compared(a, runs_of([16, 17], first=20, division="open"))
    assert (found.a.eval_interval_samples, found.a.converged) == (INTERVAL, 2)


def test_the_interval_of_open_sets_is_that_of_their_evaluations() -> None:
    def open_runs(every: int, first: int) -> list[MadeLog]:
        return [
            compliant_log(16, run, samples_to_target=every * count, division="open", eval_every=every)
            for run, count in ((first, 16), (first + 1, 17))
        ]

    a, b = open_runs(96, 0), open_runs(112, 20)
    found = compared(a, b)
    assert (found.a.eval_interval_samples, found.b.eval_interval_samples) == (96, 112)
    assert "96 samples in A (6.1 % of the mean) and 112 samples in B" in found.notes[0]
    b[0].find("eval_accuracy", 2)["metadata"]["samples_count"] += 16
    found = compared(a, b)
    assert (found.a.eval_interval_samples, found.b.eval_interval_samples) == (96, None)
    assert "96 samples in A (6.1 % of the mean) and of no single size in B" in found.notes[0]


def test_shared_seeds_and_copies_have_a_warning() -> None:
    a, b = runs_of([16, 17, 15, 16, 17]), runs_of([16, 17, 15, 16, 17], first=20)
    assert compared(a, b).warnings == ()
    b[1].set("seed", a[3].find("seed")["value"])
    (warning,) = compared(a, b).warnings
    assert warning.startswith("1 run of B has the seed of a run of A (b/result_1.txt = a/result_3.txt)")
    for run in range(4):
        b[run] = a[run].copy().set("seed", 7_000_000 + run)
    (warning,) = compared(a, b).warnings
    assert warning.startswith("4 runs of B have the evaluation losses of a run of A")
    pairs = ", ".join(f"b/result_{n}.txt = a/result_{n}.txt" for n in range(3))
    assert f"({pairs}, and 1 more)" in warning
    found = compared(a, a)
    assert found.samples.test is not None and found.samples.test.p == pytest.approx(1.0)
    assert found.samples.outcome is Outcome.INCONCLUSIVE
    assert [warning.split(" of a run of A")[0] for warning in found.warnings] == [
        "5 runs of B have the seed",
        "5 runs of B have the evaluation losses",
    ]


def test_other_targets_have_a_warning() -> None:
    b = runs_of([16, 17], first=20, division="open")
    for log in b:
        log.set("target_accuracy", 3.3401)
    (warning,) = compared(runs_of([16, 17]), b).warnings
    assert "3.34 in A and 3.3401 in B" in warning


# The document and the text


def test_the_text_has_what_the_document_has() -> None:
    logs = [*runs_of([16, 17, 15]), *runs_of([20], first=3, converged=False)]
    logs[0].set("cache_clear", False)
    found = compared(logs, runs_of([14, 15], first=20, gbs=40), names=("one", "two"))
    made = read_json(to_json(found))
    text = one_line(comparison_text(found, width=100_000))
    for name, decimals in (("samples", 1), ("minutes", 3)):
        assert made[name]["verdict"] in text
        assert (made[name]["a"]["runs"], made[name]["b"]["runs"]) == (3, 2)
        for side in ("a", "b"):
            assert all(f" {made[name][side][figure]:,.{decimals}f} " in text for figure in ("mean", "sd"))
        test = made[name]["test"]
        facts = f"Welch's t = {test['t']:.4g}, {test['df']:.2f} degrees of freedom, two-sided p = {test['p']:.3g}"
        assert facts in text.split(f"{name.capitalize()} to target set")[1]
        assert f"{test['low']:+,.{decimals}f} to {test['high']:+,.{decimals}f} {name}" in text
        assert f"a difference of {test['detectable']:,.{decimals}f} {name}" in text
    for sentence in (*made["warnings"], *made["notes"]):
        assert sentence in text
    for setting in made["settings"]:
        assert f"{setting['key']}: {setting['a'][0]} in A, {setting['b'][0]} in B" in text
    assert made["settings"] and made["a"]["left_out"][0] in text and "A: one B: two" in text
    assert made["a"]["broken"] == [{"rule": "cache-clear", "files": ["a/result_0.txt"]}]


def test_colours_are_there_only_when_asked_for() -> None:
    found = compared(runs_of([16, 17, 16]), runs_of([13, 12, 13], first=20))
    assert "\x1b[1;32mB needs" in comparison_text(found, colour=True)
    assert "\x1b" not in comparison_text(found)


# The command


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("sets")
    logs = runs_of([16, 17, 15, 16])
    logs[2].set("cache_clear", False)
    write_set(root / "a", logs)
    # These break rules of 6.1.0 only.
    write_set(root / "b", runs_of([13, 14, 13], first=20, gbs=32, ruleset="6.0.0", disclosures=False))
    return root / "a", root / "b"


def test_the_command_compares_sets_that_break_rules(folders: tuple[Path, Path], capsys: Capture) -> None:
    found = command(capsys, "compare", *folders)
    assert (found.status, found.err) == (0, "")
    shown = one_line(found.out)
    assert shown.startswith(f"A: {folders[0]} B: {folders[1]} B needs 16.7 % fewer samples than A (95 % interval ")
    assert "A breaks cache-clear (1 run)" in shown and "B breaks record-required (3 runs)" in shown
    assert "\x1b" not in found.out
    # A difference that is no improvement is no failure.
    found = command(capsys, "compare", *reversed(folders))
    assert found.status == 0 and "more samples than A" in found.out


def test_the_command_takes_confidence_ruleset_and_format(folders: tuple[Path, Path], capsys: Capture) -> None:
    options = ["--format", "json", "--confidence", "0.9", "--ruleset", "6.0.0"]
    found = command(capsys, "compare", *folders, *options)
    assert (found.status, found.err) == (0, "")
    made = read_json(found.out)
    assert (made["ruleset"], made["confidence"], made["samples"]["outcome"]) == ("6.0.0", 0.9, "fewer")
    assert made["b"]["broken"] == []


def test_a_set_that_cannot_be_read(folders: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    found = command(capsys, "compare", folders[0], tmp_path / "none")
    assert (found.status, found.out) == (ExitCode.UNREADABLE, "")
    assert str(tmp_path / "none") in found.err and found.err.count("\n") == 1


def test_the_figures_are_written_as_a_table(folders: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "t.csv"
    made = read_json(command(capsys, "compare", *folders, "--format", "json", "--out", out).out)
    rows = {(row["metric"], row["set"]): row for row in csv.DictReader(out.open(encoding="utf-8"))}
    assert list(rows) == [(metric, name) for metric in ("samples", "minutes") for name in ("A", "B", "B - A")]
    for (metric, name), row in rows.items():
        figures = made[metric][name.lower()] if name != "B - A" else {"mean": made[metric]["difference"]}
        assert {key: float(row[key]) for key, value in figures.items() if value is not None} == {
            key: value for key, value in figures.items() if value is not None
        }
    assert float(rows["minutes", "B - A"]["p"]) == made["minutes"]["test"]["p"]
    assert command(capsys, "compare", *folders, "--out", tmp_path / "t.txt").status == ExitCode.USAGE


@pytest.mark.parametrize("form", ["text", "json"])
def test_too_few_runs_are_wrong_usage(folders: tuple[Path, Path], capsys: Capture, form: str) -> None:
    log = folders[1] / "result_0.txt"
    found = command(capsys, "compare", folders[0], log, "--format", form)
    assert (found.status, found.out) == (ExitCode.USAGE, "")
    assert f"B ({log}): 1 of 1 runs" in found.err and found.err.count("\n") == 1
    assert command(capsys, "compare", folders[0]).status == ExitCode.USAGE


@pytest.mark.parametrize("confidence", ["95", "nan", "0", "1"])
def test_a_confidence_out_of_range(folders: tuple[Path, Path], capsys: Capture, confidence: str) -> None:
    found = command(capsys, "compare", *folders, "--confidence", confidence)
    assert found.status == ExitCode.USAGE
    assert f"confidence {confidence}: expected 0.5 to 0.9999" in found.err


# Ten published reference runs


@pytest.mark.skipif(not REFERENCE_LOGS.is_dir(), reason="the published reference logs are not beside this checkout")
def test_halves_of_the_reference_runs(tmp_path: Path, capsys: Capture) -> None:
    logs = sorted(REFERENCE_LOGS.glob("*.gz"))
    for name, half in (("a", logs[:5]), ("b", logs[5:])):
        (tmp_path / name).mkdir()
        for log in half:
            shutil.copy(log, tmp_path / name)
    found = command(capsys, "compare", tmp_path / "a", tmp_path / "b", "--format", "json")
    made = read_json(found.out)
    assert (found.status, len(logs)) == (0, 10)
    assert made["settings"] == [] and made["warnings"] == []
    assert (made["samples"]["outcome"], made["minutes"]["outcome"]) == ("not_told", "not_told")
    assert {"eval-size", "eval-after-target"} < {each["rule"] for each in made["b"]["broken"]}
    samples = [made["samples"][side] for side in ("a", "b")]
    # One run of the first half needs an evaluation more; the others all meet the target at the same one.
    assert [each["mean"] for each in samples] == [235_929.6, 233_472.0] and samples[1]["sd"] == 0
    whole = read_json(command(capsys, "compare", REFERENCE_LOGS, tmp_path / "a", "--format", "json").out)
    assert whole["samples"]["olympic_a"] == 233_472
    assert whole["minutes"]["olympic_a"] == pytest.approx(359.973, abs=5e-4)
    assert [warning.split(" of a run of A")[0] for warning in whole["warnings"]] == [
        "5 runs of B have the seed",
        "5 runs of B have the evaluation losses",
    ]
