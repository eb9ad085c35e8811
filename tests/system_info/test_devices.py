"""Disks, network ports and PCI devices, from trees of /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from system_info.devices import Disk, has_accelerator, list_infiniband_devices, read_disks, read_network_ports
from tests.support.made_machines import add_disk, made_host, write_files


def test_disks_of_this_machine_alone(tmp_path: Path) -> None:
    add_disk(tmp_path, "nvme0n1", 3_840_755_982_336, device__transport="pcie")
    add_disk(tmp_path, "sda", 960_197_124_096)
    add_disk(tmp_path, "sdb", 20_000_588_955_648, rotational=1)
    add_disk(tmp_path, "vda", 274_877_906_944, rotational=1)
    add_disk(tmp_path, "nvme9n1", 10**12, device__transport="tcp")
    add_disk(tmp_path, "nvme0c0n1", 10**12, hidden=1)
    add_disk(tmp_path, "sdc", 64 * 10**9, removable=1)
    add_disk(tmp_path, "sdd", 0)
    write_files(tmp_path, {"sys/block/loop0/size": 1 << 30, "sys/block/dm-0/size": 1 << 30})
    assert read_disks(tmp_path) == [
        Disk("NVMe SSD", 3_840_755_982_336),
        Disk("SSD", 960_197_124_096),
        Disk("HDD", 20_000_588_955_648),
        Disk("virtual disk", 274_877_906_944),
    ]
    assert read_disks(tmp_path / "nothing") == []


def test_network_ports(tmp_path: Path) -> None:
    files: dict[str, object] = {}
    for name, layer, rate in (("mlx5_0", "InfiniBand", "400 Gb/sec (4X NDR)"), ("mlx5_8", "Ethernet", "100 Gb/sec")):
        port = f"sys/class/infiniband/{name}/ports/1"
        files |= {f"{port}/link_layer": layer, f"{port}/rate": rate}
    for name, kind, speed in (("ib0", 32, -1), ("eth0", 1, 100_000), ("eth1", 1, -1), ("eth2", 1, 2_500)):
        interface = f"sys/class/net/{name}"
        files |= {f"{interface}/type": kind, f"{interface}/speed": speed, f"{interface}/device/vendor": "0x15b3"}
    files["sys/class/net/eth0/device/infiniband/mlx5_8/node_type"] = "1: CA"
    # A bridge, the loop, and virtual functions.
    files |= {"sys/class/net/docker0/type": 1, "sys/class/net/docker0/speed": 10_000, "sys/class/net/lo/type": 772}
    files |= {"sys/class/net/vf0/type": 1, "sys/class/net/vf0/speed": 1_000, "sys/class/net/vf0/device/physfn/a": 1}
    virtual = "sys/class/infiniband/mlx5_9"
    files |= {f"{virtual}/ports/1/link_layer": "InfiniBand", f"{virtual}/device/physfn/a": 1}
    assert read_network_ports(write_files(tmp_path, files)) == [
        "InfiniBand 400 Gb/sec (4X NDR)",
        "Ethernet 100 Gb/s RDMA",
        "Ethernet (rate not reported)",
        "Ethernet 2.5 Gb/s",
    ]
    assert list_infiniband_devices(tmp_path) == ["mlx5_0", "mlx5_8", "mlx5_9"]
    assert read_network_ports(tmp_path / "nothing") == list_infiniband_devices(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("vendor", "kind", "expected"),
    [
        ("0x10de", "0x030200", True),
        ("0x1002", "0x120000", True),
        ("0x1002", "0x038000", True),
        ("0x10de", "0x030000", True),
        ("0x1a03", "0x030000", False),  # the board's own display
    ],
)
def test_which_pci_devices_may_be_accelerators(tmp_path: Path, vendor: str, kind: str, expected: bool) -> None:
    device = "sys/bus/pci/devices/0000:16:00.0"
    write_files(made_host(tmp_path), {f"{device}/class": kind, f"{device}/vendor": vendor})
    assert has_accelerator(tmp_path) is expected
    assert has_accelerator(tmp_path / "nothing") is None
