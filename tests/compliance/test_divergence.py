"""Differences between the official verdicts and ours, and their reasons."""

from __future__ import annotations

import pytest

from compliance.findings import Divergence, Finding, OfficialResult, OfficialTool, OfficialVerdict, Severity
from compliance.official import OwnVerdict, find_divergences


def finding(rule: str, severity: Severity = Severity.ERROR, file: str | None = "a.txt") -> Finding:
    return Finding(rule, severity, "message", file, 1, None, None, "citation")


def official_result(
    verdict: OfficialVerdict, *messages: str, tool: OfficialTool = "compliance_checker", subject: str = "a.txt"
) -> OfficialResult:
    return OfficialResult(tool, subject, verdict, messages, 0.1)


def own_verdict(verdict: str, *rules: str) -> dict[tuple[str, str], OwnVerdict]:
    return {("compliance_checker", "a.txt"): OwnVerdict(verdict, tuple(finding(rule) for rule in rules))}


def test_agreement_is_no_divergence() -> None:
    assert find_divergences(own_verdict("pass"), [official_result("pass", "warning: something")]) == ()
    assert find_divergences(own_verdict("fail", "eval-cadence"), [official_result("fail", "something else")]) == ()


def test_rules_that_the_official_tool_does_not_check() -> None:
    errors = (finding("eval-cadence"), finding("clock-init-limit"), finding("eval-cadence"))
    own = OwnVerdict("fail", (*errors, finding("late", Severity.WARNING), finding("x", Severity.UNVERIFIABLE)))
    (divergence,) = find_divergences({("compliance_checker", "a.txt"): own}, [official_result("pass")])
    reason = "official does not check: eval-cadence, clock-init-limit"
    assert divergence == Divergence("compliance_checker", "a.txt", "fail", "pass", reason)


def test_a_failure_of_ours_without_errors_still_diverges() -> None:
    (divergence,) = find_divergences(own_verdict("fail"), [official_result("pass")])
    assert (divergence.ours, divergence.official) == ("fail", "pass") and divergence.reason


@pytest.mark.parametrize(
    ("messages", "quoted"),
    [
        (["one", "two", "three"], "one; two; three"),
        (["one", "two", "three", "four", "five"], "one; two; three; and 2 more"),
        ([], "no message"),
    ],
)
def test_complaints_of_the_official_tool_alone(messages: list[str], quoted: str) -> None:
    (divergence,) = find_divergences(own_verdict("pass"), [official_result("fail", *messages)])
    assert (divergence.ours, divergence.official) == ("pass", "fail")
    assert divergence.reason.partition(": ")[2] == quoted


@pytest.mark.parametrize("verdict", ["refused", "crashed", "timeout"])
@pytest.mark.parametrize("own", ["pass", "fail"])
def test_no_official_verdict_is_a_divergence_whatever_ours(own: str, verdict: OfficialVerdict) -> None:
    (divergence,) = find_divergences(own_verdict(own, "eval-cadence"), [official_result(verdict, "why")])
    reason = f"no official verdict, {verdict}: why"
    assert divergence == Divergence("compliance_checker", "a.txt", own, verdict, reason)


def test_subjects_that_we_did_not_judge() -> None:
    assert find_divergences({}, [official_result("pass"), official_result("fail", "why")]) == ()
    (divergence,) = find_divergences({}, [official_result("crashed", "why")])
    assert divergence.ours == "not judged"


def test_tools_and_subjects_are_kept_apart_and_in_order() -> None:
    own = {
        ("rcp_checker", "pruned"): OwnVerdict("fail", (finding("rcp-pruned", file=None),)),
        ("rcp_checker", "full"): OwnVerdict("pass"),
        ("seed_checker", "seeds"): OwnVerdict("fail", (finding("seed-missing", file="b.txt"),)),
        ("compliance_checker", "pruned"): OwnVerdict("pass"),
    }
    results = [
        official_result("fail", "Duplicate", tool="seed_checker", subject="seeds"),
        official_result("fail", "RCP test failed: RCP found", tool="rcp_checker", subject="full"),
        official_result("pass", tool="rcp_checker", subject="pruned"),
    ]
    full, pruned = find_divergences(own, results)
    assert full == Divergence("rcp_checker", "full", "pass", "fail", "official message: RCP test failed: RCP found")
    assert pruned.reason == "official does not check: rcp-pruned"


FOLDER = "results/sys_1x8/gpt_oss_20b"
ACCEPTED = f"{FOLDER}: 1 file does not comply, accepting this under olympic scoring"


def tree_results(*packages: OfficialResult) -> list[OfficialResult]:
    return [
        official_result("pass", subject=f"tree/{FOLDER}/result_0.txt"),
        official_result("fail", "why", subject=f"tree/{FOLDER}/result_4.txt"),
        official_result("fail", "why", subject="tree/results/other_1x8/gpt_oss_20b/result_5.txt"),
        *packages,
    ]


def package(verdict: OfficialVerdict, *messages: str) -> OfficialResult:
    return official_result(verdict, *messages, tool="package_checker", subject="tree")


def test_a_set_with_one_log_that_breaks_the_rules_is_accepted() -> None:
    own = OwnVerdict("fail", (finding("fixed-value", file=f"tree/{FOLDER}/result_4.txt"),))
    (divergence,) = find_divergences({("package_checker", "tree"): own}, tree_results(package("pass", ACCEPTED)))
    assert (divergence.tool, divergence.subject) == ("package_checker", "tree")
    assert (divergence.ours, divergence.official) == ("fail", "pass")
    assert divergence.reason.endswith(f": tree/{FOLDER}/result_4.txt")


def test_other_errors_of_such_a_set() -> None:
    errors = (
        finding("fixed-value", file=f"tree/{FOLDER}/result_4.txt"),
        finding("eval-cadence", file=f"tree/{FOLDER}/result_1.txt"),
    )
    own = {("package_checker", "tree"): OwnVerdict("fail", errors)}
    (divergence,) = find_divergences(own, tree_results(package("pass", ACCEPTED)))
    assert divergence.reason.endswith(f": tree/{FOLDER}/result_4.txt; official does not check: eval-cadence")


def test_the_accepted_log_is_named_even_if_we_pass_or_know_only_its_folder() -> None:
    own = {("package_checker", "tree"): OwnVerdict("pass")}
    (divergence,) = find_divergences(own, tree_results(package("pass", "s: a warning", ACCEPTED)))
    assert (divergence.ours, divergence.official) == ("pass", "pass")
    assert divergence.reason.endswith(f": tree/{FOLDER}/result_4.txt")
    (divergence,) = find_divergences(own, [package("pass", ACCEPTED)])
    assert divergence.reason.endswith(f": one in {FOLDER}")


def test_a_failing_package_accepts_nothing() -> None:
    own = {("package_checker", "tree"): OwnVerdict("fail", (finding("rcp-pruned"),))}
    assert find_divergences(own, tree_results(package("fail", ACCEPTED, "RCP Test Failed"))) == ()
