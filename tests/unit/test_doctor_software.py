"""The doctor's findings on packages, the code's commit, and the page cache."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gptoss20b.config import resolve
from gptoss20b.tools.doctor.finding import Finding, Verdict
from gptoss20b.tools.doctor.software import check_code, check_packages, check_page_cache
from tests.support.findings import assert_finding
from tests.support.made_machines import made_tool, write_files
from tests.support.paths import ROOT

SOFTWARE = "gptoss20b.tools.doctor.software"


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
    return write_files(tmp_path / "project", files)


INSTALLED = {
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
    "megatron-core": "0.16.1",
    "numpy": "2.4.6",
    "mlperf-logging": "4.1.68",
    "transformer-engine": None,
}
Packages = Callable[..., list[Finding]]


@pytest.fixture
def packages(project: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    """Return a function that checks the packages of the project, of which some have other versions."""
    monkeypatch.setattr(f"{SOFTWARE}._ROOT", project)

    def check(on_gpu: bool = False, backend: str = "auto", **changed: str | None) -> list[Finding]:
        have = INSTALLED | {name.replace("_", "-"): version for name, version in changed.items()}
        monkeypatch.setattr(f"{SOFTWARE}.versions", lambda: have)
        found = check_packages(resolve({"BACKEND": backend}), on_gpu)
        assert [finding.name for finding in found] == ["packages"] * (len(found) - 1) + ["Transformer Engine"]
        return found

    return check


def test_pinned_packages_pass(packages: Packages) -> None:
    found = packages()
    assert len(found) == 2
    assert_finding(found[0], Verdict.PASS, "torch 2.13.0+cpu, megatron-core 0.16.1")


def test_in_an_image_the_base_brings_torch_and_the_pins_are_the_containers(packages: Packages) -> None:
    vendors = {"torch": "2.12.0a0+5aff3928d8.nv26.05", "numpy": "2.1.0"}
    assert_finding(packages(on_gpu=True, megatron_core="0.19.2", **vendors)[0], Verdict.PASS)
    found, _ = packages(on_gpu=True, **vendors)
    assert_finding(found, Verdict.WARN, "megatron-core 0.16.1, expected ==0.19.2")


def test_other_versions_are_warnings_and_unfit_ones_fail_all_named(packages: Packages) -> None:
    *found, _ = packages(torch="2.12.0", numpy="2.3.0")
    assert [finding.verdict for finding in found] == [Verdict.WARN] * 2
    assert "torch 2.12.0, expected ==2.13.0" in found[0].found
    assert "pip install 'numpy==2.4.6'" in found[1].fix
    *found, _ = packages(torch="2.10.1", mlperf_logging=None, python="3.10.2", megatron_core="0.20.0")
    assert [finding.verdict for finding in found] == [Verdict.FAIL] * 4
    named = " ".join(finding.found for finding in found)
    for word in ("python 3.10.2, expected >=3.11", "torch 2.10.1, expected >=2.11", "0.20.0", "mlperf-logging is not"):
        assert word in named


def test_without_the_files_beside_the_package_what_is_installed_passes(packages: Packages, project: Path) -> None:
    shutil.rmtree(project)
    assert_finding(packages(torch="2.12.0")[0], Verdict.PASS)
    assert_finding(packages(torch=None)[0], Verdict.FAIL, "torch")


def test_the_real_pins_can_be_read(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is installed here is what the project says that it runs with.
    monkeypatch.undo()
    assert check_packages(resolve({}), False)[0].verdict is not Verdict.FAIL
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements/cpu.txt").read_text(), re.MULTILINE))
    have = INSTALLED | {name: pins[name] for name in INSTALLED if name in pins}
    monkeypatch.setattr(f"{SOFTWARE}.versions", lambda: have | {"mlperf-logging": "4.1.69"})
    for on_gpu in (False, True):
        found = [finding.found for finding in check_packages(resolve({}), on_gpu) if "mlperf" in finding.found]
        assert "mlperf-logging 4.1.69, expected ==4.1.68" in found[0]


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
def test_transformer_engine(
    packages: Packages, backend: str, on_gpu: bool, version: str | None, verdict: Verdict
) -> None:
    assert packages(on_gpu, backend, transformer_engine=version)[-1].verdict is verdict


def test_the_code_has_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    for commit, settings, verdict in (
        ("3763616", {}, Verdict.PASS),
        ("3763616-dirty", {}, Verdict.WARN),
        (None, {"GIT_COMMIT": "abc"}, Verdict.PASS),  # of an image without git
        (None, {}, Verdict.WARN),
    ):
        monkeypatch.setattr(f"{SOFTWARE}.git_commit", lambda commit=commit: commit)
        assert_finding(check_code(resolve(settings)), verdict, commit or settings.get("GIT_COMMIT", ""))


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
