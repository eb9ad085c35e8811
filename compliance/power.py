"""Energy of runs from the power logs beside a result, by the power measurement rules of MLPerf Training.

`power/result_<i>/` holds a log per node, `node_<j>.txt`, and per switch, `sw_<k>.txt`, of `:::MLLOG` records:
`power_measurement_start` and `_stop`, `power_reading` and `interconnect_power_est` in watts, and `conversion_eff`, a
factor on both for readings taken before the AC/DC conversion.

The rules sum each reading times the time since the one before it, over the timed portion of the run: rectangles, not
trapezoids. mlperf-logging's result_summarizer instead multiplies the mean power of the whole measurement by the time of
the run. The two are equal for a measurement that starts and ends with the run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from .benchmark import POWER_KEYS
from .file_tree import printable
from .findings import Energy, RunEnergy, RunSummary, Score
from .json_values import finite_float
from .log_files import InputError, read_plain_log
from .records import Log, ParseError
from .submission import ResultFolder

# Rules that report the errors of a device: what a public document states, and our own doubts.
POWER_RULE, DOUBT_RULE = "package-power", "package-power-doubt"
# A reading a second takes about 250 bytes. A day of them is 22 MB.
MAX_FILE_BYTES = 100_000_000
# Meters often log whole seconds, so that readings a second apart may seem two seconds apart.
MAX_GAP_S = 2.0
MAX_MEAN_INTERVAL_S = 1.05
MIN_READINGS = 60
# The rules allow "a small fraction of untimed operations".
MAX_UNTIMED = 0.1
_DEVICE = re.compile(r"(node|sw)_(\d{1,9})\.txt", re.ASCII)
_SHOWN_GAPS = 3
_VALUES = ("power_reading", "conversion_eff", "interconnect_power_est")


@dataclass(frozen=True, slots=True)
class Device:
    """One node or switch in one run.

    Attributes:
        joules: energy between run_start and run_stop; None if unknown.
        readings: readings in that time.
        missing: readings that a meter of one a second would have logged in gaps of over `MAX_GAP_S`.
    """

    file: str
    joules: float | None
    readings: int
    missing: int
    errors: tuple[ParseError, ...]


@dataclass(frozen=True, slots=True)
class RunPower:
    """Power logs of one run: its folder, numbered devices, and names of other files in the folder."""

    run: str
    path: str
    nodes: Mapping[int, Device]
    switches: Mapping[int, Device]
    others: tuple[str, ...]

    @property
    def devices(self) -> tuple[Device, ...]:
        """Return the nodes and switches, by number."""
        return (*self.nodes.values(), *self.switches.values())


def read_power(folder: ResultFolder, runs: Iterable[RunSummary]) -> tuple[RunPower, ...]:
    """Read the power logs of each run of a result folder; empty if the folder has none. Files may hold anything."""
    return tuple(_read_run(folder, run) for run in runs) if folder.power is not None else ()


def set_energy(power: Sequence[RunPower], score: Score | None) -> Energy | None:
    """Return the energy of a set: the olympic mean over the runs that the time score keeps. None without power logs."""
    if not power:
        return None
    runs = tuple(map(_run_energy, power))
    kept = set(score.window) - set(score.dropped) if score is not None and score.valid else set()
    known = [run.joules for run in runs if run.file in kept and run.joules is not None]
    olympic = sum(known) / len(known) if known and len(known) == len(kept) else None
    factor = None if score is None else score.normalization
    return Energy(olympic, None if olympic is None or factor is None else olympic * factor, runs)


def _run_energy(power: RunPower) -> RunEnergy:
    joules = [device.joules for device in power.devices if device.joules is not None]
    return RunEnergy(
        file=power.run,
        joules=sum(joules) if power.nodes and len(joules) == len(power.devices) else None,
        nodes=len(power.nodes),
        switches=len(power.switches),
        readings=sum(device.readings for device in power.devices),
        missing=sum(device.missing for device in power.devices),
    )


def _read_run(folder: ResultFolder, run: RunSummary) -> RunPower:
    name = Path(run.file).stem
    path = f"{folder.path}/power/{printable(name)}"
    files = sorted(file for file in folder.power or () if file.parent.name == name)
    # Rounded, because minutes are a quotient: a reading at run_stop must not fall out of the window.
    start, length = run.start_ms, round(60_000 * (run.minutes or 0))
    window = None if start is None or length <= 0 else (start, start + length)
    devices: dict[str, dict[int, Device]] = {"node": {}, "sw": {}}
    others = []
    for file in files:
        if match := _DEVICE.fullmatch(file.name):
            devices[match[1]][int(match[2])] = _read_device(file, f"{path}/{file.name}", window)
        else:
            others.append(file.name)
    nodes, switches = (dict(sorted(of_kind.items())) for of_kind in devices.values())
    return RunPower(run.file, path, nodes, switches, tuple(others))


def _read_device(file: Path, name: str, window: tuple[float, float] | None) -> Device:
    try:
        log = read_plain_log(file, MAX_FILE_BYTES)
    except InputError as error:
        return Device(name, None, 0, 0, (ParseError(POWER_RULE, None, str(error).removeprefix(f"{file}: ")),))
    return _measure(log, name, window, is_switch=file.name.startswith("sw"))


def _measure(log: Log, name: str, window: tuple[float, float] | None, *, is_switch: bool) -> Device:
    """Return the energy of a device between the times of ``window`` in ms, and the faults of its log."""
    errors = [replace(each, rule=DOUBT_RULE if each.line else POWER_RULE) for each in log.parse_errors]
    points: dict[str, list[tuple[float, float]]] = {key: [] for key in POWER_KEYS}
    for record in log.records:
        value = finite_float(record.value) if record.key in _VALUES else 0.0
        if value is None or value < 0:
            message = f"{record.key} is not a possible value; expected a number of 0 or more"
            shown = str(record.value)[:80] if isinstance(record.value, str | int | float | None) else "no number"
            errors.append(ParseError(POWER_RULE, record.line, message, shown))
        elif record.key in points:
            points[record.key].append((record.time_ms, value))
    # The last one counts, as in the official tool.
    _, efficiency = max(points["conversion_eff"], default=(0.0, 1.0))
    if not 0 < efficiency <= 1:
        message = "conversion_eff is not an efficiency; expected more than 0, at most 1"
        errors.append(ParseError(DOUBT_RULE, None, message, str(efficiency)))
    begin, _ = min(points["power_measurement_start"], default=(None, 0))
    end, _ = max(points["power_measurement_stop"], default=(None, 0))
    readings = sorted(points["power_reading"])
    joules, inside, missing = None, 0, 0
    if is_switch and points["interconnect_power_est"]:
        _, watts = max(points["interconnect_power_est"])
        joules = None if window is None else efficiency * watts * (window[1] - window[0]) / 1000
    elif not readings:
        expected = "interconnect_power_est or power_reading" if is_switch else "power_reading"
        errors.append(ParseError(POWER_RULE, None, f"no {expected}: the power of this device is not known"))
    else:
        errors += _record_errors(begin, end, is_switch=is_switch)
        if window is not None:
            first = readings[0][0] if begin is None else begin
            joules = efficiency * integrate(readings, first, window)
            inside, missing, found = _window_errors([time for time, _ in readings], window)
            errors += found
            errors += _untimed(begin, end, window) if inside else ()
    return Device(name, joules, inside, missing, tuple(errors))


def integrate(readings: Iterable[tuple[float, float]], begin: float, window: tuple[float, float]) -> float:
    """Return the sum of each reading in W times the time since the one before within the window in ms, in J."""
    joules, before = 0.0, begin
    for time, watts in readings:
        joules += watts * max(0.0, min(time, window[1]) - max(before, window[0])) / 1000
        before = time
    return joules


def _record_errors(begin: float | None, end: float | None, *, is_switch: bool) -> Iterator[ParseError]:
    if is_switch:
        message = "readings without interconnect_power_est: the official summarizer counts no power for this switch"
        yield ParseError(DOUBT_RULE, None, message)
    elif begin is None:
        yield ParseError(POWER_RULE, None, "no power_measurement_start, without which the official summarizer fails")
    if end is None:
        yield ParseError(DOUBT_RULE, None, "no power_measurement_stop: was the measurement cut short?")


def _window_errors(times: Sequence[float], window: tuple[float, float]) -> tuple[int, int, list[ParseError]]:
    """Return the readings in the window, the seconds of it that lack one, and the errors. Times in ms, sorted."""
    start, stop = window
    inside = [time for time in times if start <= time <= stop]
    seconds = (stop - start) / 1000
    gaps = [
        ((before - start) / 1000, (time - before) / 1000)
        for before, time in pairwise([start, *inside, stop])
        if time - before > 1000 * MAX_GAP_S
    ]
    missing = sum(math.ceil(length) - 1 for _, length in gaps)
    rule = "the rules want a reading a second from run_start to run_stop"
    errors = []
    if gaps and not inside:
        message = f"no reading between run_start and run_stop; are both clocks right? {rule}"
        errors.append(ParseError(POWER_RULE, None, message))
    elif gaps:
        shown = ", ".join(f"{length:,.1f} s from {at:,.1f} s on" for at, length in gaps[:_SHOWN_GAPS])
        more = f" and {len(gaps) - _SHOWN_GAPS} more" if len(gaps) > _SHOWN_GAPS else ""
        errors.append(ParseError(POWER_RULE, None, f"samples are missing: none for {shown}{more}; {rule}"))
    elif seconds > MAX_MEAN_INTERVAL_S * (len(inside) + 1):
        errors.append(ParseError(POWER_RULE, None, f"{len(inside):,} readings in {seconds:,.0f} s; {rule}"))
    if len(times) < MIN_READINGS:
        message = f"{len(times)} readings; the rules suggest a longer measurement, with at least {MIN_READINGS}"
        errors.append(ParseError(DOUBT_RULE, None, message))
    return len(inside), missing, errors


def _untimed(begin: float | None, end: float | None, window: tuple[float, float]) -> Iterator[ParseError]:
    start, stop = window
    untimed = max(0.0, start - (start if begin is None else begin)) + max(0.0, (stop if end is None else end) - stop)
    if untimed > MAX_UNTIMED * (stop - start):
        message = f"{untimed / 1000:,.0f} s of untimed operations, which the official summarizer averages in"
        yield ParseError(DOUBT_RULE, None, message)
