"""Why torch sees fewer GPUs than the run has ranks: its build, the driver, variables that hide them, the container."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from system_info.devices import has_accelerator
from system_info.files import one_line
from system_info.gpu_report import GpuReport

from .finding import Finding, failed
from .node_context import GPU_MASKS, is_driver_loaded

# Files that Docker and Podman make in a container. Both and enroot can also set the variable `container`.
_CONTAINER_FILES = (".dockerenv", "run/.containerenv")
_NO_DEVICES = ("", "none", "void")
_PASS_GPUS = "docker run --gpus all on NVIDIA, --device /dev/kfd --device /dev/dri on AMD"
_SEE_DRIVER = "look at dmesg and at nvidia-smi or amd-smi: load the driver or restart the node"


@dataclass(frozen=True)
class TorchView:
    """GPUs that torch can use, in number, and how it was built.

    Attributes:
        version: of torch.
        cuda: version of CUDA that it was built for, or None.
        rocm: version of ROCm that it was built for, or None.
        error: its own reason for seeing no GPU, or None.
    """

    count: int
    version: str
    cuda: str | None = None
    rocm: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Cause:
    """One reason why GPUs are missing, and its fix."""

    found: str
    fix: str


def read_torch_view() -> TorchView:
    """Ask torch for its GPUs. It makes no context on them, which would take seconds and memory."""
    import torch

    cuda, rocm, error = torch.version.cuda, torch.version.hip, None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0 and (cuda or rocm):
        try:
            torch.cuda.init()  # `is_available` keeps the reason for itself
        except RuntimeError as failure:
            error = one_line(str(failure).split(" Please ", 1)[0].splitlines()[0])
    return TorchView(count, torch.__version__, cuda, rocm, error)


def missing_gpus(
    needed: int, view: TorchView, report: GpuReport | None, environment: Mapping[str, str], root: Path = Path("/")
) -> Finding:
    """Return the failure of a node with fewer visible GPUs than ranks, with every cause that can be seen."""
    causes = list(_find_causes(needed, view, report, environment, root)) or [
        Cause(view.error or "for a reason that neither torch nor the driver gives", _SEE_DRIVER)
    ]
    seen = f"torch sees {view.count or 'none'}, expected {needed} (DGXNGPU)"
    fixes = [cause.fix for cause in causes]
    if not view.count:
        fixes.append("to look at the configuration only: train --dry-run; to train without GPUs: config_CPU_1x2.sh")
    return failed("GPUs", f"{seen}: {', and '.join(cause.found for cause in causes)}", "; ".join(fixes))


def _find_causes(
    needed: int, view: TorchView, report: GpuReport | None, environment: Mapping[str, str], root: Path
) -> Iterator[Cause]:
    source, listed = (report.source, len(report.gpus)) if report else ("", 0)
    if not (view.cuda or view.rocm):
        yield Cause(f"torch {view.version} is built without CUDA and ROCm", "run in the image, or install a GPU build")
    if report is not None and report.error:
        yield Cause(f"{source} fails: {report.error}", _SEE_DRIVER)
    elif not listed and not is_driver_loaded(root):
        yield _explain_missing_driver(environment, root)
    masks = {name: environment[name] for name in GPU_MASKS if name in environment}
    hiding = [f"{name}={value}" for name, value in masks.items() if _count_unmasked(value, listed) < needed]
    if hiding:
        yield Cause(f"{' and '.join(hiding)} hides GPUs", f"unset {' '.join(name.split('=')[0] for name in hiding)}")
    elif 0 < view.count < needed:
        fix = (
            f"use a node or a container with {needed} GPUs, or a layout for {view.count} (DGXNGPU); dmesg names a lost"
        )
        yield Cause(f"{source or 'the driver'} lists {listed or view.count}", f"{fix} one")
    elif listed and not view.count:
        yield from _explain_unusable(view, report)


def _explain_missing_driver(environment: Mapping[str, str], root: Path) -> Cause:
    """Tell apart a container that was started without its GPUs, an unloaded driver, and a node without GPUs."""
    if "container" in environment or any((root / name).exists() for name in _CONTAINER_FILES):
        setting = environment.get("NVIDIA_VISIBLE_DEVICES", "all")
        why = f" (NVIDIA_VISIBLE_DEVICES={setting})" if setting in _NO_DEVICES else ""
        return Cause(f"this container has no GPU{why}", f"start it with its GPUs ({_PASS_GPUS})")
    if has_accelerator(root):
        return Cause("no driver is loaded for the GPUs of this node", "install and load it (modprobe nvidia or amdgpu)")
    return Cause("this node has no GPU and no driver", "start the run on a node with GPUs")


def _explain_unusable(view: TorchView, report: GpuReport | None) -> Iterator[Cause]:
    """Explain GPUs that the driver lists and torch cannot use."""
    assert report is not None
    gpu, from_amd = report.gpus[0], report.source.startswith("amd")
    if from_amd and view.cuda:
        yield Cause(f"the GPUs are AMD's, and torch {view.version} is built for CUDA", "install its ROCm build")
    elif not from_amd and view.rocm:
        yield Cause(f"the GPUs are NVIDIA's, and torch {view.version} is built for ROCm", "install its CUDA build")
    elif view.cuda and gpu.cuda_version and _as_numbers(gpu.cuda_version) < _as_numbers(view.cuda):
        driver = f"driver {gpu.driver_version} supports CUDA {gpu.cuda_version} and older"
        fix = f"update the driver, or use an image or a torch built for CUDA {gpu.cuda_version} or older"
        yield Cause(f"{driver}, and torch {view.version} is built for CUDA {view.cuda}", fix)
    elif view.error:
        yield Cause(
            f"{report.source} lists {len(report.gpus)} with driver {gpu.driver_version}: {view.error}", _SEE_DRIVER
        )


def _count_unmasked(mask: str, listed: int) -> int:
    """Return how many GPUs a mask such as ``0,1`` leaves visible. The first invalid entry ends it.

    ``listed``: GPUs of the node; 0 if their number is unknown.
    """
    count = 0
    for entry in filter(None, (part.strip() for part in mask.split(","))):
        if entry.startswith("-") or (entry.isdecimal() and listed and int(entry) >= listed):
            break
        count += 1
    return count


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
