"""The doctor's findings on packages, the code's commit, and the page cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptoss20b.config import resolve
from gptoss20b.tools.doctor.finding import Verdict
from gptoss20b.tools.doctor.software import check_code, check_packages, check_page_cache
from tests.support.findings import assert_finding
from tests.support.made_machines import made_tool, write_files

SOFTWARE = "gptoss20b.tools.doctor.software"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the project by one with few bounds and pins."""
    needs = '["torch>=2.11", "megatron-core>=0.16.1,<0.20", "numpy>=2.0"]'
    about = f'[project]\nrequires-python = ">=3.11"\ndependencies = {needs}\noptional-dependencies.run = []'
    pins = "# pinned\ntorch==2.13.0\nmegatron-core==0.16.1\nnumpy==2.4.6\nmlperf-logging==4.1.68"
    hashed = (
        'megatron-core==0.16.1 ; python_version < "3" \\\n    --hash=sha256:00\n'
        "megatron-core==0.19.2 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\nmlperf-logging==4.1.68"
    )
    files = {"pyproject.toml": about, "requirements/cpu.txt": pins, "requirements/container.txt": hashed}
    monkeypatch.setattr(f"{SOFTWARE}._ROOT", write_files(tmp_path, files))


INSTALLED = {
    "python": "3.11.7", "torch": "2.13.0+cpu", "megatron-core": "0.16.1", "numpy": "2.4.6", "mlperf-logging": "4.1.68",
    "transformer-engine": None,
}  # fmt: skip
VENDORS = {"torch": "2.12.0a0+5aff3928d8.nv26.05", "numpy": "2.1.0"}
UNFIT = {"torch": "2.10.1", "mlperf-logging": None, "python": "3.10.2", "megatron-core": "0.20.0"}


@pytest.mark.parametrize(
    ("on_gpu", "changes", "verdict", "findings"),
    [
        (False, {}, Verdict.PASS, ["torch 2.13.0+cpu, megatron-core 0.16.1"]),
        (False, {"torch": "2.12.0", "numpy": "2.3.0"}, Verdict.WARN, ["torch 2.12.0, expected ==2.13.0", "numpy"]),
        (False, UNFIT, Verdict.FAIL, ["python 3.10.2, expected >=3.11", "torch", "megatron-core", "mlperf-logging"]),
        # In an image the base brings torch and NumPy, and the pins are the container's.
        (True, VENDORS | {"megatron-core": "0.19.2"}, Verdict.PASS, ["megatron-core 0.19.2"]),
        (True, VENDORS, Verdict.WARN, ["megatron-core 0.16.1, expected ==0.19.2"]),
    ],
)
@pytest.mark.usefixtures("project")
def test_packages(
    monkeypatch: pytest.MonkeyPatch, on_gpu: bool, changes: dict[str, str], verdict: Verdict, findings: list[str]
) -> None:
    monkeypatch.setattr(f"{SOFTWARE}.versions", lambda: INSTALLED | changes)
    *found, engine = check_packages(resolve({}), on_gpu)
    for finding, text in zip(found, findings, strict=True):
        assert_finding(finding, verdict, text)
    assert [{finding.name for finding in found}, engine.name] == [{"packages"}, "Transformer Engine"]


def test_without_the_files_beside_the_package_what_is_installed_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{SOFTWARE}._ROOT", tmp_path)
    for version, verdict in (("2.12.0", Verdict.PASS), (None, Verdict.FAIL)):
        monkeypatch.setattr(f"{SOFTWARE}.versions", lambda version=version: INSTALLED | {"torch": version})
        assert_finding(check_packages(resolve({}), False)[0], verdict, "torch")


def test_the_real_pins_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is installed here is what the project says that it runs with.
    assert check_packages(resolve({}), False)[0].verdict is not Verdict.FAIL
    monkeypatch.setattr(f"{SOFTWARE}.versions", lambda: INSTALLED | {"mlperf-logging": "4.1.69"})
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
    monkeypatch: pytest.MonkeyPatch, backend: str, on_gpu: bool, version: str | None, verdict: Verdict
) -> None:
    monkeypatch.setattr(f"{SOFTWARE}.versions", lambda: INSTALLED | {"transformer-engine": version})
    assert check_packages(resolve({"BACKEND": backend}), on_gpu)[-1].verdict is verdict


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
    for setting, verdict in (("0", Verdict.SKIPPED), ("done", Verdict.SKIPPED), ("1", Verdict.WARN)):
        assert check_page_cache(setting, tmp_path).verdict is verdict
    drop = "/sbin/sysctl --quiet --write vm.drop_caches=3"
    made_tool(tools, "sudo", "sudo: a password is required", status=1)
    assert_finding(check_page_cache("1", tmp_path), Verdict.WARN, fix=drop)
    made_tool(tools, "sudo", {f"-n -l {drop}": "/sbin/sysctl"})  # answers only the question whether it would
    assert_finding(check_page_cache("1", tmp_path), Verdict.PASS, "sudo")
    write_files(tmp_path, {"proc/sys/vm/drop_caches": "0"})
    assert_finding(check_page_cache("1", tmp_path), Verdict.PASS, "this user")
    assert (tmp_path / "proc/sys/vm/drop_caches").read_text() == "0\n"
