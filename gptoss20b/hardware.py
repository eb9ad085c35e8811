"""GPU data sheets: peak, memory and links of one GPU, as the vendors state them. No torch.

Rates are per GPU; links count one direction. GB200 and GB300 are racks of 72 GPUs on NVLink with four to a node.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """One GPU and its links to others.

    Attributes:
        name: as `estimate --system` takes it.
        peak_tflops: dense bf16 TFLOP/s.
        memory_gb: GB (10^9 bytes) of memory.
        memory_tbs: TB/s of memory bandwidth.
        link_gbs: GB/s to the GPUs of its NVLink or xGMI domain, one direction, all links together.
        network_gbs: GB/s to all other GPUs, one direction.
        domain: GPUs in an NVLink or xGMI domain.
        gpus_per_node: default of DGXNGPU.
        source: origin of the figures.
        fp32_tflops: fp32 TFLOP/s without TF32, by the data sheet of the GPU or its HGX board; None if unknown.
    """

    name: str
    peak_tflops: float
    memory_gb: float
    memory_tbs: float
    link_gbs: float
    network_gbs: float
    domain: int
    gpus_per_node: int
    source: str
    fp32_tflops: float | None = None

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory."""
        return round(self.memory_gb * 1e9)

    def nvlink_domain_size(self, gpus_per_node: int) -> int:
        """Return the GPUs that share fast links: those of a rack, or at most those that a node of this run uses."""
        return self.domain if self.domain > self.gpus_per_node else min(self.domain, gpus_per_node)


_NVLINK_4 = "NVLink 4: 900 GB/s both ways; 400 Gb/s network"
_NVLINK_5 = "NVLink 5: 1,800 GB/s both ways; network"
SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System("H100", 990, 80, 3.35, 450, 50, 8, 8, f"NVIDIA H100 SXM and DGX H100 data sheets; {_NVLINK_4}", 67),
        System("H200", 990, 141, 4.8, 450, 50, 8, 8, f"NVIDIA H200 SXM and DGX H200 data sheets; {_NVLINK_4}", 67),
        System("B200", 2250, 180, 8.0, 900, 50, 8, 8, f"NVIDIA DGX B200 data sheet; {_NVLINK_5} 400 Gb/s", 75),
        System("B300", 2250, 270, 8.0, 900, 100, 8, 8, f"NVIDIA DGX B300 data sheet; {_NVLINK_5} 800 Gb/s", 75),
        System("GB200", 2500, 186, 8.0, 900, 50, 72, 4, f"NVIDIA GB200 NVL72 sheet; {_NVLINK_5} 400 Gb/s", 80),
        System("GB300", 2500, 279, 8.0, 900, 100, 72, 4, f"NVIDIA GB300 NVL72 sheet; {_NVLINK_5} 800 Gb/s", 80),
        System(
            "MI355X", 2300, 288, 8.0, 537.6, 50, 8, 8,
            "AMD MI355X data sheet; xGMI 7 x 76.8 GB/s, 400 Gb/s network; peak as published MFUs of this benchmark "
            "take it (the sheet: 2,517)", 157,
        ),
    )
}  # fmt: skip


def system_of_configuration(name: str) -> System | None:
    """Return the system that a configuration is named after, as DGXSYSTEM has it; None for other names.

    >>> system_of_configuration("H200_1x8").name
    'H200'
    """
    return SYSTEMS.get(name.split("_", maxsplit=1)[0].upper())


# Words in a device name that mark a PCIe card or a MIG slice. Both have lower rates than the SXM or OAM module.
_SLOWER_FORMS = {"PCIE", "NVL", "MIG"}


def system_of_device(device: str) -> System | None:
    """Return the system whose GPU has this device name, as torch gives it; None for others, PCIe cards and slices.

    >>> system_of_device("NVIDIA H200").name
    'H200'
    >>> system_of_device("NVIDIA H200 NVL")
    """
    words = set(device.upper().replace("-", " ").replace("_", " ").split())
    if words & _SLOWER_FORMS:
        return None
    return next((system for name, system in SYSTEMS.items() if name in words), None)
