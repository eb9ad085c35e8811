"""The data as a run opens it: both indexed datasets, the report of their verification, and the reading speed."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ...config import Config
from ...data.files import DataError
from ...data.indexed_dataset import IndexedDataset
from ...data.samples import TRAIN_PREFIX, VALIDATION_PREFIX, ValidationSamples, Windows
from ...data.verification_report import REPORT_NAME, load_report
from .finding import Finding, failed, passed, skipped, warned

_SAMPLE_S, _MAX_SAMPLES = 1.0, 512
# The fastest published result of this benchmark reads 50.3 k tokens/s per GPU (NVIDIA, GB300, v6.0), here rounded up.
_TOKENS_PER_GPU_S = 60_000


def check_dataset(config: Config) -> list[Finding]:
    """Open both datasets, compare their sizes with the indexes, and read. Nothing is written."""
    folder = config.data.directory
    length, vocabulary = config.fixed.sequence_length, config.model.vocab_size
    with ExitStack() as stack:
        try:
            windows = {
                prefix: Windows(stack.enter_context(IndexedDataset.open(folder / prefix)), length, vocabulary)
                for prefix in (TRAIN_PREFIX, VALIDATION_PREFIX)
            }
            validation = ValidationSamples(windows[VALIDATION_PREFIX], config.fixed.eval_samples)
            eval_hash = validation.sha256()
            speed = _measure_speed(windows[TRAIN_PREFIX], config.parallel.gpus_per_node)
        except DataError as error:
            return [failed("data", str(error), _replace_fix(folder)), skipped("data verified", "no whole data")]
        counts = " and ".join(f"{each.count:,}" for each in windows.values())
        found = f"{folder}: {counts} sequences of {length:,} tokens to train and to validate"
        return [passed("data", found), _check_verification(config, folder, eval_hash), speed]


def _replace_fix(folder: Path) -> str:
    return f"run `python -m data_scripts verify {folder}`, and download again what it names"


def _check_verification(config: Config, folder: Path, eval_hash: str) -> Finding:
    """Check that the report beside the data says that it was verified, and is about this data."""
    name, path, verify = "data verified", folder / REPORT_NAME, f"python -m data_scripts verify {folder}"
    try:
        report = load_report(path)
    except OSError:
        report = None
    if report is None:
        return warned(name, f"{path} is no report of a verification" if path.exists() else f"no {path}", verify)
    if report.get("verdict") != "pass":
        return failed(name, f"{path} says {report.get('verdict')}, expected pass", _replace_fix(folder))
    if difference := next(_size_differences(report, folder), None):
        return failed(name, f"{difference} as {path} has it", verify)
    expected, report_hash = report.get("expected"), report.get("eval_tokens_sha256")
    ours = {"sequences": config.fixed.eval_samples, "sequence_length": config.fixed.sequence_length}
    # The hash depends on how many sequences of which length are evaluated.
    comparable = isinstance(expected, dict) and all(expected.get(key) == value for key, value in ours.items())
    if comparable and report_hash != eval_hash:
        hashes = f"hash to {eval_hash[:16]}..., expected {str(report_hash)[:16]}..."
        return failed(name, f"the evaluated tokens {hashes} as {path} has it", _replace_fix(folder))
    unchecked = report.get("not_checked")
    missing = ["the report does not name them"]
    if isinstance(unchecked, dict):
        missing = [check for check, files in unchecked.items() if files]
    if missing:
        fix = f"{verify}, without --quick or --no-md5"
        return warned(name, f"{path}: pass, but not checked: {', '.join(missing)}", fix)
    return passed(name, f"{path}: pass, and {'evaluated tokens and ' if comparable else ''}sizes are still the same")


def _size_differences(report: dict[str, Any], folder: Path) -> Iterator[str]:
    """Yield a message for each file whose size is not the report's."""
    files = report.get("files")
    for file, entry in files.items() if isinstance(files, dict) else ():
        expected = entry.get("bytes") if isinstance(entry, dict) else None
        try:
            size = (folder / file).stat().st_size
        except OSError:
            yield f"{folder / file}: no file, expected {expected}"
        else:
            if size != expected:
                yield f"{folder / file}: {size:,} bytes, expected {expected}"


def _measure_speed(windows: Windows, ranks: int) -> Finding:
    """Read random windows for a second, one after the other, as one rank does."""
    generator, count, began = random.Random(), 0, time.monotonic()
    while (elapsed := time.monotonic() - began) < _SAMPLE_S and count < _MAX_SAMPLES:
        windows.window(generator.randrange(windows.count))
        count += 1
    rate = count * windows.sequence_length / max(elapsed, 1e-9)
    needed = ranks * _TOKENS_PER_GPU_S
    found = f"{rate / 1e6:,.2f} million tokens/s in {count} random windows (some of them from the page cache)"
    if rate < needed:
        fix = "copy the data to a local disk: `rsync -a`, then `python -m data_scripts verify`"
        return warned("data speed", f"{found}, expected {needed / 1e6:.2f} for {ranks} ranks", fix)
    return passed("data speed", found)
