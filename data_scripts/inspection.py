"""`python -m data_scripts inspect`: what is in a set, and what one of its sequences says."""

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

from data_scripts.c4 import SEQUENCE_LENGTH
from data_scripts.errors import CommandError, told
from data_scripts.tokenization.tokenizer import load_tokenizer
from gptoss20b.data.files import DataError, with_suffix
from gptoss20b.data.index import Index
from gptoss20b.data.indexed_dataset import IndexedDataset
from gptoss20b.data.samples import Windows, count_windows

# Lengths from here on count as this one in the quantiles; C4's longest documents have some 100,000 tokens.
_LONGEST = 1 << 22
_BAR = 40
_QUANTILES = {"median": 0.5, "90 %": 0.9, "99 %": 0.99}


@dataclass(frozen=True)
class Lengths:
    """How many tokens the sequences of an index have; for text, a sequence is a document.

    Attributes:
        shortest, mean, longest: tokens.
        quantiles: tokens, by name.
        histogram: sequences by the largest length of each power of two: 0, 1, 3, 7, 15, ...
    """

    shortest: int
    mean: float
    longest: int
    quantiles: dict[str, int]
    histogram: dict[int, int]


@dataclass(frozen=True)
class Summary:
    """What is in a pair.

    Attributes:
        name: file name without `.bin` and `.idx`.
        token_type: as stored.
        documents, sequences, tokens: counts.
        windows: training sequences of `sequence_length` tokens that the file gives, and their last label.
        data_bytes, index_bytes: sizes of `.bin` and `.idx`.
        lengths: tokens per sequence.
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
class Part:
    """The piece of one document that lies in a window.

    Attributes:
        sequence: its number in the index.
        first: which of its tokens the piece starts with.
        tokens: token ids, int64.
        ends: whether the document ends in the window.
    """

    sequence: int
    first: int
    tokens: npt.NDArray[np.int64]
    ends: bool


def summarize(prefix: Path, sequence_length: int = SEQUENCE_LENGTH) -> Summary:
    """Count what a pair holds; reads the table of lengths twice and none of the tokens.

    Raises:
        DataError: a file is missing or contradicts itself.
    """
    with IndexedDataset.open(prefix) as tokens, Index.open(prefix) as index:
        return Summary(
            name=prefix.name,
            token_type=tokens.dtype.name,
            documents=tokens.document_count,
            sequences=tokens.sequence_count,
            tokens=tokens.token_count,
            sequence_length=sequence_length,
            windows=count_windows(tokens.token_count, sequence_length),
            data_bytes=tokens.path.stat().st_size,
            index_bytes=index.path.stat().st_size,
            lengths=_lengths(index),
        )


def _lengths(index: Index) -> Lengths:
    blocks = index.lengths.blocks
    longest = max(int(block.max()) for _, block in blocks())
    counts = np.zeros(min(longest, _LONGEST) + 1, np.int64)
    shortest, total = longest, 0
    powers = np.zeros(64, np.int64)
    for _, block in blocks():
        shortest, total = min(shortest, int(block.min())), total + int(block.sum())
        # a negative length is for `verify` to name; here it counts as none
        sane = np.maximum(block, 0)
        counts += np.bincount(np.minimum(sane, _LONGEST), minlength=counts.size)
        # exact below 2^53: the exponent of a float is the number of bits of the integer
        powers += np.bincount(np.frexp(sane.astype(np.float64))[1], minlength=64)
    reached = np.cumsum(counts)
    quantiles = {name: int(np.searchsorted(reached, share * reached[-1])) for name, share in _QUANTILES.items()}
    used = range(int(np.flatnonzero(powers)[0]), int(np.flatnonzero(powers)[-1]) + 1)
    histogram = {(1 << bits) - 1: int(powers[bits]) for bits in used}
    return Lengths(shortest, total / index.sequence_count, longest, quantiles, histogram)


def window_parts(prefix: Path, number: int, sequence_length: int = SEQUENCE_LENGTH) -> list[Part]:
    """Window `number` in file order (from 0), with its last label, cut at the borders of documents.

    Raises:
        DataError: no such window, or an unreadable file.
    """
    with IndexedDataset.open(prefix) as tokens, Index.open(prefix) as index:
        # of any id: what is beyond a vocabulary is to be seen here too
        ids = Windows(tokens, sequence_length, 1 << 31).window(number)
        start = number * sequence_length
        width = index.dtype.itemsize

        def begins(sequence: int) -> int:
            return int(index.pointers.read(sequence, 1)[0]) // width

        sequence = index.pointers.last_at_most(start * width)
        parts, at, begin = [], start, begins(sequence)
        while at < start + ids.size:
            length = int(index.lengths.read(sequence, 1)[0])
            # the tables are read where they are needed, and believed only if they tell of a gapless file
            if begins(sequence) != begin or not begin <= at <= begin + length:
                raise DataError.about(
                    index.path,
                    f"sequence {sequence} from token {begins(sequence)}, {length} long "
                    f"(pointer at byte {index.pointers.offset(sequence)})",
                    f"the one with token {at}",
                    "run data_scripts/verify_dataset.sh, which tells all that is wrong",
                )
            end = min(begin + length, start + ids.size)
            if end > at:
                parts.append(Part(sequence, at - begin, ids[at - start : end - start], end == begin + length))
            at, begin, sequence = end, begin + length, sequence + 1
        return parts


def find_pairs(path: Path) -> list[Path]:
    """Prefixes of the pairs that PATH names: a folder, a `.bin`, an `.idx`, or the prefix itself.

    Raises:
        CommandError: there is none.
    """
    if path.is_dir():
        found = sorted(Path(str(index).removesuffix(".idx")) for index in path.glob("*.idx"))
        if not found:
            raise CommandError(f"{path}: got no .idx file; expected a folder of .bin/.idx pairs. To fix: name another.")
        return found
    if path.suffix in {".bin", ".idx"}:
        return [path.with_suffix("")]
    if not with_suffix(path, ".idx").exists():
        raise CommandError(
            f"{path}: got neither a folder nor a pair; expected a folder, a .bin, an .idx, or what both are called "
            "without it. To fix: check the path."
        )
    return [path]


def _show(summary: Summary, console: Console) -> None:
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
    full = "#" if console.options.ascii_only else "█"
    for last, count in lengths.histogram.items():
        first = (last + 1) // 2
        label = f"{first:,}" if first >= last else f"{first:,} to {last:,}"
        bars.add_row(label, f"{count:,}", full * -(-count * _BAR // highest))
    console.print(bars)
    console.print()


def _printable(text: str) -> str:
    """Text that cannot steer a terminal: what is neither printable nor a line or a tab is shown as an escape."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _inspect(path: Path, sample: int | None, tokenizer: Path | None, sequence_length: int, as_json: bool) -> None:
    pairs = find_pairs(path)
    if sample is None:
        found = [summarize(pair, sequence_length) for pair in pairs]
        if as_json:
            typer.echo(json.dumps([asdict(summary) for summary in found], indent=2))
            return
        console = Console(highlight=False)
        for summary in found:
            _show(summary, console)
        return
    if len(pairs) > 1:
        names = ", ".join(pair.name for pair in pairs)
        raise CommandError(f"{path}: got {len(pairs)} pairs ({names}); expected one. To fix: name the one to show.")
    reader = None if tokenizer is None else load_tokenizer(tokenizer)
    parts = window_parts(pairs[0], sample, sequence_length)
    try:
        texts = [" ".join(map(str, part.tokens)) if reader is None else reader.decode(part.tokens) for part in parts]
    except ValueError as error:
        raise CommandError(f"{pairs[0]}: {error} To fix: name its own tokenizer, or leave --tokenizer out.") from None
    if as_json:
        typer.echo(json.dumps([_described(part, text) for part, text in zip(parts, texts, strict=True)], indent=2))
        return
    for part, text in zip(parts, texts, strict=True):
        end = ", its end" if part.ends else ""
        last = part.first + part.tokens.size - 1
        typer.echo(f"--- document {part.sequence:,}, tokens {part.first:,} to {last:,}{end}")
        typer.echo(_printable(text))


def _described(part: Part, text: str) -> dict[str, object]:
    return {
        "document": part.sequence,
        "first": part.first,
        "ends": part.ends,
        "tokens": part.tokens.tolist(),
        "text": text,
    }


def main(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of pairs, or one .bin, .idx or prefix.")],
    sample: Annotated[
        int | None, typer.Option(metavar="N", help="Show sequence N in file order, from 0.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="tokenizer.model, tokenizer.json, or 'bytes'; without it, ids are shown."),
    ] = None,
    sequence_length: Annotated[int, typer.Option(min=1, help="Tokens per sequence.")] = SEQUENCE_LENGTH,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Say what is in a data set: counts, the lengths of its documents, and the text of one sequence."""
    with told():
        _inspect(path, sample, tokenizer, sequence_length, as_json)


if __name__ == "__main__":
    typer.run(main)
