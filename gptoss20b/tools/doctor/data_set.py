"""The data as a run opens it: both pairs, what verified them, and how fast they can be read."""

from __future__ import annotations

import json
import random
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ...config import Config
from ...data.files import DataError
from ...data.indexed_dataset import IndexedDataset
from ...data.samples import TRAIN_PREFIX, VALIDATION_PREFIX, ValidationSamples, Windows
from .finding import Finding, failed, passed, skipped, warned

# data_scripts/checking/report.py writes it; `gptoss20b` does not import what imports it.
_REPORT, _REPORT_KIND, _REPORT_BYTES = "verified.json", "data verification", 1 << 24
_SAMPLE_S, _SAMPLES = 1.0, 512
# 50.3 k tokens a second and GPU is the fastest published result of this benchmark (NVIDIA, GB300, v6.0), rounded up.
_TOKENS_PER_GPU_S = 60_000
_AGAIN = "run `python -m data_scripts verify {folder}`, and download again what it names"


def look_at_data(config: Config) -> list[Finding]:
    """Open both pairs, compare their sizes with the indexes, and read; nothing is written.

    Args:
        config: of the run; gives folder, sequence length, vocabulary and number of evaluation sequences.
    """
    folder = config.data.directory
    length, vocabulary = config.fixed.sequence_length, config.model.vocab_size
    with ExitStack() as stack:
        try:
            opened = {
                prefix: Windows(stack.enter_context(IndexedDataset.open(folder / prefix)), length, vocabulary)
                for prefix in (TRAIN_PREFIX, VALIDATION_PREFIX)
            }
            validation = ValidationSamples(opened[VALIDATION_PREFIX], config.fixed.eval_samples)
            eval_hash = validation.sha256()
            speed = _speed(opened[TRAIN_PREFIX], config.parallel.gpus_per_node)
        except DataError as error:
            return [failed("data", str(error), _AGAIN.format(folder=folder)), skipped("data verified", "no whole data")]
        counts = " and ".join(f"{windows.count:,}" for windows in opened.values())
        found = f"{folder}: {counts} sequences of {length:,} tokens to train and to validate"
        return [passed("data", found), _verified(config, folder, eval_hash), speed]


def _verified(config: Config, folder: Path, eval_hash: str) -> Finding:
    """Whether the report beside the data says that it was verified, and is about this data."""
    name, again = "data verified", f"python -m data_scripts verify {folder}"
    path = folder / _REPORT
    report = _report(path)
    if report is None:
        return warned(name, f"{path} is no report of a verification" if path.exists() else f"no {path}", again)
    if report.get("verdict") != "pass":
        return failed(name, f"{path} says {report.get('verdict')}, expected pass", _AGAIN.format(folder=folder))
    listed = report.get("files")
    for file, about in listed.items() if isinstance(listed, dict) else ():
        size, expected = _size(folder / file), about.get("bytes") if isinstance(about, dict) else None
        if size != expected:
            got = "no file" if size is None else f"{size:,} bytes"
            return failed(name, f"{folder / file}: {got}, expected {expected} as {path} has it", again)
    asked, hashed = report.get("expected"), report.get("eval_tokens_sha256")
    same = {"sequences": config.fixed.eval_samples, "sequence_length": config.fixed.sequence_length}
    comparable = isinstance(asked, dict) and all(asked.get(key) == value for key, value in same.items())
    if comparable and hashed != eval_hash:
        found = f"the evaluated tokens hash to {eval_hash[:16]}..., expected {str(hashed)[:16]}... as {path} has it"
        return failed(name, found, _AGAIN.format(folder=folder))
    left_out = report.get("not_checked")
    missing = (
        [check for check, files in left_out.items() if files]
        if isinstance(left_out, dict)
        else ["it does not say what"]
    )
    if missing:
        return warned(
            name, f"{path}: pass, but not checked: {', '.join(missing)}", f"{again}, without --quick or --no-md5"
        )
    return passed(name, f"{path}: pass, and {'evaluated tokens and ' if comparable else ''}sizes are still the same")


def _report(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes()) if path.stat().st_size < _REPORT_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("kind") == _REPORT_KIND else None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _speed(windows: Windows, ranks: int) -> Finding:
    """Read random windows for a second, one after the other, as one rank does."""
    chance, read, began = random.Random(), 0, time.monotonic()
    while (spent := time.monotonic() - began) < _SAMPLE_S and read < _SAMPLES:
        windows.window(chance.randrange(windows.count))
        read += 1
    tokens = read * windows.sequence_length / max(spent, 1e-9)
    wanted = ranks * _TOKENS_PER_GPU_S
    found = f"{tokens / 1e6:,.2f} million tokens a second in {read} random windows (what the page cache holds included)"
    if tokens < wanted:
        fix = "copy the data to a local disk: `rsync -a`, then `python -m data_scripts verify`"
        return warned("data speed", f"{found}, expected {wanted / 1e6:.2f} for {ranks} ranks", fix)
    return passed("data speed", found)
