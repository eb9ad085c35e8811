"""Numbers, counts, ranges and paths as people read them, and items in groups."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Literal, TypeVar

from ..findings import RunSummary, SetResult

NOTHING = "-"

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


def number(value: float | None, digits: int = 0, sign: Literal["", "+"] = "") -> str:
    """Format a number with separated thousands, and a float with ``digits`` decimals; a dash for None.

    >>> number(233472), number(359.9734, 2), number(-4.3, 1, "+"), number(None), number(1e300)
    ('233,472', '359.97', '-4.3', '-', '1e+300')
    """
    if value is None:
        return NOTHING
    if abs(value) < 1e15:
        return f"{value:{sign},}" if isinstance(value, int) else f"{value:{sign},.{digits}f}"
    # NaN, infinity, or a value of a broken log. An integer of a thousand digits cannot become a float.
    return f"{value:.4g}" if isinstance(value, float) or abs(value) < 1e308 else "over 1e308"


def energy_units(joules: float | None) -> tuple[str, str]:
    """Format an energy in kJ and in kWh.

    >>> energy_units(7_200_000.0), energy_units(None)
    (('7,200.0', '2.000'), ('-', '-'))
    """
    return number(None if joules is None else joules / 1e3, 1), number(None if joules is None else joules / 3.6e6, 3)


def count(amount: int, noun: str) -> str:
    """Format an amount with its noun.

    >>> count(1, "run"), count(1200, "run")
    ('1 run', '1,200 runs')
    """
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def run_ranges(numbers: Iterable[int]) -> str:
    """Format numbers of runs as ranges.

    >>> run_ranges([4, 1, 2, 3, 9])
    '1-4, 9'
    """
    ranges: list[list[int]] = []
    for value in sorted(numbers):
        if ranges and ranges[-1][-1] == value - 1:
            ranges[-1][1:] = [value]
        else:
            ranges.append([value])
    return ", ".join("-".join(map(str, ends)) for ends in ranges)


def value_range(values: Collection[float], digits: int = 0) -> str:
    """Format the smallest and the largest value.

    >>> value_range([1024, 96]), value_range([7.25, 7.25], 1)
    ('96 to 1,024', '7.2')
    """
    ends = sorted({min(values), max(values)})
    return " to ".join(f"{end:,.{digits}f}" for end in ends)


def places(paths: Iterable[str], limit: int | None = None) -> str:
    """Format paths, at most ``limit``. Name a folder once while it stays the same.

    >>> places(["a/x.txt:1", "a/y.txt:2", "z.txt"]), places(["a", "b", "c"], 1)
    ('a/x.txt:1, y.txt:2, z.txt', 'a, and 2 more')
    """
    shown, last = [], None
    for path in paths:
        folder, _, name = path.rpartition("/")
        shown.append(name if folder == last else path)
        last = folder
    more = [f"and {len(shown) - limit} more"] if limit is not None and len(shown) > limit else []
    return ", ".join(shown[:limit] + more)


def common_folder(runs: Iterable[RunSummary]) -> str:
    """Return the folder of the logs of all runs, "" if they differ."""
    folders = {run.file.rpartition("/")[0] for run in runs}
    return folders.pop() if len(folders) == 1 else ""


def system_name(result: SetResult) -> str:
    """Return the system's described name, or else up to three platforms that the logs name."""
    platforms = dict.fromkeys(run.platform for run in result.runs if run.platform)
    return result.system or ", ".join(list(platforms)[:3]) or NOTHING


def group_by(items: Iterable[Item], key: Callable[[Item], Key]) -> list[tuple[Key, list[Item]]]:
    """Group items by key, in order of appearance."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.items())
