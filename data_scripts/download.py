"""Download the published dataset: `python -m data_scripts download [DIR]`.

Everything unfinished is in `DIR/.download/`. A file gets its final name only after its MD5 was verified.
"""

from __future__ import annotations

import os
import shlex
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from gptoss20b.durable import atomic_write, fsync_path

from .c4 import FILES, SOURCE
from .errors import CommandError, cli_errors, log
from .fetching.https_client import HttpsClient
from .fetching.partial_file import PartialFile, check_space, partial_size
from .fetching.remote import RemoteFile, fetch_list, probe_file
from .fetching.retry import RetryPolicy
from .fetching.transfer import fetch
from .folder_lock import clear_folder, locked_folder
from .md5_list import LIST_NAME, WORK_FOLDER, ListedFile, file_md5, parse_list
from .progress import ByteProgress


def download(directory: Path, source: str, streams: int, policy: RetryPolicy) -> str:
    """Fetch, verify and commit all files that are not there yet. Return a summary.

    Args:
        directory: folder for the files.
        source: address of the metadata file.
        streams: number of parallel requests.
        policy: when to retry.

    Raises:
        CommandError, DataError: the download cannot be completed. What was fetched is kept, and no unverified file has
            a final name.
    """
    started = time.monotonic()
    client = HttpsClient(source, policy)
    work = directory / WORK_FOLDER
    with ExitStack() as stack:
        stack.enter_context(locked_folder(work))
        published = fetch_list(client, source)
        remotes = {listed: probe_file(client, published.base, listed.path) for listed in published.files}
        required = _missing_files(directory, remotes)
        parts = [stack.enter_context(PartialFile(work, listed, remotes[listed])) for listed in required]
        for part in parts:
            if part.restarted:
                log(f"{part.listed.path}: another version than before, fetched from the start again")
        check_space(directory, parts)
        # From here on, --offline takes the expected files from this list.
        atomic_write(directory / LIST_NAME, published.text)
        fsync_path(directory)
        total, before = sum(part.remote.size for part in parts), sum(part.received for part in parts)
        if parts:
            with ByteProgress("fetching").begin(total, before) as progress:
                fetch(client, parts, streams, progress.update)
            _verify_and_commit(directory, parts)
        # Parts of another list go, too.
        clear_folder(work)
    fetched, seconds = "nothing fetched", time.monotonic() - started
    if received := total - before:
        fetched = f"{received:,} bytes fetched in {seconds:,.1f} s, {decimal(round(received / seconds))}/s"
    kept = len(remotes) - len(required)
    return f"{directory}: {len(remotes)} files verified, {kept} of them were there before; {fetched}"


def _missing_files(directory: Path, remotes: dict[ListedFile, RemoteFile]) -> list[ListedFile]:
    """Return the files that are not there yet.

    Raises:
        CommandError: what is there in the place of a file has other content than the list.
    """
    present = {listed: path for listed in remotes if os.path.lexists(path := directory / listed.path)}

    def check_same(path: Path, got: str, expected: str) -> None:
        if got != expected:
            raise CommandError(f"{path}: got {got}; expected {expected}. To fix: move it away to fetch it again.")

    # Compare all sizes first: an MD5 takes minutes.
    for listed, path in present.items():
        size = f"{path.stat().st_size:,} bytes" if path.is_file() else "something else than a file"
        check_same(path, size, f"{remotes[listed].size:,} bytes")
    with ByteProgress("checking").begin(sum(remotes[listed].size for listed in present)) as progress:
        for listed, path in present.items():
            check_same(path, f"MD5 {file_md5(path, progress.advance)}", f"MD5 {listed.md5}")
    return [listed for listed in remotes if listed not in present]


def _verify_and_commit(directory: Path, parts: list[PartialFile]) -> None:
    """Give the complete parts whose MD5 is right their final names; drop the others.

    Raises:
        CommandError: an MD5 is wrong, or a final name is taken.
    """
    corrupt = []
    with ByteProgress("verifying").begin(sum(part.remote.size for part in parts)) as progress:
        for part in parts:
            final = directory / part.listed.path
            got = file_md5(part.path, progress.advance)
            if got != part.listed.md5:
                part.reset()
                corrupt.append(f"{part.listed.path}: got MD5 {got}; expected {part.listed.md5}")
            elif os.path.lexists(final):
                raise CommandError(
                    f"{final}: got a file that was not there at the start; expected none. "
                    "To fix: move it away and run the same command again."
                )
            else:
                part.commit(final)
    if corrupt:
        raise CommandError(
            f"{', '.join(corrupt)}. To fix: run the same command again; if that does not help, the file and the list "
            "on the server differ: name another --source."
        )


def _report_states(directory: Path) -> None:
    """Check a folder without a network; print for each expected file `verified`, or what is wrong.

    The expected files are those of the list in the folder. Without a list, they are the published datasets, whose MD5
    is not known.

    Raises:
        CommandError, DataError: the list is damaged, or a file is missing or not verified.
    """
    list_path = directory / LIST_NAME
    md5_by_path = dict.fromkeys(FILES, "")
    if list_path.is_file():
        md5_by_path = dict(parse_list(list_path.read_bytes(), str(list_path)))
    existing = {path: directory / path for path in md5_by_path if (directory / path).is_file()}
    states: dict[str, str] = {}
    with ByteProgress("checking").begin(sum(path.stat().st_size for path in existing.values())) as progress:
        for path, md5 in md5_by_path.items():
            if path not in existing:
                part = partial_size(directory, path)
                states[path] = "missing" if part is None else f"partial, {part[0]:,} of {part[1]:,} bytes"
                continue
            if not md5:
                states[path] = "present (no checksum known)"
                continue
            got = file_md5(existing[path], progress.advance)
            states[path] = "verified" if got == md5 else f"wrong MD5, {got} instead of {md5}"
    for path, state in states.items():
        typer.echo(f"{path}: {state}")
    bad = sum(state != "verified" for state in states.values())
    if bad:
        raise CommandError(
            f"{directory}: got {bad} of {len(states)} files missing or not verified; expected none. "
            "To fix: run the same command without --offline."
        )


def main(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the dataset.")] = Path("data/c4"),
    source: Annotated[
        str, typer.Option(metavar="URL", help="Metadata file of a mirror; only its host is contacted.")
    ] = SOURCE,
    offline: Annotated[
        bool, typer.Option("--offline", help="Only report which files are there and verified; fetch nothing.")
    ] = False,
    streams: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Parallel requests.")] = 8,
    retries: Annotated[
        int, typer.Option(metavar="N", min=0, help="Consecutive retries without progress before giving up.")
    ] = 6,
    retry_wait: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, max=3600, help="Wait before the first retry; doubled each time, up to 60."
        ),
    ] = 1.0,
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0.1, max=3600, help="Seconds without a byte that end an attempt."),
    ] = 60.0,
) -> None:
    """Download the published dataset, and verify every file.

    Run the command again to resume an interrupted download. A file gets its final name only after its MD5 was verified.
    Files that are there already are verified and kept.
    """
    with cli_errors(directory):
        if offline:
            _report_states(directory)
            return
        typer.echo(download(directory, source, streams, RetryPolicy(retries, retry_wait, timeout)))
        typer.echo(f"next: data_scripts/verify_dataset.sh {shlex.quote(str(directory))}")


if __name__ == "__main__":
    typer.run(main)
