"""Tokenize raw C4: `python -m data_scripts preprocess SHARD... --tokenizer PATH --out PREFIX`.

A shard holds one JSON object per line, with a document in its `text`. Each document becomes one sequence of int32 ids,
in the order of the lines and of the shards given. There is no begin-of-text token, and like in the published set no
end-of-document token unless asked for. The bytes depend neither on the number of workers nor on interruptions.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from gptoss20b.data.files import append_suffix
from gptoss20b.durable import fsync_path

from .dataset_writer import IndexedDatasetWriter
from .errors import CommandError, cli_errors, log
from .in_order import map_in_order, prefetch
from .progress import ByteProgress
from .tokenization.blocks import NO_TOKENS, TokenizedBlock, block_tokenizer
from .tokenization.journal import JobDescription, State, WorkFolder
from .tokenization.shards import BLOCK_BYTES, Block, find_shards, read_shards
from .tokenization.tokenizer import load_tokenizer, tokenizer_id
from .tokenization.workers import WorkerPool

# bad lines that the summary lists
_MAX_LISTED = 5
# blocks per worker that are read and not yet written: one in work, one waiting
_BLOCKS_PER_WORKER = 2


@dataclass(frozen=True)
class Task:
    """Input, output and settings of a tokenization.

    Attributes:
        shards: in the order of the output.
        tokenizer: as for `load_tokenizer`.
        prefix: the output is `PREFIX.bin` and `PREFIX.idx`; their MD5 sums go to `PREFIX.md5`.
        append_eod: end each document with the tokenizer's end-of-document token.
        skip_bad: skip and count bad lines, instead of stopping at the first.
        key: key of the text in a line's object.
    """

    shards: list[Path]
    tokenizer: Path
    prefix: Path
    append_eod: bool = False
    skip_bad: bool = False
    key: str = "text"

    def job(self) -> JobDescription:
        """Return everything that the output depends on, for the journal.

        `skip_bad` is left out: shards completed without it have no bad line, and are the same with it.
        """
        stats = [(shard.name, shard.stat()) for shard in self.shards]
        return {
            "tokenizer": tokenizer_id(self.tokenizer),
            "append_eod": self.append_eod,
            "key": self.key,
            "shards": [f"{name} ({stat.st_size} bytes, changed at {stat.st_mtime_ns} ns)" for name, stat in stats],
        }


class Outcome(NamedTuple):
    """Result of a tokenization: the final state, the tokens kept from an interrupted run, and the files."""

    state: State
    kept_tokens: int
    files: list[Path]


def preprocess(task: Task, workers: int, progress: ByteProgress, block_bytes: int = BLOCK_BYTES) -> Outcome:
    """Tokenize the shards into an indexed dataset, resuming an interrupted run of the same task.

    Args:
        task: what to tokenize.
        workers: number of processes that tokenize.
        progress: shows the bytes of the shards that are done.
        block_bytes: text per block; the output does not depend on it.

    Raises:
        CommandError: a bad line, existing files, another task than the interrupted one, a killed worker.
        DataError: an unreadable shard or tokenizer, or a damaged work folder.
    """
    if task.append_eod and load_tokenizer(task.tokenizer).eod_token is None:
        raise CommandError(
            f"{task.tokenizer}: got no end-of-document token; expected one for --append-eod. "
            "To fix: leave --append-eod out, or give Llama 3's tokenizer."
        )
    with WorkFolder(task.prefix, task.job()) as folder:
        kept = folder.state
        try:
            if not folder.state.finished:
                folder.check_no_output()
                _check_skipped(kept, task)
                _Run(task, folder, progress).run(workers, block_bytes)
            return Outcome(folder.state, kept.written.tokens, folder.commit())
        except BaseException:
            if done := folder.state.shards:
                log(f"{done} of {len(task.shards)} shards are kept in {folder.path}; run the same command to resume")
            raise


def _check_skipped(kept: State, task: Task) -> None:
    if kept.bad and not task.skip_bad:
        raise CommandError(
            f"{append_suffix(task.prefix, '.partial')}: got {sum(kept.bad.values())} lines skipped by the interrupted "
            f"run; expected none without --skip-bad. First: {kept.first_bad[0]} To fix: pass --skip-bad."
        )


class _Run:
    """Reads the shards that are not done yet, has them tokenized, and writes the tokens."""

    def __init__(self, task: Task, folder: WorkFolder, progress: ByteProgress) -> None:
        self._task, self._folder, self._progress = task, folder, progress
        self._bad, self._first_bad = Counter(folder.state.bad), list(folder.state.first_bad)
        # lines so far of the shard being written
        self._lines = 0
        # the byte at which each shard starts, counted over all shards
        self._starts = [0]
        for shard in task.shards:
            self._starts.append(self._starts[-1] + shard.stat().st_size)

    def run(self, workers: int, block_bytes: int) -> None:
        folder, task = self._folder, self._task
        prepare = functools.partial(block_tokenizer, task.tokenizer, task.key, task.append_eod)
        depth = _BLOCKS_PER_WORKER * workers
        with (
            IndexedDatasetWriter(folder.tokens, folder.lengths, folder.state.written) as writer,
            WorkerPool(prepare, workers) as pool,
            closing(prefetch(read_shards(task.shards, folder.state.shards, block_bytes), depth)) as blocks,
        ):
            digest = _md5(folder.tokens)
            self._progress.begin(self._starts[-1], self._starts[folder.state.shards])
            started, kept_tokens = time.monotonic(), writer.size.tokens
            for block, tokenized in map_in_order(blocks, functools.partial(_submit, pool), depth):
                self._count_lines(block, tokenized)
                writer.add(tokenized.tokens, tokenized.lengths)
                digest.update(tokenized.tokens.data)
                rate = (writer.size.tokens - kept_tokens) / max(time.monotonic() - started, 1e-9)
                self._progress.update(self._starts[block.shard] + block.position, f"{rate / 1e6:.2f} M tokens/s")
                if block.ends:
                    self._lines = 0
                    folder.record(State(block.shard + 1, writer.flush(), dict(self._bad), tuple(self._first_bad)))
            self._finish(writer, digest.hexdigest())

    def _count_lines(self, block: Block, tokenized: TokenizedBlock) -> None:
        """Count the lines of a block. Raise at a bad line, or with `skip_bad` count it."""
        for bad in tokenized.bad_lines:
            place = f"{self._task.shards[block.shard]}:{self._lines + bad.line + 1}"
            message = f"{place}: got {bad.got}; expected {bad.kind.expected}."
            if not self._task.skip_bad:
                raise CommandError(f"{message} To fix: {bad.kind.fix}; or pass --skip-bad.")
            self._bad[bad.kind.label] += 1
            if len(self._first_bad) < _MAX_LISTED:
                self._first_bad.append(message)
        self._lines += tokenized.lines

    def _finish(self, writer: IndexedDatasetWriter, digest: str) -> None:
        folder, prefix = self._folder, self._task.prefix
        if not writer.size.documents:
            raise CommandError(f"{prefix}: got no document; expected at least one. To fix: give other shards.")
        writer.write_index(folder.index)
        sums = f"{digest}  {prefix.name}.bin\n{_md5(folder.index).hexdigest()}  {prefix.name}.idx\n"
        folder.sums.write_text(sums, encoding="utf-8")
        fsync_path(folder.sums)
        folder.record(folder.state._replace(finished=True))


def _submit(pool: WorkerPool[TokenizedBlock], block: Block) -> Future[TokenizedBlock]:
    if block.lines:
        return pool.submit(block.lines)
    done: Future[TokenizedBlock] = Future()
    done.set_result(TokenizedBlock(NO_TOKENS, NO_TOKENS, len(block.bad_lines), block.bad_lines))
    return done


def _md5(path: Path) -> hashlib._Hash:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, functools.partial(hashlib.md5, usedforsecurity=False))


def main(
    shards: Annotated[
        list[Path],
        typer.Argument(metavar="SHARD", help="Shards in the order of the output; a folder: its *.json.gz by name."),
    ],
    tokenizer: Annotated[
        Path,
        typer.Option(metavar="PATH", help="tokenizer.model (the fastest), tokenizer.json, or 'bytes' for UTF-8 bytes."),
    ],
    out: Annotated[Path, typer.Option(metavar="PREFIX", help="Write PREFIX.bin, PREFIX.idx, PREFIX.md5.")],
    append_eod: Annotated[
        bool, typer.Option("--append-eod", help="End each document with a token; the published set has none.")
    ] = False,
    workers: Annotated[
        int, typer.Option(metavar="N", min=1, show_default="all cores", help="Processes that tokenize.")
    ] = len(os.sched_getaffinity(0)),
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip and count bad lines; default: stop at the first.")
    ] = False,
    key: Annotated[str, typer.Option(metavar="NAME", help="Key of the text in a line's object.")] = "text",
) -> None:
    """Tokenize shards of JSON lines into an indexed dataset.

    Shards are .json.gz or plain files with one document per line. Existing files are never overwritten. To resume after
    an interruption, run the same command: completed shards are kept in PREFIX.partial.

    Exit status: 0 made, 1 failed, 2 usage, 130 interrupted, 143 terminated.
    """
    with cli_errors(append_suffix(out, ".partial")):
        if out.name in {"", ".."} or out.is_dir():
            raise CommandError(
                f"{out}: got a folder; expected the files' common name, without .bin. To fix: add a name."
            )
        task = Task(find_shards(shards), tokenizer, out, append_eod, skip_bad, key)
        started = time.monotonic()
        log(f"{len(task.shards)} shards, in this order: {_abbreviate([shard.name for shard in task.shards])}")
        with ByteProgress("tokenizing") as progress:
            outcome = preprocess(task, workers, progress)
        for line in _summary(task, outcome, workers, time.monotonic() - started):
            typer.echo(line)


def _abbreviate(names: list[str]) -> str:
    return ", ".join(names if len(names) <= 4 else [*names[:2], "...", names[-1]])


def _summary(task: Task, outcome: Outcome, workers: int, seconds: float) -> Iterator[str]:
    """Yield lines on the output, the speed and the skipped lines."""
    state = outcome.state
    documents, tokens = state.written
    yield f"{task.prefix}: {documents:,} documents, {tokens:,} tokens"
    rate = (tokens - outcome.kept_tokens) / seconds
    yield f"{seconds:.1f} s, {rate:,.0f} tokens/s, {rate / workers:,.0f} a core with {workers} workers"
    if outcome.kept_tokens:
        yield f"{outcome.kept_tokens:,} of the tokens were kept from the interrupted run"
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(state.bad.items()))
    yield f"bad lines skipped: {sum(state.bad.values()):,}" + (f" ({kinds})" if kinds else "")
    yield from (f"  {message}" for message in state.first_bad)
    for path in outcome.files:
        yield f"{path}: {path.stat().st_size:,} bytes"


if __name__ == "__main__":
    typer.run(main)
