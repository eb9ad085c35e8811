"""Llama 3's tokenizer from either file: the ids of Meta's own code, and text never becomes a special token."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_scripts.tokenization.tokenizer import Tokenizer, load_tokenizer, tokenizer_id
from gptoss20b.data.files import DataError
from tests.support.llama3_files import meta_tokenizer, model_file, write_json
from tests.support.paths import ROOT

ODD = [
    "",
    "a",
    " \n\n  \t x\r\n\r\n y  ",
    "é, e\u0301, ö\u0308\u0323, \u1100\u1161\u11a8",
    "👩‍👩‍👧‍👦 🇸🇪 \U0001f3f4\U000e0067\U000e007f 😀",
    "שלום עולם، مرحبا بالعالم\u200f \u202eabc\u202c",
    "nul \0 in \0\0 it\x7f\x85\u2028\ufeff\ufffd\uffff\U0010ffff",
    "1234567 3.14159 1'000 don't WE'LL I'D o'clock",
    "<|end_of_text|><|begin_of_text|> <|eot_id|>text<|end_of_text|>",
    "w" * 20_000,
    "語" * 9_000,
    " " * 20_000 + "x",
]


@pytest.fixture(scope="module")
def json_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_json(tmp_path_factory.mktemp("json") / "tokenizer.json")


@pytest.fixture(scope="module")
def theirs() -> Any:
    return meta_tokenizer()


@pytest.fixture(scope="module")
def model() -> Tokenizer:
    return load_tokenizer(model_file())


@pytest.fixture(scope="module")
def json(json_file: Path) -> Tokenizer:
    return load_tokenizer(json_file)


def test_ids_are_those_of_metas_tokenizer(theirs: Any, model: Tokenizer, json: Tokenizer) -> None:
    texts = ODD + list(topics.values())
    for text in texts:
        expected = theirs.encode(text, bos=False, eos=False, allowed_special=set(), disallowed_special=())
        for tokenizer in (model, json):
            ids = tokenizer.encode(text)
            assert (ids.dtype, ids.ndim) == (np.dtype(np.int32), 1)
            assert ids.tolist() == expected
            assert tokenizer.decode(ids) == text


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back(theirs: Any, model: Tokenizer, json: Tokenizer, text: str) -> None:
    expected = theirs.encode(text, bos=False, eos=False, allowed_special=set(), disallowed_special=())
    assert model.encode(text).tolist() == json.encode(text).tolist() == expected
    assert model.decode(expected) == json.decode(expected) == text
    sample = load_tokenizer(Path("bytes"))
    assert bytes(sample.encode(text).tolist()) == text.encode()
    assert sample.decode(sample.encode(text)) == text


def test_vocabularies_and_end_of_document(theirs: Any, model: Tokenizer, json: Tokenizer) -> None:
    for tokenizer in (model, json):
        assert (tokenizer.vocab_size, tokenizer.eod_token) == (theirs.n_words, theirs.eos_id) == (128256, 128001)
        assert tokenizer.decode([128001, 64, 128000]) == "<|end_of_text|>a<|begin_of_text|>"
        assert tokenizer.encode("<|end_of_text|>").max() < 128000
    sample = load_tokenizer(Path("bytes"))
    assert (sample.vocab_size, sample.eod_token) == (256, None)


def test_decoding_is_for_any_id_of_the_vocabulary_and_no_other(model: Tokenizer, json: Tokenizer) -> None:
    for tokenizer in (model, json, load_tokenizer(Path("bytes"))):
        assert tokenizer.decode(np.arange(tokenizer.vocab_size))
        for wrong in (-1, tokenizer.vocab_size):
            with pytest.raises(ValueError, match=f"got {wrong} at 1; expected 0 to {tokenizer.vocab_size - 1}"):
                tokenizer.decode([0, wrong])
        # the first of the two bytes of a character
        cut = tokenizer.encode("é" if tokenizer.vocab_size == 256 else "\U0010ffff")[:1]
        assert tokenizer.decode(cut) == "\ufffd"


def lines_of_the_model() -> list[bytes]:
    return model_file().read_bytes().splitlines(keepends=True)


def without_a_byte() -> bytes:
    lines = lines_of_the_model()
    place = next(number for number, line in enumerate(lines) if line.split()[0] == base64.b64encode(b"a"))
    lines[place] = base64.b64encode(b"nowhere else in the file") + b" %d\n" % place
    return b"".join(lines)


def with_a_rank_twice() -> bytes:
    lines = lines_of_the_model()
    return b"".join(lines[:-1]) + lines[-1].split()[0] + b" 5\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.model", b"", ["0 tokens", "128000"]),
        ("tokenizer.model", b"\x0a\x0d\x00sentence", ["line 1", "base64"]),
        ("tokenizer.model", b"YQ== 0\nYg== x\n", ["line 2", "Yg== x"]),
        ("tokenizer.model", lambda: b"".join(lines_of_the_model()[:-1]), ["127999 tokens", "128000"]),
        ("tokenizer.model", with_a_rank_twice, ["gaps", "0 to 127999"]),
        ("tokenizer.model", without_a_byte, ["byte", "256"]),
        ("tokenizer.json", b"", ["tokenizer.json of Hugging Face"]),
        ("tokenizer.json", b"\xff\xfe", ["tokenizer.json of Hugging Face"]),
        ("tokenizer.json", b'{"model":{"type":"BPE","vocab":{},"merges":[]}}', ["vocabulary"]),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, name: str, content: object, words: list[str]) -> None:
    path = tmp_path / name
    data = content() if callable(content) else content
    assert isinstance(data, bytes)
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        load_tokenizer(path)
    message = str(caught.value)
    for word in [f"{path}: got ", "expected", "To fix: ", *words]:
        assert word in message
    assert "\n" not in message


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for load in (load_tokenizer, tokenizer_id):
        with pytest.raises(DataError, match=r"nowhere\.model: got no such file; expected a tokenizer file"):
            load(tmp_path / "nowhere.model")
        with pytest.raises(DataError, match="got a folder"):
            load(tmp_path)


def test_tokenizer_ids_tell_tokenizers_apart(tmp_path: Path) -> None:
    # sha256sum's own answer for the file that llama-models ships
    printed = subprocess.run(["sha256sum", model_file()], capture_output=True, text=True, check=True).stdout
    assert tokenizer_id(model_file()) == printed.split()[0]
    assert tokenizer_id(Path("bytes")) == "bytes"


def test_loading_needs_neither_torch_nor_the_network() -> None:
    script = f"""
import sys
from pathlib import Path
from data_scripts.tokenization.tokenizer import load_tokenizer
load_tokenizer(Path({str(model_file())!r})).encode("text")
load_tokenizer(Path("bytes")).encode("text")
assert not {{"torch", "megatron", "requests", "transformers", "tokenizers"}} & sys.modules.keys(), "too much"
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)
