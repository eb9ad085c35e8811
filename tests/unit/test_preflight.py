"""The checks of every start: the command as launchers call it, and its findings on made-up machines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptoss20b.config import resolve
from gptoss20b.tools.doctor.dataset import check_data_files
from gptoss20b.tools.doctor.finding import Finding, Verdict, failed, passed
from gptoss20b.tools.doctor.preflight import check_start
from tests.support.config_cases import run_cli
from tests.support.configs import load_config
from tests.support.findings import assert_finding
from tests.support.small_sets import FILES

GIB = 2**30
DOCTOR = "gptoss20b.tools.doctor"
TINY = {"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open", "SEQUENCE_LENGTH": "64", "EVAL_SAMPLES": "10"}
KNOWN = {"GIT_COMMIT": "f00"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Make the files of the data, which the checks may not open."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(b"x")
    return folder


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch see eight GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = {8: passed("GPUs", "torch sees 8")}
    monkeypatch.setattr(
        f"{DOCTOR}.preflight.check_gpu_count", lambda needed: found.get(needed, failed("GPUs", "few", "more"))
    )


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace the size of the disk, and that of a checkpoint by 1 GiB."""
    disk = SimpleNamespace(free=100 * GIB)
    monkeypatch.setattr(f"{DOCTOR}.storage.shutil.disk_usage", lambda path: disk)
    monkeypatch.setattr(f"{DOCTOR}.storage.checkpoint_bytes", lambda config: GIB)
    return disk


def check(data: Path, environment: Mapping[str, str] | None = None, **options: str) -> dict[str, Finding]:
    given = TINY | KNOWN | {"DATADIR": str(data), "LOGDIR": str(data.parent / "results/set")} | options
    return {finding.name: finding for finding in check_start(resolve(given), environment or {})}


def test_a_healthy_node_has_nothing_to_say_and_is_left_as_it_was(data: Path, gpus: None) -> None:
    before = sorted(data.parent.rglob("*"))
    assert check(data) == {}
    assert check(data, MODEL_VARIANT="reference", SUBMISSION_DIVISION="closed", SEQUENCE_LENGTH="8192",
                 EVAL_SAMPLES="1024") == {}  # fmt: skip
    assert sorted(data.parent.rglob("*")) == before


@pytest.mark.slow
def test_a_gpu_configuration_never_falls_back_to_the_cpu(data: Path, tmp_path: Path) -> None:
    config = load_config("config_B200_1x8.sh", DATADIR=str(data), LOGDIR=str(tmp_path)) | KNOWN
    given = config | {"DATADIR": str(data), "LOGDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = run_cli("preflight", "--max-steps", "200", "--submission-division", "open", **given)
    assert done.returncode == 2, done.stderr
    changed, error = done.stderr.splitlines()
    assert "MAX_STEPS 200 (file: not set)" in changed
    assert error.startswith("error: GPUs: torch sees none, expected 8 (DGXNGPU)")
    # Whoever asks for the CPU gets it, and the configuration is printed as by a dry run.
    on_cpu = load_config("config_CPU_1x2.sh") | KNOWN | {"DATADIR": str(data), "LOGDIR": str(tmp_path)}
    done = run_cli("preflight", **on_cpu)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run_cli("train", "--dry-run", **on_cpu).stdout


@pytest.mark.slow
def test_torch_is_not_imported_for_the_cpu(data: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    given = load_config("config_CPU_1x2.sh") | KNOWN | {"DATADIR": str(data), "LOGDIR": str(tmp_path)}
    done = run_cli("preflight", **given, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    given = load_config("config_CPU_1x2.sh") | {"DATADIR": str(tmp_path / "no"), "LOGDIR": str(tmp_path / "file/set")}
    done = run_cli("preflight", **given)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert [name in line for line, name in zip(lines, ("DATADIR", "LOGDIR"), strict=True)] == [True, True]
    invalid = run_cli("preflight", **given, SEED="soon")
    assert (invalid.returncode, invalid.stdout) == (2, "")
    assert "SEED" in invalid.stderr


def test_the_data_are_not_opened(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve(TINY | {"DATADIR": str(data)})
    for function in ("builtins.open", "io.open", "os.open"):
        monkeypatch.setattr(function, lambda *arguments, **options: pytest.fail("opens a file"))
    assert check_data_files(config).verdict is Verdict.PASS


def test_missing_and_empty_files_are_named(data: Path) -> None:
    missing, empty, *_ = FILES
    (data / missing).unlink()
    (data / empty).write_bytes(b"")
    found = check(data)["data"]
    assert_finding(found, Verdict.FAIL, "DATADIR", missing, empty, fix=f"download_dataset.sh '{data}'")
    assert not any(name in found.found for name in FILES[2:])
    assert_finding(check(data / "none")["data"], Verdict.FAIL, f"DATADIR: got '{data / 'none'}'", fix="download")


@pytest.mark.parametrize(
    ("free", "trials", "expected"),
    [
        (0.01, "1", {"free space": Verdict.FAIL}),
        (0.05, "1", {"free space": Verdict.WARN}),
        (0.5, "1", {}),
    ],
)
def test_the_log_has_room(
    data: Path, disk: SimpleNamespace, free: float, trials: str, expected: dict[str, Verdict]
) -> None:
    disk.free = free * GIB
    found = check(data, {"NEXP": trials})
    assert {name: finding.verdict for name, finding in found.items()} == expected
    assert all("LOGDIR" in finding.found for finding in found.values())


@pytest.mark.parametrize(
    ("free", "trials", "verdict"),
    [(0.9, "1", Verdict.FAIL), (1, "1", Verdict.WARN), (3, "1", None), (20, "10", Verdict.WARN), (21, "10", None)],
)
def test_checkpoints_have_room(
    data: Path, disk: SimpleNamespace, free: float, trials: str, verdict: Verdict | None
) -> None:
    disk.free = free * GIB
    found = check(data, {"NEXP": trials}, SAVE_INTERVAL="1000", SAVE_KEEP="2").get("space for checkpoints")
    assert (found and found.verdict) == verdict
    assert check(data, {"NEXP": trials}) == {}


def test_only_the_leader_needs_a_disk_and_every_node_its_gpus_and_data(
    data: Path, disk: SimpleNamespace, gpus: None
) -> None:
    disk.free = 0
    options = {"DGXNNODES": "2", "DGXNGPU": "4", "EXPERT_PARALLEL": "1"} | TINY | {"MODEL_VARIANT": "openai"}
    for rank, names in (("0", {"GPUs", "data", "free space"}), ("1", {"GPUs", "data"})):
        assert check(data / "none", {"NODE_RANK": rank}, **options).keys() == names
        assert check(data / "none", {"SLURM_NODEID": rank}, **options).keys() == names


@contextmanager
def as_nobody() -> Iterator[None]:
    """Become a user without rights if this one is root, who may do everything. access(2) asks for the real user."""
    is_root = os.geteuid() == 0
    if is_root:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if is_root:
            os.setresuid(0, 0, 0)


def test_folders_without_permission(data: Path) -> None:
    folder = data.parent / "locked"
    folder.mkdir(mode=0o555)
    (data / FILES[0]).chmod(0)
    with as_nobody():
        found = check(data, LOGDIR=str(folder / "set"))
    # pytest's folders are root's alone: nobody does not even see the data.
    assert_finding(found["data"], Verdict.FAIL, "DATADIR", str(data))
    assert_finding(found["LOGDIR"], Verdict.FAIL, "cannot write", fix="LOGDIR")
