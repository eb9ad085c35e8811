"""Each rule on submission trees fires, alone, on a tree that breaks it; the good tree breaks none."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from mlperf_logging.system_desc_checker.system_desc_checker import check_system_desc

from compliance.findings import Finding, Severity
from compliance.rules.packages import RULES, LoggedIdentity, PackageContext, organisation_agreement
from compliance.rules.rule import quote_json
from compliance.submission import REQUIRED_FIELDS, STATUSES, TEXT_FIELDS, read_submission
from tests.support.made_logs import DESCRIPTION_FIELDS, MadeLog, system_description, write_tree

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
SYSTEM = "sys_1x8"
CODE = f"benchmarks/gpt_oss_20b/implementations/{SYSTEM}"
RESULTS = f"results/{SYSTEM}/gpt_oss_20b"


@dataclass
class Tree:
    """A good submission tree, to break: its root, what its system description (or its text) and its logs say."""

    root: Path
    description: Any = field(default_factory=system_description)
    identities: list[LoggedIdentity] = field(default_factory=list)
    runs: int = 10

    def write(self, name: str, text: str = "") -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def remove(self, name: str) -> None:
        (self.root / name).unlink()

    def move(self, name: str, to: str) -> None:
        (self.root / name).rename(self.root / to)

    def log(self, number: int, **changes: Any) -> None:
        self.identities[number] = replace(self.identities[number], **changes)

    def judge(self) -> list[Finding]:
        path = self.root / "systems" / f"{SYSTEM}.json"
        if path.is_file() and not path.is_symlink():
            text = self.description
            path.write_text(text if isinstance(text, str) else json.dumps(text))
        subject = PackageContext(read_submission(self.root), {SYSTEM: tuple(self.identities)}, self.runs)
        return [finding for rule in RULES for finding in rule.judge(subject)]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    root = write_tree(tmp_path / "tree", [MadeLog([])] * 10)
    files = [f"{RESULTS}/result_{number}.txt" for number in range(10)]
    return Tree(root, identities=[LoggedIdentity(file, "closed", "Example Laboratory", SYSTEM) for file in files])


def test_the_good_tree_breaks_none(tree: Tree) -> None:
    assert tree.judge() == []


def test_rules_are_declared() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES) == 9
    for rule in RULES:
        assert rule.citation
        assert len(rule.description) > 40
        assert rule.description.endswith(".")


def folder_is_missing(name: str) -> Callable[[Tree], None]:
    def mutate(tree: Tree) -> None:
        (tree.root / name).rename(tree.root.parent / "gone")

    return mutate


def field_is(name: str, value: Any) -> Callable[[Tree], None]:
    return lambda tree: tree.description.__setitem__(name, value)


def field_is_missing(name: str) -> Callable[[Tree], None]:
    return lambda tree: tree.description.__delitem__(name)


def file_is(name: str, text: str = "") -> Callable[[Tree], None]:
    return lambda tree: tree.write(name, text)


def log_says(number: int, **changes: str | None) -> Callable[[Tree], None]:
    return lambda tree: tree.log(number, **changes)


def logs_say(**changes: str | None) -> Callable[[Tree], None]:
    def mutate(tree: Tree) -> None:
        for number in range(10):
            tree.log(number, **changes)

    return mutate


def link(name: str, target: str) -> Callable[[Tree], None]:
    def mutate(tree: Tree) -> None:
        (tree.root / name).symlink_to(target)

    return mutate


def large_file(name: str, size: int) -> Callable[[Tree], None]:
    def mutate(tree: Tree) -> None:
        tree.write(name)
        with (tree.root / name).open("r+b") as file:
            file.truncate(size)  # sparse

    return mutate


def both(*mutations: Callable[[Tree], None]) -> Callable[[Tree], None]:
    def mutate(tree: Tree) -> None:
        for each in mutations:
            each(tree)

    return mutate


STRUCTURE = "package-structure"
COUNT = "package-result-count"
DESCRIPTION = "package-system-description"
CODE_RULE = "package-code"
LINK = "package-link"


@pytest.mark.parametrize(
    ("mutate", "rule", "severity", "message"),
    [
        (folder_is_missing("benchmarks"), STRUCTURE, ERROR, "no folder benchmarks/"),
        (folder_is_missing("results"), STRUCTURE, ERROR, "no folder results/"),
        (folder_is_missing("systems"), STRUCTURE, ERROR, "no folder systems/"),
        (folder_is_missing(f"systems/{SYSTEM}.json"), STRUCTURE, ERROR, r"no systems/sys_1x8\.json"),
        (lambda tree: tree.move(RESULTS, f"results/{SYSTEM}/gpt-oss-20b"), STRUCTURE, ERROR, "misspelled"),
        (lambda tree: tree.move(RESULTS, f"results/{SYSTEM}/GPT_OSS_20B"), STRUCTURE, ERROR, "misspelled"),
        (lambda tree: tree.move(RESULTS, f"results/{SYSTEM}/bert"), STRUCTURE, ERROR, "nothing was judged"),
        (folder_is_missing(RESULTS), STRUCTURE, ERROR, "no folder of a benchmark"),
        (file_is("benchmarks/gptoss20b/x.py"), STRUCTURE, ERROR, "misspelled"),
        (file_is("systems/other.json", json.dumps(system_description())), STRUCTURE, WARNING, "without results/other"),
        (file_is(f"results/{SYSTEM}/bert/result_0.txt"), STRUCTURE, INFO, "another benchmark"),
        (file_is("benchmarks/bert/x.py"), STRUCTURE, INFO, "another benchmark"),
        (lambda tree: tree.remove(f"{RESULTS}/result_3.txt"), COUNT, ERROR, "got 9$"),
        (file_is(f"{RESULTS}/result_10.txt"), COUNT, ERROR, "exactly 10 logs .* got 11"),
        (lambda tree: setattr(tree, "runs", 9), COUNT, ERROR, "exactly 9 logs .* got 10"),
        (
            lambda tree: tree.move(f"{RESULTS}/result_3.txt", f"{RESULTS}/results_3.txt"),
            COUNT, ERROR, r"got 9; rename results_3\.txt",
        ),
        (
            lambda tree: tree.move(f"{RESULTS}/result_3.txt", f"{RESULTS}/result_3.log"),
            COUNT, ERROR, r"got 9; rename result_3\.log",
        ),
        (file_is(f"{RESULTS}/result_x.txt"), COUNT, ERROR, r"counts these as logs: result_x\.txt"),
        (file_is(f"{RESULTS}/result_10.txt.gz"), COUNT, ERROR, r"compressed logs.* result_10\.txt\.gz; decompress"),
        (file_is(f"{RESULTS}/notes.md"), COUNT, WARNING, r"do not belong to a result: notes\.md"),
        (file_is(f"{RESULTS}/results_10.txt"), COUNT, WARNING, r"do not belong to a result: results_10\.txt"),
        (field_is_missing("cooling"), DESCRIPTION, ERROR, "missing: cooling"),
        (field_is("status", "onprem"), DESCRIPTION, ERROR, "status is none of the allowed"),
        (field_is("status", ["Preview"]), DESCRIPTION, ERROR, "status is none of the allowed"),
        (field_is("division", "Closed"), DESCRIPTION, ERROR, "division is none of the allowed"),
        (field_is("number_of_nodes", "two"), DESCRIPTION, ERROR, "number_of_nodes is not a positive"),
        (field_is("number_of_nodes", 0), DESCRIPTION, ERROR, "number_of_nodes is not a positive"),
        (field_is("accelerators_per_node", "0"), DESCRIPTION, ERROR, "accelerators_per_node is not a positive"),
        (field_is("accelerators_per_node", 8), DESCRIPTION, ERROR, "accelerators_per_node is not text"),
        (field_is("system_name", " "), DESCRIPTION, ERROR, "system_name is empty"),
        (lambda tree: setattr(tree, "description", "{\n,"), DESCRIPTION, ERROR, "not JSON"),
        (field_is("division", "open"), "division-agreement", ERROR, "10 logs with another submission_division"),
        (log_says(4, division="open"), "division-agreement", ERROR, "^a log with another submission_division"),
        (logs_say(organisation="Example"), "organisation-agreement", ERROR, "10 logs with another submission_org"),
        (log_says(0, organisation="example laboratory"), "organisation-agreement", ERROR, "a log with another"),
        (log_says(2, platform="another"), "organisation-agreement", WARNING, "looks like another system's"),
        (folder_is_missing("benchmarks/gpt_oss_20b"), CODE_RULE, ERROR, "no source code"),
        (
            both(folder_is_missing(f"{CODE}/train.py"), lambda tree: tree.remove(f"{CODE}/run_and_time.sh")),
            CODE_RULE, ERROR, "no source code",
        ),
        (folder_is_missing(f"{CODE}/README.md"), CODE_RULE, ERROR, "no README"),
        (folder_is_missing(f"{CODE}/run_and_time.sh"), CODE_RULE, WARNING, r"no run_and_time\.sh"),
        (file_is(f"{CODE}/wheels/x-1.0-py3-none-any.whl"), CODE_RULE, ERROR, "a binary or an archive"),
        (file_is("systems/picture.tar.gz"), CODE_RULE, ERROR, "a binary or an archive"),
        (large_file(f"{CODE}/tokens.txt", (50 << 20) + 1), CODE_RULE, WARNING, "larger than the 50 MB"),
        (large_file(f"{RESULTS}/result_0.txt", (50 << 20) + 1), CODE_RULE, WARNING, "larger than the 50 MB"),
        (file_is(f"{CODE}/.env"), CODE_RULE, WARNING, r"repo_checker refuses: .*/\.env;"),
        (file_is(f"{CODE}/a b.py"), CODE_RULE, WARNING, "repo_checker refuses"),
        (file_is(f"{RESULTS}/scaling.json", "{}"), "package-scaling", INFO, "not read"),
        (file_is(f"{RESULTS}/package_checker_params", "rcp-bypass"), "package-bypass", WARNING, "no bypass"),
        (file_is(f"results/{SYSTEM}/package_checker_params", "x"), "package-bypass", WARNING, "no bypass"),
        (link(f"{CODE}/passwd", "/etc/passwd"), LINK, ERROR, "leads out of the tree"),
        (link(f"{CODE}/home", "../../../../.."), LINK, ERROR, "leads out of the tree"),
        (link(f"{CODE}/old.sh", "missing.sh"), LINK, WARNING, "a link to nothing"),
        (link("results/old", SYSTEM), LINK, ERROR, "a link to a folder"),
    ],
)  # fmt: skip
def test_a_rule_fires_alone(
    tree: Tree, mutate: Callable[[Tree], None], rule: str, severity: Severity, message: str
) -> None:
    mutate(tree)
    findings = tree.judge()
    assert {finding.rule for finding in findings} == {rule}
    matching = [each for each in findings if each.severity is severity and re.search(message, each.message)]
    assert len(matching) == 1
    if severity is not ERROR:
        assert not [finding for finding in findings if finding.severity is ERROR]
    if severity is INFO:
        assert not [finding for finding in findings if finding.severity is WARNING]


def test_every_rule_fires_somewhere() -> None:
    (marks,) = [mark for mark in test_a_rule_fires_alone.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    assert {case[1] for case in marks.args[1]} == {rule.id for rule in RULES}


def test_a_finding_says_where_what_and_what_was_wanted(tree: Tree) -> None:
    tree.description["status"] = "onprem"
    tree.remove(f"{RESULTS}/result_3.txt")
    tree.write("systems/bad.json", '{\n"a": 1,\n}')
    tree.write(f"results/bad/{Path(RESULTS).name}/result_0.txt")
    count, other_count, bad, status = tree.judge()
    assert (count.file, count.expected, count.got) == (str(tree.root / "results/bad/gpt_oss_20b"), "10", "1")
    assert (other_count.file, other_count.got) == (str(tree.root / RESULTS), "9")
    assert (bad.file, bad.line, bad.got) == (str(tree.root / "systems/bad.json"), 3, quote_json("}"))
    assert (status.file, status.got) == (str(tree.root / f"systems/{SYSTEM}.json"), quote_json("onprem"))
    assert status.expected == " | ".join(STATUSES)
    assert count.citation


@pytest.mark.parametrize(
    "mutate",
    [
        lambda tree: tree.move(f"{RESULTS}/result_3.txt", f"{RESULTS}/result_3.log"),
        field_is("accelerators_per_node", [8]),
        field_is("accelerators_per_node", None),
        logs_say(organisation="Other", platform=None),
    ],
)
def test_one_mistake_is_one_finding(tree: Tree, mutate: Callable[[Tree], None]) -> None:
    mutate(tree)
    assert len(tree.judge()) == 1


def test_every_system_is_compared_with_its_logs(tree: Tree) -> None:
    for name in ("a", "z"):
        tree.write(f"systems/{name}.json", json.dumps(system_description(submitter=name)))
        tree.write(f"results/{name}/gpt_oss_20b/result_0.txt")
    tree.remove("systems/a.json")
    said = tuple(tree.identities)
    subject = PackageContext(read_submission(tree.root), {"a": said, "z": said, SYSTEM: said})
    (finding,) = organisation_agreement.judge(subject)
    assert finding.expected == quote_json("z")


def test_what_belongs_beside_logs_is_no_warning(tree: Tree) -> None:
    tree.write(f"{RESULTS}/power/result_0/node_0.txt")
    assert tree.judge() == []


def test_links_within_the_code_are_fine(tree: Tree) -> None:
    link("benchmarks/gpt_oss_20b/implementations/other", SYSTEM)(tree)
    link(f"{CODE}/README", "README.md")(tree)
    assert tree.judge() == []


def test_a_script_alone_is_source_code(tree: Tree) -> None:
    tree.remove(f"{CODE}/train.py")
    assert tree.judge() == []


def test_version_control_is_no_awkward_name(tree: Tree) -> None:
    tree.write(".git/config")
    assert tree.judge() == []


def test_archives_in_other_benchmarks_are_not_judged(tree: Tree) -> None:
    tree.write("benchmarks/bert/x.whl")
    assert {finding.severity for finding in tree.judge()} == {INFO}


@pytest.mark.parametrize(
    ("place", "described", "logged", "findings"),
    [
        ("closed/org", "closed", "closed", 0),
        ("OPEN/org", "open", "open", 0),
        ("open/org", "closed", "closed", 1),
        ("open/org", "closed", "open", 2),
        ("open/org", "open", "closed", 1),
        ("open/org", None, "closed", 1),
        ("open/org", None, "open", 0),
        ("org", None, "closed", 0),
        ("closed/org", "closed", None, 0),
        ("closed/org", "closed", "../../evil\n", 1),
    ],
)
def test_log_description_and_directory_agree_on_the_division(
    tree: Tree, place: str, described: str | None, logged: str | None, findings: int
) -> None:
    (tree.root.parent / place).parent.mkdir(exist_ok=True)
    tree.root = tree.root.rename(tree.root.parent / place)
    tree.description["division"] = described
    logs_say(division=logged)(tree)
    found = [finding for finding in tree.judge() if finding.rule == "division-agreement"]
    assert len(found) == findings
    assert not [finding for finding in found if "\n" in f"{finding.message}{finding.got}{finding.expected}"]


def test_a_division_that_is_capitalised_agrees_but_is_misspelled(tree: Tree) -> None:
    tree.description["division"] = "CLOSED"
    assert [finding.rule for finding in tree.judge()] == ["package-system-description"]


def test_each_other_value_is_named_once_with_its_first_log(tree: Tree) -> None:
    tree.log(3, organisation="B")
    tree.log(4, organisation="C")
    tree.log(7, organisation="B")
    first, second = tree.judge()
    assert (first.file, first.got, first.message.partition(" with")[0]) == (
        f"{RESULTS}/result_3.txt",
        quote_json("B"),
        "2 logs",
    )
    assert (second.file, second.got, second.expected) == (
        f"{RESULTS}/result_4.txt",
        quote_json("C"),
        quote_json("Example Laboratory"),
    )


@pytest.mark.parametrize(
    ("platform", "fine"),
    [
        ("sys_1x8", True),
        ("2xSYS", True),
        ("Sys-64", True),
        ("1xMI355X", True),  # the accelerator
        ("Rack 9 (MI355X)", True),  # a word of system_name
        ("1x8", True),  # says nothing
        ("", True),
        (None, True),
        ("DGXB200", False),
        ("other_1x8", False),  # 1x8 is no name
        ("mi355", False),
    ],
)
def test_a_platform_is_another_only_if_it_shares_no_word(tree: Tree, platform: str | None, fine: bool) -> None:
    tree.description["system_name"] = "Rack of the North"
    tree.description["accelerator_model_name"] = "AMD Instinct MI355X"
    logs_say(platform=platform)(tree)
    assert [finding.rule for finding in tree.judge()] == ([] if fine else ["organisation-agreement"])


def test_logs_of_a_system_without_description_are_not_compared(tree: Tree) -> None:
    tree.remove(f"systems/{SYSTEM}.json")
    logs_say(organisation="Other", platform="another", division="open")(tree)
    assert {finding.rule for finding in tree.judge()} == {"package-structure"}


def test_values_of_a_description_are_quoted_on_one_line_and_cut(tree: Tree) -> None:
    nested: list[Any] = []
    for _ in range(300):
        nested = [nested]
    tree.description |= {"status": nested, "submitter": "\ud800\n" * 200, "division": "x\n" * 300}
    findings = tree.judge()
    assert {finding.rule for finding in findings} == {
        "package-system-description", "division-agreement", "organisation-agreement",
    }  # fmt: skip
    # A value without end is named by its type.
    assert quote_json("list") in {finding.got for finding in findings}
    for finding in findings:
        text = f"{finding.message}{finding.got}{finding.expected}"
        assert "\n" not in text
        assert len(text) < 400
        text.encode("utf-8")


def test_long_lists_of_names_are_cut(tree: Tree) -> None:
    for number in range(8):
        tree.write(f"{RESULTS}/notes_{number}.md")
    (finding,) = tree.judge()
    assert "notes_0.md, notes_1.md, notes_2.md, notes_3.md, notes_4.md and 3 more; remove" in finding.message


# The official checker's list is inside a function: its behaviour is compared, field by field.
def official(tmp_path: Path, description: dict[str, Any], ruleset: str = "6.1.0") -> bool:
    path = tmp_path / "system.json"
    path.write_text(json.dumps(description))
    return bool(check_system_desc(str(path), "training", ruleset)[0])


def ours(tree: Tree, description: dict[str, Any]) -> bool:
    tree.description = description
    return not [finding for finding in tree.judge() if finding.rule == "package-system-description"]


@pytest.mark.parametrize("ruleset", ["6.0.0", "6.1.0"])
def test_the_official_checker_wants_the_same_fields(
    tree: Tree, tmp_path: Path, ruleset: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert official(tmp_path, system_description(), ruleset)
    for name in REQUIRED_FIELDS:
        without = system_description()
        del without[name]
        assert (name, official(tmp_path, without, ruleset), ours(tree, without)) == (name, False, False)
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        assert not official(tmp_path, {}, ruleset)
    assert re.findall(r"Missing field ([\w-]+)", caplog.text) == list(REQUIRED_FIELDS)
    assert set(DESCRIPTION_FIELDS) == set(REQUIRED_FIELDS)


def test_the_official_checker_wants_the_same_statuses(
    tree: Tree, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for status in (*STATUSES, "onprem", "preview", "", "Available On-Premise"):
        description = system_description(status=status)
        assert (status, official(tmp_path, description)) == (status, ours(tree, description))
    caplog.clear()
    assert not official(tmp_path, system_description(status="?"))
    assert f"must be one of {list(STATUSES)}" in caplog.text


def test_the_official_checker_stops_at_the_same_numbers(tree: Tree, tmp_path: Path) -> None:
    for name in REQUIRED_FIELDS:
        description = system_description(**{name: 8})
        if name in TEXT_FIELDS:
            with pytest.raises(TypeError, match="expected str instance"):
                official(tmp_path, description)
            assert (name, ours(tree, description)) == (name, False)
        elif name not in ("division", "status"):
            assert (name, official(tmp_path, description), ours(tree, description)) == (name, True, True)
