"""Turn the import error of a package that is not installed into one line that says how to install it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

_USAGE_STATUS = 2


@contextlib.contextmanager
def explain_missing_package(extra: str) -> Iterator[None]:
    """Exit with status 2 and one line on stderr if a third-party package is missing.

    Args:
        extra: the extra of this project that brings the packages of the command.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        print(
            f"error: Python package '{error.name}' is not installed in {sys.prefix}. Install what this command needs: "
            f"pip install '.[{extra}]' in a checkout of this project, or make run, and then source .venv/bin/activate",
            file=sys.stderr,
        )
        sys.exit(_USAGE_STATUS)
