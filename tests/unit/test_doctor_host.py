"""The doctor's findings on the node's memory and processors."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptoss20b.config import resolve
from gptoss20b.tools.doctor import checks
from gptoss20b.tools.doctor.finding import Finding, Verdict
from gptoss20b.tools.doctor.host import check_host_memory, check_processors
from system_info.memory import Memory
from tests.support.findings import assert_finding
from tests.support.made_machines import write_files

GIB = 2**30
DOCTOR = "gptoss20b.tools.doctor"
TINY = {"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open"}
SAVING, TWO_RANKS = {"SAVE_INTERVAL": "1000"}, {"DGXNGPU": "2", "EXPERT_PARALLEL": "2"}
SetMemory = Callable[..., None]


@pytest.fixture
def set_memory(monkeypatch: pytest.MonkeyPatch) -> SetMemory:
    """Set the node's available memory and used swap."""

    def set_to(available: int, swap: int = 0) -> None:
        memory = Memory(total=64 * GIB, available=available, swap_used=swap)
        monkeypatch.setattr(f"{DOCTOR}.host.read_memory", lambda: memory)

    return set_to


def test_host_memory_holds_the_ranks(tmp_path: Path, set_memory: SetMemory) -> None:
    set_memory(40 * GIB)
    enough = check_host_memory(40 * GIB, "8 ranks", 0, tmp_path)[0]
    assert_finding(enough, Verdict.PASS, "40.0 GiB available, about 40.0 GiB needed (8 ranks)")
    set_memory(40 * GIB - 1)
    assert_finding(check_host_memory(40 * GIB, "8 ranks", 0, tmp_path)[0], Verdict.FAIL)


@pytest.mark.parametrize(
    ("on_gpu", "settings", "ranks", "saving"),
    [
        (True, {}, 64, 0),
        (True, SAVING, 64, 28),
        (True, SAVING | {"DGXNNODES": "2", "GLOBAL_BATCH_SIZE": "32"}, 64, 14),
        (True, {"SAVE_INTERVAL": "30min", "PRECISION": "fp32"}, 64, 32),
        (False, SAVING | TWO_RANKS, 2 * (3 + 5 + 1), 28),
        (False, TWO_RANKS, 2 * (3 + 5 + 1), 0),
    ],
)
def test_a_save_needs_host_memory_beside_the_ranks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    set_memory: SetMemory,
    on_gpu: bool,
    settings: dict[str, str],
    ranks: int,
    saving: int,
) -> None:
    # 2^30 parameters of 14 bytes (16 in fp32): gathered on the host, and the copy that is being written.
    size = SimpleNamespace(total_parameters=2**30, state_bytes_per_gpu=3 * GIB)
    monkeypatch.setattr("gptoss20b.memory._measure_size", lambda config: size)
    monkeypatch.setattr(f"{DOCTOR}.checks.activation_bytes", lambda config: 5 * GIB)
    monkeypatch.setattr(f"{DOCTOR}.checks.list_visible_gpus", list)
    monkeypatch.setattr(f"{DOCTOR}.checks.read_gpus", lambda: None)
    monkeypatch.setattr(f"{DOCTOR}.checks.check_host_memory", partial(check_host_memory, root=tmp_path))
    check = checks._check_gpus if on_gpu else checks._check_cpus

    def host_memory(available: int) -> Finding:
        set_memory(available)
        return next(finding for finding in check(resolve(settings)) if finding.name == "host memory")

    enough = host_memory((ranks + saving) * GIB)
    texts = [f"{saving:.1f} GiB for a save"] if saving else []
    assert_finding(enough, Verdict.PASS, f"about {ranks + saving:.1f} GiB needed", *texts)
    little = host_memory((ranks + saving) * GIB - 1)
    assert_finding(little, Verdict.FAIL, fix="SAVE_INTERVAL=0" if saving else "")
    assert ("a save" in little.found) == ("SAVE_INTERVAL" in little.fix) == (saving > 0)


def test_a_containers_limit_is_its_room(tmp_path: Path, set_memory: SetMemory) -> None:
    set_memory(60 * GIB)
    group = "sys/fs/cgroup/memory"
    write_files(tmp_path, {f"{group}.max": 16 * GIB, f"{group}.current": 9 * GIB})
    assert_finding(check_host_memory(7 * GIB, "ranks", 0, tmp_path)[0], Verdict.PASS)
    assert_finding(check_host_memory(8 * GIB, "ranks", 0, tmp_path)[0], Verdict.FAIL, "7.0 GiB", "container's limit")


@pytest.mark.parametrize(("swap", "verdict"), [(0, Verdict.PASS), (2**20, Verdict.PASS), (GIB, Verdict.WARN)])
def test_swap_in_use_is_a_warning(tmp_path: Path, set_memory: SetMemory, swap: int, verdict: Verdict) -> None:
    set_memory(8 * GIB, swap)
    found = check_host_memory(GIB, "ranks", 0, tmp_path)[1]
    assert_finding(found, verdict, "1.0 GiB in use" if swap == GIB else "")


def test_memory_of_this_machine_and_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = check_host_memory(1, "nothing", 0)
    assert (found.name, found.verdict) == ("host memory", Verdict.PASS)
    monkeypatch.setattr(f"{DOCTOR}.host.read_memory", lambda: None)
    assert [finding.verdict for finding in check_host_memory(1, "nothing", 0)] == [Verdict.SKIPPED]


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
