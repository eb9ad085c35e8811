"""What a log may look like without being wrong, and what becomes of what cannot be read."""

from __future__ import annotations

import io
import json
import math
import random
import tracemalloc

import pytest
from judging import fired, judged
from made_logs import MadeLog, compliant_log, event

from compliance import parse as parsing
from compliance.findings import Severity
from compliance.parse import parse
from compliance.records import Log


def parsed(content: bytes | str) -> Log:
    return parse(io.BytesIO(content.encode() if isinstance(content, str) else content), "x.txt")


def lines_of(log: MadeLog) -> list[str]:
    return log.text().splitlines()


def ranks(log: MadeLog) -> str:
    """Every line from eight ranks, each with its prefix and a clock of its own."""
    out = []
    for record in log.events:
        for rank in range(8):
            mine = {**record, "time_ms": record["time_ms"] + rank}
            out.append(f"{rank}: :::MLLOG {json.dumps(mine)}")
    return "\n".join(out)


def noise(log: MadeLog) -> bytes:
    """Other text, progress bars, 30 kB lines and bytes that are no text, around and within lines."""
    rng = random.Random(1)
    out = []
    for line in lines_of(log):
        out.append(rng.randbytes(200).replace(b"\n", b"").replace(b":::", b""))
        out.append(b"step 17 " + b"=" * 30_000)
        out.append(b"50%|#####     |\r" + line.encode() + b" <- \xff\xfe logged")
    return b"\n".join(out)


HARMLESS = {
    "CRLF": lambda log: log.text().replace("\n", "\r\n"),
    "rank prefix": lambda log: "".join(f"0: {line}\n" for line in lines_of(log)),
    "rank in brackets": lambda log: "".join(f"[rank3]: {line}\n" for line in lines_of(log)),
    "all on one line": lambda log: " ".join(lines_of(log)),
    "two on a line": lambda log: "\n".join(map("".join, zip(lines_of(log)[::2], lines_of(log)[1::2], strict=True))),
    "every line twice": lambda log: "".join(f"{line}\n{line}\n" for line in lines_of(log)),
    "eight ranks": ranks,
    "other text": noise,
    "no line end": lambda log: log.text().rstrip("\n"),
    "a mark of UTF-8": lambda log: "\ufeff" + log.text(),
    "compact JSON": lambda log: "\n".join(f":::MLLOG {json.dumps(each, separators=(',', ':'))}" for each in log.events),
    "other order of names": lambda log: "\n".join(
        f":::MLLOG {json.dumps(each, sort_keys=True)}" for each in log.events
    ),
}


@pytest.mark.parametrize("form", HARMLESS)
@pytest.mark.parametrize("convention", ["after", "before"])
def test_the_form_of_a_log_does_not_matter(form: str, convention: str) -> None:
    log = compliant_log(convention=convention)
    if form == "two on a line" and len(log.events) % 2:
        log.events.append(log.events.pop())
        log.insert_after("seed", 0, dict(log.find("seed")))
    content = HARMLESS[form](log)
    found = judged(content.encode() if isinstance(content, str) else content)
    assert found.findings == ()
    assert found.summary.minutes == pytest.approx(judged(log).summary.minutes, rel=1e-6)


@pytest.mark.parametrize(
    "line",
    [
        ':::MLLOG {"namespace": "", "time_ms": 1, "event_type": "A", "key": "train_loss", "value": 1.0, "metadata": {}',
        ':::MLLOG {"namespace": "\\u0022", "time_ms": 17, "key": "train_loss", "value": 1e, "metadata": {}}',
        ":::MLLOG",
        ":::MLLOG {",
        ":::MLLOG null",
        ':::MLLOG {"key": "seed"}',
        ':::MLLOG {"key": "seed", "value": 1, "time_ms": 1790000000000}',
        ':::MLLOG {"key": 5, "value": 1, "time_ms": 1790000000000, "metadata": {}}',
        ':::MLLOG {"key": "seed", "value": 1, "time_ms": true, "metadata": {}}',
        ':::MLLOG {"key": "seed", "value": 1, "time_ms": NaN, "metadata": {}}',
        ':::MLLOG {"key": "seed", "value": 1, "time_ms": 1e99, "metadata": {}}',
        ':::MLLOG {"key": "seed", "value": 1, "time_ms": 1790000000000, "metadata": null}',
        f':::MLLOG {{"key": "seed", "value": {"9" * 5000}, "time_ms": 1, "metadata": {{}}}}',
        ":::MLLOG " + "[" * 100_000,
    ],
    ids=range(14),
)  # fmt: skip
def test_what_cannot_be_read_is_a_finding_with_its_line(line: str) -> None:
    log = parsed(f"hello\n{line}\n:::MLLOG {json.dumps(event('seed', 1, 1_790_000_000_000))}\n")
    assert [(defect.rule, defect.line) for defect in log.defects] == [("record-corrupt", 2)]
    assert [record.key for record in log.records] == ["seed"]
    assert log.lines == 3


def test_a_record_cut_by_another_costs_only_itself() -> None:
    whole = f":::MLLOG {json.dumps(event('seed', 1, 1_790_000_000_000))}"
    log = parsed(f"{whole[:40]}{whole}\n")
    assert len(log.defects) == 1
    assert [record.value for record in log.records] == [1]


def test_strings_keep_their_meaning_whatever_their_spelling() -> None:
    log = parsed(
        ':::MLLOG {"k\\u0065y": "s\\u0065ed", "value": 7, "time_ms": 1790000000000, "metadata": {}, "value": 8}'
    )
    assert [(record.key, record.value) for record in log.records] == [("seed", 8)]


def test_absent_and_wrong_numbers_of_a_loss_are_told_apart() -> None:
    absent = event("train_loss", 3.0, 1_790_000_000_000)
    wrong = event("train_loss", "3.0", 1_790_000_000_000, {"samples_count": True, "lr": 10**400})
    log = parsed("\n".join(f":::MLLOG {json.dumps(each)}" for each in (absent, wrong)))
    assert math.isnan(log.train_losses.samples[0]) and math.isnan(log.train_losses.rates[0])
    assert [log.train_losses.losses[1], log.train_losses.samples[1], log.train_losses.rates[1]] == [math.inf] * 3


def test_too_long_a_line_is_named_and_what_follows_is_read() -> None:
    text = "x" * (5 << 20)
    log = parsed(f"{text}\n:::MLLOG {json.dumps(event('seed', 1, 1_790_000_000_000))}\n")
    assert {defect.rule for defect in log.defects} == {"record-corrupt"}
    assert [record.key for record in log.records] == ["seed"]


def test_memory_is_bounded_whatever_the_file_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_MOST_LOSSES", "_MOST_JUDGED", "_MOST_OTHERS", "_MOST_DEFECTS"):
        monkeypatch.setattr(parsing, name, 100)
    loss = event("train_loss", 3.0, 1_790_000_000_000, {"samples_count": 16, "lr": 1e-4})
    kinds = [loss, event("seed", 1, 1_790_000_000_000), event("my_own", 1, 1_790_000_000_000)]
    content = "".join(f":::MLLOG {json.dumps(each)}\n" * 150 for each in kinds) + ":::MLLOG {\n" * 150
    log = parsed(content)
    assert len(log.train_losses) == 100
    assert len(log.records) == 200
    messages = [defect.message for defect in log.defects[100:]]
    assert len(messages) == 3 and all(message.startswith("50 ") for message in messages)


def test_a_large_file_is_not_held_in_memory() -> None:
    line = f":::MLLOG {json.dumps(event('train_loss', 3.0, 1_790_000_000_000, {'samples_count': 16, 'lr': 1e-4}))}\n"

    class Endless(io.RawIOBase):
        """Forty megabytes of losses, made as they are read."""

        left = 40 << 20

        def read(self, size: int = -1) -> bytes:
            block = (line * (size // len(line))).encode() if self.left > 0 else b""
            self.left -= len(block)
            return block

    tracemalloc.start()
    log = parse(Endless(), "x.txt")  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert log.size > 39 << 20
    # Forty bytes a loss, and a few chunks of a megabyte with their lines.
    assert peak < 40 * len(log.train_losses) * 1.3 + (8 << 20)


def test_an_infinity_is_no_number() -> None:
    line = f":::MLLOG {json.dumps(event('train_loss', 1.5, 1_790_000_000_000, {'samples_count': 16, 'lr': 1e-4}))}"
    log = compliant_log()
    text = log.text().replace(lines_of(log)[log.index("train_loss", 3)], line.replace("1.5", "1e999"))
    found = judged(text.encode()).findings
    assert "train-loss-value" in fired(found, Severity.ERROR)
