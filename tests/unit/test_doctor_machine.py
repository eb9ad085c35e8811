"""What the doctor says of a node beside its GPUs: trees of /proc and /sys, real limits, real tools on PATH."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptoss20b import memory
from gptoss20b.config import resolve
from gptoss20b.tools.doctor import examination
from gptoss20b.tools.doctor.clock import code_date, kernel_says_synchronised, look_at_clock
from gptoss20b.tools.doctor.finding import Finding, Verdict
from gptoss20b.tools.doctor.machine import look_at_host_memory, look_at_limits, look_at_processors
from gptoss20b.tools.doctor.software import look_at_caches, look_at_code, look_at_packages
from tests.support.made_machines import made_host, made_tool, write_files
from tests.support.paths import ROOT

GIB = 2**30
LIMITS = ["shared memory", "open files", "locked memory", "processor frequency"]
TWO_NODES = {"DGXNNODES": "2", "GLOBAL_BATCH_SIZE": "32"}
TINY = {"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open"}


def named(findings: list[Finding], name: str) -> Finding:
    (found,) = (finding for finding in findings if finding.name == name)
    return found


def meminfo(root: Path, available: int, swap: int = 0) -> Path:
    lines = [f"MemTotal: {64 * GIB // 1024} kB", f"MemAvailable:   {available // 1024} kB"]
    lines += [f"SwapTotal:      {4 * GIB // 1024} kB", f"SwapFree:       {(4 * GIB - swap) // 1024} kB"]
    return write_files(root, {"proc/meminfo": "\n".join(lines)})


@pytest.mark.parametrize(("available", "verdict"), [(40 * GIB, Verdict.PASS), (40 * GIB - 1024, Verdict.FAIL)])
def test_host_memory_holds_the_ranks(tmp_path: Path, available: int, verdict: Verdict) -> None:
    found = named(look_at_host_memory(40 * GIB, "8 ranks", meminfo(tmp_path, available)), "host memory")
    assert found.verdict is verdict
    assert "40.0 GiB available, about 40.0 GiB needed (8 ranks)" in found.found
    assert bool(found.fix) == (verdict is Verdict.FAIL)


SAVING = {"SAVE_INTERVAL": "1000"}


@pytest.mark.parametrize(
    ("on_gpu", "settings", "ranks", "saving"),
    [
        (True, {}, 64, 0),
        (True, SAVING, 64, 28),
        (True, SAVING | TWO_NODES, 64, 14),
        (True, {"SAVE_INTERVAL": "30min", "PRECISION": "fp32"}, 64, 32),
        (False, SAVING | {"DGXNGPU": "2", "EXPERT_PARALLEL": "2"}, 2 * (3 + 5 + 1), 28),
        (False, {"DGXNGPU": "2", "EXPERT_PARALLEL": "2"}, 2 * (3 + 5 + 1), 0),
    ],
)
def test_a_save_needs_host_memory_beside_the_ranks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    on_gpu: bool,
    settings: dict[str, str],
    ranks: int,
    saving: int,
) -> None:
    # 2^30 parameters of 14 bytes (16 in fp32): gathered on the host, and the copy of it that is being written.
    size = SimpleNamespace(total_parameters=2**30, state_bytes_per_gpu=3 * GIB)
    monkeypatch.setattr(memory, "_measure_size", lambda config: size)
    monkeypatch.setattr(examination, "activation_bytes", lambda config: 5 * GIB)
    monkeypatch.setattr(examination, "visible_devices", list)
    monkeypatch.setattr(examination, "ask_vendor_tool", lambda: None)
    monkeypatch.setattr(examination, "look_at_back_end", lambda config: Finding("back end", Verdict.PASS, ""))
    look = examination._look_at_gpus if on_gpu else examination._look_at_cpus

    def with_available(size: int) -> Finding:
        root = meminfo(tmp_path, size)
        monkeypatch.setattr(examination, "look_at_host_memory", partial(look_at_host_memory, root=root))
        return named(list(look(resolve(settings))), "host memory")

    enough = with_available((ranks + saving) * GIB)
    assert enough.verdict is Verdict.PASS
    assert f"about {ranks + saving:.1f} GiB needed" in enough.found
    assert ("for a save" in enough.found) == (saving > 0)
    little = with_available((ranks + saving) * GIB - 1024)
    assert little.verdict is Verdict.FAIL
    assert ("SAVE_INTERVAL=0" in little.fix) == (saving > 0)
    if saving:
        assert f"{saving:.1f} GiB for a save" in little.found


def test_a_containers_limit_counts_without_what_can_be_dropped(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory"
    root = meminfo(tmp_path, 60 * GIB)
    write_files(
        root,
        {f"{group}.max": 16 * GIB, f"{group}.current": 12 * GIB, f"{group}.stat": f"anon 5\ninactive_file {3 * GIB}"},
    )
    found = named(look_at_host_memory(8 * GIB, "ranks", root), "host memory")
    assert found.verdict is Verdict.FAIL
    assert "7.0 GiB available within this container's limit" in found.found
    assert named(look_at_host_memory(7 * GIB, "ranks", root), "host memory").verdict is Verdict.PASS
    write_files(root, {f"{group}.max": "max"})
    assert named(look_at_host_memory(50 * GIB, "ranks", root), "host memory").verdict is Verdict.PASS


@pytest.mark.parametrize(("swap", "verdict"), [(0, Verdict.PASS), (2**20, Verdict.PASS), (GIB, Verdict.WARN)])
def test_swap_in_use_is_a_warning(tmp_path: Path, swap: int, verdict: Verdict) -> None:
    found = named(look_at_host_memory(GIB, "ranks", meminfo(tmp_path, 8 * GIB, swap)), "swap")
    assert found.verdict is verdict
    assert ("1.0 GiB in use" in found.found) == (swap == GIB)


def test_memory_of_this_machine_and_of_none(tmp_path: Path) -> None:
    assert [finding.name for finding in look_at_host_memory(1, "nothing")] == ["host memory", "swap"]
    assert look_at_host_memory(1, "nothing")[0].verdict is Verdict.PASS
    assert [finding.verdict for finding in look_at_host_memory(1, "nothing", tmp_path)] == [Verdict.SKIPPED]


def limits(root: Path, name: str, on_gpu: bool = True, **options: str) -> Finding:
    found = look_at_limits(resolve(options), on_gpu, root)
    assert [finding.name for finding in found] == LIMITS
    return named(found, name)


def test_shared_memory_is_for_gpus(tmp_path: Path) -> None:
    assert limits(tmp_path, "shared memory", on_gpu=False).verdict is Verdict.SKIPPED
    missing = limits(tmp_path, "shared memory")
    assert missing.verdict is Verdict.FAIL
    assert "--ipc=host" in missing.fix


def test_dockers_64_megabytes_of_shared_memory_are_a_warning(tmp_path: Path) -> None:
    place = tmp_path / "dev/shm"
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted, which needs root")
    try:
        found = limits(tmp_path, "shared memory")
        subprocess.run(["mount", "-o", "remount,size=2g", str(place)], check=True)
        assert limits(tmp_path, "shared memory").verdict is Verdict.PASS
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert found.verdict is Verdict.WARN
    assert "0.1 GiB free in /dev/shm, expected 1.0 GiB" in found.found
    assert "--shm-size" in found.fix


@pytest.fixture
def open_files() -> Iterator[int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("soft", "options", "verdict"),
    [
        (200, {}, Verdict.FAIL),
        (767, {}, Verdict.WARN),
        (768, {}, Verdict.PASS),  # 256 + 64 a rank
        (1024, TWO_NODES, Verdict.WARN),
        (1280, TWO_NODES, Verdict.PASS),
    ],
)
def test_open_files(tmp_path: Path, open_files: int, soft: int, options: dict[str, str], verdict: Verdict) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, open_files))
    found = limits(tmp_path, "open files", **options)
    assert found.verdict is verdict
    assert f"{soft:,} allowed" in found.found
    assert found.fix.startswith("ulimit -n") == (verdict is not Verdict.PASS)


def test_locked_memory_matters_for_infiniband_between_nodes(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    write_files(tmp_path, {"proc/self/status": "Name:\tpython\nCapEff:\t0000000000000000"})
    assert limits(tmp_path, "locked memory", **TWO_NODES).verdict is Verdict.SKIPPED
    (tmp_path / "sys/class/infiniband/mlx5_0").mkdir(parents=True)
    assert limits(tmp_path, "locked memory").verdict is Verdict.SKIPPED
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 * 2**10, hard))
        found = limits(tmp_path, "locked memory", **TWO_NODES)
        write_files(tmp_path, {"proc/self/status": f"CapEff:\t{1 << 14:016x}"})  # CAP_IPC_LOCK
        exempt = limits(tmp_path, "locked memory", **TWO_NODES)
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    assert found.verdict is Verdict.FAIL
    assert "64 KiB allowed, expected unlimited for InfiniBand (mlx5_0)" in found.found
    assert "--ulimit memlock=-1" in found.fix
    assert exempt.verdict is Verdict.PASS


def test_a_governor_that_saves_power_is_a_warning(tmp_path: Path) -> None:
    governors = {f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_governor": "performance" for n in range(4)}
    assert limits(made_host(tmp_path / "hidden"), "processor frequency").verdict is Verdict.SKIPPED
    assert limits(write_files(tmp_path, governors), "processor frequency").verdict is Verdict.PASS
    write_files(tmp_path, {"sys/devices/system/cpu/cpu3/cpufreq/scaling_governor": "powersave"})
    found = limits(tmp_path, "processor frequency")
    assert (found.verdict, found.found) == (
        Verdict.WARN,
        "performance on 3, powersave on 1; expected performance on all",
    )


def test_each_rank_without_a_gpu_has_a_processor(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    enough, many = resolve(TINY | {"CPU_THREADS": "1"}), resolve(TINY | {"CPU_THREADS": str(cores)})
    write_files(tmp_path, {"sys/fs/cgroup/cpu.max": "max 100000"})
    assert look_at_processors(many, tmp_path).verdict is Verdict.WARN
    if cores >= 2:
        assert look_at_processors(enough, tmp_path).verdict is Verdict.PASS
    write_files(tmp_path, {"sys/fs/cgroup/cpu.max": "150000 100000"})
    found = look_at_processors(enough, tmp_path)
    assert found.verdict is Verdict.WARN
    assert "1.5 for 2 ranks" in found.found or cores == 1


# The clock.


def clock(synchronised: bool | None, offset: float = 0.0) -> Finding:
    (found,) = look_at_clock(1.7e9, lambda: synchronised, lambda: time.time() + offset)
    return found


def test_a_clock_that_the_kernel_calls_synchronised(tools: Path) -> None:
    found = clock(True)
    assert found.verdict is Verdict.PASS
    assert found.found.endswith("synchronised (kernel)")


@pytest.mark.parametrize("kernel", [False, None])
def test_chronyd_may_keep_a_clock_that_the_kernel_knows_nothing_of(tools: Path, kernel: bool | None) -> None:
    made_tool(tools, "chronyc", "Reference ID    : 00000000\nLeap status     : Not synchronised")
    alone = clock(kernel)
    assert (alone.verdict, "start chronyd" in alone.fix) == (Verdict.WARN, True)
    made_tool(tools, "chronyc", "Reference ID    : A29FC801\nLeap status     : Normal")
    assert clock(kernel).found.endswith("(chronyc)")
    made_tool(tools, "timedatectl", "yes")
    assert clock(kernel).found.endswith("(timedatectl)")


def test_a_clock_before_the_code_was_made_is_wrong(tools: Path) -> None:
    found = clock(True, offset=1.7e9 - time.time() - 3600)
    assert found.verdict is Verdict.FAIL
    assert "got 2023-11-14 21:13" in found.found
    assert "expected 2023-11-14 22:13:20 UTC" in found.found


@pytest.mark.parametrize("step", [-0.5, 0.5])
def test_a_clock_that_is_set_meanwhile_is_a_warning(tools: Path, step: float) -> None:
    began = time.monotonic()
    (found,) = look_at_clock(1.7e9, lambda: True, lambda: time.time() + (step if time.monotonic() > began + 0.1 else 0))
    assert found.verdict is Verdict.WARN
    astray = re.search(r"it went (\d+) ms astray", found.found)
    assert astray is not None
    assert 450 <= int(astray[1]) <= 500


def test_the_code_was_made_when_it_was_committed_and_the_kernel_answers() -> None:
    head = subprocess.run(["git", "show", "-s", "--format=%ct"], capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert code_date() == float(head.stdout)
    assert 1.7e9 < code_date() < time.time() + 60
    # The call's own answer: TIME_ERROR, 5, for a clock that nobody keeps, and less than 0 where it is not allowed.
    answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(1024))
    assert kernel_says_synchronised() is (None if answer < 0 else answer != 5)


def test_without_git_the_newest_file_tells_when_the_code_was_made(tools: Path) -> None:
    import gptoss20b

    folder = Path(gptoss20b.__file__).parent
    assert code_date() == max(path.stat().st_mtime for path in folder.rglob("*.py"))


# Packages, code, caches.


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A project with its pins."""
    needs = '["torch>=2.11", "megatron-core>=0.16.1,<0.20", "numpy>=2.0"]'
    project = f'[project]\nrequires-python = ">=3.11"\ndependencies = {needs}'
    pins = "# pinned\ntorch==2.13.0\nmegatron-core==0.16.1\nnumpy==2.4.6\nmlperf-logging==4.1.68"
    hashed = (
        'megatron-core==0.16.1 ; python_version < "3" \\\n    --hash=sha256:00\n'
        "megatron-core==0.19.2 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\nmlperf-logging==4.1.68"
    )
    files = {"pyproject.toml": project, "requirements/cpu.txt": pins, "requirements/container.txt": hashed}
    return write_files(tmp_path, dict(files))


INSTALLED = {
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
    "megatron-core": "0.16.1",
    "numpy": "2.4.6",
    "mlperf-logging": "4.1.68",
    "transformer-engine": None,
}


def packages(beside: Path, on_gpu: bool = False, **changed: str | None) -> list[Finding]:
    have = INSTALLED | {name.replace("_", "-"): version for name, version in changed.items()}
    *found, engine = look_at_packages(resolve({}), on_gpu, have, beside)
    assert engine.name == "Transformer Engine"
    assert {finding.name for finding in found} == {"packages"}
    return found


def test_pinned_packages_pass(beside: Path) -> None:
    (found,) = packages(beside)
    assert found.verdict is Verdict.PASS
    assert "torch 2.13.0+cpu, megatron-core 0.16.1" in found.found


def test_in_an_image_the_base_brings_torch_and_the_pins_are_the_containers(beside: Path) -> None:
    vendors = {"torch": "2.12.0a0+5aff3928d8.nv26.05", "numpy": "2.1.0"}
    (found,) = packages(beside, on_gpu=True, megatron_core="0.19.2", **vendors)
    assert found.verdict is Verdict.PASS
    (found,) = packages(beside, on_gpu=True, **vendors)
    assert (found.verdict, found.found) == (Verdict.WARN, "megatron-core 0.16.1, expected ==0.19.2 (container.txt)")


def test_other_versions_are_warnings_and_unfit_ones_fail_all_named(beside: Path) -> None:
    found = packages(beside, torch="2.12.0", numpy="2.3.0")
    assert [finding.verdict for finding in found] == [Verdict.WARN] * 2
    assert found[0].found == "torch 2.12.0, expected ==2.13.0 (cpu.txt)"
    assert "pip install 'numpy==2.4.6'" in found[1].fix
    found = packages(beside, torch="2.10.1", mlperf_logging=None, python="3.10.2", megatron_core="0.20.0")
    assert [finding.verdict for finding in found] == [Verdict.FAIL] * 4
    said = " ".join(finding.found for finding in found)
    for word in ("python 3.10.2, expected >=3.11", "torch 2.10.1, expected >=2.11", "0.20.0", "mlperf-logging is not"):
        assert word in said


def test_without_the_files_beside_the_package_what_is_installed_passes(tmp_path: Path) -> None:
    assert packages(tmp_path, torch="2.12.0")[0].verdict is Verdict.PASS
    assert packages(tmp_path, torch=None)[0].verdict is Verdict.FAIL


def test_the_real_pins_can_be_read() -> None:
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements/cpu.txt").read_text(), re.MULTILINE))
    have = INSTALLED | {name: pins[name] for name in INSTALLED if name in pins}
    assert look_at_packages(resolve({}), False, have)[0].verdict is Verdict.PASS
    image = look_at_packages(resolve({}), True, have | {"mlperf-logging": "4.1.69"})
    assert "mlperf-logging 4.1.69, expected ==4.1.68 (container.txt)" in [finding.found for finding in image]
    # What is installed here is what the project says that it runs with.
    assert look_at_packages(resolve({}), False)[0].verdict is not Verdict.FAIL


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
def test_transformer_engine(beside: Path, backend: str, on_gpu: bool, version: str | None, verdict: Verdict) -> None:
    have = INSTALLED | {"transformer-engine": version}
    found = look_at_packages(resolve({"BACKEND": backend}), on_gpu, have, beside)[-1]
    assert found.verdict is verdict


def test_the_code_has_a_commit() -> None:
    commit = "3763616" * 5
    assert look_at_code(resolve({}), commit).verdict is Verdict.PASS
    dirty = look_at_code(resolve({}), f"{commit}-dirty")
    assert dirty.verdict is Verdict.WARN
    assert "commit" in dirty.fix


def test_an_image_without_git_names_its_commit(tools: Path) -> None:
    assert look_at_code(resolve({"GIT_COMMIT": "abc"})).found == "commit abc"
    unknown = look_at_code(resolve({}))
    assert unknown.verdict is Verdict.WARN
    assert "GIT_COMMIT" in unknown.fix


def test_caches_can_be_dropped_by_root_or_by_sudo_without_a_password(tools: Path, tmp_path: Path) -> None:
    assert look_at_caches("0", tmp_path).verdict is Verdict.SKIPPED
    assert look_at_caches("done", tmp_path).verdict is Verdict.SKIPPED
    assert look_at_caches("1", tmp_path).verdict is Verdict.WARN
    made_tool(tools, "sudo", "sudo: a password is required", status=1)
    found = look_at_caches("1", tmp_path)
    assert found.verdict is Verdict.WARN
    assert "/sbin/sysctl --quiet --write vm.drop_caches=3" in found.fix
    # Asked whether it may, never told to do it.
    made_tool(tools, "sudo", {"-n -l /sbin/sysctl --quiet --write vm.drop_caches=3": "/sbin/sysctl"})
    assert look_at_caches("1", tmp_path).found == "sudo can drop it without a password"
    write_files(tmp_path, {"proc/sys/vm/drop_caches": "0"})
    assert look_at_caches("1", tmp_path).found == "this user can drop it"
    assert (tmp_path / "proc/sys/vm/drop_caches").read_text() == "0\n"
