"""Tokenize raw C4 into a pair: `python -m data_scripts preprocess SHARD... --tokenizer PATH --out PREFIX`.

A shard holds one JSON object a line, with a document in its `text`. Each document becomes one sequence of int32 ids, in
the order of the lines and of the shards given, without a begin-of-text token and, like the published set, without an
end-of-document token unless asked for. The bytes depend neither on the number of workers nor on interruptions.
"""

import errno
import functools
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from data_scripts.dataset_writer import IndexedDatasetWriter
from data_scripts.errors import CommandError, told
from data_scripts.progress import Show, metered
from data_scripts.tokenization.blocks import NO_DOCUMENTS, Tokenized, block_tokenizer
from data_scripts.tokenization.journal import Job, State, WorkFolder
from data_scripts.tokenization.shards import BLOCK_BYTES, Piece, find_shards, read_shards
from data_scripts.tokenization.tokenizer import fingerprint, load_tokenizer
from data_scripts.tokenization.workers import WorkerDiedError, Workers, in_order, read_ahead
from gptoss20b.data.files import with_suffix

# bad lines that the summary names
_NAMED = 5
# blocks per worker that are read and not yet written: one at work, one waiting
_DEPTH = 2
# no room on the disk, in the user's share of it, or below the limit of a file's size
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Task:
    """What to tokenize, and how.

    Attributes:
        shards: in the order of the output.
        tokenizer: as for `load_tokenizer`.
        prefix: the pair is `PREFIX.bin` and `PREFIX.idx`; their MD5 sums go to `PREFIX.md5`.
        append_eod: end each document with the tokenizer's end-of-document token.
        skip_bad: leave bad lines out and count them, instead of stopping at the first.
        key: where in a line's object its text is.
    """

    shards: list[Path]
    tokenizer: Path
    prefix: Path
    append_eod: bool = False
    skip_bad: bool = False
    key: str = "text"

    def job(self) -> Job:
        """Everything that the output depends on, for the journal.

        `skip_bad` is not in it: shards that were done without it have no bad line, and are the same with it.
        """
        stats = [(shard.name, shard.stat()) for shard in self.shards]
        return {
            "tokenizer": fingerprint(self.tokenizer),
            "append_eod": self.append_eod,
            "key": self.key,
            "shards": [f"{name} ({stat.st_size} bytes, changed at {stat.st_mtime_ns} ns)" for name, stat in stats],
        }


class Outcome(NamedTuple):
    """What was made: the state at the end, the tokens that an earlier start had left, and the files."""

    state: State
    kept_tokens: int
    files: list[Path]


def preprocess(
    task: Task,
    workers: int,
    show: Callable[[int, int], None],
    note: Callable[[str], None],
    block_bytes: int = BLOCK_BYTES,
) -> Outcome:
    """Tokenize the shards into a pair, going on where an earlier start of the same task was interrupted.

    Args:
        task: what to do.
        workers: processes that tokenize.
        show: called many times a second with the bytes of the shards that are done and the tokens written.
        note: called with a line of text when whole shards are kept for another start.
        block_bytes: text per piece of work; the output does not depend on it.

    Raises:
        CommandError: a bad line, existing files, another task than the one begun, a killed worker, a full disk.
        DataError: an unreadable shard or tokenizer.
    """
    if task.append_eod and load_tokenizer(task.tokenizer).end_of_document is None:
        raise CommandError(
            f"{task.tokenizer}: got no end-of-document token; expected one for --append-eod. "
            "To fix: leave --append-eod out, or give Llama 3's tokenizer."
        )
    with _told_in_full(task), WorkFolder(task.prefix, task.job()) as folder:
        kept = folder.state
        try:
            if not folder.finished:
                folder.refuse_existing()
                _refuse_skipped(kept, task)
                _Run(task, folder, show).run(workers, block_bytes)
            return Outcome(folder.state, kept.written.tokens, folder.publish())
        except BaseException:
            if done := folder.state.shards:
                note(f"{done} of {len(task.shards)} shards are kept in {folder.path}; the same command goes on there")
            raise


@contextmanager
def _told_in_full(task: Task) -> Iterator[None]:
    """Word what the system reports: a full disk, a killed worker."""
    try:
        yield
    except OSError as error:
        place = error.filename or with_suffix(task.prefix, ".partial")
        if error.errno not in _FULL:
            raise CommandError(
                f"{place}: got {error.strerror or error}; expected a place to write. To fix: name another --out."
            ) from error
        raise CommandError(
            f"{place}: got {error.strerror or error}; expected a disk with room for the tokens. "
            "To fix: make room, or name an --out elsewhere."
        ) from error
    except (WorkerDiedError, MemoryError) as error:
        raise CommandError(
            f"worker: got {error or 'too little memory'}; expected it to live. "
            "To fix: if memory ran out, give fewer --workers; then start the same command again."
        ) from error


def _refuse_skipped(kept: State, task: Task) -> None:
    if kept.bad and not task.skip_bad:
        raise CommandError(
            f"{with_suffix(task.prefix, '.partial')}: got {sum(kept.bad.values())} lines skipped by an earlier start; "
            f"expected none without --skip-bad. First: {kept.first_bad[0]} To fix: pass --skip-bad."
        )


class _Run:
    """Reads, has tokenized and writes what is not done yet."""

    def __init__(self, task: Task, folder: WorkFolder, show: Callable[[int, int], None]) -> None:
        self._task, self._folder, self._show = task, folder, show
        self._bad, self._first_bad = Counter(folder.state.bad), list(folder.state.first_bad)
        # of the shard being written
        self._lines = 0
        # where each shard starts, if they stood one after the other
        self._starts = [0]
        for shard in task.shards:
            self._starts.append(self._starts[-1] + shard.stat().st_size)

    def run(self, workers: int, block_bytes: int) -> None:
        folder, task = self._folder, self._task
        prepare = functools.partial(block_tokenizer, task.tokenizer, task.key, task.append_eod)
        depth = _DEPTH * workers
        with (
            _writer(folder) as writer,
            Workers(prepare, workers) as pool,
            closing(read_ahead(read_shards(task.shards, folder.state.shards, block_bytes), depth)) as pieces,
        ):
            digest = _digest(folder.tokens)
            self._show(self._starts[folder.state.shards], writer.written.tokens)
            for piece, found in in_order(pieces, functools.partial(_submit, pool), depth):
                self._check(piece, found)
                writer.add(found.tokens, found.lengths)
                digest.update(found.tokens.data)
                self._show(self._starts[piece.shard] + piece.position, writer.written.tokens)
                if piece.ends:
                    self._lines = 0
                    folder.note(State(piece.shard + 1, writer.flush(), dict(self._bad), tuple(self._first_bad)))
            self._finish(writer, digest.hexdigest())

    def _check(self, piece: Piece, found: Tokenized) -> None:
        for flaw in found.flaws:
            place = f"{self._task.shards[piece.shard]}:{self._lines + flaw.line + 1}"
            message = f"{place}: got {flaw.got}; expected {flaw.kind.expected}."
            if not self._task.skip_bad:
                raise CommandError(f"{message} To fix: {flaw.kind.fix}; or pass --skip-bad.")
            self._bad[flaw.kind.label] += 1
            if len(self._first_bad) < _NAMED:
                self._first_bad.append(message)
        self._lines += found.lines

    def _finish(self, writer: IndexedDatasetWriter, digest: str) -> None:
        folder, prefix = self._folder, self._task.prefix
        if not writer.written.documents:
            raise CommandError(f"{prefix}: got no document; expected at least one. To fix: give other shards.")
        writer.write_index(folder.index)
        with folder.sums.open("w", encoding="utf-8") as stream:
            stream.write(f"{digest}  {prefix.name}.bin\n{_digest(folder.index).hexdigest()}  {prefix.name}.idx\n")
            stream.flush()
            os.fsync(stream.fileno())
        folder.finish()


def _submit(pool: Workers[Tokenized], piece: Piece) -> Future[Tokenized]:
    if piece.lines:
        return pool.submit(piece.lines)
    done: Future[Tokenized] = Future()
    done.set_result(Tokenized(*NO_DOCUMENTS, len(piece.flaws), piece.flaws))
    return done


def _writer(folder: WorkFolder) -> IndexedDatasetWriter:
    try:
        return IndexedDatasetWriter(folder.tokens, folder.lengths, folder.state.written)
    except ValueError as error:
        raise CommandError(f"{error} To fix: remove {folder.path} to start again.") from None


def _digest(path: Path) -> "hashlib._Hash":
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, functools.partial(hashlib.md5, usedforsecurity=False))


def main(
    shards: Annotated[
        list[Path],
        typer.Argument(metavar="SHARD", help="Shards in the order of the output; a folder: its *.json.gz by name."),
    ],
    tokenizer: Annotated[
        Path,
        typer.Option(
            "--tokenizer", metavar="PATH", help="tokenizer.model (the faster), tokenizer.json, or bytes for UTF-8."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="PREFIX", help="Makes PREFIX.bin, PREFIX.idx, PREFIX.md5.")],
    append_eod: Annotated[
        bool, typer.Option("--append-eod", help="End each document with a token; the published set has none.")
    ] = False,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=1, show_default="all cores", help="Processes that tokenize.")
    ] = len(os.sched_getaffinity(0)),
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad lines out and count them; default: stop at the first.")
    ] = False,
    key: Annotated[str, typer.Option("--key", metavar="NAME", help="Where in a line's object its text is.")] = "text",
) -> None:
    """Tokenize shards of JSON lines (.json.gz, or plain), one document a line, into a pair.

    Interrupted at any moment, the same command goes on after the last whole shard, which waits in PREFIX.partial.
    Existing files are never overwritten. Exit status: 0 made, 1 failed, 2 usage, 130 interrupted, 143 terminated.
    """
    with told():
        if out.name in {"", ".."} or out.is_dir():
            raise CommandError(
                f"{out}: got a folder; expected what the files are to be called, before .bin. To fix: add a name."
            )
        task = Task(find_shards(shards), tokenizer, out, append_eod, skip_bad, key)
        started = time.monotonic()
        _tell(f"{len(task.shards)} shards, in this order: {_ends([shard.name for shard in task.shards])}")
        with ExitStack() as stack:
            progress = _Progress(stack, sum(shard.stat().st_size for shard in task.shards))
            outcome = preprocess(task, workers, progress.show, _tell)
        for line in _summary(task, outcome, workers, time.monotonic() - started):
            typer.echo(line)


class _Progress:
    """Shows how many bytes of the shards are done, and how many tokens a second that makes."""

    def __init__(self, stack: ExitStack, total: int) -> None:
        self._stack, self._total = stack, total
        self._meter: Show | None = None
        self._began, self._kept_tokens = 0.0, 0

    def show(self, position: int, tokens: int) -> None:
        """Show so many bytes and tokens, those of an earlier start included, which the first call has."""
        if self._meter is None:
            self._meter = self._stack.enter_context(metered("tokenizing", self._total, position))
            self._began, self._kept_tokens = time.monotonic(), tokens
        rate = (tokens - self._kept_tokens) / max(time.monotonic() - self._began, 1e-9)
        self._meter(position, f"{rate / 1e6:.2f} M tokens/s")


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _ends(names: list[str]) -> str:
    return ", ".join(names if len(names) <= 4 else [*names[:2], "...", names[-1]])


def _summary(task: Task, outcome: Outcome, workers: int, seconds: float) -> Iterator[str]:
    """What was made, how fast, and what was left out."""
    state = outcome.state
    documents, tokens = state.written
    yield f"{task.prefix}: {documents:,} documents, {tokens:,} tokens"
    rate = (tokens - outcome.kept_tokens) / seconds
    yield f"{seconds:.1f} s, {rate:,.0f} tokens/s, {rate / workers:,.0f} a core with {workers} workers"
    if outcome.kept_tokens:
        yield f"{outcome.kept_tokens:,} of the tokens were there from an earlier start"
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(state.bad.items()))
    yield f"bad lines skipped: {sum(state.bad.values()):,}" + (f" ({kinds})" if kinds else "")
    yield from (f"  {message}" for message in state.first_bad)
    for path in outcome.files:
        yield f"{path}: {path.stat().st_size:,} bytes"


if __name__ == "__main__":
    typer.run(main)
