"""Rules on power logs beside a result. Without a folder power/ they are silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..file_tree import printable
from ..findings import Severity
from ..power import DOUBT_RULE, POWER_RULE, RunPower
from .packages import PackageContext
from .rule import OFFICIAL, OWN, Problem, parse_problems, rule

_RULES = f"training_policies, power_measurement.adoc; {OFFICIAL}package_checker/power_checker and result_summarizer"


@rule(POWER_RULE, Severity.ERROR, _RULES)
def package_power(context: PackageContext) -> Iterator[Problem]:
    """Require power logs, where a result has any, of every node in every run, with a reading a second.

    power/result_<i>/ holds node_<j>.txt and sw_<k>.txt, numbered from 0, as many in every run. Nodes are those of the
    system description. Readings are at most two seconds apart from run_start to run_stop; whole seconds of that time
    without one are missing samples. The result is the energy of each run, and that of the set: the mean of the runs
    that the score keeps.
    """
    for system, power in context.power.items():
        nodes = _described_nodes(context, system)
        for kind, prefix in (("nodes", "node"), ("switches", "sw")):
            counts = Counter(len(getattr(run, kind)) for run in power)
            usual = counts.most_common(1)[0][0] if counts else 0
            for run in power:
                numbers = list(getattr(run, kind))
                if kind == "nodes" and not numbers:
                    yield Problem("no power log of this run; the rules want all runs measured", file=run.path)
                elif numbers != list(range(len(numbers))):
                    message = f"{prefix}_<number>.txt are not numbered from 0 without a gap"
                    yield Problem(message, file=run.path, expected=f"0 to {len(numbers) - 1}", got=numbers)
                elif len(numbers) != usual:
                    message = f"another number of {kind} than in the other runs"
                    yield Problem(message, file=run.path, expected=usual, got=len(numbers))
        for run in power:
            if nodes is not None and 0 < len(run.nodes) < nodes:
                message = "power logs of some nodes only; the rules want all nodes of a run measured"
                yield Problem(message, file=run.path, expected=f"{nodes} nodes", got=len(run.nodes))
            yield from _device_problems(run, POWER_RULE)


@rule(DOUBT_RULE, Severity.WARNING, OWN)
def package_power_doubt(context: PackageContext) -> Iterator[Problem]:
    """Warn about power logs of which the rules say too little to fail them.

    Corrupt records, no power_measurement_stop, fewer than 60 readings, untimed operations of over a tenth of the run, a
    conversion_eff above 1, switches whose readings the official summarizer does not count, several nodes without a
    switch, and other files.
    """
    for system, power in context.power.items():
        nodes = _described_nodes(context, system)
        for run in power:
            if run.others:
                message = f"not named node_<j>.txt or sw_<k>.txt: {', '.join(map(printable, run.others[:5]))}"
                yield Problem(message, file=run.path)
            if nodes is not None and nodes > 1 and run.nodes and not run.switches:
                message = f"{nodes} nodes and no sw_<k>.txt: the rules want interconnects measured or estimated"
                yield Problem(message, file=run.path)
            yield from _device_problems(run, DOUBT_RULE)


def _described_nodes(context: PackageContext, system: str) -> int | None:
    description = context.submission.systems.get(system)
    return None if description is None else description.count("number_of_nodes")


def _device_problems(run: RunPower, rule_id: str) -> Iterator[Problem]:
    for device in run.devices:
        yield from parse_problems(device.errors, rule_id, device.file)
