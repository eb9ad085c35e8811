"""Download the published dataset: `python -m data_scripts download [DIR]`.

Everything unfinished is in `DIR/.download/`. A file gets its final name only after its MD5 was verified.
"""

from __future__ import annotations

import os
import shlex
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NamedTuple

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


class Outcome(NamedTuple):
    """Result of a download: files verified, those of them that were there before, and bytes received."""

    files: int
    kept: int
    received: int


class Download:
    """One download: destination, source, number of streams and retry policy.

    Raises:
        CommandError: the source is no https address.
    """

    def __init__(self, directory: Path, source: str, streams: int, policy: RetryPolicy) -> None:
        self.directory = directory
        self._source, self._streams = source, streams
        self._client = HttpsClient(source, policy)

    def run(self, *, replace: bool) -> Outcome:
        """Fetch, verify and commit all files that are not there yet.

        Args:
            replace: fetch files again whose content differs from the list.

        Raises:
            CommandError: the download cannot be completed. What was fetched is kept, and no unverified file has a
                final name.
        """
        with ExitStack() as stack:
            work = self._lock_work_folder(stack)
            published = fetch_list(self._client, self._source)
            remotes = {listed: probe_file(self._client, published.base, listed.path) for listed in published.files}
            required = self._files_to_fetch(remotes, replace)
            parts = [stack.enter_context(PartialFile(work, listed, remotes[listed])) for listed in required]
            for part in parts:
                if part.restarted:
                    log(f"{part.listed.path}: another version than before, fetched from the start again")
            check_space(self.directory, parts)
            # From here on, --offline takes the expected files from this list.
            atomic_write(work / LIST_NAME, published.text)
            (work / LIST_NAME).replace(self.directory / LIST_NAME)
            fsync_path(self.directory)
            before = sum(part.received for part in parts)
            corrupt = self._fetch_and_commit(parts, replace=replace)
            for part, got in corrupt.items():
                log(f"{part.listed.path}: got MD5 {got}, expected {part.listed.md5}; fetched from the start again")
                part.reset()
            corrupt_again = self._fetch_and_commit(list(corrupt), replace=replace)
            for part in corrupt_again:
                part.reset()
            for part, got in corrupt_again.items():
                raise CommandError(
                    f"{part.listed.path}: got MD5 {got} twice; expected {part.listed.md5}. To fix: the file and the "
                    "list on the server differ; run again later, or name another --source."
                )
            received = sum(part.remote.size for part in [*parts, *corrupt]) - before
            # Parts of another list go, too.
            clear_folder(work)
        return Outcome(len(published.files), len(published.files) - len(required), received)

    def _lock_work_folder(self, stack: ExitStack) -> Path:
        work = self.directory / WORK_FOLDER
        try:
            stack.enter_context(locked_folder(work))
        except OSError as error:
            raise CommandError(
                f"{work}: cannot be written ({error.strerror}). To fix: name a writable DIR; --offline only reads."
            ) from error
        return work

    def _files_to_fetch(self, remotes: dict[ListedFile, RemoteFile], replace: bool) -> list[ListedFile]:
        """Return the missing files, and with `replace` those whose content differs from the list."""
        right: dict[ListedFile, Path] = {}

        def keep_if(same: bool, listed: ListedFile, path: Path, difference: str) -> None:
            if same:
                right[listed] = path
            elif replace:
                right.pop(listed, None)
            else:
                raise CommandError(f"{path}: {difference}. To fix: pass --replace to fetch it again, or move it away.")

        # Compare all sizes first: an MD5 takes minutes.
        for listed, remote in remotes.items():
            path = self.directory / listed.path
            if path.is_file():
                size = path.stat().st_size
                keep_if(size == remote.size, listed, path, f"got {size:,} bytes; expected {remote.size:,}")
            elif os.path.lexists(path):
                raise CommandError(f"{path}: got something else than a file; expected one. To fix: move it away.")
        with ByteProgress("checking").begin(sum(remotes[listed].size for listed in right)) as progress:
            for listed, path in list(right.items()):
                md5 = file_md5(path, progress.advance)
                keep_if(md5 == listed.md5, listed, path, f"got MD5 {md5}; expected {listed.md5}")
        return [listed for listed in remotes if listed not in right]

    def _fetch_and_commit(self, parts: list[PartialFile], *, replace: bool) -> dict[PartialFile, str]:
        """Fetch all parts and commit those whose MD5 is right; return the others with their MD5."""
        if not parts:
            return {}
        total = sum(part.remote.size for part in parts)
        with ByteProgress("fetching").begin(total, sum(part.received for part in parts)) as progress:
            fetch(self._client, parts, self._streams, progress.update)
        corrupt: dict[PartialFile, str] = {}
        with ByteProgress("verifying").begin(total) as progress:
            for part in parts:
                got = file_md5(part.path, progress.advance)
                if got != part.listed.md5:
                    corrupt[part] = got
                    continue
                final = self.directory / part.listed.path
                if os.path.lexists(final) and not replace:
                    raise CommandError(
                        f"{final}: got a file that was not there at the start; expected none. "
                        "To fix: move it away and run the same command again."
                    )
                part.commit(final)
        return corrupt


def _report_states(directory: Path) -> None:
    """Check a folder without a network; print for each expected file `verified`, or what is wrong.

    The expected files are those of the list in the folder. Without a list, they are the published datasets, whose MD5
    is not known.

    Raises:
        CommandError: the list is damaged, or a file is missing or not verified.
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


def _summary(directory: Path, outcome: Outcome, seconds: float) -> str:
    fetched = "nothing fetched"
    if outcome.received:
        rate = decimal(round(outcome.received / seconds))
        fetched = f"{outcome.received:,} bytes fetched in {seconds:,.1f} s, {rate}/s"
    return f"{directory}: {outcome.files} files verified, {outcome.kept} of them were there before; {fetched}"


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
    replace: Annotated[
        bool, typer.Option("--replace", help="Fetch files again whose content differs from the list.")
    ] = False,
) -> None:
    """Download the published dataset, and verify every file.

    Run the command again to resume an interrupted download. A file gets its final name only after its MD5 was verified.
    Files that are there already are verified and kept.
    """
    with cli_errors():
        if offline:
            _report_states(directory)
            return
        started = time.monotonic()
        outcome = Download(directory, source, streams, RetryPolicy(retries, retry_wait, timeout)).run(replace=replace)
        typer.echo(_summary(directory, outcome, time.monotonic() - started))
        typer.echo(f"next: data_scripts/verify_dataset.sh {shlex.quote(str(directory))}")


if __name__ == "__main__":
    typer.run(main)
