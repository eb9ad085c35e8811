"""Build a submission tree from logs that pass: results, system description, code and a README to fill in.

The tree is built in a temporary folder beside its destination, judged by the rules on packages, and then renamed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from .benchmark import NAME, RUNS
from .file_tree import is_binary, is_source, list_tree, printable
from .findings import Finding, Report, RunSummary, Severity, Verdict
from .log_files import InputError, open_log
from .package_readme import failing_findings, package_readme
from .records import ParseError
from .rules import PACKAGE_RULES
from .rules.packages import PackageContext
from .rules.rule import Waive, judge_by
from .submission import CODE_FOLDER, SystemDescription, read_submission, read_system_description

# Source code has a few megabytes. More is data or a model, named by mistake.
MAX_CODE_BYTES = 100 << 20
_SHOWN_FINDINGS = 10


class PackageRefusedError(Exception):
    """The logs or the tree fail. `findings` holds the findings that make them fail."""

    def __init__(self, reason: str, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        lines = [f"  {finding.rule}: {finding.message}" for finding in self.findings[:_SHOWN_FINDINGS]]
        hidden = len(self.findings) - len(lines)
        more = [f"  and {hidden} more"] if hidden else []
        super().__init__("\n".join([f"{reason}. Fix this, or build anyway with --force:", *lines, *more]))


def build(
    report: Report,
    system: Path,
    code: Path,
    out: Path,
    *,
    runs: int = RUNS,
    force: bool = False,
    write_scaling: bool = False,
    waive: Waive | None = None,
) -> tuple[str, ...]:
    """Build a submission tree of one system. After a failure nothing of it is left.

    Args:
        report: result of `check_set`. Of more logs than ``runs``, the score's window is taken.
        system: system description. Its file name becomes the name of the system.
        code: source code. Hidden files, caches, binaries, links out of the folder, and top-level folders called data,
            results or site without an ``__init__.py`` are not copied.
        out: destination: a new or an empty folder.
        runs: runs required for a result.
        force: build even if the logs or the tree fail.
        write_scaling: write scaling.json if the score is valid and its normalization is above 1.
        waive: marks the findings on the tree that a waiver accepts.

    Returns:
        Names in the code folder that were not copied; names of folders end in a slash.

    Raises:
        PackageRefusedError: the logs or the tree fail, and ``force`` is not set.
        FileExistsError: ``out`` exists and is not an empty folder.
        InputError: a file cannot be read or copied, or the scored logs are unknown.
    """
    if report.verdict is not Verdict.PASS and not force:
        raise PackageRefusedError("The logs fail", failing_findings(report))
    scored = _scored_runs(report, runs)
    description = read_system_description(system)
    if isinstance(description, ParseError):
        line = "" if description.line is None else f":{description.line}"
        raise InputError(f"{printable(system)}{line}: {description.message}")
    name = _system_name(description)
    files, not_copied = _code_files(code)
    names = {run.file: f"result_{index}.txt" for index, run in enumerate(scored)}
    scaling = _scaling_factor(report) if write_scaling else None
    with _atomic_folder(out) as tree:
        results = tree / "results" / name / NAME
        results.mkdir(parents=True)
        for run in scored:
            with open_log(Path(run.file)) as log, (results / names[run.file]).open("xb") as copied_log:
                shutil.copyfileobj(log, copied_log)
        if scaling is not None:
            (results / "scaling.json").write_text(json.dumps({"scaling_factor": scaling}), encoding="utf-8")
        (tree / "systems").mkdir()
        shutil.copyfile(system, tree / "systems" / f"{name}.json")
        for file in files:
            copy = tree / CODE_FOLDER / "implementations" / name / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(code / file, copy)
        text = package_readme(report, description, name, names, files)
        (tree / CODE_FOLDER / "README.md").write_text(text, encoding="utf-8")
        context = PackageContext(read_submission(tree, out), {name: tuple(scored)}, runs)
        # Findings name files by their destination.
        findings = judge_by(PACKAGE_RULES, context, waive=waive)
        errors = [finding for finding in findings if finding.severity is Severity.ERROR]
        if errors and not force:
            raise PackageRefusedError("The package would fail", errors)
    return not_copied


@contextmanager
def _atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder, and rename it to ``out`` on success. After an error it is removed.

    Raises:
        FileExistsError: ``out`` exists and is not an empty folder.
        InputError: the folder above is missing, or the disk refuses.
    """
    parent = out.absolute().parent
    if not parent.is_dir():
        raise InputError(f"{printable(parent)}: no such folder; create it first")
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise FileExistsError(f"{printable(out)}: exists; name a new or an empty folder")
    try:
        # On the same file system as the destination, so that the rename is atomic.
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=parent) as folder:
            tree = Path(folder, "tree")
            tree.mkdir()
            yield tree
            tree.rename(out)
    except OSError as error:
        raise InputError(f"{printable(str(error.filename or out))}: {error.strerror or error}") from error


def _scored_runs(report: Report, runs: int) -> list[RunSummary]:
    """Return the runs that go into the tree, in order of their start.

    Raises:
        InputError: there are more logs than required, and the report has no window.
    """
    (result,) = report.sets
    scored = sorted(result.runs, key=lambda run: run.start_ms or 0.0)
    if len(scored) > runs and result.score is not None:
        scored = [run for run in scored if run.file in result.score.window]
    if len(scored) > runs:
        count = len(result.runs)
        raise InputError(f"{count} logs, and the report has no window of {runs} scored ones; give {runs} logs")
    return scored


def _system_name(system: SystemDescription) -> str:
    """Return the name of the system in the tree, in letters and digits.

    Raises:
        InputError: neither the file name nor system_name has a letter or digit.
    """
    for name in (system.name, system.text("system_name") or ""):
        plain = re.sub(r"[^A-Za-z0-9_.+-]+", "_", name).strip("._-")[:100]
        if plain:
            return plain
    raise InputError(f"{system.path}: no name for the system; name the file after it, in letters and digits")


def _scaling_factor(report: Report) -> float | None:
    """Return the factor that the official checker would write; None if it would not write one."""
    score = report.sets[0].score
    if score is None or not score.valid or score.normalization is None or score.normalization <= 1:
        return None
    return score.normalization


def _code_files(code: Path) -> tuple[list[str], tuple[str, ...]]:
    """Return the names of the files to copy, and the names of those that are not copied.

    Raises:
        InputError: the folder is missing, has no source code, or is too large.
    """
    if not code.is_dir():
        raise InputError(f"{printable(code)}: no such folder; expected the folder of the source code")
    listing = list_tree(code, partial(_is_code_folder, code))
    for name, reason in listing.unlisted:
        raise InputError(f"{printable(code / name)}: {reason}")
    kept = {file.name: file.size for file in listing.files if not (_is_hidden(file.name) or is_binary(file.name))}
    real = Path(os.path.realpath(code))
    # A link within the folder is copied as a file, unless its target is not copied.
    targets = {name: Path(os.path.realpath(code / name)).relative_to(real).as_posix() for name in kept}
    files = [name for name, target in targets.items() if target in kept]
    size = sum(kept[name] for name in files)
    if not any(map(is_source, files)):
        raise InputError(f"{printable(code)}: no source code in this folder; give the folder of the source code")
    if size > MAX_CODE_BYTES:
        largest = printable(max(files, key=kept.__getitem__))
        message = f"{size >> 20} MiB of code, expected at most {MAX_CODE_BYTES >> 20}; remove files that are not code"
        raise InputError(f"{printable(code)}: {message}. The largest file is {largest}")
    not_copied = {file.name for file in listing.files} - set(files)
    not_copied |= {f"{name}/" for name in listing.folders if not _is_code_folder(code, name)}
    not_copied |= {link.name for link in listing.links}
    return files, tuple(sorted(map(printable, not_copied)))


def _is_code_folder(code: Path, folder: str) -> bool:
    """Return whether a folder is copied. Top-level `data`, `results` and `site` must be Python packages."""
    last = folder.rpartition("/")[2]
    if folder in ("data", "results", "site"):
        return (code / folder / "__init__.py").is_file()
    return not (_is_hidden(folder) or last == "__pycache__" or last.endswith(".egg-info"))


def _is_hidden(name: str) -> bool:
    """Return whether a name is hidden: version control, environments, caches, secrets (repo_checker refuses them)."""
    return name.rpartition("/")[2].startswith(".")
