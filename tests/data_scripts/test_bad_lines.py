"""Bad lines and damaged shards: `preprocess` stops at the first, or skips and counts them."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from data_scripts import preprocess
from data_scripts.errors import CommandError
from data_scripts.preprocess import Task
from data_scripts.progress import ByteProgress
from data_scripts.tokenization.blocks import block_tokenizer
from data_scripts.tokenization.shards import BadLine, BadLineKind
from tests.support.llama3_files import model_file
from tests.support.preprocess_runs import (
    BYTES,
    GOOD,
    command,
    documents,
    json_line,
    make,
    names_in,
    output_names,
    write_shard,
)


def check_bad(folder: Path, shard: Path, kind: BadLineKind, number: int, got: str, rest: int) -> None:
    """Check that the command stops at line `number` and makes nothing, or skips it and makes `rest` documents."""
    good = write_shard(folder / "good.json", json_line("after"))
    before = names_in(folder)
    result = command(shard, good, "--workers", 1, out=folder / "stopped")
    message = result.stderr.splitlines()[-1]
    assert (result.exit_code, result.stdout) == (1, "")
    assert message.startswith(f"error: {shard}:{number}: got ") and got in message
    assert f"; expected {kind.expected}. To fix: {kind.fix}" in message and "--skip-bad" in message
    assert names_in(folder) == before
    result = command(shard, good, "--skip-bad", "--workers", 1, out=folder / "skipped")
    assert result.exit_code == 0, result.output
    assert f"bad lines skipped: 1 (1 {kind.label})\n  {shard}:{number}: got " in result.stdout
    made = documents(folder / "skipped")
    assert (len(made), made[-1]) == (rest + 1, [*b"after"])


# kind, the fifth line, what is found in it
BAD_LINES = [
    (BadLineKind.NOT_JSON, b'{"text": "x"\n', "expecting ',' delimiter in column 13"),
    (BadLineKind.NOT_JSON, b"\n", "a blank line"),
    (BadLineKind.NOT_JSON, b'{"text": "x", "n": ' + b"1" * 5000 + b"}\n", "4300 digits"),
    (BadLineKind.NOT_JSON, b"[" * 100_000 + b"\n", "recursion"),
    (BadLineKind.NO_TEXT, b'{"texts": "x"}\n', "no 'text'"),
    (BadLineKind.NO_TEXT, b'{"text": 5}\n', "'text' with a JSON number"),
    (BadLineKind.NO_TEXT, b'{"text": null}\n', "'text' with a JSON null"),
    (BadLineKind.NO_TEXT, b'["text"]\n', "a JSON array"),
    (BadLineKind.NOT_UTF8, b'{"text": "a\xffb"}\n', "byte 0xff in column 12"),
    (BadLineKind.NOT_UTF8, b'{"text": "\xed\xa0\x80"}\n', "byte 0xed in column 11"),
    (BadLineKind.SURROGATE, b'{"text": "ab\\ud83dc"}\n', "U+D83D as character 3"),
    (BadLineKind.EMPTY, json_line(""), "an empty 'text'"),
    (BadLineKind.TOO_LONG, b"x" * ((64 << 20) + 1) + b"\n", "more than 67108864 bytes"),
    # without a newline: nothing follows
    (BadLineKind.TOO_LONG, b"x" * (65 << 20), "more than 67108864 bytes"),
]


@pytest.mark.parametrize(("kind", "line", "got"), BAD_LINES)
def test_a_bad_line_stops_or_is_skipped(tmp_path: Path, kind: BadLineKind, line: bytes, got: str) -> None:
    rest = GOOD if line.endswith(b"\n") else b""
    shard = write_shard(tmp_path / "bad.json.gz", GOOD + line + rest)
    check_bad(tmp_path, shard, kind, 5, got, 8 if rest else 4)


def test_a_gzip_that_breaks_off_or_is_damaged(tmp_path: Path) -> None:
    lines = [json_line(f"{number} {random.Random(number).random()}") for number in range(5000)]
    packed = gzip.compress(b"".join(lines))
    packer = zlib.compressobj(wbits=31)
    readable = packer.compress(b"".join(lines[:4000]) + b"half a li") + packer.flush(zlib.Z_SYNC_FLUSH)
    shard = tmp_path / "bad.json.gz"
    for stored, got in [
        (packed[:40_000], "breaks off at byte 40000"),
        (packed[:-3], f"breaks off at byte {len(packed) - 3}"),
        (packed[:-8] + b"\0" + packed[-7:], "incorrect data check"),
        # a block of the type that the format reserves
        (readable + b"\x07" * 1000, "invalid block type"),
    ]:
        shard.write_bytes(stored)
        # the lines that the gzip tool itself can still decompress; none of the piece with the damage
        whole = subprocess.run(["gzip", "-dc", shard], capture_output=True, check=False).stdout.count(b"\n")
        if "breaks off" not in got:
            whole = 0
        check_bad(tmp_path, shard, BadLineKind.DAMAGED, whole + 1, got, whole)
        assert documents(tmp_path / "skipped")[:-1] == [[*json.loads(line)["text"].encode()] for line in lines[:whole]]
        for name in output_names("skipped"):
            (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("kind", "stored", "got"),
    [
        (BadLineKind.NO_LINES, gzip.compress(b"", mtime=0), "no lines"),
        (BadLineKind.DAMAGED, b"", "breaks off at byte 0"),
        (BadLineKind.DAMAGED, GOOD, "incorrect header check"),
    ],
)
def test_an_empty_shard_and_one_that_is_no_gzip(tmp_path: Path, kind: BadLineKind, stored: bytes, got: str) -> None:
    shard = tmp_path / "bad.json.gz"
    shard.write_bytes(stored)
    check_bad(tmp_path, shard, kind, 1, got, 0)


def test_texts_on_which_the_tokenizer_fails_are_bad_lines(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.json", GOOD + json_line(" " * 4_000_000 + "x") + GOOD)
    with pytest.raises(CommandError, match=rf"a\.json:5: got .*regex.*; expected {BadLineKind.NOT_TOKENIZED.expected}"):
        make(Task([shard], model_file(), tmp_path / "o"))


def test_lone_surrogates_never_reach_a_tokenizer(tmp_path: Path) -> None:
    Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (tmp_path / "tokenizer.json", model_file(), BYTES):
        tokenize = block_tokenizer(tokenizer, "text", append_eod=False)
        made = tokenize(b'{"text": "ab"}\n{"text": "ab\\ud83d"}\n{"text": "\\ud83d\\ude00 a"}\n')
        assert made.bad_lines == (BadLine(1, BadLineKind.SURROGATE, "U+D83D as character 3 of the text"),)
        assert (made.lines, made.lengths.size) == (3, 2)


def test_skipped_lines_are_counted_by_kind_and_the_first_listed(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "a.json", json_line("") * 4 + json_line("good") + b"{\n" * 3)
    second = write_shard(tmp_path / "b.json", json_line("") + json_line("good"))
    result = command(first, second, "--skip-bad", out=tmp_path / "o")
    listed = [text for text in result.stdout.splitlines() if text.startswith("  ")]
    assert "bad lines skipped: 8 (5 empty text, 3 not JSON)" in result.stdout
    assert [text.split(": got")[0] for text in listed] == [f"  {first}:{number}" for number in (1, 2, 3, 4, 6)]
    nothing = command(first, "--key", "k", out=tmp_path / "p")
    assert nothing.exit_code == 1 and "a.json:1: got no 'k'" in nothing.stderr
    nothing = command(first, "--key", "k", "--skip-bad", out=tmp_path / "p")
    assert nothing.exit_code == 1 and "p: got no document" in nothing.stderr


def test_lines_skipped_before_an_interruption_still_need_the_option(tmp_path: Path) -> None:
    bad = write_shard(tmp_path / "bad.json", GOOD + json_line(""))
    task = Task([bad, write_shard(tmp_path / "b.json.gz", GOOD)], BYTES, tmp_path / "o", skip_bad=True)

    class InterruptInSecondShard(ByteProgress):
        def update(self, done: int, note: str = "") -> None:
            if done > bad.stat().st_size:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preprocess.preprocess(task, 1, InterruptInSecondShard("test"))
    with pytest.raises(CommandError, match=r"got 1 lines skipped.*bad\.json:5: got an empty"):
        make(replace(task, skip_bad=False))
    outcome = make(task)
    assert (outcome.state.written.documents, outcome.state.bad) == (8, {"empty text": 1})
