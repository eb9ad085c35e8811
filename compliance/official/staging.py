"""Files as the official tools want them, in a private folder: nothing that these tools do can reach the user's tree.

They cannot read gzip, want results to be called `result_*.txt`, and write and remove `scaling.json` beside them.
"""

from __future__ import annotations

import gzip
import stat
from collections.abc import Sequence
from pathlib import Path

from .guard import RefusedError

# Unlike anything in a message, in which they are replaced by the user's own names.
SET_FOLDER, TREE_FOLDER = Path("staged_set"), Path("staged_tree")
# Ten times a log of 200 MB; the official checker needs six times a log's size in memory.
MAX_DECOMPRESSED_BYTES = 2_000_000_000
# What the official package checker would write over, or take as leave to skip a check.
NOT_CARRIED = frozenset({"scaling.json", "package_checker_params"})
# The RCP checker takes most of its time to find the record in each line, and then looks at it only if it holds one of
# these words. Without the other lines it says the same in a tenth of the time.
RCP_WORDS = ("global_batch_size", "submission_benchmark", "eval_error", "eval_accuracy", "run_stop")
# results / system / benchmark / power / run. Ends a loop of links.
_DEEPEST_FOLDER = 4


def plain_copy(path: Path, folder: Path) -> Path:
    """The file itself or, if its name ends in .gz, a decompressed copy in the folder under a name of our own.

    Raises:
        OSError, EOFError, zlib.error: it cannot be read.
        RefusedError: it is no regular file, whose reading may never end, or is larger than 2 GB decompressed.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise RefusedError(f"{path.name} is not a regular file, and the official tools may never finish reading it")
    if path.suffix.lower() != ".gz":
        return path
    copy = folder / f"plain_{len(list(folder.iterdir()))}.txt"
    left = MAX_DECOMPRESSED_BYTES
    with gzip.open(path) as source, copy.open("xb") as target:
        while chunk := source.read(1 << 20):
            left -= len(chunk)
            if left < 0:
                raise RefusedError(f"{path.name} is larger than {MAX_DECOMPRESSED_BYTES:,} bytes decompressed")
            target.write(chunk)
    return copy


def staged_name(number: int) -> Path:
    """Where `stage_set` puts the file with this number, from 0.

    >>> str(staged_name(3))
    'staged_set/result_3.txt'
    """
    return SET_FOLDER / f"result_{number}.txt"


def stage_set(paths: Sequence[Path], words: Sequence[str] = ()) -> list[Path]:
    """A set's files in one folder of the current directory.

    Args:
        paths: the files, absolute.
        words: if given, copies of the lines that hold one of them; else links.

    Raises:
        OSError, EOFError, zlib.error, RefusedError: as `plain_copy`.
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
    """Copies the lines that hold one of the words. Lines are what the official tools take for lines."""
    with source.open(encoding="latin-1") as lines, target.open("x", encoding="latin-1", newline="\n") as kept:
        kept.writelines(line for line in lines if any(word in line for word in words))


def stage_tree(root: Path) -> Path:
    """A submission tree in the current directory: its folders as folders, its regular files as links.

    Left out are the code, of which the package checker lists the names and does nothing with them, `NOT_CARRIED`, and
    whatever is neither folder nor regular file.

    Args:
        root: the tree, absolute.

    Raises:
        OSError: a folder cannot be listed.
    """
    TREE_FOLDER.mkdir()
    for part in ("systems", "results"):
        if _kind(root / part) == stat.S_IFDIR:
            _mirror(root / part, TREE_FOLDER / part, _DEEPEST_FOLDER)
    return TREE_FOLDER


def _mirror(source: Path, target: Path, depth: int) -> None:
    target.mkdir()
    for original in source.iterdir():
        if original.name in NOT_CARRIED:
            continue
        kind = _kind(original)
        if kind == stat.S_IFREG:
            (target / original.name).symlink_to(original)
        elif kind == stat.S_IFDIR and depth > 0:
            _mirror(original, target / original.name, depth - 1)


def _kind(path: Path) -> int:
    """Type bits of what the path leads to; 0 if it leads nowhere, or we are not let see it."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except OSError:
        return 0
