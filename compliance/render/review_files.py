"""Files of a review: summary.csv, summary.xlsx, summary.json and index.html; and the same table for a terminal.

Every value in a table comes from untrusted logs or descriptions. The page escapes them, and its content security policy
allows one script: the one that sorts the table.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..findings import Verdict
from ..review import Review, ReviewedResult
from .formatting import NOTHING, count, number
from .report_file import printed
from .terminal import draw, template_environment

Value = str | int | float | None
VERDICT_STYLES = {Verdict.PASS: "bold green", Verdict.FAIL: "bold red", Verdict.ERROR: "bold magenta"}


@dataclass(frozen=True)
class Column:
    """A column of the table: title, value of a result, and format of a number; None for text."""

    title: str
    value: Callable[[ReviewedResult], Value]
    format: Callable[[Any], str] | None = None

    def text(self, result: ReviewedResult) -> str:
        """Return the value as people read it."""
        value = self.value(result)
        return NOTHING if value in (None, "") else self.format(value) if self.format else str(value)


def _decimals(digits: int) -> Callable[[Any], str]:
    return lambda value: number(value, digits)


def _size(result: ReviewedResult) -> str | None:
    counts = (result.nodes, result.accelerators_per_node)
    return None if None in counts else " x ".join(map(str, counts))


COLUMNS = (
    Column("Submitter", lambda result: result.submitter),
    Column("System", lambda result: result.system),
    Column("Submission", lambda result: result.submission),
    Column("Verdict", lambda result: result.verdict.value),
    Column("Failed rules", lambda result: ", ".join(result.failed_rules) or result.reason),
    Column("Same runs as", lambda result: ", ".join(result.same_runs_as)),
    Column("Normalised minutes", lambda result: result.normalized_minutes, _decimals(2)),
    Column("Minutes", lambda result: result.minutes, _decimals(2)),
    Column("Errors", lambda result: result.errors, number),
    Column("Warnings", lambda result: result.warnings, number),
    Column("Nodes x accelerators", _size),
    Column("Official tools", lambda result: result.official),
    Column("Accelerator", lambda result: result.accelerator),
    Column("Division", lambda result: result.division),
    Column("Status", lambda result: result.status),
    Column("GBS", lambda result: result.global_batch_size, number),
    Column("Learning rate", lambda result: result.learning_rate, "{:g}".format),
    Column("Warm-up steps", lambda result: result.warmup_steps, number),
    Column("Layout", lambda result: result.layout),
    Column("Precision", lambda result: result.precision),
    Column("Runs", lambda result: result.runs, number),
    Column("Samples to target", lambda result: result.samples, _decimals(0)),
    Column("Factor", lambda result: result.normalization, _decimals(4)),
    Column("RCP margin, samples", lambda result: result.rcp_margin_samples, _decimals(0)),
    Column("CV of samples, %", lambda result: result.samples_cv_percent, _decimals(2)),
    Column("CV of minutes, %", lambda result: result.minutes_cv_percent, _decimals(2)),
    Column("Seconds per sample", lambda result: result.seconds_per_sample, _decimals(4)),
    Column("Energy, kJ", lambda result: result.energy_joules and result.energy_joules / 1e3, _decimals(1)),
    Column("Waived", lambda result: result.waived, number),
    Column("Notes", lambda result: result.notes, number),
    Column("Report", lambda result: result.page),
)


def write_files(review: Review, out: Path) -> None:
    """Write the files of a review to a folder, which exists.

    Raises:
        OSError: a file cannot be written.
    """
    import pandas as pd

    from ..documents import to_json
    from ..frames import write_frame

    rows = [[column.value(result) for column in COLUMNS] for result in review.results]
    frame = pd.DataFrame(rows, columns=[column.title for column in COLUMNS], dtype=object)
    for name in ("summary.csv", "summary.xlsx"):
        write_frame(frame, out / name)
    (out / "summary.json").write_text(to_json(review), encoding="ascii")
    (out / "index.html").write_text(index_page(review), encoding="utf-8")


def index_page(review: Review) -> str:
    """Return the page with the table, which loads nothing and links to the pages of the results."""
    environment = template_environment(printed)
    script = (Path(__file__).parent / "templates" / "sort_table.js").read_text(encoding="ascii")
    return environment.get_template("review.html.j2").render(
        review=review,
        counts=_counts(review),
        others=_others(review),
        columns=[each for each in COLUMNS[:-1] if any(map(each.value, review.results))],  # the link is on the system
        script=Markup(script),
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
    )


def review_text(review: Review, out: Path, width: int, colour: bool) -> str:
    """Return the main columns of the table, and where the files are."""
    values = {"counts": _counts(review), "others": _others(review), "styles": VERDICT_STYLES, "number": number}
    return draw("review.txt.j2", width, colour, {}, review=review, out=str(out), **values)


def _counts(review: Review) -> str:
    parts = [f"{review.count(verdict):,} {verdict}" for verdict in Verdict]
    held = f"{count(len(review.results), 'result')} of {review.benchmark} in {count(review.submissions, 'submission')}"
    return f"{held}: {', '.join(parts)}"


def _others(review: Review) -> str:
    """Return the results of other benchmarks in a sentence, "" without any."""
    others = review.other_benchmarks
    names = ", ".join(f"{name} {results:,}" for name, results in others.items())
    amount = f"{count(sum(others.values()), 'result')} of {count(len(others), 'other benchmark')}"
    return f"Not judged: {amount} ({names})." if others else ""
