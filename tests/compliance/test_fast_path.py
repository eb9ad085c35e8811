"""Fast path: the template of one line changes no line's meaning."""

from __future__ import annotations

import io
import json
import math
from itertools import chain
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compliance.fast_path import infer
from compliance.parse import parse
from compliance.records import Log

NUMBER = (
    st.floats(allow_nan=False, allow_infinity=False) | st.integers(-10, 10**12) | st.sampled_from([0, 1e-300, 1e300])
)
OTHER: st.SearchStrategy[Any] = (
    NUMBER | st.none() | st.booleans() | st.text(max_size=4) | st.just({"deep": [1]}) | st.just({})
)
NAMES = st.sampled_from(["step", "file", "lineno", "value", "key", "time_ms", "é", "a b", "metadata"])
FORM = {"separators": st.sampled_from([(", ", ": "), (",", ":")]), "ensure_ascii": st.booleans()}


def columns(log: Log) -> list[list[str]]:
    losses = log.train_losses
    return [
        [repr(number) for number in each]
        for each in (losses.times_ms, losses.losses, losses.samples, losses.learning_rates)
    ]


def parsed(*lines: bytes) -> Log:
    return parse(io.BytesIO(b"\n".join(lines)), "x.txt")


def assert_same_alone_and_together(*lines: bytes) -> None:
    together, alone = parsed(*lines), [parsed(line) for line in lines]
    assert columns(together) == [list(chain(*each)) for each in zip(*map(columns, alone), strict=True)]
    assert len(together.records) == sum(len(log.records) for log in alone)
    errors = [error.message for log in alone for error in log.parse_errors if error.rule == "record-corrupt"]
    assert [error.message for error in together.parse_errors] == errors


@st.composite
def record(draw: st.DrawFn) -> dict[str, Any]:
    metadata = {name: draw(OTHER) for name in draw(st.lists(NAMES, max_size=3, unique=True))}
    metadata |= {name: draw(NUMBER) for name in ("samples_count", "lr") if draw(st.booleans())}
    top: dict[str, Any] = {"key": "train_loss", "value": draw(NUMBER), "time_ms": draw(st.integers(1, 10**12))}
    top |= {name: draw(OTHER) for name in draw(st.lists(st.sampled_from(["namespace", "event_type"]), unique=True))}
    top["metadata"] = metadata
    return {name: top[name] for name in draw(st.permutations(list(top)))}


def varied(draw: st.DrawFn | Any, value: Any, name: str = "") -> Any:
    """Return the same record with other numbers and strings."""
    if isinstance(value, dict):
        return {name: varied(draw, each, name) for name, each in value.items()}
    if isinstance(value, bool) or value is None or name == "key":
        return value
    if isinstance(value, str):
        return draw(st.text(max_size=4))
    return draw(st.integers(1, 10**12)) if name == "time_ms" else draw(NUMBER)


@given(st.data(), record(), st.fixed_dictionaries(FORM))
@settings(max_examples=150, deadline=None)
def test_a_second_line_of_the_same_form_keeps_its_meaning(
    data: st.DataObject, first: dict[str, Any], form: dict[str, Any]
) -> None:
    lines = [json.dumps(each, **form) for each in (first, varied(data.draw, first), varied(data.draw, first))]
    assert_same_alone_and_together(*(f":::MLLOG {line}".encode("utf-8", "surrogatepass") for line in lines))


@given(record(), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3), st.binary(max_size=3)), max_size=3))
@example({"key": "train_loss", "value": -1.5, "time_ms": 1, "metadata": {}}, [(41, 3, b"1e999")])
@settings(max_examples=300, deadline=None)
def test_a_damaged_second_line_keeps_its_meaning(first: dict[str, Any], edits: list[tuple[int, int, bytes]]) -> None:
    line = f":::MLLOG {json.dumps(first)}".encode()
    damaged = line
    for place, deleted, inserted in edits:
        damaged = damaged[:place] + inserted.replace(b"\n", b"") + damaged[place + deleted :]
    assert_same_alone_and_together(line, damaged, line)


PLAIN = (
    b' {"namespace": "", "time_ms": 17, "key": "train_loss", "value": 1.5, "metadata": {"samples_count": 4, "lr": 0.1}}'
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *((b"1.5", other) for other in (b"01.5", b"1.", b"+1.5", b"NaN", b'"1.5"')),
        *((b"17", other) for other in (b"0", b"-17", b"17.5", b"99999999999999")),
        (b'": 1.5', b'", 1.5'),
        (b'""', b'"\\u0022"'),
        (b'"train_loss"', b'"eval_accuracy"'),
        (b"}}", b"}} and more"),
        (b"}}", b"}"),
        (b'"lr"', b'"lrs"'),
        (b"4,", b"null,"),
    ],
)
def test_lines_that_a_template_does_not_match(old: bytes, new: bytes) -> None:
    template = infer(PLAIN)
    assert template is not None
    assert template.pattern.fullmatch(b":::MLLOG" + PLAIN)
    assert not template.pattern.fullmatch(b":::MLLOG" + PLAIN.replace(old, new, 1))
    assert_same_alone_and_together(b":::MLLOG" + PLAIN, b":::MLLOG" + PLAIN.replace(old, new, 1))


@pytest.mark.parametrize(
    "record",
    [
        PLAIN.replace(b"train_loss", b"seed"),
        PLAIN.replace(b'"namespace"', b'"value"'),
        PLAIN.replace(b'"lr": 0.1', b'"lr": 0.1, "lr": 0.2'),
        PLAIN.replace(b"1.5", b"Infinity"),
        PLAIN.replace(b'"value": 1.5, ', b""),
        PLAIN + b"...",
        b"",
    ],
)
def test_lines_without_a_template(record: bytes) -> None:
    assert infer(record) is None


@pytest.mark.parametrize("nested", [b"[1]", b'{"a": {"b": 1}}'])
def test_nested_values_are_literal(nested: bytes) -> None:
    line = PLAIN.replace(b'""', nested)
    template = infer(line)
    assert template is not None and template.pattern.fullmatch(b":::MLLOG" + line)
    other = PLAIN.replace(b'""', nested.replace(b"1", b"2"))
    assert_same_alone_and_together(b":::MLLOG" + line, b":::MLLOG" + other, b":::MLLOG" + line)


def test_a_log_that_changes_its_form_is_read_to_the_end() -> None:
    lines = []
    for number in range(100):
        other = {"a" * (number % 37): number}
        record = {"key": "train_loss", "value": number, "time_ms": 5, "metadata": {**other, "samples_count": number}}
        lines.append(f":::MLLOG {json.dumps(record)}".encode())
    log = parsed(*lines)
    assert list(log.train_losses.losses) == list(log.train_losses.samples) == list(range(100))
    assert list(log.train_losses.lines) == list(range(1, 101))
    assert all(math.isnan(rate) for rate in log.train_losses.learning_rates)
