"""Error of the progress line's time to the target: `python -m benchmarks.target_estimate FOLDER...`.

At each share of a run's samples to its first passing evaluation, the estimate of the latest evaluation is compared with
the samples that were left. Figures of record: benchmarks/README.md.
"""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path

from compliance.benchmark import TARGET_LOSS
from compliance.log_files import find_logs, read_log
from gptoss20b.callbacks.loss_curve import Point, samples_to_target

SHARES = (0.25, 0.5, 0.75)


def error_of_rest(train: list[Point], evaluations: list[Point], target: float, share: float) -> float | None:
    """Return the relative error of the samples left at this share of the run; None while it says "unknown"."""
    interval = evaluations[0][0]
    end = next(n for n, loss in evaluations if loss <= target)
    now = share * end
    seen = [point for point in evaluations if point[0] <= now]
    reach = samples_to_target([point for point in train if 0 < point[0] <= (seen or [(0, 0)])[-1][0]], seen, target)
    if reach is None:
        return None
    passing = max(math.ceil(reach / interval), math.floor(now / interval) + 1) * interval
    return (passing - end) / (end - now)


def errors_at(folder: Path, share: float) -> tuple[str, float, float]:
    """Return how many logs of a folder have an estimate, and the median and the largest error."""
    errors = []
    for log in map(read_log, find_logs([folder])):
        target = next((record.value for record in log.records if record.key == "target_accuracy"), TARGET_LOSS)
        evaluations = [
            (int(record.metadata["samples_count"]), float(record.value))
            for record in log.records
            if record.key == "eval_accuracy"
        ]
        train = [(int(n), x) for n, x in zip(log.train_losses.samples, log.train_losses.losses, strict=True)]
        errors.append(error_of_rest(train, evaluations, target, share))
    known = [abs(error) for error in errors if error is not None] or [math.nan]
    return f"{sum(error is not None for error in errors)} of {len(errors)}", statistics.median(known), max(known)


def main() -> None:
    """Print the table."""
    print("| logs | share of the run | estimates | median relative error | largest |\n|---|---|---|---|---|")
    for folder in map(Path, sys.argv[1:]):
        for share in SHARES:
            count, median, largest = errors_at(folder, share)
            errors = f"{100 * median:.0f} % | {100 * largest:.0f} %".replace("nan %", "-")
            print(f"| {folder.name} | {share:g} | {count} | {errors} |")


if __name__ == "__main__":
    main()
