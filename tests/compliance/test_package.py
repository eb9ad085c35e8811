"""Building a submission tree: its files, the official package checker's verdict, refusals."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compliance import package
from compliance.check import Options, check_set
from compliance.findings import Finding, Report, Severity, Verdict
from compliance.log_files import InputError
from compliance.package import PackageRefusedError, build
from tests.support.made_logs import compliant_set, system_description, write_set
from tests.support.made_reports import made_finding

GBS_16_MEAN = 194_560.0
# Olympic mean 190,464: less than the reference's mean, more than its minimum of 188,719.
FAST = [184_320, 196_608] * 5
IMPLEMENTATION = "benchmarks/gpt_oss_20b/implementations/sys_1x8"
RESULTS = "results/sys_1x8/gpt_oss_20b"


def checked(logs: list[Path], **options: Any) -> Report:
    return check_set(logs, Options(official=False, **options))


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Report]:
    """Return ten compliant logs and their report."""
    logs = write_set(tmp_path_factory.mktemp("logs"), compliant_set(16))
    return logs, checked(logs)


@pytest.fixture(scope="session")
def fast(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Report]:
    """Return ten logs whose score is normalized, and their report."""
    logs = write_set(tmp_path_factory.mktemp("fast"), compliant_set(16, samples_to_target=FAST))
    return logs, checked(logs)


class Workshop:
    """A system description and a folder of code, to build from."""

    def __init__(self, folder: Path, report: tuple[list[Path], Report]) -> None:
        self.folder = folder
        self.logs, self.report = report
        self.out = folder / "out"
        self.code = folder / "code"
        self.system = folder / "sys_1x8.json"
        self.system.write_text(json.dumps(system_description()))
        self.write("run_and_time.sh", "exec python pack/train.py\n").chmod(0o755)
        self.write("pack/train.py", "seed = 1\n")

    def write(self, name: str, text: str = "") -> Path:
        path = self.code / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def build(self, **options: Any) -> tuple[str, ...]:
        given = {"system": self.system, "code": self.code, "out": self.out, "report": self.report}
        return build(**{**given, **options})

    def copied(self) -> list[str]:
        top = next((self.out / "benchmarks/gpt_oss_20b/implementations").iterdir())
        return sorted(str(path.relative_to(top)) for path in top.rglob("*") if not path.is_dir())

    def log(self, number: int, system: str = "sys_1x8") -> bytes:
        return (self.out / "results" / system / "gpt_oss_20b" / f"result_{number}.txt").read_bytes()

    def scaling(self) -> float | None:
        file = self.out / RESULTS / "scaling.json"
        if not file.exists():
            return None
        (factor,) = json.loads(file.read_text()).values()
        return float(factor)

    def readme(self) -> str:
        return (self.out / "benchmarks/gpt_oss_20b/README.md").read_text()

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def workshop(tmp_path: Path, judged: tuple[list[Path], Report]) -> Workshop:
    return Workshop(tmp_path, judged)


def official_checker(root: Path, folder: Path) -> tuple[str, Path]:
    """Return the output of the official package checker on a copy of the tree, and the copy, which it changes."""
    copy = folder / "copy"
    shutil.copytree(root, copy)
    command = [sys.executable, "-m", "mlperf_logging.package_checker", str(copy), "training", "6.1.0"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=120)
    return said.stderr, copy


def tree_of(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def test_the_tree(workshop: Workshop) -> None:
    not_copied = workshop.build()
    assert tree_of(workshop.out) == sorted(
        [
            "systems/sys_1x8.json",
            "benchmarks/gpt_oss_20b/README.md",
            f"{IMPLEMENTATION}/run_and_time.sh",
            f"{IMPLEMENTATION}/pack/train.py",
            *(f"{RESULTS}/result_{number}.txt" for number in range(10)),
        ]
    )
    assert not_copied == ()
    assert [workshop.log(number) for number in range(10)] == [log.read_bytes() for log in workshop.logs]
    assert (workshop.out / "systems/sys_1x8.json").read_bytes() == workshop.system.read_bytes()
    assert os.access(workshop.out / IMPLEMENTATION / "run_and_time.sh", os.X_OK)
    # No temporary folder is left, and others may read the tree.
    assert workshop.names() == ["code", "out", "sys_1x8.json"]
    assert workshop.out.stat().st_mode & 0o777 == workshop.code.stat().st_mode & 0o777


@pytest.mark.slow
def test_the_official_package_checker_finds_no_errors(workshop: Workshop) -> None:
    workshop.build(write_scaling=True)
    said, copy = official_checker(workshop.out, workshop.folder)
    assert "PACKAGE CHECKER FOUND NO ERRORS" in said
    # Slower than the reference: neither checker writes a factor.
    assert tree_of(copy) == tree_of(workshop.out)


@pytest.mark.slow
def test_scaling_is_what_the_official_package_checker_writes(tmp_path: Path, fast: tuple[list[Path], Report]) -> None:
    workshop = Workshop(tmp_path, fast)
    workshop.build(write_scaling=True)
    said, copy = official_checker(workshop.out, tmp_path)
    assert "PACKAGE CHECKER FOUND NO ERRORS" in said
    official = json.loads((copy / RESULTS / "scaling.json").read_text())
    factor = workshop.scaling()
    assert factor == pytest.approx(official["scaling_factor"], rel=1e-12)
    assert factor == pytest.approx(GBS_16_MEAN / 190_464, rel=1e-12)
    assert f"Normalised by {factor:.6f}: " in workshop.readme()


def test_only_a_valid_normalized_score_has_a_scaling(tmp_path: Path, fast: tuple[list[Path], Report]) -> None:
    workshop = Workshop(tmp_path, fast)
    (result,) = workshop.report.sets
    assert result.score is not None
    for score in (None, replace(result.score, valid=False), replace(result.score, normalization=None)):
        workshop.out = tmp_path / f"out_{score is None}_{score and score.valid}"
        report = replace(workshop.report, sets=(replace(result, score=score),), verdict=Verdict.FAIL)
        workshop.build(write_scaling=True, report=report, force=True)
        assert workshop.scaling() is None


def test_logs_are_numbered_in_order_of_start_and_unpacked(workshop: Workshop) -> None:
    packed = []
    for log in reversed(workshop.logs):
        packed.append(workshop.folder / f"{log.name}.gz")
        packed[-1].write_bytes(gzip.compress(log.read_bytes(), 1))
    workshop.build(report=checked(packed))
    assert [workshop.log(number) for number in range(10)] == [log.read_bytes() for log in workshop.logs]


def test_of_more_logs_the_window_is_taken(workshop: Workshop, tmp_path: Path) -> None:
    logs = write_set(tmp_path / "twelve", compliant_set(16, runs=12))
    report = checked(logs)
    (result,) = report.sets
    assert result.score is not None
    window = tuple(str(log) for log in logs[2:])
    report = replace(report, sets=(replace(result, score=replace(result.score, window=window)),))
    workshop.build(report=report)
    assert [workshop.log(number) for number in range(10)] == [log.read_bytes() for log in logs[2:]]
    with pytest.raises(InputError, match=r"12 logs.* 10 "):
        workshop.build(report=replace(report, sets=(replace(result, score=None),)), out=tmp_path / "other")


def test_another_number_of_runs(workshop: Workshop) -> None:
    logs = workshop.logs[:5]
    report = checked(logs, runs=5)
    with pytest.raises(PackageRefusedError, match=r"exactly 10 logs named result_<i>\.txt, got 5"):
        workshop.build(report=report)
    workshop.build(report=report, runs=5)
    assert len(list((workshop.out / RESULTS).iterdir())) == 5


ERROR, WARNING, INFO = (made_finding(each, each) for each in (Severity.ERROR, Severity.WARNING, Severity.INFO))


@pytest.mark.parametrize(
    ("verdict", "findings", "named"),
    [
        (Verdict.FAIL, (INFO, WARNING, ERROR), (ERROR,)),
        (Verdict.FAIL, (INFO, WARNING), (WARNING,)),  # of a strict check
        (Verdict.ERROR, (), ()),
    ],
)
def test_logs_that_do_not_pass_are_built_only_by_force(
    workshop: Workshop, verdict: Verdict, findings: tuple[Finding, ...], named: tuple[Finding, ...]
) -> None:
    report = replace(workshop.report, verdict=verdict, findings=findings)
    with pytest.raises(PackageRefusedError, match="--force") as refused:
        workshop.build(report=report)
    assert refused.value.findings == named
    assert all(finding.message in str(refused.value) for finding in named)
    assert workshop.names() == ["code", "sys_1x8.json"]
    workshop.build(report=report, force=True)
    assert workshop.out.is_dir()


def test_long_refusals_are_cut() -> None:
    text = str(PackageRefusedError("The logs fail", [made_finding()] * 13))
    assert text.count("some-rule: ") == 10
    assert text.endswith("and 3 more")


def test_a_tree_that_would_fail_is_refused(workshop: Workshop) -> None:
    description = system_description(status="onprem", submitter="Other")
    workshop.system.write_text(json.dumps(description))
    with pytest.raises(PackageRefusedError, match="The package would fail") as refused:
        workshop.build()
    assert {finding.rule for finding in refused.value.findings} == {"package-system-description"}
    # Named by its place, not by where it was built.
    assert refused.value.findings[0].file == str(workshop.out / "systems/sys_1x8.json")
    assert workshop.names() == ["code", "sys_1x8.json"]
    workshop.build(force=True)
    assert workshop.out.is_dir()


def test_a_description_of_another_division_is_refused(workshop: Workshop) -> None:
    workshop.system.write_text(json.dumps(system_description(division="open")))
    with pytest.raises(PackageRefusedError, match="division-agreement"):
        workshop.build()


@pytest.mark.parametrize("kind", ["file", "full folder", "link", "dangling link"])
def test_an_existing_file_or_folder_is_not_overwritten(workshop: Workshop, kind: str) -> None:
    kept = workshop.folder / "kept"
    kept.mkdir()
    if kind == "file":
        workshop.out.write_text("precious")
    elif kind == "full folder":
        workshop.out.mkdir()
        (workshop.out / "precious").write_text("")
    else:
        workshop.out.symlink_to(kept if kind == "link" else "missing")
    before = workshop.names()
    with pytest.raises(FileExistsError, match="out: exists"):
        workshop.build(force=True)
    assert workshop.names() == before
    assert list(kept.iterdir()) == []
    assert kind != "file" or workshop.out.read_text() == "precious"


def test_an_empty_folder_is_filled(workshop: Workshop) -> None:
    workshop.out.mkdir()
    workshop.build()
    assert len(tree_of(workshop.out)) == 14


def test_relative_paths(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop.folder)
    # The tree may be built within the code.
    workshop.build(system=Path("sys_1x8.json"), code=Path(), out=Path("out"))
    assert workshop.copied() == ["code/pack/train.py", "code/run_and_time.sh", "sys_1x8.json"]


@pytest.mark.parametrize(
    ("stem", "system_name", "name"),
    [
        ("B200_1x8", "ignored", "B200_1x8"),
        ("a b\nc", "ignored", "a_b_c"),
        ("..", "Rack 9/B", "Rack_9_B"),
        ("ж", "../../evil", "evil"),
        ("x" * 200, "ignored", "x" * 100),
    ],
)
def test_the_systems_name_is_one_plain_name(workshop: Workshop, stem: str, system_name: str, name: str) -> None:
    system = workshop.folder / f"{stem}.json"
    system.write_text(json.dumps(system_description(system_name=system_name)))
    workshop.build(system=system)
    assert [path.name for path in (workshop.out / "systems").iterdir()] == [f"{name}.json"]
    assert workshop.log(9, name)
    assert workshop.copied() == ["pack/train.py", "run_and_time.sh"]


def test_files_that_are_not_code_are_not_copied(workshop: Workshop) -> None:
    others = [
        ".env", ".git/config", ".venv/bin/python.py", "data/tokens.txt", "results/result_0.txt", "pack/lib.so",
        "pack/__pycache__/train.cpython-311.pyc", "x.egg-info/PKG-INFO", "pack/.cache/x.py", "pack/.secret key",
        "site/index.html",
    ]  # fmt: skip
    for name in others:
        workshop.write(name, "password")
    workshop.write("pack/data/loader.py")
    workshop.write("pack/results/table.py")
    assert workshop.build() == (
        ".env", ".git/", ".venv/", "data/", "pack/.cache/", "pack/.secret key", "pack/__pycache__/", "pack/lib.so",
        "results/", "site/", "x.egg-info/",
    )  # fmt: skip
    assert workshop.copied() == ["pack/data/loader.py", "pack/results/table.py", "pack/train.py", "run_and_time.sh"]


def test_python_packages_called_data_or_results_are_code(workshop: Workshop) -> None:
    for name in ("data/__init__.py", "data/x/y.py", "results/table.py"):
        workshop.write(name)
    assert workshop.build() == ("results/",)
    assert workshop.copied() == ["data/__init__.py", "data/x/y.py", "pack/train.py", "run_and_time.sh"]


def test_links_in_the_code(workshop: Workshop) -> None:
    secret = workshop.folder / "secret.py"
    secret.write_text("password")
    workshop.write(".env", "password")
    workshop.write("data/x.py", "password")
    for name, target in {
        "out.py": str(secret),
        "up.py": "../secret.py",
        "env.py": ".env",
        "data.py": "data/x.py",
        "folder": "pack",
        "loop": ".",
        "broken": "missing",
        "same.py": "pack/train.py",
    }.items():
        (workshop.code / name).symlink_to(target)
    assert workshop.build() == (
        ".env", "broken", "data.py", "data/", "env.py", "folder", "loop", "out.py", "up.py",
    )  # fmt: skip
    assert workshop.copied() == ["pack/train.py", "run_and_time.sh", "same.py"]
    copy = workshop.out / IMPLEMENTATION / "same.py"
    assert not copy.is_symlink()
    assert copy.read_text() == "seed = 1\n"


def test_code_has_a_largest_size(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "MAX_CODE_BYTES", 1 << 20)
    size = sum(path.stat().st_size for path in workshop.code.rglob("*.*"))
    workshop.write("pack/tokens.txt", "x" * ((1 << 20) - size))
    workshop.build()
    workshop.write("one_more", "x")
    with pytest.raises(InputError, match=r"1 MiB of code, expected at most 1; .* pack/tokens\.txt"):
        workshop.build(out=workshop.folder / "other")
    assert not (workshop.folder / "other").exists()


def unnamed_system(workshop: Workshop) -> Path:
    system = workshop.folder / "...json"
    system.write_text(json.dumps(system_description(system_name="/")))
    return system


# Change of the workshop, option of `build` that it gives or None, and words of the error.
BAD_INPUT: dict[str, tuple[Callable[[Workshop], object], str | None, str]] = {
    "no folder above": (lambda workshop: workshop.folder / "missing/out", "out", r"missing: "),
    "no name": (unnamed_system, "system", r"no name for the system"),
    "broken description": (
        lambda workshop: workshop.system.write_text('{\n"a" b}'),
        None,
        r"sys_1x8\.json:2: not JSON",
    ),
    "no description": (lambda workshop: workshop.system.unlink(), None, r"sys_1x8\.json: no such file"),
    "no code": (lambda workshop: workshop.folder / "missing", "code", r"missing: no such folder"),
    "code that is a file": (lambda workshop: workshop.system, "code", r"sys_1x8\.json: no such folder"),
    "code without source": (lambda workshop: workshop.write("text/README.md").parent, "code", r"text: no source code"),
    "a pipe": (lambda workshop: os.mkfifo(workshop.code / "pack/pipe.py"), None, r"pack/pipe\.py: "),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_even_by_force(workshop: Workshop, case: str) -> None:
    change, option, words = BAD_INPUT[case]
    value = change(workshop)
    with pytest.raises(InputError, match=words):
        workshop.build(force=True, **({} if option is None else {option: value}))
    assert not workshop.out.exists() and not list(workshop.folder.glob(".out*"))


def test_a_damaged_log_leaves_nothing(workshop: Workshop) -> None:
    packed = workshop.folder / "result_9.txt.gz"
    packed.write_bytes(gzip.compress(workshop.logs[9].read_bytes()))
    logs = [*workshop.logs[:9], packed]
    report = checked(logs)
    packed.write_bytes(packed.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"result_9\.txt\.gz: damaged gzip file"):
        workshop.build(report=report)
    packed.unlink()
    with pytest.raises(InputError, match=r"result_9\.txt\.gz: No such file"):
        workshop.build(report=report)
    assert workshop.names() == ["code", "sys_1x8.json"]
