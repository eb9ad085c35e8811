"""Raw shards to a pair: token for token the tokenizer's, the bytes of Megatron's writer, and whole or not at all."""

import gzip
import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_models.llama3.tokenizer import Tokenizer as Theirs
from megatron.core.datasets.indexed_dataset import IndexedDataset as MegatronDataset
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from tokenizers import Tokenizer, models
from typer.testing import CliRunner, Result

from data_scripts import preprocess
from data_scripts.dataset_writer import IndexedDatasetWriter
from data_scripts.errors import CommandError
from data_scripts.preprocess import Outcome, Task
from data_scripts.tokenization import shards
from data_scripts.tokenization.blocks import block_tokenizer
from data_scripts.tokenization.journal import WorkFolder
from data_scripts.tokenization.shards import Flaw, Kind
from data_scripts.tokenization.tokenizer import load_tokenizer
from data_scripts.tokenization.workers import in_order, read_ahead
from gptoss20b.data.indexed_dataset import IndexedDataset
from tests.support.llama3_files import model_file, write_json
from tests.support.paths import ROOT

SUFFIXES = (".bin", ".idx", ".md5")
ODD = [
    "é, e\u0301, \u1100\u1161\u11a8",
    "👩‍👩‍👧‍👦 🇸🇪 😀",
    "שלום عالم \u202eabc\u202c",
    "nul \0 in it \x7f \u2028 \ufeff \U0010ffff",
    "w" * 20_000,
    " ",
    "\n",
    "two\nlines\r\n",
    "<|end_of_text|><|begin_of_text|> text <|eot_id|>",
]
BYTES = Path("bytes")


def line(text: object, **others: object) -> bytes:
    return json.dumps({"url": "https://a.example/\u00fc", "text": text, **others}, ensure_ascii=False).encode() + b"\n"


def write_shard(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def make(task: Task, workers: int = 1, block_bytes: int = shards.BLOCK_BYTES) -> Outcome:
    return preprocess.preprocess(task, workers, lambda position, tokens: None, lambda note: None, block_bytes)


def files(prefix: Path) -> dict[str, bytes]:
    return {suffix: Path(f"{prefix}{suffix}").read_bytes() for suffix in (".bin", ".idx")}


def documents(prefix: Path) -> list[list[int]]:
    theirs = MegatronDataset(str(prefix))
    return [theirs[number].tolist() for number in range(len(theirs))]


def command(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(preprocess.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def started(*arguments: object, wrapper: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """The command as a process group of its own, which is gone at the end."""
    process = subprocess.Popen(
        [*wrapper, sys.executable, "-m", "data_scripts.preprocess", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def notes(prefix: Path) -> list[dict[str, Any]]:
    """The journal's whole lines, but for the first."""
    path = Path(f"{prefix}.partial/journal.jsonl")
    return [json.loads(entry) for entry in path.read_bytes().split(b"\n")[1:-1]] if path.exists() else []


def middle_of_the_second_shard(prefix: Path) -> bool:
    done = notes(prefix)
    data = Path(f"{prefix}.partial/tokens.bin")
    return len(done) == 1 and data.stat().st_size > 4 * done[0]["written"][1]


@pytest.fixture(scope="module")
def english() -> list[str]:
    return list(topics.values())


@pytest.fixture(scope="module")
def texts(english: list[str]) -> list[str]:
    return ODD + random.Random(4).sample(english, 60)


@pytest.fixture
def two_shards(tmp_path: Path, texts: list[str]) -> list[Path]:
    cut = len(texts) // 3
    return [
        write_shard(tmp_path / "c4.1.json.gz", b"".join(map(line, texts[:cut]))),
        write_shard(tmp_path / "c4.0.json.gz", b"".join(map(line, texts[cut:]))),
    ]


@pytest.fixture(scope="module")
def long_shards(tmp_path_factory: pytest.TempPathFactory, english: list[str]) -> list[Path]:
    """A short shard, and two that take one worker seconds."""
    folder = tmp_path_factory.mktemp("long")
    text = ("\n".join(english) * 9)[:2_000_000]
    pieces = [text[start : start + 1_999] for start in range(0, len(text), 1_999)]
    content = b"".join(map(line, pieces))
    return [
        write_shard(folder / "a.json.gz", line("short") * 3),
        write_shard(folder / "b.json", content * 10),
        write_shard(folder / "c.jsonl", content),
    ]


@pytest.fixture(scope="module")
def long_files(tmp_path_factory: pytest.TempPathFactory, long_shards: list[Path]) -> dict[str, bytes]:
    """The pair of the long shards, made in one go."""
    prefix = tmp_path_factory.mktemp("once") / "o"
    make(Task(long_shards, model_file(), prefix), 2)
    return files(prefix)


def test_token_for_token_what_metas_tokenizer_gives(tmp_path: Path, texts: list[str], two_shards: list[Path]) -> None:
    out = tmp_path / "made" / "c4.en_6_text_document"
    result = command(*two_shards, "--tokenizer", model_file(), "--out", out, "--workers", 2)
    assert result.exit_code == 0, result.output
    theirs = Theirs(model_file())
    expected = [theirs.encode(text, bos=False, eos=False, allowed_special=set()) for text in texts]
    assert documents(out) == expected
    with IndexedDataset.open(out) as read:
        assert (read.document_count, read.sequence_count, read.dtype) == (len(texts), len(texts), np.int32)
        assert read.read(0, read.token_count).tolist() == [token for ids in expected for token in ids]
    builder = IndexedDatasetBuilder(f"{tmp_path / 'theirs'}.bin", dtype=np.int32)
    for ids in expected:
        builder.add_item(torch.tensor(ids, dtype=torch.int32))
        builder.end_document()
    builder.finalize(f"{tmp_path / 'theirs'}.idx")
    assert files(out) == files(tmp_path / "theirs")
    assert left_in(out.parent) == [f"{out.name}{suffix}" for suffix in SUFFIXES]
    subprocess.run(["md5sum", "--check", "--strict", f"{out.name}.md5"], cwd=out.parent, check=True)
    tokens = sum(map(len, expected))
    assert f"{len(texts)} documents, {tokens:,} tokens" in result.stdout
    assert "a core with 2 workers" in result.stdout and "bad lines skipped: 0" in result.stdout
    assert result.stderr == "2 shards, in this order: c4.1.json.gz, c4.0.json.gz\n"


def test_the_bytes_depend_on_neither_workers_nor_blocks_nor_the_file(tmp_path: Path, two_shards: list[Path]) -> None:
    made = []
    json_file = write_json(tmp_path / "tokenizer.json")
    for number, (tokenizer, workers, block_bytes) in enumerate(
        [(model_file(), 1, 1 << 20), (model_file(), 2, 700), (model_file(), 3, 30_000), (json_file, 2, 100_000)]
    ):
        prefix = tmp_path / str(number)
        make(Task(two_shards, tokenizer, prefix), workers, block_bytes)
        made.append(files(prefix))
    assert made[0] == made[1] == made[2] == made[3]


def test_an_end_of_document_token_only_where_asked_for(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.json", line("one") + line("two <|end_of_text|>"))
    make(Task([shard], model_file(), tmp_path / "without"))
    make(Task([shard], model_file(), tmp_path / "with", append_eod=True))
    without = documents(tmp_path / "without")
    assert documents(tmp_path / "with") == [[*ids, 128001] for ids in without]
    assert 128001 not in [token for ids in without for token in ids]
    result = command(shard, "--tokenizer", "bytes", "--out", tmp_path / "x", "--append-eod")
    assert (result.exit_code, left_in(tmp_path)) == (1, sorted(["a.json", *pair("with"), *pair("without")]))
    assert "bytes: got no end-of-document token; expected one for --append-eod" in result.stderr


def pair(name: str) -> list[str]:
    return [f"{name}{suffix}" for suffix in SUFFIXES]


def test_a_folder_is_its_shards_by_name_and_plain_files_are_shards(tmp_path: Path) -> None:
    folder = tmp_path / "en"
    folder.mkdir()
    for name in ("c4.10.json.gz", "c4.09.json.gz", "notes.txt"):
        write_shard(folder / name, line(name))
    plain = write_shard(tmp_path / "plain.jsonl", line("plain") + line("no newline at the end").rstrip())
    result = command(plain, folder, "--tokenizer", "bytes", "--out", tmp_path / "o")
    assert "in this order: plain.jsonl, c4.09.json.gz, c4.10.json.gz" in result.stderr
    expected = ["plain", "no newline at the end", "c4.09.json.gz", "c4.10.json.gz"]
    assert [bytes(ids).decode() for ids in documents(tmp_path / "o")] == expected
    for wrong, words in [
        ([tmp_path / "none"], "none: got no such file"),
        ([tmp_path / "made"], "got no *.json.gz in the folder"),
        ([plain, tmp_path / "en" / ".." / "plain.jsonl"], "plain.jsonl: got a shard named twice"),
    ]:
        (tmp_path / "made").mkdir(exist_ok=True)
        refused = command(*wrong, "--tokenizer", "bytes", "--out", tmp_path / "p")
        assert refused.exit_code == 1 and words in refused.stderr


def test_another_key_holds_the_text(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.json", line("wrong", content="right"))
    make(Task([shard], BYTES, tmp_path / "o", key="content"))
    assert documents(tmp_path / "o") == [[*b"right"]]


GOOD = line("good") * 4
TRUNCATED = gzip.compress(b"".join(line(f"{number} {random.Random(number).random()}") for number in range(5000)))
# kind, content of the shard, line, what was there, documents that are left
BAD: list[tuple[Kind, bytes, int, str, int]] = [
    (Kind.NOT_JSON, GOOD + b'{"text": "x"\n' + GOOD, 5, "expecting ',' delimiter in column 13", 8),
    (Kind.NOT_JSON, GOOD + b"\n" + GOOD, 5, "a blank line", 8),
    (Kind.NOT_JSON, GOOD + b'{"text": "x", "n": ' + b"1" * 5000 + b"}\n" + GOOD, 5, "4300 digits", 8),
    (Kind.NOT_JSON, GOOD + b"[" * 100_000 + b"\n" + GOOD, 5, "recursion", 8),
    (Kind.NO_TEXT, GOOD + b'{"texts": "x"}\n' + GOOD, 5, "no 'text'", 8),
    (Kind.NO_TEXT, GOOD + b'{"text": 5}\n' + GOOD, 5, "'text' with a JSON number", 8),
    (Kind.NO_TEXT, GOOD + b'{"text": null}\n' + GOOD, 5, "'text' with a JSON null", 8),
    (Kind.NO_TEXT, GOOD + b'["text"]\n' + GOOD, 5, "a JSON array", 8),
    (Kind.NOT_UTF8, GOOD + b'{"text": "a\xffb"}\n' + GOOD, 5, "byte 0xff in column 12", 8),
    (Kind.NOT_UTF8, GOOD + b'{"text": "\xed\xa0\x80"}\n' + GOOD, 5, "byte 0xed in column 11", 8),
    (Kind.SURROGATE, GOOD + b'{"text": "ab\\ud83dc"}\n' + GOOD, 5, "U+D83D as character 3", 8),
    (Kind.EMPTY, GOOD + line("") + GOOD, 5, "an empty 'text'", 8),
    (Kind.TOO_LONG, GOOD + b"x" * ((64 << 20) + 1) + b"\n" + GOOD, 5, "more than 67108864 bytes", 8),
    (Kind.TOO_LONG, GOOD + b"x" * (65 << 20), 5, "more than 67108864 bytes", 4),
]


@pytest.mark.parametrize(("kind", "content", "number", "got", "rest"), BAD)
def test_a_bad_line_stops_or_is_skipped(
    tmp_path: Path, kind: Kind, content: bytes, number: int, got: str, rest: int
) -> None:
    shard = write_shard(tmp_path / "bad.json.gz", content)
    check_bad(tmp_path, shard, kind, number, got, rest)


def test_a_gzip_that_breaks_off_or_is_damaged(tmp_path: Path) -> None:
    whole = gzip.decompress(TRUNCATED).splitlines()
    shard = tmp_path / "bad.json.gz"
    for cut in (40_000, len(TRUNCATED) - 3):
        shard.write_bytes(TRUNCATED[:cut])
        # what the gzip tool itself can still unpack
        lines = subprocess.run(["gzip", "-dc", shard], capture_output=True, check=False).stdout.count(b"\n")
        check_bad(tmp_path, shard, Kind.DAMAGED, lines + 1, f"breaks off at byte {cut}", lines)
        kept = [[*json.loads(text)["text"].encode()] for text in whole[:lines]]
        assert documents(tmp_path / "skipped")[:-1] == kept
        for name in pair("skipped"):
            (tmp_path / name).unlink()
    shard.write_bytes(TRUNCATED[:-8] + b"\0" + TRUNCATED[-7:])
    check_bad(tmp_path, shard, Kind.DAMAGED, 5001, "incorrect data check", 5000)
    for name in pair("skipped"):
        (tmp_path / name).unlink()
    packer = zlib.compressobj(wbits=31)
    readable = packer.compress(b"\n".join(whole[:4000]) + b"\nhalf a li") + packer.flush(zlib.Z_SYNC_FLUSH)
    # a block of the type that the format reserves
    shard.write_bytes(readable + b"\x07" * 1000)
    check_bad(tmp_path, shard, Kind.DAMAGED, 4001, "invalid block type", 4000)


@pytest.mark.parametrize(
    ("kind", "stored", "got"),
    [
        (Kind.NO_LINES, gzip.compress(b"", mtime=0), "no lines"),
        (Kind.DAMAGED, b"", "breaks off at byte 0"),
        (Kind.DAMAGED, GOOD, "incorrect header check"),
    ],
)
def test_an_empty_shard_and_one_that_is_no_gzip(tmp_path: Path, kind: Kind, stored: bytes, got: str) -> None:
    shard = tmp_path / "bad.json.gz"
    shard.write_bytes(stored)
    check_bad(tmp_path, shard, kind, 1, got, 0)


def check_bad(folder: Path, shard: Path, kind: Kind, number: int, got: str, rest: int) -> None:
    """Stopped at the first bad line with nothing made; or skipped, with the others and a good shard's made."""
    good = write_shard(folder / "good.json", line("after"))
    before = left_in(folder)
    result = command(shard, good, "--tokenizer", "bytes", "--out", folder / "stopped", "--workers", 1)
    message = result.stderr.splitlines()[-1]
    assert (result.exit_code, result.stdout) == (1, "")
    assert message.startswith(f"error: {shard}:{number}: got ") and got in message
    assert f"; expected {kind.expected}. To fix: {kind.fix}; or pass --skip-bad." in message
    assert left_in(folder) == before
    result = command(shard, good, "--tokenizer", "bytes", "--out", folder / "skipped", "--skip-bad", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert f"bad lines skipped: 1 (1 {kind.label})\n  {shard}:{number}: got " in result.stdout
    made = documents(folder / "skipped")
    assert (len(made), made[-1]) == (rest + 1, [*b"after"])


def test_texts_that_the_tokenizer_gives_up_on_are_bad_lines(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.json", GOOD + line(" " * 4_000_000 + "x") + GOOD)
    with pytest.raises(CommandError, match=rf"a\.json:5: got .*regex.*; expected {Kind.NOT_TOKENIZED.expected}"):
        make(Task([shard], model_file(), tmp_path / "o"))


def test_lone_surrogates_never_reach_a_tokenizer(tmp_path: Path) -> None:
    small = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    small.save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (tmp_path / "tokenizer.json", model_file(), BYTES):
        tokenize = block_tokenizer(tokenizer, "text", append_eod=False)
        found = tokenize(b'{"text": "ab"}\n{"text": "ab\\ud83d"}\n{"text": "\\ud83d\\ude00 a"}\n')
        assert found.flaws == (Flaw(1, Kind.SURROGATE, "U+D83D as character 3 of the text"),)
        assert (found.lines, found.lengths.size) == (3, 2)


def test_skipped_lines_are_counted_by_kind_and_the_first_named(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "a.json", line("") * 4 + line("good") + b"{\n" * 3)
    second = write_shard(tmp_path / "b.json", line("") + line("good"))
    result = command(first, second, "--tokenizer", "bytes", "--out", tmp_path / "o", "--skip-bad")
    named = [text for text in result.stdout.splitlines() if text.startswith("  ")]
    assert "bad lines skipped: 8 (5 empty text, 3 not JSON)" in result.stdout
    assert [text.split(": got")[0] for text in named] == [f"  {first}:{number}" for number in (1, 2, 3, 4, 6)]
    nothing = command(first.rename(tmp_path / "c.json"), "--tokenizer", "bytes", "--out", tmp_path / "p", "--key", "k")
    assert nothing.exit_code == 1 and "c.json:1: got no 'k'" in nothing.stderr
    nothing = command(tmp_path / "c.json", "--tokenizer", "bytes", "--out", tmp_path / "p", "--key", "k", "--skip-bad")
    assert nothing.exit_code == 1 and "p: got no document; expected at least one" in nothing.stderr


def test_lines_longer_than_a_block_and_a_file_of_several_streams(tmp_path: Path) -> None:
    parts = ["a" * 3_000_000, "b", "c" * 1_048_576, "d"]
    content = [line(text) for text in parts]
    stored = b"".join(gzip.compress(text) + b"\0" * zeros for text, zeros in zip(content, (0, 5, 0, 5000), strict=True))
    (tmp_path / "a.json.gz").write_bytes(stored)
    make(Task([tmp_path / "a.json.gz"], BYTES, tmp_path / "o"), 1, 1000)
    assert [bytes(ids).decode() for ids in documents(tmp_path / "o")] == parts


def test_whole_shards_wait_for_a_second_start_after_a_bad_line(tmp_path: Path) -> None:
    good = write_shard(tmp_path / "good.json", GOOD)
    bad = write_shard(tmp_path / "bad.json", line("fine") + b"{\n" + line("fine"))
    arguments = [good, bad, good.with_name("last.json"), "--tokenizer", "bytes", "--out", tmp_path / "o"]
    write_shard(tmp_path / "last.json", line("last"))
    result = command(*arguments)
    note, error = result.stderr.splitlines()[-2:]
    assert note == f"1 of 3 shards are kept in {tmp_path / 'o.partial'}; the same command goes on there"
    assert error.startswith(f"error: {bad}:2: ")
    assert left_in(tmp_path) == ["bad.json", "good.json", "last.json", "o.partial"]
    assert notes(tmp_path / "o")[0]["written"] == [4, 16]
    skipped = command(*arguments, "--skip-bad")
    assert skipped.exit_code == 0
    assert "16 of the tokens were there from an earlier start" in skipped.stdout
    assert [bytes(ids).decode() for ids in documents(tmp_path / "o")] == ["good"] * 4 + ["fine"] * 2 + ["last"]
    subprocess.run(["md5sum", "--check", "--strict", "o.md5"], cwd=tmp_path, check=True)


def test_lines_skipped_before_are_not_taken_for_good(tmp_path: Path) -> None:
    bad = write_shard(tmp_path / "bad.json", GOOD + line(""))
    task = Task([bad, write_shard(tmp_path / "b.json.gz", GOOD)], BYTES, tmp_path / "o", skip_bad=True)

    def stop(position: int, tokens: int) -> None:
        if position > bad.stat().st_size:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preprocess.preprocess(task, 1, stop, lambda note: None)
    with pytest.raises(CommandError, match=r"got 1 lines skipped by an earlier start.*bad\.json:5: got an empty"):
        make(replace(task, skip_bad=False))
    outcome = make(task)
    assert (outcome.state.written.documents, outcome.state.bad) == (8, {"empty text": 1})


def test_kill_9_in_a_shard_and_the_second_start_makes_the_same_bytes(
    tmp_path: Path, long_shards: list[Path], long_files: dict[str, bytes]
) -> None:
    out = tmp_path / "o"
    arguments = [*long_shards, "--tokenizer", model_file(), "--out", out, "--workers", 2]
    with started(*arguments) as process:
        wait_for(process, lambda: middle_of_the_second_shard(out))
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        process.kill()
        assert psutil.wait_procs(children, timeout=20)[1] == [], "a worker outlives its parent"
    assert left_in(tmp_path) == ["o.partial"]
    assert Path(f"{out}.partial/tokens.bin").stat().st_size > 4 * notes(out)[0]["written"][1]
    # the last line of the journal may be half written, too
    with Path(f"{out}.partial/journal.jsonl").open("ab") as journal:
        journal.write(b'{"shards": 2, "wri')
    outcome = make(Task(long_shards, model_file(), out), 2)
    assert outcome.kept_tokens > 0
    assert files(out) == long_files
    subprocess.run(["md5sum", "--check", "--strict", "o.md5"], cwd=tmp_path, check=True)
    assert left_in(tmp_path) == sorted(pair("o"))


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_to_all_end_it_at_once_and_a_second_process_is_refused(
    tmp_path: Path, long_shards: list[Path], number: signal.Signals, status: int, word: str
) -> None:
    out = tmp_path / "o"
    arguments = [*long_shards, "--tokenizer", model_file(), "--out", out]
    with started(*arguments, "--workers", 2) as process:
        wait_for(process, lambda: middle_of_the_second_shard(out))
        second = command(*arguments)
        assert second.exit_code == 1
        assert f"{out}.partial: got a folder that another process writes to; expected none" in second.stderr
        children = psutil.Process(process.pid).children(recursive=True)
        began = time.monotonic()
        os.killpg(process.pid, number)
        stdout, stderr = process.communicate(timeout=20)
        assert time.monotonic() - began < 3
        assert psutil.wait_procs(children, timeout=20)[1] == []
    assert (process.returncode, stdout) == (status, "")
    assert stderr.splitlines()[1:] == [
        f"1 of 3 shards are kept in {out}.partial; the same command goes on there",
        f"error: {word}",
    ]


def test_a_killed_worker_is_one_line(tmp_path: Path, long_shards: list[Path]) -> None:
    out = tmp_path / "o"
    with started(long_shards[1], "--tokenizer", model_file(), "--out", out, "--workers", 2) as process:
        data = Path(f"{out}.partial/tokens.bin")
        wait_for(process, lambda: data.exists() and data.stat().st_size > 0)
        children = psutil.Process(process.pid).children(recursive=True)
        worker = next(child for child in children if "spawn_main" in " ".join(child.cmdline()))
        worker.kill()
        _, stderr = process.communicate(timeout=20)
        assert psutil.wait_procs(children, timeout=20)[1] == []
    assert process.returncode == 1
    (error,) = stderr.splitlines()[1:]
    assert error.startswith("error: worker: got killed by signal 9; expected it to live. To fix: if memory ran out")
    assert left_in(tmp_path) == []


def test_a_full_disk_is_one_line_and_the_second_start_goes_on(
    tmp_path: Path, long_shards: list[Path], long_files: dict[str, bytes]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    out = disk / "o"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        result = command(*long_shards, "--tokenizer", model_file(), "--out", out, "--workers", 1)
        error = result.stderr.splitlines()[-1]
        assert result.exit_code == 1
        assert error.startswith(f"error: {out}.partial: got No space left on device; expected a disk with room")
        assert "1 of 3 shards are kept" in result.stderr
        assert left_in(disk) == ["o.partial"]
        subprocess.run(["mount", "-o", "remount,size=400m", disk], check=True)
        make(Task(long_shards, model_file(), out), 2)
        assert files(out) == long_files
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_that_may_not_grow_is_one_line(tmp_path: Path, long_shards: list[Path]) -> None:
    out = tmp_path / "o"
    # 1,000 blocks of 512 or 1,024 bytes, as the shell has it
    limited = ["sh", "-c", 'ulimit -f 1000; exec "$@"', "sh"]
    with started(long_shards[2], "--tokenizer", "bytes", "--out", out, "--workers", 1, wrapper=limited) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    (error,) = stderr.splitlines()[1:]
    assert error.startswith(f"error: {out}.partial: got File too large; expected a disk with room for the tokens.")
    assert left_in(tmp_path) == []


def interrupted(folder: Path, **others: Any) -> Task:
    """A task of two shards, stopped by a bad line in the second."""
    first, second = folder / "first.json", folder / "second.json"
    write_shard(first, GOOD)
    write_shard(second, b"{\n")
    task = Task([first, second], BYTES, folder / "o", **others)
    with pytest.raises(CommandError, match=r"second\.json:1"):
        make(task)
    return task


def changed_time(task: Task) -> Task:
    os.utime(task.shards[0], ns=(1, 1))
    return task


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda task: Task([*task.shards][::-1], BYTES, task.prefix), "shards second.json"),
        (lambda task: Task(task.shards[:1], BYTES, task.prefix), "shards 1 of them; expected 2 of them"),
        (lambda task: Task(task.shards, model_file(), task.prefix), "; expected bytes"),
        (lambda task: Task(task.shards, BYTES, task.prefix, key="k"), "key k; expected text"),
        (changed_time, "first.json (\\d+ bytes, changed at 1 ns); expected first.json"),
    ],
)
def test_another_task_than_the_one_begun_is_refused(tmp_path: Path, change: Callable[[Task], Task], words: str) -> None:
    task = interrupted(tmp_path)
    before = {path.name: path.read_bytes() for path in Path(f"{task.prefix}.partial").iterdir()}
    with pytest.raises(CommandError) as caught:
        make(change(task))
    message = str(caught.value)
    assert all(part in message for part in words.split("\\d+"))
    assert message.startswith(f"{task.prefix}.partial: got a job with ")
    assert f"To fix: repeat that command, name another --out, or remove {task.prefix}.partial" in message
    assert {path.name: path.read_bytes() for path in Path(f"{task.prefix}.partial").iterdir()} == before


def test_half_a_line_at_the_end_of_the_journal_is_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = replace(interrupted(tmp_path), skip_bad=True)
    with Path(f"{task.prefix}.partial/journal.jsonl").open("ab") as journal:
        journal.write(b'{"shards": 2, "wri')

    def interrupt(writer: IndexedDatasetWriter, path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(IndexedDatasetWriter, "write_index", interrupt)
        make(task)
    assert [entry["shards"] for entry in notes(task.prefix)] == [1, 2]
    made = make(task)
    assert (made.kept_tokens, made.state.written, made.state.bad) == (16, (4, 16), {"not JSON": 1})


def test_appending_and_not_are_other_tasks(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.json", GOOD)
    bad = write_shard(tmp_path / "b.json", b"{\n")
    with pytest.raises(CommandError):
        make(Task([shard, bad], model_file(), tmp_path / "o"))
    with pytest.raises(CommandError, match="append_eod True; expected False"):
        make(Task([shard, bad], model_file(), tmp_path / "o", append_eod=True))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("journal.jsonl", b"{]\n", "expected the journal of a job"),
        ("journal.jsonl", b"[]\n", "no description; expected one"),
        ("tokens.bin", b"1234", "got 4 bytes; expected at least 64"),
    ],
)
def test_a_damaged_work_folder_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    task = interrupted(tmp_path)
    path = Path(f"{task.prefix}.partial") / name
    path.write_bytes(content)
    with pytest.raises(CommandError) as caught:
        make(task)
    assert words in str(caught.value) and f"remove {task.prefix}.partial to start again" in str(caught.value)
    assert path.exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_existing_files_are_never_overwritten(tmp_path: Path, suffix: str) -> None:
    shard = write_shard(tmp_path / "a.json", GOOD)
    existing = tmp_path / f"o{suffix}"
    existing.write_bytes(b"mine")
    result = command(shard, "--tokenizer", "bytes", "--out", tmp_path / "o")
    assert result.exit_code == 1
    assert f"{existing}: got a file; expected none. To fix: name another --out" in result.stderr
    assert existing.read_bytes() == b"mine"
    assert left_in(tmp_path) == sorted(["a.json", existing.name])


@pytest.mark.parametrize("renamed", [0, 1, 2, 3])
def test_killed_between_the_final_names_the_next_start_gives_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: int
) -> None:
    shard = write_shard(tmp_path / "a.json", GOOD)
    task = Task([shard], BYTES, tmp_path / "o")
    make(Task([shard], BYTES, tmp_path / "whole"))
    rename, done = Path.rename, 0

    def interrupt(folder: WorkFolder) -> None:
        raise KeyboardInterrupt

    def rename_some(path: Path, target: Path) -> Path:
        nonlocal done
        if done == renamed:
            raise KeyboardInterrupt
        done += 1
        return rename(path, target)

    with monkeypatch.context() as patched:
        if renamed < 3:
            patched.setattr(Path, "rename", rename_some)
        else:
            patched.setattr("data_scripts.tokenization.journal.WorkFolder._remove", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make(task)
    # .idx last: who finds it finds the others
    present = [suffix for suffix in (".bin", ".md5", ".idx") if Path(f"{task.prefix}{suffix}").exists()]
    assert present == [".bin", ".md5", ".idx"][:renamed]
    outcome = make(task)
    assert files(task.prefix) == files(tmp_path / "whole")
    assert outcome.files == [Path(f"{task.prefix}{suffix}") for suffix in (".bin", ".md5", ".idx")]
    assert left_in(tmp_path) == sorted(["a.json", *pair("o"), *pair("whole")])


texts_strategy = st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(texts=texts_strategy, data=st.data())
def test_any_texts_come_back_however_shards_and_blocks_are_cut(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    paths = cut_into_shards(folder, texts, data)
    block_bytes = data.draw(st.integers(1, 200), label="block_bytes")
    tokenize = block_tokenizer(BYTES, "text", append_eod=False)
    made = [tokenize(piece.lines) for piece in shards.read_shards(paths, 0, block_bytes) if piece.lines]
    flat = bytes(token for found in made for token in found.tokens.tolist())
    lengths = [length for found in made for length in found.lengths.tolist()]
    assert flat.decode() == "".join(texts)
    assert lengths == [len(text.encode()) for text in texts]
    assert sum(found.lines for found in made) == len(texts)
    assert not any(found.flaws for found in made)


@settings(max_examples=3, deadline=None)
@given(texts=texts_strategy, data=st.data())
def test_any_texts_come_back_from_the_pair(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    paths = cut_into_shards(folder, texts, data)
    workers, block_bytes = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 400))
    make(Task(paths, model_file(), folder / "o"), workers, block_bytes)
    llama3 = load_tokenizer(model_file())
    assert [llama3.decode(ids) for ids in documents(folder / "o")] == texts


def cut_into_shards(folder: Path, texts: Sequence[str], data: st.DataObject) -> list[Path]:
    """The texts in order in one to three shards, each with a line at least, packed or not, escaped or not."""
    most = min(3, len(texts))
    inner = data.draw(st.lists(st.integers(1, len(texts) - 1), max_size=most - 1, unique=True)) if most > 1 else []
    borders = [0, *sorted(inner), len(texts)]
    paths = []
    for number in range(len(borders) - 1):
        content = b"".join(
            json.dumps({"text": text}, ensure_ascii=data.draw(st.booleans())).encode() + b"\n"
            for text in texts[borders[number] : borders[number + 1]]
        )
        content = content if data.draw(st.booleans()) else content.rstrip(b"\n")
        suffix = data.draw(st.sampled_from([".json.gz", ".jsonl"]))
        paths.append(write_shard(folder / f"{number}{suffix}", content))
    return paths


def test_what_is_read_ahead_and_in_flight_is_bounded() -> None:
    from concurrent.futures import Future

    taken = 0

    def source() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    def answer(item: int) -> Future[int]:
        future: Future[int] = Future()
        future.set_result(-item)
        return future

    for count, (item, answered) in enumerate(in_order(read_ahead(source(), 4), answer, 6)):
        assert (item, answered) == (count, -count)
        assert taken <= count + 4 + 6 + 1
    assert taken == 1000


def test_memory_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    def peak(megabytes: int) -> int:
        shard = tmp_path / f"{megabytes}.json.gz"
        with gzip.open(shard, "wb", compresslevel=1) as stream:
            for _ in range(megabytes):
                stream.write(line("x" * 999) * 970)
        with started(shard, "--tokenizer", "bytes", "--out", tmp_path / f"o{megabytes}", "--workers", 2) as process:
            largest = 0
            while process.poll() is None:
                largest = max(largest, private_bytes(process.pid))
        assert process.returncode == 0
        return largest

    # held whole, 52 MB more of text would be 260 MB, most of them tokens
    assert peak(60) < peak(8) + (80 << 20)


def private_bytes(pid: int) -> int:
    """Private memory of a process and its children, as far as they are there."""
    total = 0
    try:
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            total += process.memory_full_info().uss
    except psutil.NoSuchProcess:
        pass
    return total


def test_a_file_that_appeared_meanwhile_is_not_overwritten_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task([write_shard(tmp_path / "a.json", GOOD)], Path("bytes"), tmp_path / "o")
    finish = WorkFolder.finish

    def meanwhile(folder: WorkFolder) -> None:
        finish(folder)
        (tmp_path / "o.idx").write_text("precious")

    monkeypatch.setattr(WorkFolder, "finish", meanwhile)
    with pytest.raises(CommandError, match=r"o\.idx: got a file; expected none"):
        make(task)
    assert (tmp_path / "o.idx").read_text() == "precious"
    (tmp_path / "o.idx").rename(tmp_path / "kept")
    assert make(task).state.written.documents == GOOD.count(b"\n")
    assert left_in(tmp_path) == ["a.json", "kept", "o.bin", "o.idx", "o.md5"]


def test_an_out_that_is_a_folder_or_below_a_file_is_told_as_that(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.json", GOOD)
    for out, words in ((tmp_path, "got a folder"), (".", "got a folder"), (shard / "o", "Not a directory")):
        done = command(shard, "--tokenizer", "bytes", "--out", out)
        error = done.stderr.splitlines()[-1]
        assert done.exit_code == 1 and words in error and "room" not in error
    assert left_in(tmp_path) == ["a.json"]


def test_hidden_files_of_a_folder_are_no_shards(tmp_path: Path) -> None:
    write_shard(tmp_path / "._a.json.gz", b"rubbish")
    shard = write_shard(tmp_path / "a.json.gz", GOOD)
    assert shards.find_shards([tmp_path]) == [shard]


def test_progress_is_a_line_now_and_then_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr("time.monotonic", lambda: clock["now"])
    with ExitStack() as stack:
        progress = preprocess._Progress(stack, 5_000_000_000)
        # an earlier start has done a fifth
        progress.show(1_000_000_000, 70_000_000)
        for now, position, tokens in ((9, 1.9e9, 8e7), (10, 2e9, 1e8), (11, 2.1e9, 1.7e8), (20, 3e9, 1.3e8)):
            clock["now"] = float(now)
            progress.show(int(position), int(tokens))
    assert capsys.readouterr().err == (
        "tokenizing: 2.0 GB of 5.0 GB, 3.00 M tokens/s, 100.0 MB/s, 30 s left\n"
        "tokenizing: 3.0 GB of 5.0 GB, 3.00 M tokens/s, 100.0 MB/s, 20 s left\n"
    )


def test_progress_is_a_bar_on_a_terminal(tmp_path: Path, long_shards: list[Path]) -> None:
    ours, theirs = pty.openpty()
    command_line = [sys.executable, "-m", "data_scripts.preprocess", str(long_shards[2]), "--tokenizer", "bytes"]
    process = subprocess.Popen(
        [*command_line, "--out", str(tmp_path / "o")],
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    # Linux ends a terminal that nobody holds with an input/output error.
    with suppress(OSError):
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.communicate()[0] and process.returncode == 0
    assert b"M tokens/s" in shown and b"/2.1 MB" in shown


def test_no_torch_and_no_megatron_at_run_time(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.json", GOOD)
    script = f"""
import sys
from pathlib import Path
from data_scripts.dataset_writer import IndexedDatasetWriter
from data_scripts.preprocess import Task, preprocess
preprocess(Task([Path({str(shard)!r})], Path("bytes"), Path({str(tmp_path / "o")!r})), 1, lambda *_: None, print)
assert not {{"torch", "megatron"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)
