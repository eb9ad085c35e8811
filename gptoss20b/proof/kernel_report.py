"""Resources of compiled kernels, as a table and as the budget of record."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel
from rich.table import Table

from .targets import TARGETS

Direction = Literal["forward", "backward"]
BUDGET = Path(__file__).with_name("kernel_budget.csv")


class Resources(BaseModel):
    """What the compiler reports of one kernel.

    Attributes:
        registers: of a thread; on AMD the vector registers, accumulation registers included.
        stack_bytes: local memory of a thread; on AMD its scratch memory.
        spill_store_bytes: that a thread writes to its stack for want of registers.
        spill_load_bytes: that it reads back. AMD's compiler reports the registers, so both are their bytes.
        shared_bytes: shared memory (LDS) of a block.
    """

    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int

    def maximum(self, other: Resources) -> Resources:
        """Return the larger of each figure."""
        pairs = ((name, (getattr(self, name), getattr(other, name))) for name in Resources.model_fields)
        return Resources(**{name: max(pair) for name, pair in pairs})


class Kernel(BaseModel):
    """One kernel of a fused function, with one of the launch configurations among which torch measures on the device.

    Attributes:
        graph: number of the compiled graph. A function has one for each combination of what it is specialized for.
        number: of the kernel in its graph.
        name: as inductor generates it.
        warps: a block's warps (wavefronts).
        stages: stages of software pipelining.
    """

    function: str
    direction: Direction
    graph: int
    number: int
    name: str
    warps: int
    stages: int
    resources: Resources


class KernelReport(BaseModel):
    """All kernels of one configuration, compiled for one architecture.

    Attributes:
        target: the architecture.
        model: MODEL_VARIANT of the configuration.
        shared_limit_bytes: shared memory that a block may use.
    """

    target: str
    model: str
    shared_limit_bytes: int
    kernels: list[Kernel]


class Budget(BaseModel):
    """The largest figures of one kernel of a function, over its graphs and launch configurations."""

    target: str
    model: str
    function: str
    direction: Direction
    number: int
    resources: Resources

    @property
    def key(self) -> tuple[str, ...]:
        """Return what identifies the kernel."""
        return self.target, self.model, self.function, self.direction, str(self.number)


def budgets(report: KernelReport) -> list[Budget]:
    """Return one row per kernel of each function and direction."""
    rows: dict[tuple[str, ...], Budget] = {}
    for kernel in report.kernels:
        row = Budget(
            target=report.target,
            model=report.model,
            function=kernel.function,
            direction=kernel.direction,
            number=kernel.number,
            resources=kernel.resources,
        )
        if row.key in rows:
            row.resources = row.resources.maximum(rows[row.key].resources)
        rows[row.key] = row
    return list(rows.values())


def exceeded(recorded: Iterable[Budget], compiled: Iterable[Budget]) -> Iterator[str]:
    """Yield a message for each kernel that needs more memory than recorded or exists, or is on one side only.

    Registers may change: too many of them show as spills.
    """
    known, found = ({row.key: row.resources for row in rows} for rows in (recorded, compiled))
    for key in known.keys() | found.keys():
        name = "{} {}: {} {}, kernel {}".format(*key)
        if key not in known or key not in found:
            yield f"{name}: {'compiled, not recorded' if key in found else 'recorded, not compiled'}"
            continue
        limit = TARGETS[key[0]].shared_limit
        if found[key].shared_bytes > limit:
            yield f"{name}: {found[key].shared_bytes} bytes of shared memory, {limit} exist"
        for field in ("stack_bytes", "spill_store_bytes", "spill_load_bytes", "shared_bytes"):
            used, allowed = getattr(found[key], field), getattr(known[key], field)
            if used > allowed:
                yield f"{name}: {field} {used}, recorded {allowed}"


def read_budget(path: Path = BUDGET) -> list[Budget]:
    """Return the rows of record."""
    with path.open(newline="", encoding="utf-8") as file:
        return [Budget.model_validate({**row, "resources": row}) for row in csv.DictReader(file)]


def write_budget(rows: Iterable[Budget], path: Path = BUDGET) -> None:
    """Write rows, sorted, one kernel a line."""
    fields = [name for name in Budget.model_fields if name != "resources"] + list(Resources.model_fields)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        for row in sorted(rows, key=lambda row: (list(TARGETS).index(row.target), *row.key[1:])):
            writer.writerow(row.model_dump(exclude={"resources"}) | row.resources.model_dump())


def as_table(report: KernelReport) -> Table:
    """Return the budgets of a report."""
    title = f"{report.model} on {report.target}: the most that a thread or block of each kernel needs"
    table = Table(title=title)
    for column in ("function", "direction", "kernel", "registers", "stack", "spill stores", "spill loads", "shared"):
        table.add_column(column, justify="left" if column in {"function", "direction"} else "right")
    for row in budgets(report):
        used = row.resources
        table.add_row(
            row.function, row.direction, str(row.number), f"{used.registers}", f"{used.stack_bytes:,} B",
            f"{used.spill_store_bytes:,} B", f"{used.spill_load_bytes:,} B",
            f"{used.shared_bytes / 1024:.1f} of {report.shared_limit_bytes / 1024:.0f} KiB",
        )  # fmt: skip
    return table
