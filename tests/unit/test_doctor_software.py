"""The doctor's findings on packages, the code's commit, and the page cache."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gptoss20b.config import resolve
from gptoss20b.tools.doctor.finding import Finding, Verdict
from gptoss20b.tools.doctor.software import check_code, check_packages, check_page_cache
from tests.support.findings import assert_finding
from tests.support.made_machines import made_tool, write_files
from tests.support.paths import ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Make a project with its pins."""
    needs = '["torch>=2.11", "megatron-core>=0.16.1,<0.20", "numpy>=2.0"]'
    about = f'[project]\nrequires-python = ">=3.11"\ndependencies = {needs}'
    pins = "# pinned\ntorch==2.13.0\nmegatron-core==0.16.1\nnumpy==2.4.6\nmlperf-logging==4.1.68"
    hashed = (
        'megatron-core==0.16.1 ; python_version < "3" \\\n    --hash=sha256:00\n'
        "megatron-core==0.19.2 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\nmlperf-logging==4.1.68"
    )
    files = {"pyproject.toml": about, "requirements/cpu.txt": pins, "requirements/container.txt": hashed}
    return write_files(tmp_path, files)


INSTALLED = {
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
    "megatron-core": "0.16.1",
    "numpy": "2.4.6",
    "mlperf-logging": "4.1.68",
    "transformer-engine": None,
}


def packages(project: Path, on_gpu: bool = False, **changed: str | None) -> list[Finding]:
    have = INSTALLED | {name.replace("_", "-"): version for name, version in changed.items()}
    *found, engine = check_packages(resolve({}), on_gpu, have, project)
    assert engine.name == "Transformer Engine"
    assert {finding.name for finding in found} == {"packages"}
    return found


def test_pinned_packages_pass(project: Path) -> None:
    assert_finding(packages(project)[0], Verdict.PASS, "torch 2.13.0+cpu, megatron-core 0.16.1")


def test_in_an_image_the_base_brings_torch_and_the_pins_are_the_containers(project: Path) -> None:
    vendors = {"torch": "2.12.0a0+5aff3928d8.nv26.05", "numpy": "2.1.0"}
    assert_finding(packages(project, on_gpu=True, megatron_core="0.19.2", **vendors)[0], Verdict.PASS)
    (found,) = packages(project, on_gpu=True, **vendors)
    assert_finding(found, Verdict.WARN, "megatron-core 0.16.1, expected ==0.19.2 (container.txt)")


def test_other_versions_are_warnings_and_unfit_ones_fail_all_named(project: Path) -> None:
    found = packages(project, torch="2.12.0", numpy="2.3.0")
    assert [finding.verdict for finding in found] == [Verdict.WARN] * 2
    assert found[0].found == "torch 2.12.0, expected ==2.13.0 (cpu.txt)"
    assert "pip install 'numpy==2.4.6'" in found[1].fix
    found = packages(project, torch="2.10.1", mlperf_logging=None, python="3.10.2", megatron_core="0.20.0")
    assert [finding.verdict for finding in found] == [Verdict.FAIL] * 4
    said = " ".join(finding.found for finding in found)
    for word in ("python 3.10.2, expected >=3.11", "torch 2.10.1, expected >=2.11", "0.20.0", "mlperf-logging is not"):
        assert word in said


def test_without_the_files_beside_the_package_what_is_installed_passes(tmp_path: Path) -> None:
    assert_finding(packages(tmp_path, torch="2.12.0")[0], Verdict.PASS)
    assert_finding(packages(tmp_path, torch=None)[0], Verdict.FAIL, "torch")


def test_the_real_pins_can_be_read() -> None:
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements/cpu.txt").read_text(), re.MULTILINE))
    have = INSTALLED | {name: pins[name] for name in INSTALLED if name in pins}
    assert check_packages(resolve({}), False, have)[0].verdict is Verdict.PASS
    image = check_packages(resolve({}), True, have | {"mlperf-logging": "4.1.69"})
    assert "mlperf-logging 4.1.69, expected ==4.1.68 (container.txt)" in [finding.found for finding in image]
    # What is installed here is what the project says that it runs with.
    assert check_packages(resolve({}), False)[0].verdict is not Verdict.FAIL


@pytest.mark.parametrize(
    ("backend", "on_gpu", "version", "verdict"),
    [
        ("auto", True, "2.15.0", Verdict.PASS),
        ("auto", True, None, Verdict.WARN),
        ("transformer_engine", True, None, Verdict.FAIL),
        ("torch", True, None, Verdict.SKIPPED),
        ("auto", False, None, Verdict.SKIPPED),
    ],
)
def test_transformer_engine(project: Path, backend: str, on_gpu: bool, version: str | None, verdict: Verdict) -> None:
    have = INSTALLED | {"transformer-engine": version}
    found = check_packages(resolve({"BACKEND": backend}), on_gpu, have, project)[-1]
    assert found.verdict is verdict


def test_the_code_has_a_commit() -> None:
    commit = "3763616" * 5
    assert_finding(check_code(resolve({}), commit), Verdict.PASS, commit)
    assert_finding(check_code(resolve({}), f"{commit}-dirty"), Verdict.WARN, commit)


def test_an_image_without_git_names_its_commit(tools: Path) -> None:
    assert_finding(check_code(resolve({"GIT_COMMIT": "abc"})), Verdict.PASS, "abc")
    assert_finding(check_code(resolve({})), Verdict.WARN, fix="GIT_COMMIT")


def test_caches_can_be_dropped_by_root_or_by_sudo_without_a_password(tools: Path, tmp_path: Path) -> None:
    assert check_page_cache("0", tmp_path).verdict is Verdict.SKIPPED
    assert check_page_cache("done", tmp_path).verdict is Verdict.SKIPPED
    assert check_page_cache("1", tmp_path).verdict is Verdict.WARN
    made_tool(tools, "sudo", "sudo: a password is required", status=1)
    fix = "/sbin/sysctl --quiet --write vm.drop_caches=3"
    assert_finding(check_page_cache("1", tmp_path), Verdict.WARN, fix=fix)
    # sudo answers only the question whether it would.
    made_tool(tools, "sudo", {"-n -l /sbin/sysctl --quiet --write vm.drop_caches=3": "/sbin/sysctl"})
    assert_finding(check_page_cache("1", tmp_path), Verdict.PASS, "sudo")
    write_files(tmp_path, {"proc/sys/vm/drop_caches": "0"})
    assert_finding(check_page_cache("1", tmp_path), Verdict.PASS, "this user")
    assert (tmp_path / "proc/sys/vm/drop_caches").read_text() == "0\n"
