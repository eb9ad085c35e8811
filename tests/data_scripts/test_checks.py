"""A whole verification: what is read, how often and by how many threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from data_scripts.checking import reading
from data_scripts.checking.checks import verify
from data_scripts.checking.expectations import Expectations
from data_scripts.checking.report import Scope, Verification
from data_scripts.progress import ByteProgress
from gptoss20b.data import index as index_module
from gptoss20b.data.samples import VALIDATION_PREFIX
from tests.support.small_sets import (
    EVAL_SAMPLES,
    FILES,
    LENGTH,
    TRAIN_BIN,
    TRAIN_IDX,
    VALIDATION_BIN,
    VALIDATION_DOCUMENTS,
    VALIDATION_IDX,
)

EXPECTED = Expectations(
    documents={VALIDATION_PREFIX: VALIDATION_DOCUMENTS}, eval_samples=EVAL_SAMPLES, sequence_length=LENGTH
)
FULL = Scope(checksums=True, tokens=True, threads=2)


class Watch(ByteProgress):
    """Progress that adds up, and does something once, after a number of bytes."""

    def __init__(self, after: int | None = None, act: Callable[[], None] = lambda: None) -> None:
        super().__init__("watch")
        self.total = self.done = 0
        self.after, self.act = after, act

    def begin(self, total: int, done: int = 0) -> Self:
        self.total = total
        return self

    def advance(self, size: int) -> None:
        self.done += size
        if self.after is not None and self.done >= self.after:
            self.after = None
            self.act()


def check(folder: Path, watch: Watch | None = None, scope: Scope = FULL) -> Verification:
    return verify(folder, EXPECTED, scope, watch or Watch())


def test_each_bin_is_read_once_for_both_checks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_bytes = dict.fromkeys(FILES, 0)
    real = os.pread
    lock = threading.Lock()

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        data = real(descriptor, size, offset)
        with lock:
            read_bytes[name] += len(data)
        return data

    monkeypatch.setattr(os, "pread", pread)
    assert check(folder).findings == []
    assert read_bytes[TRAIN_BIN] == (folder / TRAIN_BIN).stat().st_size
    evaluated = 4 * EVAL_SAMPLES * (LENGTH + 1)
    assert read_bytes[VALIDATION_BIN] == (folder / VALIDATION_BIN).stat().st_size + evaluated
    read_bytes[TRAIN_BIN] = 0
    check(folder, scope=Scope(checksums=False, tokens=False, threads=1))
    assert read_bytes[TRAIN_BIN] == 0


def test_progress_ends_at_its_total(folder: Path) -> None:
    watch = Watch()
    check(folder, watch)
    sizes = {name: (folder / name).stat().st_size for name in FILES}
    assert watch.total == sum(sizes.values()) + sizes[TRAIN_IDX] + sizes[VALIDATION_IDX]
    assert watch.done == watch.total - 2 * 34, "all but the two headers"


@pytest.mark.parametrize("name", [TRAIN_BIN, TRAIN_IDX])
def test_a_file_cut_while_it_is_read_is_a_finding(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory map, whose pages beyond the new end would kill the process."""
    monkeypatch.setattr(reading, "PIECE", 64)
    sizes = {each: (folder / each).stat().st_size for each in FILES}
    before = sizes[TRAIN_IDX] + sizes[VALIDATION_IDX] - 2 * 34 + (0 if name == TRAIN_BIN else sizes[TRAIN_BIN])
    # after the first piece of the file
    found = check(folder, Watch(before + 64, lambda: os.truncate(folder / name, 150)))
    (finding,) = [finding for finding in found.findings if finding.file == name]
    assert "at byte" in finding.message
    assert "cut while it was in use" in finding.message
    assert name not in found.digests
    assert name in found.skipped["checksums"]


def test_an_index_cut_while_its_tables_are_read_is_a_finding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_BLOCK", 4)
    watch = Watch(4 * 12, lambda: os.truncate(folder / TRAIN_IDX, 40))
    found = check(folder, watch, Scope(checksums=False, tokens=True, threads=1)).findings
    assert found[0].file == TRAIN_IDX
    assert "cut while it was in use" in found[0].message
