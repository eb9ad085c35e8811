"""Values of JSON logs: numbers, whole numbers, equality. Logs may hold any type anywhere."""

from __future__ import annotations

import math


def finite_float(value: object) -> float | None:
    """Return a JSON number as a float; None for NaN, infinities and everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def whole_number(value: object) -> int | None:
    """Return a JSON number as an integer if it is whole (16 or 16.0), else None."""
    number = finite_float(value)
    if number is None or not number.is_integer():
        return None
    # Integers are not converted through float: a 64-bit seed would lose its last digits.
    return value if isinstance(value, int) else int(number)


def seed_number(value: object) -> int | None:
    """Return a seed as mlperf-logging's seed_checker reads it, by `int()`; None if it cannot.

    >>> seed_number(4083), seed_number("4083"), seed_number(1.5), seed_number("x"), seed_number(None)
    (4083, 4083, 1, None, None)
    """
    try:
        return int(value)  # type: ignore[call-overload, no-any-return]
    except (ValueError, TypeError, OverflowError):
        return None


def comparison_key(value: object) -> str:
    """Return a key that is equal for equal JSON values. Numbers are equal however they are written.

    >>> comparison_key(1), comparison_key(1.0), comparison_key(True), comparison_key("1")
    ('1', '1', 'True', "'1'")
    """
    number = whole_number(value)
    return repr(value if number is None else number)
