"""GPUs as AMD's management library reports them: ``python -m system_info.amdsmi_library`` prints JSON.

The Python module amdsmi comes with ROCm and not from a package index.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from .files import one_line, parse_int
from .gpu_report import Gpu
from .library import print_library_report


def read_gpus() -> Iterator[Gpu]:
    """Yield the GPUs in the library's order.

    Raises:
        ImportError: ROCm's amdsmi is not installed.
        amdsmi.AmdSmiException: the driver does not answer.
    """
    try:
        amdsmi = import_module("amdsmi")
    except Exception as error:  # OSError or KeyError if the module is there and libamd_smi.so is not
        raise ImportError(str(error)) from error
    amdsmi.amdsmi_init()
    for handle in amdsmi.amdsmi_get_processor_handles():
        yield _read_gpu(amdsmi, handle)


def _read_gpu(amdsmi: Any, handle: Any) -> Gpu:
    def query(function: str, *arguments: Any) -> dict[str, Any]:
        """Call a function of the library. Return nothing where this GPU or version does not support it."""
        try:
            answer = getattr(amdsmi, f"amdsmi_{function}")(handle, *arguments)
        except (amdsmi.AmdSmiException, AttributeError):
            return {}
        return answer if isinstance(answer, dict) else {"list": answer}

    memory, errors = query("get_gpu_vram_info"), query("get_gpu_total_ecc_count")
    pcie = query("get_pcie_info").get("pcie_static", {})
    clocks = query("get_clk_freq", amdsmi.AmdSmiClkType.SYS).get("frequency")  # in Hz
    counts = [_number(errors.get(key)) for key in ("uncorrectable_count", "deferred_count")]
    return Gpu(
        name=_text(query("get_gpu_asic_info").get("market_name")),
        driver_version=_text(query("get_gpu_driver_info").get("driver_version")),
        memory_mib=_number(memory.get("vram_size")),
        memory_type=_memory_type(amdsmi, memory.get("vram_type")),
        memory_bus_width=_number(memory.get("vram_bit_width")),
        max_clock_mhz=max(clocks) // 10**6 if clocks else None,
        pcie_generation=_number(pcie.get("pcie_interface_version")),
        pcie_width=_number(pcie.get("max_pcie_width")),
        uncorrectable_errors=sum(filter(None, counts)),
        processes=tuple(f"{each['name']} ({each['pid']})" for each in query("get_gpu_process_list").get("list", ())),
    )


def _text(value: Any) -> str | None:
    text = one_line(str(value))
    return None if value is None or text in ("", "N/A") else text


def _number(value: Any) -> int | None:
    return parse_int(_text(value))


def _memory_type(amdsmi: Any, number: Any) -> str | None:
    """Return the name of an amdsmi_vram_type_t, such as HBM3E."""
    names = getattr(amdsmi.amdsmi_wrapper, "amdsmi_vram_type_t__enumvalues", {})
    name = names.get(number, "").removeprefix("AMDSMI_VRAM_TYPE_")
    return None if name in ("", "UNKNOWN") else name


if __name__ == "__main__":
    print_library_report(read_gpus)
