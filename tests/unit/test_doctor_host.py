"""The doctor's findings on memory, processors and limits: real limits of this process, made-up trees of /sys."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptoss20b.config import resolve
from gptoss20b.memory import Moment, PeakMemory
from gptoss20b.tools.doctor.finding import Finding, Verdict
from gptoss20b.tools.doctor.host import check_host_memory, check_limits, check_processors
from tests.support.findings import assert_finding, mounted_tmpfs
from tests.support.made_machines import write_files

GIB = 2**30
TINY = {"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open"}
SAVING, TWO_RANKS = {"SAVE_INTERVAL": "1000"}, {"DGXNGPU": "2", "EXPERT_PARALLEL": "2"}
TWO_NODES = {"DGXNNODES": "2", "GLOBAL_BATCH_SIZE": "32"}
SetMemory = Callable[..., None]


@pytest.fixture
def set_memory(monkeypatch: pytest.MonkeyPatch) -> SetMemory:
    """Set the node's available memory and used swap, with a model of 2^30 parameters."""
    # 14 bytes each (16 in fp32): gathered on the host for a save, and the copy that is being written.
    size = SimpleNamespace(total_parameters=2**30)
    monkeypatch.setattr("gptoss20b.memory._measure_size", lambda config: size)
    peak = PeakMemory(3 * GIB, (Moment(8 * GIB, 0),))
    monkeypatch.setattr("gptoss20b.tools.doctor.host.peak_memory", lambda config: peak)

    def set_to(available: int, swap: int = 0) -> None:
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=available))
        monkeypatch.setattr("psutil.swap_memory", lambda: SimpleNamespace(used=swap))

    return set_to


@pytest.mark.parametrize(
    ("on_gpu", "settings", "ranks", "saving"),
    [
        (True, {}, 64, 0),
        (True, SAVING, 64, 28),
        (True, SAVING | TWO_NODES, 64, 14),
        (True, {"SAVE_INTERVAL": "30min", "PRECISION": "fp32"}, 64, 32),
        (False, SAVING | TWO_RANKS, 2 * (8 + 1), 28),
        (False, TWO_RANKS, 2 * (8 + 1), 0),
    ],
)
def test_host_memory_holds_the_ranks_and_a_save(
    tmp_path: Path, set_memory: SetMemory, on_gpu: bool, settings: dict[str, str], ranks: int, saving: int
) -> None:
    def host_memory(available: int) -> Finding:
        set_memory(available)
        return check_host_memory(resolve(settings), on_gpu, tmp_path)[0]

    enough = host_memory((ranks + saving) * GIB)
    texts = [f"{saving:.1f} GiB for a save"] if saving else []
    assert_finding(enough, Verdict.PASS, f"about {ranks + saving:.1f} GiB needed", *texts)
    little = host_memory((ranks + saving) * GIB - 1)
    assert_finding(little, Verdict.FAIL, fix="SAVE_INTERVAL=0" if saving else "")
    assert ("a save" in little.found) == ("SAVE_INTERVAL" in little.fix) == (saving > 0)


def test_a_containers_limit_is_its_room(tmp_path: Path, set_memory: SetMemory) -> None:
    set_memory(80 * GIB)
    group = "sys/fs/cgroup/memory"
    for limit, verdict in ((73, Verdict.PASS), (72, Verdict.FAIL)):
        write_files(tmp_path, {f"{group}.max": limit * GIB, f"{group}.current": 9 * GIB})
        found = check_host_memory(resolve({}), True, tmp_path)[0]
        assert_finding(found, verdict, f"{limit - 9:.1f} GiB", "container's limit")


@pytest.mark.parametrize(("swap", "verdict"), [(0, Verdict.PASS), (2**20, Verdict.PASS), (GIB, Verdict.WARN)])
def test_swap_in_use_is_a_warning(tmp_path: Path, set_memory: SetMemory, swap: int, verdict: Verdict) -> None:
    set_memory(80 * GIB, swap)
    assert_finding(check_host_memory(resolve({}), True, tmp_path)[1], verdict, f"{swap / GIB:.1f} GiB in use")


def test_each_rank_without_a_gpu_has_a_processor(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    enough, many = resolve(TINY | {"CPU_THREADS": "1"}), resolve(TINY | {"CPU_THREADS": str(cores)})
    assert check_processors(many, tmp_path).verdict is Verdict.WARN
    if cores >= 2:
        assert check_processors(enough, tmp_path).verdict is Verdict.PASS
    write_files(tmp_path, {"sys/fs/cgroup/cpu.max": "150000 100000"})
    found = check_processors(enough, tmp_path)
    assert found.verdict is Verdict.WARN
    assert "1.5 for 2 ranks" in found.found or cores == 1


def limits(root: Path, name: str, on_gpu: bool = True, settings: dict[str, str] | None = None) -> Finding:
    found = {finding.name: finding for finding in check_limits(resolve(settings or {}), on_gpu, root)}
    assert list(found) == ["shared memory", "open files", "locked memory", "processor frequency"]
    return found[name]


def test_shared_memory_is_for_gpus_and_dockers_64_megabytes_are_a_warning(tmp_path: Path) -> None:
    assert_finding(limits(tmp_path, "shared memory", on_gpu=False), Verdict.SKIPPED)
    assert_finding(limits(tmp_path, "shared memory"), Verdict.FAIL, fix="--ipc=host")
    with mounted_tmpfs(tmp_path / "dev/shm", "size=64m") as folder:
        found = limits(tmp_path, "shared memory")
        subprocess.run(["mount", "-o", "remount,size=2g", str(folder)], check=True)
        assert_finding(limits(tmp_path, "shared memory"), Verdict.PASS)
    assert_finding(found, Verdict.WARN, "0.1 GiB free in /dev/shm, expected 1.0 GiB", fix="--shm-size")


STATUS = "proc/self/status"
INFINIBAND = {"sys/class/infiniband/mlx5_0/node_type": "1: CA", STATUS: "Name:\tpython\nCapEff:\t0000000000000000"}
CPUS = "sys/devices/system/cpu"
PERFORMANCE = {f"{CPUS}/cpu{n}/cpufreq/scaling_governor": "performance" for n in range(4)}
MIXED = PERFORMANCE | {f"{CPUS}/cpu3/cpufreq/scaling_governor": "powersave"}


@pytest.mark.parametrize(
    ("name", "limit", "files", "settings", "verdict", "text"),
    [
        ("open files", 200, {}, {}, Verdict.FAIL, "200 allowed"),
        ("open files", 767, {}, {}, Verdict.WARN, "expected 768"),
        ("open files", 768, {}, {}, Verdict.PASS, "768 allowed"),  # 256 + 64 a rank
        ("open files", 1024, {}, TWO_NODES, Verdict.WARN, "1,024 allowed"),
        ("open files", 1280, {}, TWO_NODES, Verdict.PASS, ""),
        ("open files", resource.RLIM_INFINITY, {}, {}, Verdict.PASS, ""),
        ("locked memory", 65_536, INFINIBAND, TWO_NODES, Verdict.FAIL, "64 KiB allowed, expected unlimited"),
        ("locked memory", 65_536, INFINIBAND | {STATUS: "CapEff:\t4000"}, TWO_NODES, Verdict.PASS, "CAP_IPC_LOCK"),
        ("locked memory", resource.RLIM_INFINITY, INFINIBAND, TWO_NODES, Verdict.PASS, ""),
        ("locked memory", 65_536, INFINIBAND, {}, Verdict.SKIPPED, "one node"),
        ("locked memory", 65_536, {}, TWO_NODES, Verdict.SKIPPED, "InfiniBand"),
        ("processor frequency", 0, {}, {}, Verdict.SKIPPED, ""),
        ("processor frequency", 0, PERFORMANCE, {}, Verdict.PASS, "performance on 4"),
        ("processor frequency", 0, MIXED, {}, Verdict.WARN, "performance on 3, powersave on 1"),
    ],
)
def test_limits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    limit: int,
    files: dict[str, str],
    settings: dict[str, str],
    verdict: Verdict,
    text: str,
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda kind: (limit, 65_536))
    assert_finding(limits(write_files(tmp_path, files), name, settings=settings), verdict, text)
