"""GPU telemetry beside a log: CSV files with a row per GPU and sample, from `TELEMETRY=1` or any other tool.

docs/results-and-compliance.md defines the columns. Telemetry changes no verdict. Files may hold anything: damaged lines
are skipped and counted.
"""

from __future__ import annotations

import math
import re
import stat
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .file_tree import printable
from .findings import RunSummary
from .power import integrate

# Largest plausible values. Columns that are not here are ignored, but for those that name the GPU.
LIMITS = {
    "power_w": 1e5,
    "sm_clock_mhz": 1e5,
    "memory_clock_mhz": 1e5,
    "temperature_c": 1e3,
    "memory_temperature_c": 1e3,
    "utilization_percent": 100.0,
    "memory_used_mib": 1e8,
}
TIME, REASONS = "time_ms", "throttle_reasons"
# Eight GPUs write 50 MB a day.
MAX_FILE_BYTES = 200_000_000
MAX_LINE_BYTES = 1000
MAX_GPUS = 1024  # of a file
MAX_FILES = 1024  # of a run
MAX_REASONS, MAX_COMBINATIONS = 32, 4096  # of a file
_MAX_TIME_MS = 1e14
_MAX_RUN_MS = 60 * 24 * 3_600_000.0
_NAME = re.compile(r"[\w.:-]{0,80}", re.ASCII)
_REASON = re.compile(r"[a-z0-9_]{1,40}", re.ASCII)
_NODE_FILE = re.compile(r"telemetry_node(\d{1,6})", re.ASCII)

Floats = NDArray[np.float64]


@dataclass(slots=True)
class _Rows:
    """Readings of one GPU as columns; NaN for an unknown value. ``reasons``: a set of names per reading."""

    times: array[float] = field(default_factory=lambda: array("d"))
    values: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in LIMITS})
    reasons: list[frozenset[str]] = field(default_factory=list)


@dataclass(frozen=True)
class GpuTelemetry:
    """Readings of one GPU, sorted by time.

    Attributes:
        name: such as ``GPU 0`` or ``node 1 GPU 0``.
        times_ms: since 1970.
        values: by column of `LIMITS`; NaN where unknown.
        throttled: by reason, whether it was active at each reading.
        window: start and end of the run in ms.
    """

    name: str
    times_ms: Floats
    values: Mapping[str, Floats]
    throttled: Mapping[str, NDArray[np.bool_]]
    window: tuple[float, float]

    @cached_property
    def inside(self) -> NDArray[np.bool_]:
        """Return which readings lie in the window."""
        return (self.times_ms >= self.window[0]) & (self.times_ms <= self.window[1])

    @cached_property
    def joules(self) -> float | None:
        """Return the energy of the run: each power reading times the time since the one before. None without one."""
        return self._integral(self.values["power_w"])

    @cached_property
    def mean_watts(self) -> float | None:
        """Return the mean power over the time that readings cover; None without one."""
        seconds = self._integral(np.where(np.isnan(self.values["power_w"]), np.nan, 1.0))
        return self.joules / seconds if seconds and self.joules is not None else None

    @property
    def longest_gap_s(self) -> float:
        """Return the longest time in the window without a reading, in s."""
        return float(np.diff([self.window[0], *self.times_ms[self.inside], self.window[1]]).max()) / 1000

    def highest(self, column: str) -> float | None:
        """Return the highest value in the window; None without one."""
        values = self.known(column)
        return float(values.max()) if len(values) else None

    def known(self, column: str) -> Floats:
        """Return the known values in the window."""
        values = self.values[column]
        return values[self.inside & ~np.isnan(values)]

    @cached_property
    def throttled_seconds(self) -> dict[str, float]:
        """Return the seconds by reason, each reading standing for the time since the one before."""
        seconds = {name: self._integral(active.astype(float)) for name, active in self.throttled.items()}
        return {name: value for name, value in seconds.items() if value}

    def _integral(self, values: Floats) -> float | None:
        known = ~np.isnan(values)
        times = self.times_ms[known].tolist()
        return integrate(zip(times, values[known].tolist(), strict=True), times[0], self.window) if times else None


@dataclass(frozen=True)
class RunTelemetry:
    """Telemetry of one run, named by its log. ``window``: start and end in ms; ``gpus`` have a reading in it."""

    file: str
    window: tuple[float, float]
    gpus: tuple[GpuTelemetry, ...]


class TelemetryReader:
    """Reads the files beside logs, each file once. ``warnings`` collects what was wrong with them."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._files: dict[Path, dict[tuple[str, str], _Rows]] = {}

    def read(self, run: RunSummary) -> RunTelemetry | None:
        """Return the telemetry beside the log of a run; None without a file."""
        files = {path: self._read_file(path) for path in self._find(Path(run.file))}
        window = _window(run, [rows for gpus in files.values() for rows in gpus.values()])
        if window is None:
            return None
        gpus = [
            _build(f"{_node(path)} GPU {gpu}" if len(files) > 1 else f"GPU {gpu}", rows, window)
            for path, of_file in files.items()
            for (gpu, _), rows in of_file.items()
        ]
        gpus = [gpu for gpu in gpus if gpu.inside.any()]
        if not gpus:
            self.warnings.append(f"{printable(run.file)}: telemetry has no reading in the time of the run")
            return None
        return RunTelemetry(run.file, window, tuple(sorted(gpus, key=lambda gpu: _natural_order(gpu.name))))

    def _find(self, log: Path) -> list[Path]:
        """Return the files beside the log, or in the folder of its trial."""
        folders = [log.parent, log.parent / log.name.partition(".")[0].replace("result_", "trial_")]
        try:
            found = (sorted(folder.glob("telemetry*.csv")) for folder in folders)
            files = next(filter(None, found), [])
        except OSError:
            return []
        if len(files) > MAX_FILES:
            self.warnings.append(f"{printable(log.parent)}: {len(files):,} files of telemetry; {MAX_FILES:,} are read")
        return files[:MAX_FILES]

    def _read_file(self, path: Path) -> dict[tuple[str, str], _Rows]:
        if path not in self._files:
            parser = _Parser()
            try:
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise ValueError("not a regular file")
                if status.st_size > MAX_FILE_BYTES:
                    raise ValueError(f"{status.st_size:,} bytes, expected at most {MAX_FILE_BYTES:,}")
                with path.open("rb") as stream:
                    parser.parse(iter(lambda: stream.readline(MAX_LINE_BYTES), b""))
            except (OSError, ValueError) as error:
                self.warnings.append(f"{printable(path)}: {getattr(error, 'strerror', None) or error}; not read")
            if parser.damaged:
                amount = f"{parser.damaged:,} damaged line{'s' if parser.damaged > 1 else ''}"
                self.warnings.append(f"{printable(path)}: skipped {amount}, the first is line {parser.first_damaged:,}")
            self._files[path] = parser.gpus
        return self._files[path]


class _Parser:
    """Parses the lines of one file. ``gpus``: rows by number and UUID."""

    def __init__(self) -> None:
        self.gpus: dict[tuple[str, str], _Rows] = {}
        self.damaged = self.first_damaged = 0
        self._names: set[str] = set()
        self._combinations: dict[str, frozenset[str]] = {"": frozenset(), "none": frozenset()}

    def parse(self, lines: Iterator[bytes]) -> None:
        """Parse a header and rows.

        Raises:
            ValueError: the header lacks a necessary column.
        """
        header = next(lines, b"")
        columns = header.decode("ascii", "replace").strip().split(",")
        if missing := {TIME, "gpu"}.difference(columns):
            raise ValueError(f"no column {' and '.join(sorted(missing))} in the first line")
        for number, line in enumerate(lines, 2):
            if line == header:
                continue
            try:
                self._add(dict(zip(columns, line.decode("ascii").rstrip("\r\n").split(","), strict=True)))
            except ValueError:  # of decode, too
                self.damaged += 1
                self.first_damaged = self.first_damaged or number

    def _add(self, cells: Mapping[str, str]) -> None:
        """Add a row. Raise ValueError, before anything changes, for one that no tool writes."""
        name = (cells["gpu"], cells.get("uuid", ""))
        time = _number(cells[TIME], _MAX_TIME_MS)
        values = {column: _number(cells.get(column, ""), limit) for column, limit in LIMITS.items()}
        reasons = self._parse_reasons(cells.get(REASONS, ""))
        if math.isnan(time) or not all(map(_NAME.fullmatch, name)) or (name not in self.gpus and self._is_full()):
            raise ValueError
        rows = self.gpus.get(name) or self.gpus.setdefault(name, _Rows())
        rows.times.append(time)
        rows.reasons.append(reasons)
        for column, value in values.items():
            rows.values[column].append(value)

    def _is_full(self) -> bool:
        return len(self.gpus) >= MAX_GPUS

    def _parse_reasons(self, cell: str) -> frozenset[str]:
        """Return the names in a cell. A file has few different cells: each is parsed once."""
        if cell not in self._combinations:
            names = frozenset(cell.split("|"))
            is_too_many = len(self._names | names) > MAX_REASONS or len(self._combinations) >= MAX_COMBINATIONS
            if is_too_many or not all(map(_REASON.fullmatch, names)):
                raise ValueError
            self._names |= names
            self._combinations[cell] = names
        return self._combinations[cell]


def _number(cell: str, limit: float) -> float:
    """Return the number in a cell, NaN for an empty one. Raise ValueError for an implausible one."""
    if not cell:
        return math.nan
    value = float(cell)
    if not 0 <= value <= limit:  # or NaN
        raise ValueError
    return value


def _window(run: RunSummary, rows: Iterable[_Rows]) -> tuple[float, float] | None:
    """Return run_start and run_stop, or the first and last reading for what the log lacks; None without a reading."""
    times = [time for each in rows for time in (min(each.times), max(each.times))]
    if not times:
        return None
    start = run.start_ms if run.start_ms is not None and 0 <= run.start_ms <= _MAX_TIME_MS else min(times)
    length = round(60_000 * run.minutes) if run.minutes is not None and math.isfinite(run.minutes) else 0
    return start, start + length if 0 < length <= _MAX_RUN_MS else min(max(times), start + _MAX_RUN_MS)


def _build(name: str, rows: _Rows, window: tuple[float, float]) -> GpuTelemetry:
    times = np.array(rows.times)
    order = np.argsort(times, kind="stable")
    reasons = frozenset[str]().union(*rows.reasons)
    return GpuTelemetry(
        name=name,
        times_ms=times[order],
        values={column: np.array(values)[order] for column, values in rows.values.items()},
        throttled={reason: np.array([reason in each for each in rows.reasons])[order] for reason in sorted(reasons)},
        window=window,
    )


def _node(path: Path) -> str:
    match = _NODE_FILE.fullmatch(path.stem)
    return f"node {match[1]}" if match else "node 0" if path.stem == "telemetry" else printable(path.stem)


def _natural_order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def read_telemetry(runs: Sequence[RunSummary]) -> tuple[dict[str, RunTelemetry], list[str]]:
    """Return the telemetry of the runs that have any, by log, and warnings about its files."""
    reader = TelemetryReader()
    found = {run.file: telemetry for run in runs if (telemetry := reader.read(run)) is not None}
    return found, reader.warnings
