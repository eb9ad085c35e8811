"""Verify a data set: `python -m data_scripts verify [DIR]`."""

import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from data_scripts.checking.checks import verify
from data_scripts.checking.expectations import Expectations, expected_in
from data_scripts.checking.report import Scope, Verification, report_content, write_report
from data_scripts.errors import CommandError, ExitCode, told
from data_scripts.make_sample_data import MANIFEST
from data_scripts.progress import Show, metered
from gptoss20b.data.samples import VALIDATION_PREFIX
from gptoss20b.data.verification_report import REPORT_NAME, load_report

# Reading is as fast as the storage or the one thread of MD5 long before; each thread holds one piece in memory.
_THREADS = min(16, len(os.sched_getaffinity(0)))


def main(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the data set.")] = Path("data/c4"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Structure and the evaluation sequences only; no MD5.")
    ] = False,
    no_md5: Annotated[bool, typer.Option("--no-md5", help="Leave out the checksums.")] = False,
    vocab_size: Annotated[
        int | None,
        typer.Option("--vocab-size", metavar="N", min=1, max=1 << 31, show_default="128256", help="Ids are below it."),
    ] = None,
    validation_documents: Annotated[
        int | None,
        typer.Option("--validation-documents", metavar="N", min=0, show_default="91205", help="0: any number."),
    ] = None,
    sequences: Annotated[
        int | None,
        typer.Option("--sequences", metavar="N", min=1, show_default="1024", help="Validation sequences evaluated."),
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option("--sequence-length", metavar="N", min=1, show_default="8192", help="Tokens of a sequence."),
    ] = None,
    report_file: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", show_default="DIR/verified.json", help="Where the report goes."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Threads that read.")] = _THREADS,
) -> None:
    """Verify a data set: structure, checksums and every token.

    Sample data is held against its own manifest, sample.json, where no option says otherwise. The report is the same
    for the same data and versions on any machine.

    Exit status: 0 pass, 1 findings, 2 usage, 130 interrupted, 141 the reader of the output is gone, 143 terminated.
    """
    with told():
        if report_file is not None:
            _check_report(report_file)
        if not directory.is_dir():
            fix = "run data_scripts/download_dataset.sh, or name the folder of the data"
            raise CommandError(f"{directory}: got no folder; expected one with the data set. To fix: {fix}.")
        expected = _expected(directory, vocab_size, validation_documents, sequences, sequence_length)
        scope = Scope(checksums=not (quick or no_md5), tokens=not quick, threads=threads)
        started = time.monotonic()
        with ExitStack() as stack:
            result = verify(directory, expected, scope, _Progress(stack))
        # The report first: whoever reads the rest may leave before its end.
        _keep(report_file, directory / REPORT_NAME, result)
        _show(directory, result, time.monotonic() - started)
        if result.findings:
            raise typer.Exit(ExitCode.FAILED)


class _Progress:
    """Shows how far a verification is, from when it knows how much there is to read."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._show: Show | None = None
        self._done = 0

    def begin(self, total: int) -> None:
        """So many bytes will be checked."""
        self._show = self._stack.enter_context(metered("verifying", total))

    def advance(self, size: int) -> None:
        """So many more bytes are checked."""
        assert self._show is not None
        self._done += size
        self._show(self._done)


def _expected(
    directory: Path, vocabulary: int | None, documents: int | None, sequences: int | None, length: int | None
) -> Expectations:
    found = expected_in(directory)
    return replace(
        found,
        vocabulary=found.vocabulary if vocabulary is None else vocabulary,
        documents=found.documents if documents is None else {**found.documents, VALIDATION_PREFIX: documents},
        sequences=found.sequences if sequences is None else sequences,
        sequence_length=found.sequence_length if length is None else length,
    )


def _check_report(path: Path) -> None:
    """Refuse, before hours of reading, a place where a report would do harm or cannot be."""
    if path.suffix != ".json" or path.name == MANIFEST:
        raise typer.BadParameter(f"{path}: a report's name ends in .json, and is not {MANIFEST}", param_hint="--report")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        reason = f"{path.parent}: {error.strerror}"
        raise typer.BadParameter(f"{path}: cannot be written ({reason})", param_hint="--report") from None
    if path.exists() and load_report(path) is None:
        raise typer.BadParameter(f"{path}: exists, and is no report of this command", param_hint="--report")


def _keep(asked: Path | None, usual: Path, result: Verification) -> None:
    """Write the report where it was asked for, or beside the data if that harms nothing."""
    found = report_content(result)
    if asked is not None:
        write_report(asked, found)
        return
    try:
        why_not = _why_not(usual, found)
        if not why_not:
            write_report(usual, found)
    except OSError as error:
        why_not = error.strerror or str(error)
    if why_not:
        typer.echo(f"{usual}: not written: {why_not}. To keep the report, pass --report FILE.", err=True)


def _why_not(usual: Path, found: dict[str, Any]) -> str:
    """What would be lost if a report were written over what is there; empty if nothing."""
    before = load_report(usual)
    if before is None:
        return "another file has this name" if usual.exists() else ""
    left_out = before.get("not_checked")
    was_full = isinstance(left_out, dict) and not any(left_out.values())
    if was_full and found["verdict"] == "pass" and any(found["not_checked"].values()):
        return "it holds the report of a full verification"
    return ""


def _show(directory: Path, result: Verification, seconds: float) -> None:
    """A table per pair, the hash to compare, every finding, and the verdict."""
    length = result.expected.sequence_length
    for prefix, facts in result.pairs.items():
        rows = {
            "documents": facts.documents,
            "sequences in the file": facts.sequences if facts.sequences != facts.documents else None,
            "of them empty": facts.empty_sequences or None,
            "documents without a sequence": facts.empty_documents or None,
            "tokens": facts.tokens,
            f"sequences of {length:,}": facts.windows,
            "smallest token id": facts.token_min,
            "largest token id": facts.token_max,
        }
        typer.echo(prefix)
        for name, value in rows.items():
            if value is not None:
                typer.echo(f"  {name:<30}{value:>18,}")
        for suffix in (".bin", ".idx"):
            name = f"{prefix}{suffix}"
            size = result.sizes[name]
            typer.echo(f"  {suffix} bytes{'':20}{'missing' if size is None else f'{size:,}':>18}")
            for algorithm, digest in result.digests.get(name, {}).items():
                typer.echo(f"  {suffix} {algorithm:<7} {digest}")
    hashed = result.eval_tokens_sha256 or "none: these sequences cannot be read"
    typer.echo(f"eval_tokens_sha256 of the first {result.expected.sequences:,} sequences: {hashed}")
    for finding in result.findings:
        typer.echo(finding.text(directory))
    typer.echo(f"{directory}: {_verdict(result)}, {seconds:.1f} s")


def _verdict(result: Verification) -> str:
    if result.findings:
        number = len(result.findings)
        return "FAIL, 1 finding" if number == 1 else f"FAIL, {number} findings"
    scope = {"checksums": result.scope.checksums, "tokens": result.scope.tokens}
    left_out = [name for name, done in scope.items() if not done]
    return f"PASS, {' and '.join(left_out)} not checked" if left_out else "PASS"


if __name__ == "__main__":
    typer.run(main)
