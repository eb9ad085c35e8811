"""The data as a run opens it: both indexed datasets, the report of their verification, and the reading speed."""

from __future__ import annotations

import os
import random
import time
from contextlib import ExitStack
from pathlib import Path

from ...config import Config
from ...data.files import DataError, append_suffix
from ...data.indexed_dataset import IndexedDataset
from ...data.samples import TRAIN_PREFIX, VALIDATION_PREFIX, ValidationSamples, Windows
from ...data.verification_report import REPORT_NAME, load_report
from .finding import Finding, failed, judged, passed, skipped, warned

_SAMPLE_S, _MAX_SAMPLES = 1.0, 512
# The fastest published result of this benchmark reads 50.3 k tokens/s per GPU (NVIDIA, GB300, v6.0), here rounded up.
_TOKENS_PER_GPU_S = 60_000
_VERIFY, _REPLACE = "python -m data_scripts verify", "and download again what it names"


def check_data_files(config: Config) -> Finding:
    """Check that the files exist and are not empty. They are not opened: the rules forbid that before the clock."""
    folder = config.data.directory
    get = f"data_scripts/download_dataset.sh '{folder}', or python -m data_scripts.make_sample_data '{folder}'"
    fix = f"name the folder of the data in DATADIR, or get them: {get}"
    # Path.is_dir would raise an error below a folder that this user cannot enter.
    if not (os.access(folder, os.X_OK) and folder.is_dir()):
        return failed("data", f"DATADIR: got '{folder}', expected a folder with the data", fix)
    prefixes = (TRAIN_PREFIX, VALIDATION_PREFIX)
    files = [append_suffix(folder / prefix, suffix) for prefix in prefixes for suffix in (".bin", ".idx")]
    lacking = [path.name for path in files if not (path.is_file() and path.stat().st_size)] or [
        f"permission to read {path.name}" for path in files if not os.access(path, os.R_OK)
    ]
    found = f"DATADIR: '{folder}' lacks {', '.join(lacking)}" if lacking else f"{folder}: all files are there"
    return judged("data", found, fix, fails=bool(lacking))


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
            return [
                failed("data", str(error), f"{_VERIFY} {folder}, {_REPLACE}"),
                skipped("data verified", "no whole data"),
            ]
        counts = " and ".join(f"{each.count:,}" for each in windows.values())
        found = f"{folder}: {counts} sequences of {length:,} tokens to train and to validate"
        return [passed("data", found), _check_verification(config, folder, eval_hash), speed]


def _check_verification(config: Config, folder: Path, eval_hash: str) -> Finding:
    """Check that the report beside the data says that it was verified, and is about this data."""
    name, path, verify = "data verified", folder / REPORT_NAME, f"{_VERIFY} {folder}"
    try:
        report = load_report(path)
    except OSError:
        report = None
    if report is None:
        return warned(name, f"{path} is missing, or no report of a verification", verify)
    if report["verdict"] != "pass":
        return failed(name, f"{path} says {report['verdict']}, expected pass", f"{verify}, {_REPLACE}")
    for file, entry in report["files"].items():
        size = (folder / file).stat().st_size if (folder / file).exists() else None
        if size != entry["bytes"]:
            return failed(name, f"{folder / file}: {size} bytes, expected {entry['bytes']} as {path} has it", verify)
    # The hash depends on how many sequences of which length are evaluated.
    ours = {"sequences": config.fixed.eval_samples, "sequence_length": config.fixed.sequence_length}
    if ours.items() <= report["expected"].items() and report["eval_tokens_sha256"] != eval_hash:
        found = f"the evaluated tokens hash to {eval_hash}, expected {report['eval_tokens_sha256']} as {path} has it"
        return failed(name, found, f"{verify}, {_REPLACE}")
    unchecked = [check for check, files in report["not_checked"].items() if files]
    found = f"{path}: pass, and the data did not change; not checked: {', '.join(unchecked) or 'nothing'}"
    return judged(name, found, f"{verify}, without --quick or --no-md5", warns=bool(unchecked))


def _measure_speed(windows: Windows, ranks: int) -> Finding:
    """Read random windows for a second, one after the other, as one rank does."""
    generator, count, began = random.Random(), 0, time.monotonic()
    while (elapsed := time.monotonic() - began) < _SAMPLE_S and count < _MAX_SAMPLES:
        windows.window(generator.randrange(windows.count))
        count += 1
    rate = count * windows.sequence_length / max(elapsed, 1e-9)
    needed = ranks * _TOKENS_PER_GPU_S
    found = f"{rate / 1e6:,.2f} million tokens/s in {count} random windows (some of them from the page cache)"
    fix = "copy the data to a local disk: `rsync -a`, then verify it"
    return judged("data speed", f"{found}, expected {needed / 1e6:.2f} for {ranks} ranks", fix, warns=rate < needed)
