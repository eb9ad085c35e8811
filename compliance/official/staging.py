"""Files arranged for the official tools in a private folder, so that the tools cannot change the user's tree.

The tools do not read gzip, require the name `result_*.txt`, and write and remove `scaling.json` beside the logs.
"""

from __future__ import annotations

import gzip
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from .guard import RefusedError

# Distinctive names: messages of the tools that contain them are translated back to the user's names.
SET_FOLDER, TREE_FOLDER = Path("staged_set"), Path("staged_tree")
# Ten times a log of 200 MB. The official checker needs six times a log's size in memory.
MAX_DECOMPRESSED_BYTES = 2_000_000_000
# Files that the official package checker overwrites, or reads as permission to skip a check.
NOT_STAGED = frozenset({"scaling.json", "package_checker_params"})
# The RCP checker parses every line, which takes most of its time, but uses only lines with one of these words.
# Without the other lines it gives the same result in a tenth of the time.
RCP_WORDS = ("global_batch_size", "submission_benchmark", "eval_error", "eval_accuracy", "run_stop")
# results / system / benchmark / power / run. The limit also ends a loop of links.
_MAX_DEPTH = 4


def plain_copy(path: Path, folder: Path) -> Path:
    """Return the file, or a decompressed copy in ``folder`` under a new name if its name ends in .gz.

    Raises:
        OSError, EOFError, zlib.error: the file cannot be read.
        RefusedError: the file is not regular, so that reading may never end, or over 2 GB decompressed.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise RefusedError(f"{path.name} is not a regular file, and the official tools may never finish reading it")
    if path.suffix.lower() != ".gz":
        return path
    copy = folder / f"plain_{len(list(folder.iterdir()))}.txt"
    room = MAX_DECOMPRESSED_BYTES
    with gzip.open(path) as source, copy.open("xb") as target:
        while chunk := source.read(1 << 20):
            room -= len(chunk)
            if room < 0:
                raise RefusedError(f"{path.name} is larger than {MAX_DECOMPRESSED_BYTES:,} bytes decompressed")
            target.write(chunk)
    return copy


def staged_name(number: int) -> Path:
    """Return the path of a set's file, numbered from 0.

    >>> str(staged_name(3))
    'staged_set/result_3.txt'
    """
    return SET_FOLDER / f"result_{number}.txt"


def stage_set(paths: Sequence[Path], words: Sequence[str] = ()) -> list[Path]:
    """Put the files of a set into one folder of the current directory, as links, or as copies of lines with ``words``.

    Raises the errors of `plain_copy`.
    """
    SET_FOLDER.mkdir()
    staged = [staged_name(number) for number in range(len(paths))]
    for path, target in zip(paths, staged, strict=True):
        plain = plain_copy(path, SET_FOLDER.absolute())
        if words:
            copy_lines(plain, target, words)
        else:
            target.symlink_to(plain)
    return staged


def copy_lines(source: Path, target: Path, words: Sequence[str]) -> None:
    """Copy the lines with one of the words. Lines are split as by the official tools."""
    with source.open(encoding="latin-1") as lines, target.open("x", encoding="latin-1", newline="\n") as selected:
        selected.writelines(line for line in lines if any(word in line for word in words))


def stage_tree(root: Path, only: str | None = None) -> Path:
    """Mirror a submission tree in the current directory: folders as folders, regular files as links.

    Left out are the code, of which the package checker only lists the names, `NOT_STAGED`, everything that is neither
    folder nor regular file, and the other systems than ``only``, if given. The root is absolute.
    """
    TREE_FOLDER.mkdir()
    for part in ("systems", "results"):
        if _file_type(root / part) == stat.S_IFDIR:
            _mirror(root / part, TREE_FOLDER / part, _MAX_DEPTH)
    for path in TREE_FOLDER.glob("*/*") if only is not None else ():
        if path.name not in (only, f"{only}.json"):
            path.unlink() if path.is_symlink() else shutil.rmtree(path)
    return TREE_FOLDER


def _mirror(source: Path, target: Path, depth: int) -> None:
    target.mkdir()
    for original in source.iterdir():
        if original.name in NOT_STAGED:
            continue
        file_type = _file_type(original)
        if file_type == stat.S_IFREG:
            (target / original.name).symlink_to(original)
        elif file_type == stat.S_IFDIR and depth > 0:
            _mirror(original, target / original.name, depth - 1)


def _file_type(path: Path) -> int:
    """Return the type bits of a path's target, 0 if it is broken or inaccessible."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except OSError:
        return 0
