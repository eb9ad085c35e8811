"""Builds a submission tree from logs that pass: results, system description, code and the skeleton of a README.

The tree is built beside its place, judged by the rules on packages, and moved there at the very end.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from .benchmark import NAME, RUNS
from .file_tree import is_binary, is_source, list_tree, printable_path
from .findings import Finding, Report, RunSummary, Severity, Verdict
from .log_files import InputError
from .package_readme import failing, package_readme
from .records import ParseError
from .rules import PACKAGE_RULES
from .rules.packages import PackageContext
from .submission import CODE_FOLDER, SystemDescription, read_submission, read_system_description

# Source code is a few megabytes; more is data or a model that was named by mistake.
LARGEST_CODE = 100 << 20
# A gzip file may unpack to a thousand times its size.
LARGEST_LOG = 1 << 30
_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20


class PackageRefusedError(Exception):
    """The logs or the tree fail; `findings` holds what fails."""

    def __init__(self, what: str, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        lines = [f"  {finding.rule}: {finding.message}" for finding in self.findings[:10]]
        more = [f"  and {len(self.findings) - 10} more"] if len(self.findings) > 10 else []
        super().__init__("\n".join([f"{what}. Correct this, or build nevertheless with --force:", *lines, *more]))


@dataclass(frozen=True, slots=True)
class BuiltPackage:
    """What was built.

    Attributes:
        root: the submission tree.
        system: name of the system in it.
        logs: per log as the report names it, its name in the tree.
        code: number of files of code.
        left_out: names in the code folder that were not copied; folders end in a slash.
        scaling: factor in scaling.json, None if there is no such file.
        findings: what the rules on packages say of the tree.
    """

    root: Path
    system: str
    logs: dict[str, str]
    code: int
    left_out: tuple[str, ...]
    scaling: float | None
    findings: tuple[Finding, ...]


def build(
    logs: Sequence[Path],
    system: Path,
    code: Path,
    out: Path,
    *,
    report: Report,
    runs: int = RUNS,
    force: bool = False,
    write_scaling: bool = False,
) -> BuiltPackage:
    """Builds a submission tree of one system; after a failure nothing of it is left.

    Args:
        logs: in order of their start, gzipped or not. Of more than `runs`, those of the score's window are taken.
        system: the system description. Its file's name becomes the system's.
        code: the source code. Left out are hidden files, caches, binaries, links that lead out of it, and
            folders called data or results at its top that are no Python packages.
        out: the tree's place: a new or an empty folder.
        report: what `check_set` said of these logs.
        runs: logs that make a result.
        force: build although the logs or the tree fail.
        write_scaling: write scaling.json, if the score is valid and its normalisation is more than 1.

    Raises:
        PackageRefusedError: the logs or the tree fail, and `force` is not set.
        FileExistsError: `out` is there and not an empty folder.
        InputError: something cannot be read or copied, or which logs count is not known.
        ValueError: the report is not of these logs.
    """
    if report.verdict is not Verdict.PASS and not force:
        raise PackageRefusedError("The logs fail", failing(report))
    chosen = _chosen(logs, report, runs)
    description = read_system_description(system)
    if isinstance(description, ParseError):
        line = "" if description.line is None else f":{description.line}"
        raise InputError(f"{printable_path(system)}{line}: {description.message}")
    name = _name(description)
    files, left_out = _code_files(code)
    names = {run.file: f"result_{index}.txt" for index, (_, run) in enumerate(chosen)}
    scaling = _scaling(report) if write_scaling else None
    with _place_for(out) as tree:
        results = tree / "results" / name / NAME
        results.mkdir(parents=True)
        for log, run in chosen:
            _copy_log(log, results / names[run.file])
        if scaling is not None:
            (results / "scaling.json").write_text(json.dumps({"scaling_factor": scaling}), encoding="utf-8")
        (tree / "systems").mkdir()
        shutil.copyfile(system, tree / "systems" / f"{name}.json")
        _copy_code(code, files, tree / CODE_FOLDER / "implementations" / name)
        text = package_readme(report, description, name, names, files)
        (tree / CODE_FOLDER / "README.md").write_text(text, encoding="utf-8")
        findings = _judge(tree, out, name, [run for _, run in chosen], runs)
        errors = [finding for finding in findings if finding.severity is Severity.ERROR]
        if errors and not force:
            raise PackageRefusedError("The package would fail", errors)
    return BuiltPackage(out, name, names, len(files), left_out, scaling, findings)


@contextmanager
def _place_for(out: Path) -> Iterator[Path]:
    """A folder to build in, which becomes `out` if all goes well and is gone if not.

    Raises:
        FileExistsError, InputError: as `build`.
    """
    parent = out.absolute().parent
    if not parent.is_dir():
        raise InputError(f"{printable_path(parent)}: no such folder; the package is made in it")
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise FileExistsError(f"{printable_path(out)}: exists; a package is built in a new or an empty folder")
    try:
        # Beside its place, so that moving it there is one step.
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=parent) as folder:
            tree = Path(folder, "tree")
            tree.mkdir()
            yield tree
            tree.rename(out)
    except OSError as error:
        raise InputError(f"{printable_path(str(error.filename or out))}: {error.strerror or error}") from error


def _chosen(logs: Sequence[Path], report: Report, runs: int) -> list[tuple[Path, RunSummary]]:
    """The logs that go into the tree, each with what was judged.

    Raises:
        InputError: there are more than count, and the report does not say which do.
        ValueError: as `build`.
    """
    if len(report.sets) != 1:
        raise ValueError(f"a package is built of one set of runs, the report has {len(report.sets)}")
    judged = {run.file: run for run in report.sets[0].runs}
    unjudged = [str(log) for log in logs if str(log) not in judged]
    if unjudged or not logs:
        raise ValueError(f"the report is not of these logs: {', '.join(unjudged) or 'none given'}")
    score = report.sets[0].score
    counted = set(score.window) if score is not None and len(logs) > runs else set(judged)
    chosen = [(log, judged[str(log)]) for log in logs if str(log) in counted]
    if len(chosen) > runs:
        raise InputError(f"{len(logs)} logs, and the report does not say which {runs} count; give {runs} logs")
    return chosen


def _name(system: SystemDescription) -> str:
    """The system's name in the tree: one plain name, whatever the description is called.

    Raises:
        InputError: nothing remains of the file's name and of system_name.
    """
    for name in (system.name, system.system_name or ""):
        plain = re.sub(r"[^A-Za-z0-9_.+-]+", "_", name).strip("._-")[:100]
        if plain:
            return plain
    raise InputError(f"{system.path}: no name for the system; name the file after it, in letters and digits")


def _scaling(report: Report) -> float | None:
    """The factor that the official checker would write; it writes none where a score is not to be changed."""
    score = report.sets[0].score
    if score is None or not score.valid or score.normalization is None or score.normalization <= 1:
        return None
    return score.normalization


def _code_files(code: Path) -> tuple[list[str], tuple[str, ...]]:
    """The files to copy, and the names left out.

    Raises:
        InputError: no folder, no source code, or too much of it.
    """
    if not code.is_dir():
        raise InputError(f"{printable_path(code)}: no such folder; expected the one with the source code")
    listing = list_tree(code, partial(_holds_code, code))
    for name, why in listing.unlisted:
        raise InputError(f"{printable_path(code / name)}: {why}")
    kept = {file.name: file.size for file in listing.files if not (_hidden(file.name) or is_binary(file.name))}
    real = Path(os.path.realpath(code))
    # A link within the folder is copied as a file, unless it leads to one that is left out.
    aims = {name: Path(os.path.realpath(code / name)).relative_to(real).as_posix() for name in kept}
    files = [name for name, aim in aims.items() if aim in kept]
    size = sum(kept[name] for name in files)
    if not any(map(is_source, files)):
        raise InputError(f"{printable_path(code)}: no source code in this folder; give the one with the source code")
    if size > LARGEST_CODE:
        largest = printable_path(max(files, key=kept.__getitem__))
        message = f"{size >> 20} MiB of code, expected at most {LARGEST_CODE >> 20}; remove what is no code"
        raise InputError(f"{printable_path(code)}: {message}. The largest file is {largest}")
    left_out = {file.name for file in listing.files} - set(files)
    left_out |= {f"{name}/" for name in listing.folders if not _holds_code(code, name)}
    left_out |= {link.name for link in listing.links}
    return files, tuple(sorted(map(printable_path, left_out)))


def _holds_code(code: Path, folder: str) -> bool:
    """Whether a folder of the code is copied. `data` and `results` at its top are, if they are Python packages."""
    own = folder.rpartition("/")[2]
    if folder in ("data", "results"):
        return (code / folder / "__init__.py").is_file()
    return not (_hidden(folder) or own == "__pycache__" or own.endswith(".egg-info"))


def _hidden(name: str) -> bool:
    """Version control, environments, caches, secrets; the official repo_checker refuses them all."""
    return name.rpartition("/")[2].startswith(".")


def _copy_log(log: Path, copy: Path) -> None:
    """Copies a log, decompressed.

    Raises:
        InputError: it is damaged, or too large.
    """
    with log.open("rb") as raw, copy.open("xb") as file:
        packed = raw.peek(2)[:2] == _GZIP
        with gzip.GzipFile(fileobj=raw) if packed else raw as stream:
            size = 0
            try:
                while chunk := cast("BinaryIO", stream).read(_CHUNK):
                    size += file.write(chunk)
                    if size > LARGEST_LOG:
                        raise InputError(f"{printable_path(log)}: a log of more than {LARGEST_LOG >> 20} MiB")
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise InputError(f"{printable_path(log)}: damaged gzip file ({error}); copy it again") from error


def _copy_code(code: Path, files: Sequence[str], folder: Path) -> None:
    for file in files:
        copy = folder / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(code / file, copy)


def _judge(tree: Path, out: Path, system: str, runs: Sequence[RunSummary], required_runs: int) -> tuple[Finding, ...]:
    """What the rules on packages say of a tree that is to be at `out`."""
    context = PackageContext(read_submission(tree, out), {system: tuple(runs)}, required_runs)
    return tuple(finding for rule in PACKAGE_RULES for finding in rule.judge(context))
