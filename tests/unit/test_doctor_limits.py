"""The doctor's findings on limits: real limits of this process, real file systems, made-up trees of /sys."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptoss20b.config import resolve
from gptoss20b.tools.doctor.finding import Finding, Verdict
from gptoss20b.tools.doctor.limits import check_limits
from tests.support.findings import assert_finding, mounted_tmpfs
from tests.support.made_machines import made_host, write_files

TWO_NODES = {"DGXNNODES": "2", "GLOBAL_BATCH_SIZE": "32"}


def limits(root: Path, name: str, on_gpu: bool = True, settings: dict[str, str] | None = None) -> Finding:
    found = {finding.name: finding for finding in check_limits(resolve(settings or {}), on_gpu, root)}
    assert list(found) == ["shared memory", "open files", "locked memory", "processor frequency"]
    return found[name]


def test_shared_memory_is_for_gpus(tmp_path: Path) -> None:
    assert_finding(limits(tmp_path, "shared memory", on_gpu=False), Verdict.SKIPPED)
    assert_finding(limits(tmp_path, "shared memory"), Verdict.FAIL, fix="--ipc=host")


def test_dockers_64_megabytes_of_shared_memory_are_a_warning(tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path / "dev/shm", "size=64m") as folder:
        found = limits(tmp_path, "shared memory")
        subprocess.run(["mount", "-o", "remount,size=2g", str(folder)], check=True)
        assert_finding(limits(tmp_path, "shared memory"), Verdict.PASS)
    assert_finding(found, Verdict.WARN, "0.1 GiB free in /dev/shm, expected 1.0 GiB", fix="--shm-size")


@pytest.fixture
def hard_limit() -> Iterator[int]:
    """Return this process's hard limit of open files, and restore the soft one afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("soft", "settings", "verdict"),
    [
        (200, {}, Verdict.FAIL),
        (767, {}, Verdict.WARN),
        (768, {}, Verdict.PASS),  # 256 + 64 a rank
        (1024, TWO_NODES, Verdict.WARN),
        (1280, TWO_NODES, Verdict.PASS),
    ],
)
def test_open_files(tmp_path: Path, hard_limit: int, soft: int, settings: dict[str, str], verdict: Verdict) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard_limit))
    fix = "" if verdict is Verdict.PASS else "ulimit -n"
    assert_finding(limits(tmp_path, "open files", settings=settings), verdict, f"{soft:,} allowed", fix=fix)


def test_locked_memory_matters_for_infiniband_between_nodes(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    write_files(tmp_path, {"proc/self/status": "Name:\tpython\nCapEff:\t0000000000000000"})
    assert limits(tmp_path, "locked memory", settings=TWO_NODES).verdict is Verdict.SKIPPED
    (tmp_path / "sys/class/infiniband/mlx5_0").mkdir(parents=True)
    assert limits(tmp_path, "locked memory").verdict is Verdict.SKIPPED
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 * 2**10, hard))
        found = limits(tmp_path, "locked memory", settings=TWO_NODES)
        write_files(tmp_path, {"proc/self/status": f"CapEff:\t{1 << 14:016x}"})  # CAP_IPC_LOCK
        exempt = limits(tmp_path, "locked memory", settings=TWO_NODES)
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    assert_finding(found, Verdict.FAIL, "64 KiB", "InfiniBand (mlx5_0)", fix="--ulimit memlock=-1")
    assert_finding(exempt, Verdict.PASS)


def test_a_governor_that_saves_power_is_a_warning(tmp_path: Path) -> None:
    governors = {f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_governor": "performance" for n in range(4)}
    assert limits(made_host(tmp_path / "hidden"), "processor frequency").verdict is Verdict.SKIPPED
    assert limits(write_files(tmp_path, governors), "processor frequency").verdict is Verdict.PASS
    write_files(tmp_path, {"sys/devices/system/cpu/cpu3/cpufreq/scaling_governor": "powersave"})
    assert_finding(limits(tmp_path, "processor frequency"), Verdict.WARN, "performance on 3, powersave on 1")
