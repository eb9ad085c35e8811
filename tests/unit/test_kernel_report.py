"""What compilers report of kernels, and its comparison with the record."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptoss20b.proof.guard import ProofError
from gptoss20b.proof.kernel_report import (
    Budget,
    Kernel,
    KernelReport,
    Resources,
    budgets,
    exceeded,
    read_budget,
    write_budget,
)
from gptoss20b.proof.targets import TARGETS, find_target
from gptoss20b.proof.triton_stand_ins import parse_amd_metadata, parse_ptxas

PTXAS = """ptxas info    : Compiling entry function 'triton_tem_fused_0' for 'sm_100a'
ptxas info    : Function properties for triton_tem_fused_0
    712 bytes stack frame, 2168 bytes spill stores, 3088 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 712 bytes cumulative stack size
"""
AMD = """
    .private_segment_fixed_size: 16
    .sgpr_count:     100
    .sgpr_spill_count: 48
    .vgpr_count:     366
    .vgpr_spill_count: 3
"""


def resources(**figures: int) -> Resources:
    return Resources(**dict.fromkeys(Resources.model_fields, 0) | figures)


def test_ptxas_output() -> None:
    assert parse_ptxas(PTXAS, 1024) == Resources(
        registers=255, stack_bytes=712, spill_store_bytes=2168, spill_load_bytes=3088, shared_bytes=1024
    )
    with pytest.raises(ProofError, match="ptxas"):
        parse_ptxas("", 0)


def test_amd_metadata() -> None:
    assert parse_amd_metadata(AMD, 8192) == Resources(
        registers=366, stack_bytes=16, spill_store_bytes=12, spill_load_bytes=12, shared_bytes=8192
    )
    with pytest.raises(ProofError, match="vgpr_spill_count"):
        parse_amd_metadata(".vgpr_count: 3", 0)


def test_a_budget_is_the_most_of_all_graphs_and_launch_configurations() -> None:
    def kernel(graph: int, number: int, **figures: int) -> Kernel:
        return Kernel(
            function="f", direction="forward", graph=graph, number=number, name=f"triton_poi_{number}",
            warps=4, stages=1, resources=resources(**figures),
        )  # fmt: skip

    kernels = [kernel(1, 0, registers=8), kernel(1, 0, stack_bytes=4), kernel(2, 0, registers=9), kernel(1, 1)]
    rows = budgets(KernelReport(target="sm_90", model="reference", shared_limit_bytes=1, kernels=kernels))
    assert {row.number: row.resources for row in rows} == {0: resources(registers=9, stack_bytes=4), 1: resources()}


def budget(number: int = 0, **figures: int) -> Budget:
    return Budget(
        target="gfx950",
        model="openai",
        function="f",
        direction="backward",
        number=number,
        resources=resources(**figures),
    )


@pytest.mark.parametrize(
    ("compiled", "fact"),
    [
        ([budget(stack_bytes=9)], "stack_bytes 9"),
        ([budget(spill_store_bytes=9)], "spill_store_bytes 9"),
        ([budget(shared_bytes=300 * 1024)], "163840 exist"),
        ([budget(), budget(1)], "kernel 1: compiled"),
        ([], "kernel 0: recorded"),
    ],
)
def test_what_exceeds_the_record_is_named(compiled: list[Budget], fact: str) -> None:
    messages = list(exceeded([budget(stack_bytes=8, shared_bytes=400 * 1024)], compiled))
    assert len(messages) == 1 and fact in messages[0] and "gfx950 openai: f backward" in messages[0]


def test_fewer_bytes_and_more_registers_are_no_regression() -> None:
    assert not list(exceeded([budget(stack_bytes=8)], [budget(registers=255)]))


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [budget(), budget(1, stack_bytes=8, shared_bytes=4096)]
    write_budget(rows, tmp_path / "budget.csv")
    assert read_budget(tmp_path / "budget.csv") == rows


def test_the_record_holds_every_target_and_fits() -> None:
    recorded = read_budget()
    assert {row.target for row in recorded} == set(TARGETS)
    assert not list(exceeded(recorded, recorded))


@pytest.mark.parametrize(
    ("system", "name", "target"),
    [("B200_2x8", None, "sm_100"), ("MI355X_1x8", None, "gfx950"), ("CPU_1x2", "sm_90", "sm_90")],
)
def test_targets_are_found_by_system(system: str, name: str | None, target: str) -> None:
    assert find_target(system, name).name == target
