"""Raw shards to an indexed dataset: the tokenizer's tokens, the bytes of Megatron's writer, all or nothing."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_scripts.errors import CommandError
from data_scripts.preprocess import Task
from data_scripts.progress import ByteProgress
from data_scripts.tokenization import shards
from data_scripts.tokenization.blocks import block_tokenizer
from data_scripts.tokenization.journal import State, WorkFolder
from gptoss20b.data.indexed_dataset import IndexedDataset
from tests.support.llama3_files import meta_tokenizer, model_file, write_json
from tests.support.preprocess_runs import (
    BYTES,
    GOOD,
    check_md5,
    command,
    documents,
    json_line,
    make,
    names_in,
    output_names,
    private_bytes,
    started,
    texts_of,
    write_shard,
)
from tests.support.small_sets import dataset_bytes, write_with_megatron

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


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return ODD + random.Random(4).sample(list(topics.values()), 60)


@pytest.fixture
def two_shards(tmp_path: Path, texts: list[str]) -> list[Path]:
    cut = len(texts) // 3
    return [
        write_shard(tmp_path / "c4.1.json.gz", b"".join(map(json_line, texts[:cut]))),
        write_shard(tmp_path / "c4.0.json.gz", b"".join(map(json_line, texts[cut:]))),
    ]


def test_the_tokens_of_metas_tokenizer(tmp_path: Path, texts: list[str], two_shards: list[Path]) -> None:
    out = tmp_path / "made" / "c4.en_6_text_document"
    result = command(*two_shards, "--workers", 2, tokenizer=model_file(), out=out)
    assert result.exit_code == 0, result.output
    theirs = meta_tokenizer()
    expected = [theirs.encode(text, bos=False, eos=False, allowed_special=set()) for text in texts]
    assert documents(out) == expected
    with IndexedDataset.open(out) as read:
        assert (read.document_count, read.sequence_count, read.dtype) == (len(texts), len(texts), np.dtype(np.int32))
        assert read.read(0, read.token_count).tolist() == [token for ids in expected for token in ids]
    write_with_megatron(tmp_path / "theirs", [np.array(ids) for ids in expected])
    assert dataset_bytes(out) == dataset_bytes(tmp_path / "theirs")
    assert names_in(out.parent) == output_names(out.name)
    check_md5(out)
    assert f"{len(texts)} documents, {sum(map(len, expected)):,} tokens" in result.stdout
    assert "2 workers" in result.stdout and "bad lines skipped: 0" in result.stdout
    # On a busy machine, lines of progress follow.
    assert result.stderr.splitlines()[0].endswith(": c4.1.json.gz, c4.0.json.gz")


def test_the_bytes_depend_on_neither_workers_nor_blocks_nor_the_file(tmp_path: Path, two_shards: list[Path]) -> None:
    json_file = write_json(tmp_path / "tokenizer.json")
    made = set()
    for number, (tokenizer, workers, block_bytes) in enumerate(
        [(model_file(), 1, 1 << 20), (model_file(), 2, 700), (model_file(), 3, 30_000), (json_file, 2, 100_000)]
    ):
        make(Task(two_shards, tokenizer, tmp_path / str(number)), workers, block_bytes)
        made.add(dataset_bytes(tmp_path / str(number)))
    assert len(made) == 1


def test_an_end_of_document_token_only_on_request(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.json", json_line("one") + json_line("two <|end_of_text|>"))
    make(Task([shard], model_file(), tmp_path / "without"))
    make(Task([shard], model_file(), tmp_path / "with", append_eod=True))
    without = documents(tmp_path / "without")
    assert documents(tmp_path / "with") == [[*ids, 128001] for ids in without]
    assert 128001 not in [token for ids in without for token in ids]
    result = command(shard, "--append-eod", out=tmp_path / "x")
    expected = sorted(["a.json", *output_names("with"), *output_names("without")])
    assert (result.exit_code, names_in(tmp_path)) == (1, expected)
    assert "bytes: got no end-of-document token" in result.stderr


def test_a_folder_is_its_shards_by_name_and_plain_files_are_shards(tmp_path: Path) -> None:
    folder = tmp_path / "en"
    folder.mkdir()
    for name in ("c4.10.json.gz", "c4.09.json.gz", "notes.txt", "._c4.11.json.gz"):
        write_shard(folder / name, json_line(name))
    plain = write_shard(tmp_path / "plain.jsonl", json_line("plain") + json_line("no newline at the end").rstrip())
    result = command(plain, folder, out=tmp_path / "o")
    assert ": plain.jsonl, c4.09.json.gz, c4.10.json.gz" in result.stderr
    assert texts_of(tmp_path / "o") == ["plain", "no newline at the end", "c4.09.json.gz", "c4.10.json.gz"]
    (tmp_path / "empty").mkdir()
    for wrong, words in [
        ([tmp_path / "none"], "none: got no such file"),
        ([tmp_path / "empty"], "empty: got no *.json.gz"),
        ([plain, tmp_path / "en" / ".." / "plain.jsonl"], "plain.jsonl: got a shard named twice"),
    ]:
        refused = command(*wrong, out=tmp_path / "p")
        assert refused.exit_code == 1 and words in refused.stderr


def test_long_lines_of_another_key_in_a_file_of_several_streams(tmp_path: Path) -> None:
    texts = ["a" * 3_000_000, "b", "c" * 1_048_576, "d"]
    streams = [gzip.compress(json_line("wrong", content=text)) for text in texts]
    stored = b"".join(stream + b"\0" * zeros for stream, zeros in zip(streams, (0, 5, 0, 5000), strict=True))
    (tmp_path / "a.json.gz").write_bytes(stored)
    make(Task([tmp_path / "a.json.gz"], BYTES, tmp_path / "o", key="content"), 1, 1000)
    assert texts_of(tmp_path / "o") == texts


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".md5"])
def test_existing_files_are_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    shard = write_shard(tmp_path / "a.json", GOOD)
    existing = tmp_path / f"o{suffix}"
    existing.write_bytes(b"mine")
    result = command(shard, out=tmp_path / "o")
    assert result.exit_code == 1
    assert f"{existing}: got a file; expected none" in result.stderr
    assert existing.read_bytes() == b"mine"
    assert names_in(tmp_path) == sorted(["a.json", existing.name])
    # one that appears while the shards are tokenized
    existing.unlink()
    record = WorkFolder.record

    def meanwhile(folder: WorkFolder, state: State) -> None:
        record(folder, state)
        if state.finished:
            existing.write_text("precious")

    with monkeypatch.context() as patched, pytest.raises(CommandError, match=rf"o\{suffix}: got a file"):
        patched.setattr(WorkFolder, "record", meanwhile)
        make(Task([shard], BYTES, tmp_path / "o"))
    assert existing.read_text() == "precious"
    existing.rename(tmp_path / "kept")
    assert make(Task([shard], BYTES, tmp_path / "o")).state.written.documents == 4
    assert names_in(tmp_path) == sorted(["a.json", "kept", *output_names("o")])


def test_an_out_that_is_a_folder_or_below_a_file(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.json", GOOD)
    for out, words in ((tmp_path, "got a folder"), (Path(), "got a folder"), (shard / "o", "Not a directory")):
        done = command(shard, out=out)
        error = done.stderr.splitlines()[-1]
        assert done.exit_code == 1 and words in error and "room" not in error
    assert names_in(tmp_path) == ["a.json"]


texts_strategy = st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(texts=texts_strategy, data=st.data())
def test_any_texts_come_back_however_shards_and_blocks_are_cut(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    paths = cut_into_shards(tmp_path_factory.mktemp("cut"), texts, data)
    block_bytes = data.draw(st.integers(1, 200), label="block_bytes")
    tokenize = block_tokenizer(BYTES, "text", append_eod=False)
    made = [tokenize(block.lines) for block in shards.read_shards(paths, 0, block_bytes) if block.lines]
    flat = bytes(token for tokenized in made for token in tokenized.tokens.tolist())
    lengths = [length for tokenized in made for length in tokenized.lengths.tolist()]
    assert flat.decode() == "".join(texts)
    assert lengths == [len(text.encode()) for text in texts]
    assert sum(tokenized.lines for tokenized in made) == len(texts)
    assert not any(tokenized.bad_lines for tokenized in made)


def cut_into_shards(folder: Path, texts: Sequence[str], data: st.DataObject) -> list[Path]:
    """Write the texts in order to one to three shards, each of one line or more, compressed or not, escaped or not."""
    most = min(3, len(texts))
    inner = data.draw(st.lists(st.integers(1, len(texts) - 1), max_size=most - 1, unique=True)) if most > 1 else []
    cuts = [0, *sorted(inner), len(texts)]
    paths = []
    for number in range(len(cuts) - 1):
        content = b"".join(
            json.dumps({"text": text}, ensure_ascii=data.draw(st.booleans())).encode() + b"\n"
            for text in texts[cuts[number] : cuts[number + 1]]
        )
        content = content if data.draw(st.booleans()) else content.rstrip(b"\n")
        suffix = data.draw(st.sampled_from([".json.gz", ".jsonl"]))
        paths.append(write_shard(folder / f"{number}{suffix}", content))
    return paths


def test_memory_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    def peak(megabytes: int) -> int:
        shard = tmp_path / f"{megabytes}.json.gz"
        with gzip.open(shard, "wb", compresslevel=1) as stream:
            for _ in range(megabytes):
                stream.write(json_line("x" * 999) * 970)
        with started(shard, "--workers", 2, tokenizer=BYTES, out=tmp_path / f"o{megabytes}") as process:
            largest = 0
            while process.poll() is None:
                largest = max(largest, private_bytes(process.pid))
        assert process.returncode == 0
        return largest

    # In memory, 52 MB more of text would be 260 MB, most of it tokens.
    assert peak(60) < peak(8) + (80 << 20)


def test_progress_shows_tokens_per_second_and_resumes_at_the_kept_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_shard(tmp_path / "a.json", GOOD)
    bad = write_shard(tmp_path / "b.json", b"{\n")
    with pytest.raises(CommandError):
        make(Task([first, bad], BYTES, tmp_path / "o"))
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(ByteProgress, "begin", lambda progress, *arguments: calls.append(arguments))
    monkeypatch.setattr(ByteProgress, "update", lambda progress, *arguments: calls.append(arguments))
    make(Task([first, bad], BYTES, tmp_path / "o", skip_bad=True))
    size = first.stat().st_size
    assert calls[0] == (size + 2, size)
    assert set(calls[1:]) == {(size + 2, "0.00 M tokens/s")}, "the kept tokens do not count"
