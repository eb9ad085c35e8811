"""Fetch the published data set: `python -m data_scripts download [DIR]`.

Everything unfinished is in `DIR/.download/`; a file gets its final name only when its MD5 is right.
"""

import os
import shlex
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.filesize import decimal

from data_scripts.c4 import PREFIXES, SOURCE
from data_scripts.checksums import LIST_NAME, file_md5, parse_list
from data_scripts.errors import CommandError, told
from data_scripts.fetching.parts import Part, check_space, held
from data_scripts.fetching.remote import Remote, fetch_list, probe
from data_scripts.fetching.transfer import fetch
from data_scripts.fetching.web import Patience, Web
from data_scripts.fetching.work_folder import clear, locked, save
from data_scripts.progress import Show, metered
from gptoss20b.data.md5_list import ListedFile


class Outcome(NamedTuple):
    """What a download did: files there and verified, those of them that were there before, and bytes received."""

    files: int
    kept: int
    received: int


class Job:
    """One download: where to, where from, with how many streams and how much patience.

    Raises:
        CommandError: the source is no https address.
    """

    def __init__(self, directory: Path, source: str, streams: int, patience: Patience) -> None:
        self.directory = directory
        self._source, self._streams, self._patience = source, streams, patience
        self._web = Web(source, patience.timeout)
        self._stop = threading.Event()

    def run(self, *, replace: bool, say: Callable[[str], None]) -> Outcome:
        """Fetch, verify and place all files that are not there yet.

        Args:
            replace: fetch files anew that are there with another content.
            say: told, in a line, what a user would not expect.

        Raises:
            CommandError: it cannot be finished; what was fetched is kept, and nothing unverified has a final name.
            OSError: the disk failed.
        """
        with locked(self.directory) as work, ExitStack() as opened:
            published = fetch_list(self._web, self._source, self._patience, self._stop)
            remotes = {
                listed: probe(self._web, published.base, listed.path, self._patience, self._stop)
                for listed in published.files
            }
            wanted = self._wanted(remotes, replace)
            parts = [opened.enter_context(Part(work, listed, remotes[listed])) for listed in wanted]
            for part in parts:
                if part.restarted:
                    say(f"{part.listed.path}: another version than before, fetched from the start again")
            check_space(self.directory, parts)
            # From here on the list says, also to --offline, what is to be there.
            save(work, published.text, self.directory / LIST_NAME)
            before = sum(part.received for part in parts)
            again = self._fetch_and_place(parts, replace=replace)
            for part, got in again.items():
                say(f"{part.listed.path}: got MD5 {got}, expected {part.listed.md5}; fetched from the start again")
                part.empty()
            twice = self._fetch_and_place(list(again), replace=replace)
            for part in twice:
                part.empty()
            for part, got in twice.items():
                raise CommandError(
                    f"{part.listed.path}: got MD5 {got} twice; expected {part.listed.md5}. To fix: its file and list "
                    "do not fit each other; start again later, or name another --source."
                )
            received = sum(part.remote.size for part in [*parts, *again]) - before
            clear(work)
        return Outcome(len(published.files), len(published.files) - len(wanted), received)

    def _wanted(self, remotes: dict[ListedFile, Remote], replace: bool) -> list[ListedFile]:
        """The files to fetch: those that are not there, and those of another content if they may be replaced."""
        paths = {listed: self.directory / listed.path for listed in remotes}
        there = [listed for listed in remotes if os.path.lexists(paths[listed])]
        # All sizes first: an MD5 takes minutes.
        wrong = {listed: _wrong_size(paths[listed], remotes[listed].size) for listed in there}
        if replace or not any(wrong.values()):
            wrong |= self._wrong_sums([listed for listed in there if not wrong[listed]])
        for message in filter(None, wrong.values()):
            if not replace:
                raise CommandError(f"{message}. To fix: pass --replace to fetch it anew, or move it away.")
        return [listed for listed in remotes if wrong.get(listed, "missing")]

    def _wrong_sums(self, files: list[ListedFile]) -> dict[ListedFile, str]:
        """What is wrong with the MD5 of files that are there; empty for each that is right."""
        wrong: dict[ListedFile, str] = {}
        sizes = [(self.directory / listed.path).stat().st_size for listed in files]
        with metered("checking", sum(sizes)) as show:
            for number, listed in enumerate(files):
                path = self.directory / listed.path
                got = file_md5(path, _from(show, sum(sizes[:number])))
                wrong[listed] = "" if got == listed.md5 else f"{path}: got MD5 {got}; expected {listed.md5}"
        return wrong

    def _fetch_and_place(self, parts: list[Part], *, replace: bool) -> dict[Part, str]:
        """Fetch all parts, and give those their final names whose MD5 is right; the others, with the MD5 they have."""
        if not parts:
            return {}
        total = sum(part.remote.size for part in parts)
        with metered("fetching", total, sum(part.received for part in parts)) as show:
            fetch(self._web, parts, self._streams, self._patience, self._stop, show)
        wrong: dict[Part, str] = {}
        with metered("verifying", total) as show:
            done = 0
            for part in parts:
                got = file_md5(part.path, _from(show, done))
                done += part.remote.size
                if got != part.listed.md5:
                    wrong[part] = got
                    continue
                final = self.directory / part.listed.path
                if os.path.lexists(final) and not replace:
                    raise CommandError(
                        f"{final}: got a file that was not there at the start; expected none. "
                        "To fix: move it away and start the same command again."
                    )
                part.place(final)
        return wrong


def _from(show: Show, start: int) -> Callable[[int], None]:
    return lambda done: show(start + done)


def _wrong_size(path: Path, size: int) -> str:
    """What is wrong with the size of a file that is there; empty if nothing is.

    Raises:
        CommandError: it is no file.
    """
    if not path.is_file():
        raise CommandError(f"{path}: got something else than a file; expected one. To fix: move it away.")
    got = path.stat().st_size
    return "" if got == size else f"{path}: got {got:,} bytes; expected {size:,}"


def look(directory: Path) -> dict[str, str]:
    """What is in the folder, without a network: each file's path, and `verified` or what it is instead.

    The files are those of the list in the folder, else the published pairs, whose MD5 is not known without it.

    Raises:
        CommandError: the list is damaged.
        OSError: a file cannot be read.
    """
    known = directory / LIST_NAME
    if known.is_file():
        sums = {listed.path: listed.md5 for listed in parse_list(known.read_bytes(), str(known))}
    else:
        sums = {f"{prefix}{suffix}": "" for prefix in PREFIXES for suffix in (".bin", ".idx")}
    found = {path: directory / path for path in sums if (directory / path).is_file()}
    states: dict[str, str] = {}
    with metered("checking", sum(path.stat().st_size for path in found.values())) as show:
        done = 0
        for path, md5 in sums.items():
            if path not in found:
                part = held(directory, path)
                states[path] = "missing" if part is None else f"partial, {part[0]:,} of {part[1]:,} bytes"
                continue
            if not md5:
                states[path] = "present (no checksum known)"
                continue
            got = file_md5(found[path], _from(show, done))
            done += found[path].stat().st_size
            states[path] = "verified" if got == md5 else f"wrong MD5, {got} instead of {md5}"
    return states


def _tell(directory: Path) -> None:
    states = look(directory)
    for path, state in states.items():
        typer.echo(f"{path}: {state}")
    bad = sum(state != "verified" for state in states.values())
    if bad:
        raise CommandError(
            f"{directory}: got {bad} of {len(states)} files that are not there and verified; expected none. "
            "To fix: start the same command without --offline."
        )


def _summary(directory: Path, outcome: Outcome, seconds: float) -> str:
    fetched = "nothing fetched"
    if outcome.received:
        rate = decimal(round(outcome.received / seconds))
        fetched = f"{outcome.received:,} bytes fetched in {seconds:,.1f} s, {rate}/s"
    return f"{directory}: {outcome.files} files verified, {outcome.kept} of them were there; {fetched}"


def main(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the data set.")] = Path("data/c4"),
    source: Annotated[
        str, typer.Option(metavar="URL", help="Metadata file of a mirror; only its host is fetched from.")
    ] = SOURCE,
    offline: Annotated[bool, typer.Option("--offline", help="Only say what is there; nothing is fetched.")] = False,
    streams: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Requests at a time.")] = 8,
    retries: Annotated[
        int, typer.Option(metavar="N", min=0, help="Failures in a row, without a byte received, that are put up with.")
    ] = 6,
    retry_wait: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, max=3600, help="First wait after a failure; doubled up to 60."),
    ] = 1.0,
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0.1, max=3600, help="Silence that counts as a failure."),
    ] = 60.0,
    replace: Annotated[
        bool, typer.Option("--replace", help="Fetch files anew that are there with another content.")
    ] = False,
) -> None:
    """Fetch the published data set, or take an interrupted download up again.

    Files get their names only when their MD5 is right; those that are there already are checked and kept.
    """
    with told():
        if offline:
            _tell(directory)
            return
        began = time.monotonic()
        job = Job(directory, source, streams, Patience(retries, retry_wait, timeout))
        outcome = job.run(replace=replace, say=lambda line: typer.echo(line, err=True))
        typer.echo(_summary(directory, outcome, time.monotonic() - began))
        typer.echo(f"next: data_scripts/verify_dataset.sh {shlex.quote(str(directory))}")


if __name__ == "__main__":
    typer.run(main)
