"""Rules on submission trees: each fires alone on a tree that breaks it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from mlperf_logging.system_desc_checker.system_desc_checker import check_system_desc

from compliance.findings import Finding, RunSummary, Severity
from compliance.power import read_power
from compliance.rules import PACKAGE_RULES
from compliance.rules.packages import PackageContext, organisation_agreement
from compliance.rules.rule import quote_json
from compliance.submission import REQUIRED_FIELDS, STATUSES, TEXT_FIELDS, read_submission
from tests.support.judging import judged
from tests.support.made_logs import MadeLog, compliant_log, system_description, write_tree
from tests.support.made_power import power_log, switch_log, write_power

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
SYSTEM = "sys_1x8"
CODE = f"benchmarks/gpt_oss_20b/implementations/{SYSTEM}"
RESULTS = f"results/{SYSTEM}/gpt_oss_20b"
POWER = f"{RESULTS}/power/result_3"
RUN = judged(compliant_log()).summary


@dataclass
class Tree:
    """A valid submission tree to change: its root, its system description (or the file's text), its runs."""

    root: Path
    description: Any = field(default_factory=system_description)
    runs: list[RunSummary] = field(default_factory=list)
    required_runs: int = 10
    others: dict[str, tuple[RunSummary, ...]] = field(default_factory=dict)

    def write(self, name: str, text: str = "") -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def remove(self, name: str) -> None:
        (self.root / name).unlink()

    def move(self, name: str, to: str) -> None:
        (self.root / name).rename(self.root / to)

    def change_runs(self, *numbers: int, **changes: float | str | None) -> None:
        for number in numbers or range(10):
            self.runs[number] = replace(self.runs[number], **changes)  # type: ignore[arg-type]

    def judge(self) -> list[Finding]:
        path = self.root / "systems" / f"{SYSTEM}.json"
        if path.is_file() and not path.is_symlink():
            text = self.description
            path.write_text(text if isinstance(text, str) else json.dumps(text))
        tree = read_submission(self.root)
        power = {folder.system: read_power(folder, self.runs) for folder in tree.results}
        context = PackageContext(
            tree, {SYSTEM: tuple(self.runs), **self.others}, self.required_runs, {SYSTEM: 1.0}, power
        )
        return [finding for rule in PACKAGE_RULES for finding in rule.judge(context)]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    root = write_tree(tmp_path / "tree", [MadeLog([])] * 10)
    return Tree(root, runs=[replace(RUN, file=f"{RESULTS}/result_{number}.txt") for number in range(10)])


Change = Callable[[Tree], None]


def test_the_valid_tree_breaks_no_rule(tree: Tree) -> None:
    assert tree.judge() == []


def move_away(name: str) -> Change:
    def change(tree: Tree) -> None:
        (tree.root / name).rename(tree.root.parent / "gone")

    return change


def move(name: str, to: str) -> Change:
    return lambda tree: tree.move(name, to)


def set_field(name: str, value: Any) -> Change:
    return lambda tree: tree.description.__setitem__(name, value)


def drop_field(name: str) -> Change:
    return lambda tree: tree.description.__delitem__(name)


def add_file(name: str, text: str = "") -> Change:
    return lambda tree: tree.write(name, text)


def change_runs(*numbers: int, **changes: str | None) -> Change:
    return lambda tree: tree.change_runs(*numbers, **changes)


def add_link(name: str, target: str) -> Change:
    return lambda tree: (tree.root / name).symlink_to(target)


def add_large_file(name: str) -> Change:
    def change(tree: Tree) -> None:
        tree.write(name)
        with (tree.root / name).open("r+b") as file:
            file.truncate((50 << 20) + 1)  # sparse

    return change


def add_power(change: Change = lambda tree: None, devices: Sequence[str] = ("node_0",)) -> Change:
    """Add power logs of every run, of a run of 300 seconds, and change the tree then."""

    def add(tree: Tree) -> None:
        tree.change_runs(start_ms=1e12, minutes=5.0)
        switch, node = switch_log(10**12, 30.0), power_log(10**12, 10**12 + 300_000)
        for number in range(10):
            logs = [(name, switch if name.startswith("sw") else node) for name in devices]
            write_power(tree.root / RESULTS, f"result_{number}", logs)
        change(tree)

    return add


def drop_code(tree: Tree) -> None:
    for name in ("train.py", "run_and_time.sh"):
        tree.remove(f"{CODE}/{name}")


STRUCTURE = "package-structure"
COUNT = "package-result-count"
DESCRIPTION = "package-system-description"
CODE_RULE = "package-code"
LINK = "package-link"


@pytest.mark.parametrize(
    ("change", "rule", "severity", "message"),
    [
        (lambda tree: tree.others.update(other=(RUN,)), "package-copy", WARNING, "a log with the times and losses"),
        (move_away("benchmarks"), STRUCTURE, ERROR, "no folder benchmarks/"),
        (move_away("results"), STRUCTURE, ERROR, "no folder results/"),
        (move_away("systems"), STRUCTURE, ERROR, "no folder systems/"),
        (move_away(f"systems/{SYSTEM}.json"), STRUCTURE, ERROR, r"no systems/sys_1x8\.json"),
        (move(RESULTS, f"results/{SYSTEM}/gpt-oss-20b"), STRUCTURE, ERROR, "misspelled"),
        (move(RESULTS, f"results/{SYSTEM}/GPT_OSS_20B"), STRUCTURE, ERROR, "misspelled"),
        (move(RESULTS, f"results/{SYSTEM}/bert"), STRUCTURE, ERROR, "gpt_oss_20b"),
        (move_away(RESULTS), STRUCTURE, ERROR, "gpt_oss_20b/"),
        (add_file("benchmarks/gptoss20b/x.py"), STRUCTURE, ERROR, ""),
        (add_file("systems/other.json", json.dumps(system_description())), STRUCTURE, WARNING, "results/other"),
        (add_file(f"results/{SYSTEM}/bert/result_0.txt"), STRUCTURE, INFO, ""),
        (add_file("benchmarks/bert/x.py"), STRUCTURE, INFO, ""),
        (lambda tree: tree.remove(f"{RESULTS}/result_3.txt"), COUNT, ERROR, "exactly 10 .* 9$"),
        (add_file(f"{RESULTS}/result_10.txt"), COUNT, ERROR, "exactly 10 .* 11$"),
        (lambda tree: setattr(tree, "required_runs", 9), COUNT, ERROR, "exactly 9 .* 10$"),
        (move(f"{RESULTS}/result_3.txt", f"{RESULTS}/results_3.txt"), COUNT, ERROR, r" 9; .* results_3\.txt"),
        (move(f"{RESULTS}/result_3.txt", f"{RESULTS}/result_3.log"), COUNT, ERROR, r" 9; .* result_3\.log"),
        (add_file(f"{RESULTS}/result_x.txt"), COUNT, ERROR, r"result_x\.txt"),
        (add_file(f"{RESULTS}/result_10.txt.gz"), COUNT, ERROR, r"result_10\.txt\.gz"),
        (add_file(f"{RESULTS}/notes.md"), COUNT, WARNING, r"notes\.md"),
        (add_file(f"{RESULTS}/results_10.txt"), COUNT, WARNING, r"results_10\.txt"),
        (drop_field("cooling"), DESCRIPTION, ERROR, "cooling"),
        (set_field("status", "onprem"), DESCRIPTION, ERROR, "^status "),
        (set_field("status", ["Preview"]), DESCRIPTION, ERROR, "^status "),
        (set_field("division", "Closed"), DESCRIPTION, ERROR, "^division "),
        (set_field("number_of_nodes", "two"), DESCRIPTION, ERROR, "^number_of_nodes "),
        (set_field("number_of_nodes", 0), DESCRIPTION, ERROR, "^number_of_nodes "),
        (set_field("accelerators_per_node", "-1"), DESCRIPTION, ERROR, "^accelerators_per_node "),
        (set_field("accelerators_per_node", 8), DESCRIPTION, ERROR, "^accelerators_per_node "),
        (set_field("system_name", " "), DESCRIPTION, ERROR, "^system_name "),
        (lambda tree: setattr(tree, "description", "{\n,"), DESCRIPTION, ERROR, "JSON"),
        (set_field("division", "open"), "division-agreement", ERROR, "^10 logs .*submission_division"),
        (change_runs(4, division="open"), "division-agreement", ERROR, "^a log .*submission_division"),
        (change_runs(organisation="Example"), "organisation-agreement", WARNING, "^10 logs .*submission_org"),
        (change_runs(0, organisation="example lab"), "organisation-agreement", WARNING, "^a log .*submission_org"),
        (change_runs(2, platform="another"), "organisation-agreement", WARNING, "submission_platform"),
        (move_away("benchmarks/gpt_oss_20b"), CODE_RULE, ERROR, "source code"),
        (drop_code, CODE_RULE, ERROR, "source code"),
        (move_away(f"{CODE}/README.md"), CODE_RULE, ERROR, "README"),
        (move_away(f"{CODE}/run_and_time.sh"), CODE_RULE, WARNING, r"run_and_time\.sh"),
        (add_file(f"{CODE}/wheels/x-1.0-py3-none-any.whl"), CODE_RULE, WARNING, "binary"),
        (add_file("systems/picture.tar.gz"), CODE_RULE, WARNING, "binary"),
        (add_large_file(f"{CODE}/tokens.txt"), CODE_RULE, WARNING, "50 MB"),
        (add_large_file(f"{RESULTS}/result_0.txt"), CODE_RULE, WARNING, "50 MB"),
        (add_file(f"{CODE}/.env"), CODE_RULE, WARNING, r"/\.env;"),
        (add_file(f"{CODE}/a b.py"), CODE_RULE, WARNING, "a b\\.py"),
        *((add_file(f"{RESULTS}/scaling.json", text), "package-scaling", severity, "^a factor")
          for text, severity in (('{"scaling_factor": 1}', INFO), ('{"scaling_factor": 0.9}', ERROR), ("{}", ERROR))),
        (add_file(f"{RESULTS}/package_checker_params", "rcp-bypass"), "package-bypass", INFO, "bypass requested"),
        (add_file(f"results/{SYSTEM}/package_checker_params", "x"), "package-bypass", INFO, ""),
        (add_file("package_checker_params"), "package-bypass", INFO, ""),
        (add_power(lambda tree: tree.remove(f"{POWER}/node_0.txt")), "package-power", ERROR, "no power log"),
        (add_power(move(f"{POWER}/node_0.txt", f"{POWER}/node_1.txt")), "package-power", ERROR, "numbered"),
        (add_power(move(f"{POWER}/sw_1.txt", f"{POWER}/sw_2.txt"), ["node_0", "sw_0", "sw_1"]), "package-power", ERROR,
         "numbered"),
        (add_power(lambda tree: tree.remove(f"{POWER}/node_1.txt"), ["node_0", "node_1"]), "package-power", ERROR,
         "number of nodes"),
        (add_power(lambda tree: tree.remove(f"{POWER}/sw_0.txt"), ["node_0", "sw_0"]), "package-power", ERROR,
         "number of switches"),
        (add_power(add_file(f"{POWER}/node_0.txt")), "package-power", ERROR, "empty"),
        (add_power(add_file(f"{POWER}/node_a.txt")), "package-power-doubt", WARNING, "node_a"),
        (change_runs(3, logged_status="cloud"), "status-agreement", WARNING, "^a log "),
        (add_link(f"{CODE}/passwd", "/etc/passwd"), LINK, ERROR, ""),
        (add_link(f"{CODE}/home", "../../../../.."), LINK, ERROR, ""),
        (add_link(f"{CODE}/old.sh", "missing.sh"), LINK, WARNING, ""),
        (add_link("results/old", SYSTEM), LINK, ERROR, ""),
        (add_link("systems/old.json", "/etc/passwd"), LINK, ERROR, ""),
        (add_link("notes", "/etc/passwd"), LINK, WARNING, "out of the tree"),
    ],
)  # fmt: skip
def test_a_rule_fires_alone(tree: Tree, change: Change, rule: str, severity: Severity, message: str) -> None:
    change(tree)
    findings = tree.judge()
    assert {finding.rule for finding in findings} == {rule}
    matching = [each for each in findings if each.severity is severity and re.search(message, each.message)]
    assert len(matching) == 1
    if severity is not ERROR:
        assert not [finding for finding in findings if finding.severity is ERROR]
    if severity is INFO:
        assert not [finding for finding in findings if finding.severity is WARNING]


def test_every_node_of_the_system_is_measured(tree: Tree) -> None:
    add_power()(tree)
    assert tree.judge() == []
    tree.description["number_of_nodes"] = "2"
    found = {(each.rule, each.severity, each.expected, each.got) for each in tree.judge()}
    assert found == {("package-power", ERROR, "2 nodes", "1"), ("package-power-doubt", WARNING, None, None)}
    add_power(devices=["node_0", "node_1", "sw_0"])(tree)
    assert tree.judge() == []


def test_runs_of_two_systems_that_differ_in_time_are_no_copies(tree: Tree) -> None:
    assert RUN.start_ms is not None
    tree.others["other"] = (replace(RUN, start_ms=RUN.start_ms + 1),)
    assert tree.judge() == []


def test_every_rule_fires_somewhere() -> None:
    (marks,) = [mark for mark in test_a_rule_fires_alone.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    assert {case[1] for case in marks.args[1]} == {rule.id for rule in PACKAGE_RULES}


def test_a_finding_names_file_line_and_values(tree: Tree) -> None:
    tree.description["status"] = "onprem"
    tree.remove(f"{RESULTS}/result_3.txt")
    tree.write("systems/bad.json", '{\n"a": 1,\nb}')
    tree.write(f"results/bad/{Path(RESULTS).name}/result_0.txt")
    count, other_count, bad, status = tree.judge()
    assert (count.file, count.expected, count.got) == (str(tree.root / "results/bad/gpt_oss_20b"), "10", "1")
    assert (other_count.file, other_count.got) == (str(tree.root / RESULTS), "9")
    assert (bad.file, bad.line, bad.got) == (str(tree.root / "systems/bad.json"), 3, quote_json("b}"))
    assert (status.file, status.got) == (str(tree.root / f"systems/{SYSTEM}.json"), quote_json("onprem"))
    assert status.expected == " | ".join(STATUSES)
    assert count.citation


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.move(f"{RESULTS}/result_3.txt", f"{RESULTS}/result_3.log"),
        set_field("accelerators_per_node", [8]),
        set_field("accelerators_per_node", None),
        change_runs(organisation="Other", platform=None),
    ],
)
def test_one_mistake_is_one_finding(tree: Tree, change: Change) -> None:
    change(tree)
    assert len(tree.judge()) == 1


def test_every_system_is_compared_with_its_logs(tree: Tree) -> None:
    for name in ("a", "z"):
        tree.write(f"systems/{name}.json", json.dumps(system_description(submitter=name)))
        tree.write(f"results/{name}/gpt_oss_20b/result_0.txt")
    tree.remove("systems/a.json")
    runs = tuple(tree.runs)
    context = PackageContext(read_submission(tree.root), {"a": runs, "z": runs, SYSTEM: runs})
    (finding,) = organisation_agreement.judge(context)
    assert finding.expected == quote_json("z")


def test_a_system_of_cpus_has_no_accelerators(tree: Tree) -> None:
    set_field("accelerators_per_node", "0")(tree)
    assert tree.judge() == []


def test_links_within_the_code_are_fine(tree: Tree) -> None:
    add_link("benchmarks/gpt_oss_20b/implementations/other", SYSTEM)(tree)
    add_link(f"{CODE}/README", "README.md")(tree)
    assert tree.judge() == []


def test_a_script_alone_is_source_code(tree: Tree) -> None:
    tree.remove(f"{CODE}/train.py")
    assert tree.judge() == []


def test_version_control_is_no_rejected_name(tree: Tree) -> None:
    tree.write(".git/config")
    assert tree.judge() == []


def test_archives_in_other_benchmarks_are_not_judged(tree: Tree) -> None:
    tree.write("benchmarks/bert/x.whl")
    assert {finding.severity for finding in tree.judge()} == {INFO}


@pytest.mark.parametrize(
    ("place", "described", "logged", "severities"),
    [
        ("closed/org", "closed", "closed", []),
        ("OPEN/org", "open", "open", []),
        ("open/org", "closed", "closed", [WARNING]),
        ("open/org", "closed", "open", [WARNING, ERROR]),
        ("open/org", "open", "closed", [ERROR]),
        ("open/org", None, "closed", [WARNING]),
        ("open/org", None, "open", []),
        ("org", None, "closed", []),
        ("closed/org", "closed", None, []),
        ("closed/org", "closed", "../../evil\n", [ERROR]),
    ],
)
def test_logs_description_and_folder_agree_on_the_division(
    tree: Tree, place: str, described: str | None, logged: str | None, severities: list[Severity]
) -> None:
    (tree.root.parent / place).parent.mkdir(exist_ok=True)
    tree.root = tree.root.rename(tree.root.parent / place)
    tree.description["division"] = described
    tree.change_runs(division=logged)
    found = [finding for finding in tree.judge() if finding.rule == "division-agreement"]
    assert [finding.severity for finding in found] == severities
    assert not [finding for finding in found if "\n" in f"{finding.message}{finding.got}{finding.expected}"]


def test_a_division_that_is_capitalised_agrees_but_is_misspelled(tree: Tree) -> None:
    tree.description["division"] = "CLOSED"
    assert [finding.rule for finding in tree.judge()] == ["package-system-description"]


def test_each_differing_value_is_named_once_with_its_first_log(tree: Tree) -> None:
    tree.change_runs(3, organisation="B")
    tree.change_runs(4, organisation="C")
    tree.change_runs(7, organisation="B")
    first, second = tree.judge()
    assert (first.file, first.got, first.message[:6]) == (
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
def test_a_platform_differs_if_it_shares_no_word(tree: Tree, platform: str | None, fine: bool) -> None:
    tree.description["system_name"] = "Rack of the North"
    tree.description["accelerator_model_name"] = "AMD Instinct MI355X"
    tree.change_runs(platform=platform)
    assert [finding.rule for finding in tree.judge()] == ([] if fine else ["organisation-agreement"])


def test_logs_of_a_system_without_description_are_not_compared(tree: Tree) -> None:
    tree.remove(f"systems/{SYSTEM}.json")
    tree.change_runs(organisation="Other", platform="another", division="open")
    assert {finding.rule for finding in tree.judge()} == {"package-structure"}


def test_odd_values_are_quoted_on_one_short_line(tree: Tree) -> None:
    nested: list[Any] = []
    for _ in range(300):
        nested = [nested]
    tree.description |= {"status": nested, "submitter": "\ud800\n" * 200, "division": "x\n" * 300}
    findings = tree.judge()
    assert {finding.rule for finding in findings} == {
        "package-system-description", "division-agreement", "organisation-agreement",
    }  # fmt: skip
    # A deeply nested value is named by its type.
    assert quote_json("list") in {finding.got for finding in findings}
    for finding in findings:
        text = f"{finding.message}{finding.got}{finding.expected}"
        assert "\n" not in text
        assert len(text) < 400
        text.encode("utf-8")


def test_long_lists_of_names_are_shortened(tree: Tree) -> None:
    for number in range(8):
        tree.write(f"{RESULTS}/notes_{number}.md")
    (finding,) = tree.judge()
    assert "notes_0.md, notes_1.md, notes_2.md, notes_3.md, notes_4.md and 3 more" in finding.message


# The official list of fields is local to a function, so its behaviour is compared field by field.
def is_official_valid(tmp_path: Path, description: dict[str, Any], ruleset: str = "6.1.0") -> bool:
    path = tmp_path / "system.json"
    path.write_text(json.dumps(description))
    return bool(check_system_desc(str(path), "training", ruleset)[0])


def is_valid(tree: Tree, description: dict[str, Any]) -> bool:
    tree.description = description
    return not [finding for finding in tree.judge() if finding.rule == "package-system-description"]


@pytest.mark.parametrize("ruleset", ["6.0.0", "6.1.0"])
def test_the_official_checker_requires_the_same_fields(
    tree: Tree, tmp_path: Path, ruleset: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert is_official_valid(tmp_path, system_description(), ruleset)
    for name in REQUIRED_FIELDS:
        without = system_description()
        del without[name]
        assert (name, is_official_valid(tmp_path, without, ruleset), is_valid(tree, without)) == (name, False, False)
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        assert not is_official_valid(tmp_path, {}, ruleset)
    assert re.findall(r"Missing field ([\w-]+)", caplog.text) == list(REQUIRED_FIELDS)


def test_the_official_checker_requires_the_same_statuses(
    tree: Tree, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for status in (*STATUSES, "onprem", "preview", "", "Available On-Premise"):
        description = system_description(status=status)
        assert (status, is_official_valid(tmp_path, description)) == (status, is_valid(tree, description))
    caplog.clear()
    assert not is_official_valid(tmp_path, system_description(status="?"))
    assert f"must be one of {list(STATUSES)}" in caplog.text


def test_the_official_checker_stops_at_the_same_numbers(tree: Tree, tmp_path: Path) -> None:
    for name in REQUIRED_FIELDS:
        description = system_description(**{name: 8})
        if name in TEXT_FIELDS:
            with pytest.raises(TypeError, match="expected str instance"):
                is_official_valid(tmp_path, description)
            assert (name, is_valid(tree, description)) == (name, False)
        elif name not in ("division", "status"):
            assert (name, is_official_valid(tmp_path, description), is_valid(tree, description)) == (name, True, True)
