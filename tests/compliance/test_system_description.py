"""The command `system-description`: what it writes passes every checker, and what it lists is what is left to do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from mlperf_logging.system_desc_checker.system_desc_checker import check_system_desc
from typer.testing import CliRunner, Result

from compliance.check import Options, check_package
from compliance.cli import app
from compliance.run import Machine
from compliance.submission import (
    FIELD_HELP,
    REQUIRED_FIELDS,
    STATUSES,
    TEXT_FIELDS,
    SystemDescription,
    read_system_description,
)
from compliance.system_description import DEFAULTS, Description, check_values, describe, list_open_fields
from tests.support.made_logs import compliant_set, write_tree
from tests.support.made_machines import add_disk, made_host, made_tool, nvidia_smi


def described(*arguments: object) -> Result:
    """Run the command on the machine that the tests run on."""
    return CliRunner().invoke(app, ["system-description", *map(str, arguments)])


def officially(path: Path) -> tuple[bool, str]:
    """Return the official verdict and its line of the summary, which is comma-separated."""
    valid, _, before, _ = check_system_desc(str(path), "training", "6.1.0")
    return valid, before


def written(path: Path, found: Description) -> Path:
    path.write_text(json.dumps(found.fields), encoding="utf-8")
    return path


def test_every_required_field_has_words_for_people() -> None:
    assert all(FIELD_HELP.values()) and not [name for name in TEXT_FIELDS if "," in FIELD_HELP[name]]


def test_this_machine_passes_the_official_checker_as_it_stands(tmp_path: Path) -> None:
    out = tmp_path / "system.json"
    out.write_text(described().stdout, encoding="utf-8")
    fields = json.loads(out.read_text())
    assert list(fields) == list(REQUIRED_FIELDS)
    assert all(isinstance(value, str) for value in fields.values())
    valid, line = officially(out)
    assert valid
    assert line.count(",") == len(TEXT_FIELDS)
    assert fields["operating_system"].endswith(f", Linux {os.uname().release}")


def test_what_is_listed_is_what_is_marked() -> None:
    found = described("--nodes", 2, "--set", "cooling=liquid", "--set", "sw_notes=a=b")
    fields = json.loads(found.stdout)
    marked = {name: value.removeprefix("TODO: ") for name, value in fields.items() if value.startswith("TODO")}
    *lines, last = found.stderr.splitlines()
    listed = dict(line.removeprefix("TODO ").split(": ", 1) for line in lines if line.startswith("TODO "))
    confirmed = [line.split()[1].rstrip(":") for line in lines if line.startswith("confirm ")]
    assert listed == marked
    assert {"submitter", "system_name", "host_networking_topology"} <= set(marked)
    assert confirmed == ["division", "status"]
    assert last.startswith(f"{len(marked)} of 33 fields to write")
    assert [fields[name] for name in ("cooling", "sw_notes", "number_of_nodes")] == ["liquid", "a=b", "2"]


def test_once_filled_in_it_passes_the_package_check(tmp_path: Path) -> None:
    unknown = [name for name, value in json.loads(described().stdout).items() if value.startswith("TODO")]
    tree = write_tree(tmp_path / "tree", compliant_set(16))
    (system,) = (tree / "systems").glob("*.json")
    submitter = json.loads(system.read_text(encoding="utf-8"))["submitter"]
    system.unlink()
    # The logs of the tree are of one node with eight accelerators.
    values = dict.fromkeys(unknown, "known") | {"accelerators_per_node": "8"}
    options = {"submitter": submitter, "division": "closed", "status": "Preview", "system_name": "Ö", "nodes": "1"}
    arguments = [each for name, value in options.items() for each in (f"--{name.replace('_', '-')}", value)]
    sets = [each for name, value in values.items() if name not in options for each in ("--set", f"{name}={value}")]
    done = described(*arguments, "--out", system, *sets)
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.startswith("0 of 33 fields to write")
    fields = json.loads(system.read_text(encoding="utf-8"))
    options["number_of_nodes"] = options.pop("nodes")
    assert {name: fields[name] for name in options} == options
    report = check_package(tree, Options(official=False))
    assert [each for each in report.findings if each.rule == "package-system-description"] == []
    assert officially(system)[0]


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compliance.machine_fields.read_package_versions", lambda names: {})


@pytest.mark.usefixtures("no_packages")
def test_the_eight_of_a_described_node_are_counted(tmp_path: Path, tools: Path) -> None:
    root = made_host(tmp_path / "root", sockets=2, cores=4)
    add_disk(root, "nvme0n1", 3_840_755_982_336)
    made_tool(tools, "nvidia-smi", nvidia_smi())
    found = describe({"submitter": "Org", "number_of_nodes": "1"}, root)
    path = written(tmp_path / "system.json", found)
    system = read_system_description(path)
    assert isinstance(system, SystemDescription)
    assert system.machine == Machine(8, str(path))
    assert found.fields["host_networking_topology"] == "N/A (one node)"
    assert found.fields["other_software_stack"] == "NVIDIA driver 570.124.06"
    assert officially(path) == (
        True,
        "Org,TODO: name of the system; e.g. 1xNODE_8xACCELERATOR,INTEL(R) XEON(R) PLATINUM 8570,2 x 4 cores,"
        "NVIDIA B200,8,TODO: framework and version; e.g. PyTorch 2.9.0 + Megatron-Core 0.16.1,",
    )
    assert set(found.unknown) == {
        "system_name", "host_processor_frequency", "host_processor_interconnect", "host_networking",
        "host_memory_configuration", "accelerator_on-chip_memories", "accelerator_memory_configuration", "cooling",
        "framework",
    }  # fmt: skip
    assert found.assumed == ("division", "status")


@pytest.mark.usefixtures("no_packages")
def test_a_machine_that_shows_nothing_is_still_a_valid_description(tmp_path: Path, tools: Path) -> None:
    found = describe({}, tmp_path / "nothing")
    assert set(REQUIRED_FIELDS) - set(found.unknown) == {*DEFAULTS, "host_memory_capacity", "hw_notes", "sw_notes"}
    assert officially(written(tmp_path / "system.json", found))[0]
    assert len(list_open_fields(found)) == len(found.unknown) + len(DEFAULTS) + 1


def test_a_given_value_replaces_what_is_read(tmp_path: Path, tools: Path) -> None:
    given = {"host_memory_capacity": "2304 GB", "hw_notes": "", "sw_notes": "a, b=c", "accelerators_per_node": "2"}
    found = describe(given, made_host(tmp_path / "root"))
    assert {name: found.fields[name] for name in given} == given


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ({"status": "onprem", "division": "Closed"}, ["'onprem'", *STATUSES, "'Closed'", "closed | open"]),
        ({"number_of_nodes": "0", "accelerators_per_node": "eight"}, ["'0'", "'eight'"]),
        ({"accelerators_per_node": "8 "}, ["'8 '"]),
        ({"submitter": ""}, ["submitter"]),
        ({"colour": "red"}, ["colour", *REQUIRED_FIELDS]),
    ],
)
def test_wrong_values_are_named_with_what_is_expected(given: dict[str, str], texts: list[str]) -> None:
    problems = "; ".join(check_values(given))
    assert not [text for text in texts if text not in problems], problems


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--set", "colour=red", "--set", "size=9", "--set", "cooling"], ["colour", "size", "cooling"]),
        (["--submitter", "A", "--set", "submitter=B", "--set", "cooling=", "--set", "cooling="], ["twice", "cooling"]),
        (["--nodes", "0"], ["--nodes"]),
        (["--division", "either", "--status", "onprem"], ["'either'", "'onprem'"]),
    ],
)
def test_wrong_options_are_rejected_all_at_once(arguments: list[str], texts: list[str]) -> None:
    found = described(*arguments)
    assert (found.exit_code, found.stdout) == (2, "")
    assert not [text for text in texts if text not in found.stderr], found.stderr


def test_out_is_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The machine is not even read, which may take a while.
    monkeypatch.setattr("compliance.system_description.describe", None)
    out, link = tmp_path / "system.json", tmp_path / "link.json"
    out.write_text("old")
    link.symlink_to(tmp_path / "elsewhere.json")
    for wrong in (out, link, tmp_path / "no" / "system.json"):
        rejected = described("--out", wrong)
        assert (rejected.exit_code, "--out" in rejected.stderr) == (2, True)
    assert out.read_text() == "old"
    assert not (tmp_path / "elsewhere.json").exists()
