"""GPU architectures that do not have to be there: what torch and Triton ask of a device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from .guard import ProofError


@dataclass(frozen=True)
class DeviceProperties:
    """What torch asks of a device: the H200's, by the tables of NVIDIA's CUDA programming guide."""

    name: str = "NVIDIA H200"
    major: int = 9
    minor: int = 0
    total_memory: int = 141 * 10**9
    multi_processor_count: int = 132
    gcnArchName: str = ""  # noqa: N815 - torch's name
    warp_size: int = 32
    regs_per_multiprocessor: int = 65536
    max_threads_per_multi_processor: int = 2048
    max_threads_per_block: int = 1024
    shared_memory_per_block: int = 49152
    shared_memory_per_block_optin: int = 232448
    shared_memory_per_multiprocessor: int = 233472
    L2_cache_size: int = 50 * 2**20


@dataclass(frozen=True)
class Target:
    """An architecture that kernels are compiled for.

    Attributes:
        name: as its vendor writes it.
        backend: Triton's compiler.
        architecture: Triton's name.
        systems: GPUs of this architecture, as DGXSYSTEM begins.
        properties: those of one of these GPUs.
    """

    name: str
    backend: Literal["cuda", "hip"]
    architecture: int | str
    systems: tuple[str, ...]
    properties: DeviceProperties

    @property
    def shared_limit(self) -> int:
        """Return the bytes of shared memory (LDS) that one block may use."""
        return self.properties.shared_memory_per_block_optin


_H200 = DeviceProperties()
# Shared memory and registers are those of compute capability 9.0 (CUDA programming guide, technical specifications).
_B200 = replace(
    _H200, name="NVIDIA B200", major=10, total_memory=180 * 10**9, multi_processor_count=148, L2_cache_size=126 * 2**20
)
# CDNA 4 whitepaper: 256 compute units with 160 KiB of LDS, of which one workgroup may use all.
_MI355X = replace(
    _H200,
    name="AMD Instinct MI355X",
    minor=5,
    total_memory=288 * 10**9,
    multi_processor_count=256,
    gcnArchName="gfx950:sramecc+:xnack-",
    warp_size=64,
    shared_memory_per_block=163840,
    shared_memory_per_block_optin=163840,
    shared_memory_per_multiprocessor=163840,
    L2_cache_size=4 * 2**20,
)
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("sm_90", "cuda", 90, ("H100", "H200"), _H200),
        Target("sm_100", "cuda", 100, ("B200", "GB200"), _B200),
        Target("gfx950", "hip", "gfx950", ("MI355X",), _MI355X),
    )
}


def find_target(system: str, name: str | None = None) -> Target:
    """Return the target of this name, or else of a DGXSYSTEM such as ``B200_1x8``.

    Raises:
        ProofError: it is none of `TARGETS`.
    """
    if name is not None:
        if name not in TARGETS:
            raise ProofError(f"--target: got '{name}', expected one of {', '.join(TARGETS)}")
        return TARGETS[name]
    if (target := _target_of_system(system)) is not None:
        return target
    raise ProofError(f"DGXSYSTEM: got '{system}', whose architecture is unknown. Name it: --target {'|'.join(TARGETS)}")


def properties_of(system: str) -> DeviceProperties:
    """Return the properties of a DGXSYSTEM's GPU; the H200's for an unknown one."""
    target = _target_of_system(system)
    return _H200 if target is None else target.properties


def _target_of_system(system: str) -> Target | None:
    name = system.split("_", maxsplit=1)[0].upper()
    return next((target for target in TARGETS.values() if name in target.systems), None)
