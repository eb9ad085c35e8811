"""Verify a dataset: `python -m data_scripts verify [DIR]`."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from gptoss20b.data.samples import VALIDATION_PREFIX
from gptoss20b.data.verification_report import REPORT_NAME, load_report
from gptoss20b.durable import atomic_write

from .checking.checks import verify
from .checking.expectations import load_expectations
from .checking.report import Scope, Verification
from .errors import CommandError, ExitCode, cli_errors, log
from .make_sample_data import MANIFEST
from .progress import ByteProgress

# Storage, or the single thread of MD5, is the limit long before 16 threads. Each thread holds one piece in memory.
_THREADS = min(16, len(os.sched_getaffinity(0)))


def main(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the dataset.")] = Path("data/c4"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Check structure and evaluation sequences only, no checksums.")
    ] = False,
    no_md5: Annotated[bool, typer.Option("--no-md5", help="Skip the checksums.")] = False,
    vocab_size: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=1 << 31, show_default="128256", help="Token ids must be below it."),
    ] = None,
    validation_documents: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, show_default="91205", help="Expected number of documents; 0 accepts any."),
    ] = None,
    sequences: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, show_default="1024", help="Validation sequences that a run evaluates."),
    ] = None,
    sequence_length: Annotated[
        int | None, typer.Option(metavar="N", min=1, show_default="8192", help="Tokens per sequence.")
    ] = None,
    report_file: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", show_default="DIR/verified.json", help="File of the JSON report."),
    ] = None,
    threads: Annotated[
        int, typer.Option(metavar="N", min=1, show_default="all cores, at most 16", help="Reading threads.")
    ] = _THREADS,
) -> None:
    """Verify a dataset: structure, checksums and every token.

    Sample data is checked against its own manifest, sample.json; options override it. The report is the same for the
    same data and versions on any machine.

    Exit status: 0 pass, 1 findings, 2 usage, 130 interrupted, 143 terminated.
    """
    with cli_errors():
        if report_file is not None:
            _check_report_path(report_file)
        if not directory.is_dir():
            fix = "run data_scripts/download_dataset.sh, or name the folder of the data"
            raise CommandError(f"{directory}: got no folder; expected one with the dataset. To fix: {fix}.")
        expected = load_expectations(directory)
        given: dict[str, Any] = {
            "vocab_size": vocab_size,
            "eval_samples": sequences,
            "sequence_length": sequence_length,
        }
        expected = replace(expected, **{name: value for name, value in given.items() if value is not None})
        if validation_documents is not None:
            expected.documents[VALIDATION_PREFIX] = validation_documents
        scope = Scope(checksums=not (quick or no_md5), tokens=not quick, threads=threads)
        started = time.monotonic()
        with ByteProgress("verifying") as progress:
            result = verify(directory, expected, scope, progress)
        # Save the report first: the reader of the output may leave before its end.
        _save_report(report_file, directory / REPORT_NAME, result.report())
        _print_result(directory, result, time.monotonic() - started)
        if result.findings:
            raise typer.Exit(ExitCode.FAILED)


def _check_report_path(path: Path) -> None:
    """Reject, before hours of reading, a path that cannot be written or holds something else."""
    if path.suffix != ".json" or path.name == MANIFEST:
        raise typer.BadParameter(f"{path}: a report's name ends in .json, and is not {MANIFEST}", param_hint="--report")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        reason = f"{path.parent}: {error.strerror}"
        raise typer.BadParameter(f"{path}: cannot be written ({reason})", param_hint="--report") from None
    if path.exists() and load_report(path) is None:
        raise typer.BadParameter(f"{path}: exists, and is no report of this command", param_hint="--report")


def _save_report(requested: Path | None, default: Path, report: dict[str, Any]) -> None:
    """Write the report to the requested path, or beside the data if that overwrites nothing of value."""
    text = json.dumps(report, indent=2) + "\n"
    if requested is not None:
        atomic_write(requested, text)
        return
    try:
        obstacle = _overwrite_obstacle(default, report)
        if not obstacle:
            atomic_write(default, text)
    except OSError as error:
        obstacle = error.strerror or str(error)
    if obstacle:
        log(f"{default}: not written: {obstacle}. To keep the report, pass --report FILE.")


def _overwrite_obstacle(path: Path, report: dict[str, Any]) -> str:
    """Return why a report must not replace the file at `path`, or an empty string."""
    previous = load_report(path)
    if previous is None:
        return "another file has this name" if path.exists() else ""
    not_checked = previous.get("not_checked")
    was_full = isinstance(not_checked, dict) and not any(not_checked.values())
    if was_full and report["verdict"] == "pass" and any(report["not_checked"].values()):
        return "it holds the report of a full verification"
    return ""


def _print_result(directory: Path, result: Verification, seconds: float) -> None:
    """Print a table per dataset, the hash to compare with a training log, every finding, and the verdict."""
    length = result.expected.sequence_length
    for prefix, facts in result.datasets.items():
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
    eval_hash = result.eval_tokens_sha256 or "none: these sequences cannot be read"
    typer.echo(f"eval_tokens_sha256 of the first {result.expected.eval_samples:,} sequences: {eval_hash}")
    for finding in result.findings:
        typer.echo(finding.text(directory))
    typer.echo(f"{directory}: {_verdict(result)}, {seconds:.1f} s")


def _verdict(result: Verification) -> str:
    if result.findings:
        number = len(result.findings)
        return "FAIL, 1 finding" if number == 1 else f"FAIL, {number} findings"
    scope = {"checksums": result.scope.checksums, "tokens": result.scope.tokens}
    not_checked = [name for name, checked in scope.items() if not checked]
    return f"PASS, {' and '.join(not_checked)} not checked" if not_checked else "PASS"


if __name__ == "__main__":
    typer.run(main)
