"""Benchmark of opening C4 at full size: this project's sample order against Megatron-Core's `GPTDataset`.

`python -m benchmarks.data_index` makes an indexed dataset with as many documents as the published training set: 45.6
million, log-normal lengths, 19.9 billion tokens. The `.bin` is sparse, so it takes no space and reading it costs no
disk. For each of the two, in a new process, a first and a second start measure:

- seconds from the end of the imports to the first training sample;
- peak private memory (anonymous pages) of that, in MiB, and bytes written to disk, in MB;
- milliseconds per sample at random positions.

Megatron builds what the reference needs: 19.2 million samples, max_steps x GBS 16. Its second start finds its cache
filled. Figures of record: benchmarks/README.md.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer

from data_scripts.dataset_writer import TOKEN_DTYPE, DatasetSize, IndexedDatasetWriter
from gptoss20b.config import resolve
from gptoss20b.data.indexed_dataset import IndexedDataset
from gptoss20b.data.samples import TRAIN_PREFIX, TrainingSamples, Windows

DOCUMENTS = 45_600_000
# natural logarithm's mean and standard deviation of a document's tokens; the mean length is 436
_LENGTH_LOG_MEAN, _LENGTH_LOG_SD = 5.58, 1.0
_CONFIG = resolve({})
SEQUENCE_LENGTH = _CONFIG.fixed.sequence_length
SAMPLES = _CONFIG.fixed.max_steps * _CONFIG.free.global_batch_size
SEED = 1


def main(
    documents: Annotated[int, typer.Option(min=1000, help="Documents of the index.")] = DOCUMENTS,
    samples: Annotated[int, typer.Option(min=1, help="Samples that Megatron builds.")] = SAMPLES,
) -> None:
    """Time the first sample of ours and of Megatron-Core's GPTDataset."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        figures: dict[str, Any] = _describe(folder, documents)
        for start in ("first", "second"):
            for name, measure in (("ours", _measure_ours), ("megatron", _measure_megatron)):
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                    figures[f"{name}, {start} start"] = process.submit(measure, folder, samples).result()
    for key, value in figures.items():
        typer.echo(f"{key}: {value}")


def make_dataset(prefix: Path, documents: int) -> int:
    """Write an index of that many documents and a sparse `.bin` of zeros; return the number of tokens."""
    rng = np.random.default_rng(0)
    lengths_file = prefix.with_name("lengths")
    writer = IndexedDatasetWriter(Path(f"{prefix}.bin"), lengths_file)
    total = 0
    with lengths_file.open("wb") as stream:
        for first in range(0, documents, 1_000_000):
            drawn = rng.lognormal(_LENGTH_LOG_MEAN, _LENGTH_LOG_SD, min(1_000_000, documents - first))
            lengths = np.maximum(drawn.astype("<i4"), 1)
            stream.write(lengths.data)
            total += int(lengths.sum(dtype=np.int64))
    writer.size = DatasetSize(documents, total)
    writer.write_index(Path(f"{prefix}.idx"))
    writer.close()
    lengths_file.unlink()
    os.truncate(f"{prefix}.bin", total * TOKEN_DTYPE.itemsize)
    return total


def _describe(folder: Path, documents: int) -> dict[str, Any]:
    tokens = make_dataset(folder / TRAIN_PREFIX, documents)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "megatron-core": version("megatron-core"),
        "documents": f"{documents:,}",
        "tokens": f"{tokens:,}",
        "index, MB": round((folder / f"{TRAIN_PREFIX}.idx").stat().st_size / 1e6),
    }


def _private_mib() -> float:
    """Return the anonymous memory of this process in MiB. Mapped files do not count: they are page cache."""
    memory = psutil.Process().memory_info()
    return float(memory.rss - memory.shared) / 2**20


class _PeakMemory:
    """Peak private memory of a block beyond that at its start, in MiB, sampled every millisecond."""

    def __enter__(self) -> _PeakMemory:
        self._before, self.mib = _private_mib(), 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_done, daemon=True)
        self._thread.start()
        return self

    def _sample_until_done(self) -> None:
        while not self._done.wait(0.001):
            self._sample()

    def _sample(self) -> None:
        self.mib = max(self.mib, _private_mib() - self._before)

    def __exit__(self, *error: object) -> None:
        self._sample()
        self._done.set()
        self._thread.join()


def _measure(open_set: Callable[[], Callable[[int], Any]], count: int, samples: int, cache: Path) -> dict[str, Any]:
    """Open a set, read its first sample, then `samples` at random positions below `count`."""
    with _PeakMemory() as memory:
        started = time.perf_counter()
        sample_at = open_set()
        sample_at(0)
        ready = time.perf_counter() - started
    each = []
    for position in np.random.default_rng(1).integers(0, count, samples):
        started = time.perf_counter()
        sample_at(int(position))
        each.append(time.perf_counter() - started)
    written = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) if cache.exists() else 0
    return {
        "ready, s": round(ready, 4),
        "private memory, MiB": round(memory.mib, 1),
        "cache, MB": round(written / 1e6),
        "random sample, ms": round(statistics.median(each) * 1e3, 3),
        "slowest of them, ms": round(max(each) * 1e3, 3),
    }


def _measure_ours(folder: Path, samples: int) -> dict[str, Any]:
    def open_set() -> Callable[[int], Any]:
        dataset = IndexedDataset.open(folder / TRAIN_PREFIX)
        return TrainingSamples(Windows(dataset, SEQUENCE_LENGTH, 128_256), SEED).sample

    before = sorted(folder.iterdir())
    figures = _measure(open_set, samples, 1000, folder / "none")
    if sorted(folder.iterdir()) != before:
        raise RuntimeError(f"files were written beside the data: {sorted(folder.iterdir())}")
    return figures


class _Tokenizer:
    """The attributes of a tokenizer that GPTDataset reads when no mask depends on them."""

    eod, vocab_size = 0, 128_256
    unique_identifiers: dict[str, str] = {}  # noqa: RUF012 - Megatron reads the attribute


def _measure_megatron(folder: Path, samples: int) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    cache = folder / "megatron_cache"

    def open_set() -> Callable[[int], Any]:
        config = GPTDatasetConfig(
            random_seed=SEED,
            sequence_length=SEQUENCE_LENGTH,
            blend_per_split=[([str(folder / TRAIN_PREFIX)], None), None, None],
            path_to_cache=str(cache),
            tokenizer=_Tokenizer(),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        built = BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()
        return built[0].__getitem__  # type: ignore[no-any-return]

    return _measure(open_set, samples, 50, cache)


if __name__ == "__main__":
    typer.run(main)
