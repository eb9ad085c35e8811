"""Binding of ranks to NUMA nodes: made-up trees of /sys, and a made-up numactl."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.run import get_args_parser

from gptoss20b import launch, numa
from gptoss20b.numa import Binding, choose_binding, list_gpu_addresses, torchrun_options
from system_info.numa import read_node_cpus
from tests.support.made_machines import made_script, write_files

GPUS = ["0000:1b:00.0", "0000:43:00.0", "0001:9d:00.0"]
CPUS = {0, 1, 2, 3, 8, 9}


@pytest.fixture
def numactl(tools: Path) -> Path:
    """Make a numactl that succeeds and keeps its arguments."""
    made_script(tools, "numactl", f'echo "$@" >> {tools}/calls')
    return tools / "calls"


def machine(root: Path, *gpu_nodes: int, nodes: tuple[str, ...] = ("0-1,8", "2-3,9")) -> Path:
    """Write NUMA nodes with these CPUs, and the nodes of the GPUs."""
    files: dict[str, object] = {f"sys/devices/system/node/node{n}/cpulist": cpus for n, cpus in enumerate(nodes)}
    files["sys/devices/system/node/possible"] = "0-1"
    for address, node in zip(GPUS, gpu_nodes, strict=False):
        files[f"sys/bus/pci/devices/{address}/numa_node"] = node
    return write_files(root, files)


def test_ranks_are_bound_to_the_nodes_of_their_gpus(tmp_path: Path, numactl: Path) -> None:
    root = machine(tmp_path, 0, 0, 1)
    assert read_node_cpus(root) == {0: {0, 1, 8}, 1: {2, 3, 9}}
    binding = choose_binding("node", GPUS, root, CPUS - {2})
    assert (binding.nodes, binding.is_used, binding.fix) == ((0, 0, 1), True, "")
    # torchrun ends the run if numactl fails for a rank, so that each node is tried before.
    assert numactl.read_text().splitlines() == ["--physcpubind=0 true", "--physcpubind=3 true"]


@pytest.mark.parametrize(
    ("gpu_nodes", "nodes", "mode"),
    [
        ((0, 0, 0), ("0-3",), "node"),
        ((-1, -1, -1), ("0-3",), "node"),
        ((0, -1, 1), ("0-1", "2-3"), "node"),  # as in most virtual machines
        ((0, 1), ("0-1", "2-3"), "node"),  # a GPU without an entry
        ((0, 0, 1), (), "node"),
        ((0, 0, 1), ("0-1", "2-3"), "none"),
    ],
)
def test_nothing_is_bound_and_nothing_to_fix(
    tmp_path: Path, numactl: Path, gpu_nodes: tuple[int, ...], nodes: tuple[str, ...], mode: str
) -> None:
    binding = choose_binding(mode, GPUS, machine(tmp_path, *gpu_nodes, nodes=nodes), CPUS)
    assert (binding.is_used, binding.fix) == (False, "")
    assert binding.reason
    assert not numactl.exists()


def test_what_prevents_binding_has_a_fix(tmp_path: Path, tools: Path) -> None:
    root = machine(tmp_path, 0, 0, 1)
    missing = choose_binding("node", GPUS, root, CPUS)
    assert (missing.is_used, missing.fix) == (False, "install numactl")
    made_script(tools, "numactl", 'echo "numactl: This system does not support NUMA policy" >&2; exit 1')
    forbidden = choose_binding("node", GPUS, root, CPUS)
    assert (forbidden.is_used, "SYS_NICE" in forbidden.fix) == (False, True)
    assert "does not support NUMA policy" in forbidden.reason
    made_script(tools, "numactl", "exit 0")
    excluded = choose_binding("node", GPUS, root, {0, 1})
    assert (excluded.is_used, "node 1" in excluded.reason, "cpuset" in excluded.fix) == (False, True, True)


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch, no_settings: None) -> Callable[[Binding], None]:
    """Let this be a machine of two nodes with two GPUs, and set the binding that is found."""
    for variable in ("CUDA_VISIBLE_DEVICES", "BINDCMD"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(numa, "read_node_cpus", lambda: {0: {0}, 1: {1}})
    monkeypatch.setattr(numa, "list_gpu_addresses", lambda: GPUS[:2])
    return lambda binding: monkeypatch.setattr(
        numa, "choose_binding", lambda mode, addresses: binding if addresses == GPUS[:2] else None
    )


def test_torchrun_gets_the_option_and_people_one_warning(
    bound: Callable[[Binding], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bound(Binding((0, 1), is_used=True))
    assert torchrun_options() == ["--numa-binding=node"]
    bound(Binding((0, 1), reason="numactl: no such file", fix="install numactl"))
    assert torchrun_options() == []
    (warning,) = capsys.readouterr().err.splitlines()
    assert all(text in warning for text in ("warning: NUMA_BINDING", "install numactl", "NUMA_BINDING=none"))
    bound(Binding((0, 1), is_used=True))
    own = "numactl --localalloc"
    for variable, value in (("NUMA_BINDING", "None"), ("CUDA_VISIBLE_DEVICES", "-1"), ("BINDCMD", own)):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            assert torchrun_options() == []
    monkeypatch.setattr(numa, "list_gpu_addresses", lambda: 1 / 0)
    assert torchrun_options() == []
    monkeypatch.setattr(numa, "read_node_cpus", lambda: {0: {0}})
    assert (torchrun_options(), capsys.readouterr().err) == ([], "")


def test_the_launcher_puts_the_option_before_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[list[str]] = []
    monkeypatch.setattr(launch, "torchrun_options", lambda: ["--numa-binding=node"])
    monkeypatch.setattr(launch, "torchrun", got.append)
    monkeypatch.setattr("sys.argv", ["launch", "--standalone", "--nproc_per_node=8", "-m", "gptoss20b", "train"])
    launch.main()
    # This version of torchrun knows it.
    arguments = get_args_parser().parse_args(got[0])
    assert (arguments.numa_binding, arguments.nproc_per_node) == ("node", "8")
    assert arguments.training_script_args == ["train"]


def test_addresses_are_named_as_in_sys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list_gpu_addresses() == [] or torch.cuda.is_available()
    gpus = [
        SimpleNamespace(pci_domain_id=0, pci_bus_id=0x1B, pci_device_id=0),
        SimpleNamespace(pci_domain_id=1, pci_bus_id=0x9D, pci_device_id=2),
    ]
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: len(gpus), get_device_properties=lambda number: gpus[number]
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    assert list_gpu_addresses() == ["0000:1b:00.0", "0001:9d:02.0"]
