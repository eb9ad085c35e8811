"""GPU data sheets: systems by device name, and their NVLink domains."""

from __future__ import annotations

import pytest

from gptoss20b.hardware import SYSTEMS, system_of_device


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA B300 SXM6 AC", "B300"),
        ("NVIDIA GB300", "GB300"),
        ("AMD Instinct MI355X", "MI355X"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H2000", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("H100-PCIe", None),
        ("CPU (x86_64)", None),
    ],
)
def test_systems_by_device_name(device: str, name: str | None) -> None:
    """A PCIe card and a slice have other rates than the module of the same name."""
    assert system_of_device(device) == (SYSTEMS[name] if name else None)


def test_a_domain_spans_nodes_only_on_a_rack() -> None:
    assert SYSTEMS["GB300"].nvlink_domain_size(gpus_per_node=4) == 72
    assert [SYSTEMS["H200"].nvlink_domain_size(gpus) for gpus in (8, 4)] == [8, 4]


def test_every_figure_names_its_data_sheet() -> None:
    assert all("sheet" in system.source for system in SYSTEMS.values())
