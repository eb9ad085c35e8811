"""Benchmark of tokenizing raw shards: `preprocess` against the plain loop of Megatron's tools.

`python -m benchmarks.preprocess_speed` makes two json.gz shards of English. C4 itself needs a network, so the text is
the documentation in Python's standard library, cut at random places into documents with the lengths of C4's. Text
recurs, documents do not: 200 MB are about a hundred times the source. Both are tokenized with Llama 3's
`tokenizer.model` and with a `tokenizer.json` of the same ranks:

- `preprocess` with one worker and with one per core, as whole commands, start and checksums included;
- the plain loop: gzip.open, json.loads, the same library's encode, and add_item of Megatron's IndexedDatasetBuilder
  with a tensor, in one process, without its imports and the loading of the tokenizer.

They alternate; figures are medians. All outputs must be the same bytes. CPU time is that of all processes; memory is
their private memory together, sampled ten times a second. Figures of record: docs/benchmarks.md.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from data_scripts.make_sample_data import collect_documents
from gptoss20b.data.indexed_dataset import IndexedDataset
from tests.support.llama3_files import PATTERN, model_file, write_json
from tests.support.preprocess_runs import private_bytes
from tests.support.small_sets import dataset_bytes

ROOT = Path(__file__).resolve().parent.parent
CORES = len(os.sched_getaffinity(0))
_SHARDS = 2
# natural logarithm's mean and standard deviation of a document's characters; the mean length is about 2,200
_LENGTH_LOG_MEAN, _LENGTH_LOG_SD = 7.2, 1.0


@dataclass(frozen=True)
class Cost:
    """Cost of one run: seconds, CPU seconds, and the peak private memory of all its processes in MiB."""

    seconds: float
    cpu: float
    mib: float


def main(
    megabytes: Annotated[int, typer.Option(min=1, help="MB of text.")] = 200,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 3,
    loop: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Time preprocess against a plain loop."""
    if loop:
        typer.echo(json.dumps(_plain_loop(*map(Path, json.loads(loop)))))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shards = make_shards(folder, megabytes)
        packed = sum(shard.stat().st_size for shard in shards) / 1e6
        versions = ", ".join(f"{name} {version(name)}" for name in ("tiktoken", "tokenizers", "torch", "megatron-core"))
        typer.echo(f"{platform.machine()}, {CORES} cores, Python {platform.python_version()}; {versions}")
        for tokenizer in (model_file(), write_json(folder / "tokenizer.json")):
            costs, tokens = measure(folder, shards, tokenizer, repeats)
            typer.echo(f"\n{tokenizer.name}: {megabytes} MB of text ({packed:.0f} MB packed), {tokens:,} tokens")
            for line in table(costs, tokens):
                typer.echo(line)


def make_shards(folder: Path, megabytes: int) -> list[Path]:
    """Write shards of lines like C4's, each with a text, a timestamp and an address."""
    source = "\n\n".join(document.data().decode().strip() for document in collect_documents())
    numbers = random.Random(0)
    paths = [folder / f"c4-like.{number:05d}-of-{_SHARDS:05d}.json.gz" for number in range(_SHARDS)]
    for path in paths:
        written = 0
        with gzip.open(path, "wb", compresslevel=6) as stream:
            while written < megabytes * 1e6 / _SHARDS:
                length = 1 + int(numbers.lognormvariate(_LENGTH_LOG_MEAN, _LENGTH_LOG_SD))
                start = numbers.randrange(max(1, len(source) - length))
                text = source[start : start + length]
                written += len(text.encode())
                url = f"https://www.example.org/{numbers.getrandbits(64):x}"
                fields = {"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": url}
                stream.write(json.dumps(fields).encode() + b"\n")
    return paths


def measure(folder: Path, shards: list[Path], tokenizer: Path, repeats: int) -> tuple[dict[str, list[Cost]], int]:
    """Run each way `repeats` times; return its costs by name, and the number of tokens.

    Raises:
        RuntimeError: a run failed, or two made different bytes.
    """
    out = folder / "out"
    ours = [sys.executable, "-m", "data_scripts.preprocess", *map(str, shards), "--tokenizer", str(tokenizer)]
    ours += ["--out", str(out), "--workers"]
    theirs = [sys.executable, "-m", "benchmarks.preprocess_speed", "--loop"]
    commands = {
        "plain loop": [*theirs, json.dumps([str(path) for path in (tokenizer, out, *shards)])],
        "preprocess, 1 worker": [*ours, "1"],
        f"preprocess, {CORES} workers": [*ours, str(CORES)],
    }
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    digests: set[str] = set()
    tokens = 0
    for repeat in range(repeats):
        # Every other time in reverse, so that a machine that becomes slower or faster favours nobody.
        for name in commands if repeat % 2 == 0 else reversed(commands):
            costs[name].append(run(commands[name]))
            with IndexedDataset.open(out) as dataset:
                tokens = dataset.token_count
            digests.add(_digest_and_remove(out))
            if len(digests) > 1:
                raise RuntimeError(f"{name} made other bytes than the run before")
    return costs, tokens


def run(command: list[str]) -> Cost:
    """Run a command and measure it; times that it prints as its last line (a JSON list) replace the measured ones.

    Raises:
        RuntimeError: the command failed.
    """
    peak = 0
    with tempfile.TemporaryFile("w+") as output:
        cpu_before, started = _children_cpu(), time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, private_bytes(process.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        times = [time.perf_counter() - started, _children_cpu() - cpu_before]
        output.seek(0)
        printed = output.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {printed[-2000:]}")
    if (last := printed.splitlines()[-1]).startswith("["):
        times = json.loads(last)
    return Cost(times[0], times[1], peak / (1 << 20))


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _digest_and_remove(prefix: Path) -> str:
    """Remove an indexed dataset; return a digest of its bytes."""
    digest = hashlib.sha256(b"".join(dataset_bytes(prefix))).hexdigest()
    for suffix in (".bin", ".idx", ".md5"):
        Path(f"{prefix}{suffix}").unlink(missing_ok=True)
    return digest


def table(costs: dict[str, list[Cost]], tokens: int) -> Iterator[str]:
    """Yield a Markdown table, one row per way; the first way is the reference of the ratios."""
    yield "| way | tokens/s | a core | times the loop | tokens per CPU second | peak private memory, MiB |"
    yield "|---|---|---|---|---|---|"
    loop = statistics.median(cost.seconds for cost in next(iter(costs.values())))
    for name, each in costs.items():
        seconds = statistics.median(cost.seconds for cost in each)
        cores = CORES if name.endswith("workers") else 1
        rate, busy = tokens / seconds, tokens / statistics.median(cost.cpu for cost in each)
        mib = max(cost.mib for cost in each)
        yield f"| {name} | {rate:,.0f} | {rate / cores:,.0f} | {loop / seconds:.2f} | {busy:,.0f} | {mib:,.0f} |"


def _plain_loop(tokenizer: Path, prefix: Path, *shards: Path) -> tuple[float, float]:
    """Tokenize the shards in a plain loop; return its seconds and CPU seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    encode = _plain_encode(tokenizer)
    started, started_cpu = time.perf_counter(), time.process_time()
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for shard in shards:
        with gzip.open(shard, "rt", encoding="utf-8") as lines:
            for line in lines:
                builder.add_item(torch.tensor(encode(json.loads(line)["text"]), dtype=torch.int32))
                builder.end_document()
    builder.finalize(f"{prefix}.idx")
    return time.perf_counter() - started, time.process_time() - started_cpu


def _plain_encode(path: Path) -> Callable[[str], list[int]]:
    if path.suffix == ".json":
        import tokenizers

        loaded = tokenizers.Tokenizer.from_file(str(path))
        loaded.no_truncation()
        loaded.no_padding()
        return lambda text: loaded.encode(text, add_special_tokens=False).ids
    import tiktoken

    pairs = (line.split() for line in path.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    encoding = tiktoken.Encoding("llama3", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    return encoding.encode_ordinary


if __name__ == "__main__":
    typer.run(main)
