"""The error of a start that is refused."""

from __future__ import annotations


class RefusedError(Exception):
    """A run or a set must not start: names the variable, what was got, and the fix. The exit status is 2."""
