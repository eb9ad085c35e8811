"""Opening C4 at full size: this project's order beside Megatron-Core's `GPTDataset`, in processes of their own.

`python -m benchmarks.data_index` makes a pair with as many documents as the published training set (45.6 million,
log-normal lengths, 19.9 billion tokens; the token file is sparse, so it takes no space and reading it costs no disk)
and measures, for each of the two, a first start and a second one:

- seconds from the imports' end to the first training sample;
- peak private memory (anonymous pages) that this takes, in MiB, and what was written to disk, in MB;
- milliseconds per sample at random positions.

Megatron is asked for what the reference asks of it: 19.2 million samples, max_steps x GBS 16. Its cache goes to a
folder of its own, which its second start finds filled. Figures of record: benchmarks/README.md.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from data_scripts.dataset_writer import TOKEN, IndexedDatasetWriter, Written
from gptoss20b.config import resolve
from gptoss20b.data.indexed_dataset import IndexedDataset
from gptoss20b.data.samples import TRAIN_PREFIX, TrainingSamples, Windows

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = 45_600_000
# natural logarithm's mean and standard deviation of a document's tokens; the mean length is 436
_LENGTH_LOG_MEAN, _LENGTH_LOG_SD = 5.58, 1.0
_CONFIG = resolve({})
SEQUENCE_LENGTH = _CONFIG.fixed.sequence_length
SAMPLES = _CONFIG.fixed.max_steps * _CONFIG.free.global_batch_size
SEED = 1


def main(
    documents: Annotated[int, typer.Option(min=1000, help="Documents of the index.")] = DOCUMENTS,
    samples: Annotated[int, typer.Option(min=1, help="Samples that Megatron is asked for.")] = SAMPLES,
    only: Annotated[str, typer.Option(hidden=True)] = "",
    folder: Annotated[Path, typer.Option(hidden=True)] = Path(),
) -> None:
    """Time the first sample of ours and of Megatron-Core's GPTDataset."""
    if only:
        typer.echo(json.dumps({"ours": _ours, "megatron": _megatron}[only](folder, samples)))
        return
    with tempfile.TemporaryDirectory() as made:
        figures: dict[str, Any] = _describe(Path(made), documents)
        for start in ("first", "second"):
            for name in ("ours", "megatron"):
                figures[f"{name}, {start} start"] = _in_a_process(name, Path(made), samples)
    for key, value in figures.items():
        typer.echo(f"{key}: {value}")


def make_pair(prefix: Path, documents: int) -> int:
    """Write an index of that many documents and a sparse token file of zeros; the number of tokens."""
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
    writer.written = Written(documents, total)
    writer.write_index(Path(f"{prefix}.idx"))
    writer.close()
    lengths_file.unlink()
    os.truncate(f"{prefix}.bin", total * TOKEN.itemsize)
    return total


def _describe(folder: Path, documents: int) -> dict[str, Any]:
    tokens = make_pair(folder / TRAIN_PREFIX, documents)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "megatron-core": version("megatron-core"),
        "documents": f"{documents:,}",
        "tokens": f"{tokens:,}",
        "index, MB": round((folder / f"{TRAIN_PREFIX}.idx").stat().st_size / 1e6),
    }


def _in_a_process(name: str, folder: Path, samples: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.data_index", "--only", name, "--folder", str(folder)]
    done = subprocess.run([*command, "--samples", str(samples)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _private_mib() -> float:
    """Anonymous memory of this process now, in MiB: mapped files do not count, they are the page cache's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


class _PeakMemory:
    """The most private memory that a block takes beyond what was there before, in MiB, looked at every millisecond."""

    def __enter__(self) -> _PeakMemory:
        self._before, self.mib = _private_mib(), 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self._look()

    def _look(self) -> None:
        self.mib = max(self.mib, _private_mib() - self._before)

    def __exit__(self, *error: object) -> None:
        self._look()
        self._done.set()
        self._thread.join()


def _measure(open_set: Callable[[], Callable[[int], Any]], count: int, samples: int, cache: Path) -> dict[str, Any]:
    """Open a set, take its first sample, then `samples` at random positions below `count`."""
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


def _ours(folder: Path, samples: int) -> dict[str, Any]:
    def open_set() -> Callable[[int], Any]:
        tokens = IndexedDataset.open(folder / TRAIN_PREFIX)
        return TrainingSamples(Windows(tokens, SEQUENCE_LENGTH, 128_256), SEED).sample

    before = sorted(folder.iterdir())
    figures = _measure(open_set, samples, 1000, folder / "none")
    if sorted(folder.iterdir()) != before:
        raise RuntimeError(f"files were written beside the data: {sorted(folder.iterdir())}")
    return figures


class _Tokenizer:
    """What GPTDataset asks of a tokenizer when no mask depends on it."""

    eod, vocab_size = 0, 128_256
    unique_identifiers: dict[str, str] = {}  # noqa: RUF012 - Megatron reads the attribute


def _megatron(folder: Path, samples: int) -> dict[str, Any]:
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
