"""Inspect a dataset: `python -m data_scripts inspect PATH` prints its counts, or the text of one sequence."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from gptoss20b.data.files import DataError, append_suffix
from gptoss20b.data.index import Index
from gptoss20b.data.indexed_dataset import IndexedDataset
from gptoss20b.data.samples import Windows, count_windows

from .c4 import SEQUENCE_LENGTH
from .errors import CommandError, cli_errors
from .tokenization.tokenizer import load_tokenizer

# Longer lengths count as this one in the quantiles; C4's longest documents have about 100,000 tokens.
_MAX_LENGTH = 1 << 22
_BAR_WIDTH = 40
_QUANTILES = {"median": 0.5, "90 %": 0.9, "99 %": 0.99}


@dataclass(frozen=True)
class Lengths:
    """Distribution of tokens per sequence; for text, a sequence is a document.

    `histogram` counts sequences by the largest length of each power of two: 0, 1, 3, 7, 15, ...
    """

    shortest: int
    mean: float
    longest: int
    quantiles: dict[str, int]
    histogram: dict[int, int]


@dataclass(frozen=True)
class Summary:
    """Counts of an indexed dataset.

    `sequences` counts entries of the index, `windows` the training sequences of `sequence_length` tokens.
    """

    name: str
    token_type: str
    documents: int
    sequences: int
    tokens: int
    sequence_length: int
    windows: int
    data_bytes: int
    index_bytes: int
    lengths: Lengths


@dataclass(frozen=True)
class WindowPart:
    """The part of one document that is in a window.

    Attributes:
        document: the document's number in the index.
        first: number of the part's first token in the document.
        tokens: token ids, int64.
        ends: whether the document ends in the window.
    """

    document: int
    first: int
    tokens: npt.NDArray[np.int64]
    ends: bool


def summarize(prefix: Path, sequence_length: int = SEQUENCE_LENGTH) -> Summary:
    """Summarize a dataset; reads the table of lengths twice and no tokens.

    Raises:
        DataError: a file is missing or inconsistent.
    """
    with IndexedDataset.open(prefix) as dataset, Index.open(prefix) as index:
        return Summary(
            name=prefix.name,
            token_type=dataset.dtype.name,
            documents=dataset.document_count,
            sequences=dataset.sequence_count,
            tokens=dataset.token_count,
            sequence_length=sequence_length,
            windows=count_windows(dataset.token_count, sequence_length),
            data_bytes=dataset.path.stat().st_size,
            index_bytes=index.path.stat().st_size,
            lengths=_length_distribution(index),
        )


def _length_distribution(index: Index) -> Lengths:
    blocks = index.lengths.blocks
    longest = max(int(block.max()) for _, block in blocks())
    counts = np.zeros(min(longest, _MAX_LENGTH) + 1, np.int64)
    shortest, total = longest, 0
    powers = np.zeros(64, np.int64)
    for _, block in blocks():
        shortest, total = min(shortest, int(block.min())), total + int(block.sum())
        # `verify` reports negative lengths; here they count as 0.
        sane = np.maximum(block, 0)
        counts += np.bincount(np.minimum(sane, _MAX_LENGTH), minlength=counts.size)
        # The exponent of a float is the number of bits of the integer; exact below 2^53.
        powers += np.bincount(np.frexp(sane.astype(np.float64))[1], minlength=64)
    reached = np.cumsum(counts)
    quantiles = {name: int(np.searchsorted(reached, share * reached[-1])) for name, share in _QUANTILES.items()}
    used = range(int(np.flatnonzero(powers)[0]), int(np.flatnonzero(powers)[-1]) + 1)
    histogram = {(1 << bits) - 1: int(powers[bits]) for bits in used}
    return Lengths(shortest, total / index.sequence_count, longest, quantiles, histogram)


def window_parts(prefix: Path, number: int, sequence_length: int = SEQUENCE_LENGTH) -> list[WindowPart]:
    """Read window `number` in file order (from 0), with its last label, and split it at document boundaries.

    Raises:
        DataError: no such window, or an unreadable file.
    """
    with IndexedDataset.open(prefix) as dataset, Index.open(prefix) as index:
        # The largest vocabulary possible: ids beyond the model's must be visible here.
        ids = Windows(dataset, sequence_length, 1 << 31).window(number)
        start = number * sequence_length
        width = index.dtype.itemsize

        def first_token(sequence: int) -> int:
            return index.pointers.entry(sequence) // width

        sequence = index.pointers.last_at_most(start * width)
        parts, at, begin = [], start, first_token(sequence)
        while at < start + ids.size:
            length = index.lengths.entry(sequence)
            # A damaged index must not make up text: the entries used must describe a file without gaps.
            if first_token(sequence) != begin or not begin <= at <= begin + length:
                raise DataError.about(
                    index.path,
                    f"sequence {sequence} from token {first_token(sequence)}, {length} long "
                    f"(pointer at byte {index.pointers.offset(sequence)})",
                    f"the one with token {at}",
                    "run data_scripts/verify_dataset.sh, which reports everything wrong",
                )
            end = min(begin + length, start + ids.size)
            if end > at:
                parts.append(WindowPart(sequence, at - begin, ids[at - start : end - start], end == begin + length))
            at, begin, sequence = end, begin + length, sequence + 1
        return parts


def find_datasets(path: Path) -> list[Path]:
    """Return the prefixes of the datasets at a path: a folder, a `.bin`, an `.idx`, or the prefix itself.

    Raises:
        CommandError: there is none.
    """
    if path.is_dir():
        prefixes = sorted(Path(str(index).removesuffix(".idx")) for index in path.glob("*.idx"))
        if not prefixes:
            raise CommandError(f"{path}: got no .idx file; expected indexed datasets. To fix: name another folder.")
        return prefixes
    if path.suffix in {".bin", ".idx"}:
        return [path.with_suffix("")]
    if not append_suffix(path, ".idx").exists():
        raise CommandError(
            f"{path}: got neither a folder nor a dataset; expected a folder, a .bin, an .idx, or their common prefix. "
            "To fix: check the path."
        )
    return [path]


def _print_summary(summary: Summary, console: Console) -> None:
    lengths = summary.lengths
    title = Text(_printable(summary.name), style="bold")
    table = Table(title=title, title_justify="left", title_style="", show_header=False, box=None)
    table.add_row("documents", f"{summary.documents:,}")
    if summary.sequences != summary.documents:
        table.add_row("sequences of the index", f"{summary.sequences:,}")
    table.add_row("tokens", f"{summary.tokens:,} ({summary.token_type})")
    table.add_row(f"sequences of {summary.sequence_length:,}", f"{summary.windows:,}")
    table.add_row("size", f".bin {decimal(summary.data_bytes)}, .idx {decimal(summary.index_bytes)}")
    table.add_row("document length", f"{lengths.shortest:,} to {lengths.longest:,} tokens, mean {lengths.mean:,.1f}")
    table.add_row("", ", ".join(f"{name} {value:,}" for name, value in lengths.quantiles.items()))
    console.print(table)
    bars = Table("tokens", "documents", "", box=None, header_style="")
    bars.columns[0].justify = bars.columns[1].justify = "right"
    highest = max(lengths.histogram.values())
    block = "#" if console.options.ascii_only else "█"
    for last, count in lengths.histogram.items():
        first = (last + 1) // 2
        label = f"{first:,}" if first >= last else f"{first:,} to {last:,}"
        bars.add_row(label, f"{count:,}", block * -(-count * _BAR_WIDTH // highest))
    console.print(bars)
    console.print()


def _printable(text: str) -> str:
    """Escape everything but printable characters, newlines and tabs, so that text cannot control the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _inspect(path: Path, sample: int | None, tokenizer: Path | None, sequence_length: int, as_json: bool) -> None:
    prefixes = find_datasets(path)
    if sample is None:
        summaries = [summarize(prefix, sequence_length) for prefix in prefixes]
        if as_json:
            typer.echo(json.dumps([asdict(summary) for summary in summaries], indent=2))
            return
        console = Console(highlight=False)
        for summary in summaries:
            _print_summary(summary, console)
        return
    if len(prefixes) > 1:
        names = ", ".join(prefix.name for prefix in prefixes)
        raise CommandError(f"{path}: got {len(prefixes)} datasets ({names}); expected one. To fix: name one of them.")
    decoder = None if tokenizer is None else load_tokenizer(tokenizer)
    parts = window_parts(prefixes[0], sample, sequence_length)
    try:
        texts = [" ".join(map(str, part.tokens)) if decoder is None else decoder.decode(part.tokens) for part in parts]
    except ValueError as error:
        raise CommandError(f"{prefixes[0]}: {error} To fix: name its tokenizer, or leave --tokenizer out.") from None
    pairs = list(zip(parts, texts, strict=True))
    if as_json:
        rows = [{**asdict(part), "tokens": part.tokens.tolist(), "text": text} for part, text in pairs]
        typer.echo(json.dumps(rows, indent=2))
        return
    for part, text in pairs:
        end = ", its end" if part.ends else ""
        last = part.first + part.tokens.size - 1
        typer.echo(f"--- document {part.document:,}, tokens {part.first:,} to {last:,}{end}")
        typer.echo(_printable(text))


def main(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder of indexed datasets, or one .bin, .idx or prefix.")
    ],
    sample: Annotated[
        int | None, typer.Option(metavar="N", help="Print sequence N in file order, from 0.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="tokenizer.model, tokenizer.json or 'bytes'; default: print ids."),
    ] = None,
    sequence_length: Annotated[int, typer.Option(min=1, help="Tokens per sequence.")] = SEQUENCE_LENGTH,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables and text.")] = False,
) -> None:
    """Print the size of a dataset and the lengths of its documents, or one sequence as text."""
    with cli_errors():
        _inspect(path, sample, tokenizer, sequence_length, as_json)


if __name__ == "__main__":
    typer.run(main)
