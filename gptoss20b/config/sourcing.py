"""The variables that a configuration file sets: those of a clean bash that has sourced it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_LIMIT_S = 5.0


def source(path: Path, *, strict: bool = False) -> dict[str, str]:
    """Return the variables of a bash that has sourced a file, and nothing else.

    Args:
        path: the file.
        strict: fail where any command of the file fails, or reads an unset variable.

    Raises:
        OSError: there is no bash.
        subprocess.SubprocessError: the file cannot be sourced; its stderr is text.
    """
    # Before && bash ignores -e, also within the file.
    options, then = (["-euo", "pipefail"], ";") if strict else ([], "&&")
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", *options, "-c", f'source "$0" > /dev/null {then} exec env -0', str(path)],
        env={"PATH": os.defpath} | {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=_LIMIT_S,
    )
    pairs = (entry.partition("=") for entry in done.stdout.split("\0"))
    return {name: value for name, _, value in pairs if value}
