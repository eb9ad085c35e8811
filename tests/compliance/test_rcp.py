"""Reference convergence points against the official checker, scipy and the golden table."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import scipy.stats  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from mlperf_logging.rcp_checker.rcp_checker import RCP_Checker, check_directory

from compliance import rcp

RULESETS = ("6.0.0", "6.1.0")
# GBS: (full mean, full minimum), (pruned mean, pruned minimum), from an independent computation.
GOLDEN = {
    16: ((194560.0, 188719.167249), (194560.0, 188719.167249)),
    32: ((234837.333333, 229258.556210), (230058.666667, 222720.776251)),
    48: ((267946.666667, 259934.719809), (265557.333333, 256614.131389)),
    64: ((301056.0, 290308.288671), (301056.0, 290308.288671)),
}


def official(ruleset: str, rcp_file: io.StringIO | None = None) -> Any:
    return RCP_Checker("training", ruleset, "gpt_oss_20b", False, rcp_file)


def official_record(checker: Any, gbs: int, rcp_pass: str) -> dict[str, Any]:
    """Return the RCP of the official checker for a batch size between its smallest and largest."""
    record = checker._find_rcp(gbs, rcp_pass)
    if record is None:
        low, high = checker._find_top_min_rcp(gbs, rcp_pass), checker._find_bottom_max_rcp(gbs, rcp_pass)
        record = checker._create_interp_rcp(gbs, low, high)[1]
    return dict(record)


def write_results(folder: Path, gbs: int, samples: Sequence[int]) -> None:
    """Write result files with the records that the official RCP checker reads."""
    folder.mkdir(exist_ok=True)
    for run, count in enumerate(samples):
        records: list[tuple[str, Any, dict[str, Any]]] = [
            ("submission_benchmark", "gpt_oss_20b", {}),
            ("global_batch_size", gbs, {}),
            ("eval_accuracy", 3.33, {"samples_count": count}),
            ("run_stop", None, {"status": "success", "samples_count": count}),
        ]
        lines = [":::MLLOG " + json.dumps({"key": key, "value": v, "metadata": m}) for key, v, m in records]
        (folder / f"result_{run}.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("ruleset", RULESETS)
@pytest.mark.parametrize("gbs", GOLDEN)
def test_golden_values(gbs: int, ruleset: str) -> None:
    result = rcp.check_convergence(gbs, None, ruleset)
    for test, expected in zip((result.full, result.pruned), GOLDEN[gbs], strict=True):
        assert (test.mean, test.minimum) == pytest.approx(expected, rel=0, abs=1e-6)


@pytest.mark.parametrize("ruleset", RULESETS)
def test_published_points(ruleset: str) -> None:
    settings_of = {point.gbs: (point.learning_rate, point.warmup_steps) for point in rcp.full_points(ruleset)}
    assert settings_of == {16: (4e-4, 128), 32: (8e-4, 128), 64: (1e-3, 192)}
    # Sample standard deviations of the 20 runs, from the benchmark's published table; here ddof is 0.
    sd = {point.gbs: point.sd * math.sqrt(20 / 19) for point in rcp.full_points(ruleset)}
    assert sd == pytest.approx({16: 8243, 32: 7873, 64: 15168}, abs=0.5)
    for point in rcp.full_points(ruleset):
        assert len(point.samples) == 20
        assert list(point.samples) == sorted(point.samples)
        assert point.n_ref == 18
    assert [point.gbs for point in rcp.pruned_points(ruleset)] == [16, 64]


def test_the_minimum_is_the_limit_of_the_t_test() -> None:
    for point in (*rcp.full_points("6.1.0"), rcp.interpolate(48, *rcp.pruned_points("6.1.0"))):
        expected = scipy.stats.t.ppf(0.95, point.n_ref + 6) * point.sd * math.sqrt(1 / point.n_ref + 1 / 8)
        assert point.mean - point.limit == pytest.approx(expected, rel=1e-12)
        assert abs(point.minimum - point.limit) <= 5e-5


@pytest.mark.parametrize(
    ("gbs", "mean", "pruned", "full"),
    [
        (64, 290304, False, False),
        (64, 291840, True, True),
        (32, 222720, False, False),
        (32, 224256, True, False),
        (32, 228864, True, False),
        (32, 230400, True, True),
        (16, 188416, False, False),
        (16, 189952, True, True),
    ],
)
@pytest.mark.parametrize("ruleset", RULESETS)
def test_edges_of_the_evaluation_grid(gbs: int, mean: float, pruned: bool, full: bool, ruleset: str) -> None:
    result = rcp.check_convergence(gbs, mean, ruleset)
    assert (result.pruned.passed, result.full.passed) == (pruned, full)
    for test in (result.pruned, result.full):
        assert test.mean is not None
        assert test.minimum is not None
        assert test.submission_mean == mean
        assert test.margin_samples == mean - test.minimum
        assert test.normalization == max(1.0, test.mean / mean)


@pytest.mark.slow
@settings(deadline=None)
@given(gbs=st.integers(16, 64), ruleset=st.sampled_from(RULESETS), excess=st.sampled_from([-2e-9, 0.0, 2e-9]))
def test_the_official_checker_draws_the_same_line(gbs: int, ruleset: str, excess: float) -> None:
    checker = official(ruleset)
    for rcp_pass in ("pruned_rcps", "full_rcps"):
        record = official_record(checker, gbs, rcp_pass)
        mean = float(record["Min Epochs"]) + excess
        result = rcp.check_convergence(gbs, mean, ruleset)
        test = result.pruned if rcp_pass == "pruned_rcps" else result.full
        assert test.mean == pytest.approx(record["RCP Mean"], rel=1e-15)
        assert test.minimum == pytest.approx(record["Min Epochs"], rel=0, abs=1e-9)
        assert test.passed is (excess >= 0)
        exact = gbs in (16, 64) or (gbs == 32 and rcp_pass == "full_rcps")
        assert test.kind == ("exact" if exact else "interpolated")


@pytest.mark.parametrize(
    ("gbs", "samples", "kind", "passed", "message"),
    [
        (16, 196608, "exact", True, "RCP found"),
        (16, 184320, "exact", False, "RCP found"),
        (24, 221184, "interpolated", True, "RCP Interpolation"),
        (24, 196608, "interpolated", False, "RCP Interpolation"),
        (8, 196608, "smallest", True, "RCP not found but slower convergence on smaller batch size"),
        (8, 184320, "smallest", False, "Missing RCP, please submit RCP with BS = 8"),
        (96, 196608, "missing", False, "Missing RCP, please submit RCP with BS = 96"),
        (96, 999936, "missing", False, "Missing RCP, please submit RCP with BS = 96"),
    ],
)
@pytest.mark.parametrize("rcp_pass", ["pruned_rcps", "full_rcps"])
def test_against_the_official_checker_on_files(
    gbs: int, samples: int, kind: str, passed: bool, message: str, rcp_pass: str, tmp_path: Path
) -> None:
    write_results(tmp_path, gbs, [samples] * 10)
    verdict = check_directory(str(tmp_path), "training", "6.1.0", False, False, rcp_pass=rcp_pass)
    result = rcp.check_convergence(gbs, samples, "6.1.0")
    test = result.pruned if rcp_pass == "pruned_rcps" else result.full
    assert (test.kind, test.passed) == (kind, passed)
    assert verdict[:2] == (passed, message)
    if kind == "missing":
        assert (test.mean, test.minimum, test.margin_samples, test.normalization) == (None,) * 4
    else:
        assert test.normalization == pytest.approx(verdict[2], rel=1e-15)


def test_without_a_mean_there_is_no_outcome() -> None:
    for gbs, kind in ((15, "smallest"), (16, "exact"), (17, "interpolated"), (64, "exact"), (65, "missing")):
        result = rcp.check_convergence(gbs, None, "6.1.0")
        assert (result.global_batch_size, result.pruned.kind, result.pruned.passed) == (gbs, kind, None)
        assert result.full.passed is None


def entries(runs: dict[int, list[int]]) -> str:
    return json.dumps(
        {
            f"gpt_oss_20b_ref_{gbs}": {
                "Benchmark": "gpt_oss_20b",
                "BS": gbs,
                "Hyperparams": {"opt_base_learning_rate": 1e-3, "opt_learning_rate_warmup_samples": 4 * gbs},
                "Epochs to converge": samples,
            }
            for gbs, samples in runs.items()
        }
    )


RUNS_OF_ONE = st.builds(
    lambda middle, around: [12_288 * (middle + step) for step in around],
    st.integers(10, 30),
    st.lists(st.integers(-3, 3), min_size=20, max_size=20),
)


@pytest.mark.slow
@settings(deadline=None)
@given(runs=st.dictionaries(st.integers(8, 256), RUNS_OF_ONE, min_size=1, max_size=7))
def test_pruning_of_any_points_is_the_official_one(
    runs: dict[int, list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = entries(runs)
    path = tmp_path_factory.mktemp("rcps") / "rcps.json"
    path.write_text(text)
    points = rcp.read_points(path)
    checker = official("6.1.0", io.StringIO(text))
    assert [point.gbs for point in points] == sorted(runs)
    kept = sorted(record["BS"] for record in checker.pruned_rcp_data.values())
    assert [point.gbs for point in rcp.prune(points)] == kept
    for point, record in zip(points, checker.rcp_data.values(), strict=True):
        assert point.mean == pytest.approx(record["RCP Mean"], rel=1e-15)
        assert point.sd == pytest.approx(record["RCP Stdev"], rel=1e-12)
        assert point.minimum == pytest.approx(record["Min Epochs"], rel=0, abs=1e-4)


def test_pruning_does_not_reconsider_a_point() -> None:
    # 20 is removed. A convex hull would then remove 30, which is on the line from 10 to 40 or below it.
    means = {8: 300, 10: 100, 20: 190, 30: 150, 40: 240}
    points = [rcp.RcpPoint(gbs, float(mean), 1.0, 18) for gbs, mean in means.items()]
    kept = rcp.prune([rcp.PublishedPoint(p.gbs, p.mean, p.sd, 18, (1,) * 20, 1e-3, 1) for p in points])
    assert [point.gbs for point in kept] == [10, 30, 40]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"a": 1}',
        '{"a": {"BS": 16}}',
        entries({16: [12_288] * 19}),
        entries({16: []}),
        entries({16: [12_288] * 20}).replace('"BS": 16', '"BS": "16"'),
    ],
)
def test_a_malformed_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rcps_gpt_oss_20b.json"
    path.write_text(text)
    with pytest.raises(rcp.RcpDataError, match=r"rcps_gpt_oss_20b\.json.*mlperf-logging==4\.1\.68"):
        rcp.read_points(path)


def test_a_missing_package_and_a_missing_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uncached = rcp.full_points.__wrapped__
    monkeypatch.setattr("compliance.rcp.find_spec", lambda name: None)
    with pytest.raises(rcp.RcpDataError, match=r"mlperf-logging==4\.1\.68"):
        uncached("6.1.0")
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("compliance.rcp.find_spec", lambda name: package)
    with pytest.raises(rcp.RcpDataError, match=r"training_6\.0\.0.*mlperf-logging==4\.1\.68"):
        uncached("6.0.0")
