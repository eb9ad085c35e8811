"""What `inspect` prints of a dataset is what is in it."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_scripts import inspection
from data_scripts.dataset_writer import IndexedDatasetWriter, write_dataset
from data_scripts.errors import CommandError
from data_scripts.inspection import find_datasets, summarize, window_parts
from data_scripts.make_sample_data import Document, make
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX
from tests.support.data_commands import run_data_command
from tests.support.small_sets import put

TEXTS = [Document(f"m{number}", f"Text {number} é. " * (number + 1)) for number in range(60)]


def dataset(folder: Path, lengths: list[int], name: str = "set.en_6") -> Path:
    """Write tokens 0, 1, 2, ... in documents of these lengths."""
    with IndexedDatasetWriter(folder / f"{name}.bin", folder / "lengths") as writer:
        writer.add(np.arange(sum(lengths)), np.array(lengths))
        writer.write_index(folder / f"{name}.idx")
    return folder / name


def inspect(*arguments: object) -> tuple[int, str]:
    result = run_data_command("inspect", *arguments, COLUMNS="80")
    return result.exit_code, result.output


@given(st.lists(st.integers(0, 300), min_size=2, max_size=80).filter(sum))
@settings(max_examples=80, deadline=None)
def test_counts_and_lengths(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> None:
    found = summarize(dataset(tmp_path_factory.mktemp("set"), lengths), 16)
    assert (found.documents, found.sequences, found.tokens) == (len(lengths), len(lengths), sum(lengths))
    assert (found.token_type, found.windows) == ("int32", (sum(lengths) - 1) // 16)
    assert (found.data_bytes, found.index_bytes) == (4 * sum(lengths), 34 + 20 * len(lengths) + 8)
    spread = found.lengths
    assert (spread.shortest, spread.longest) == (min(lengths), max(lengths))
    assert spread.mean == pytest.approx(statistics.mean(lengths))
    assert spread.quantiles["median"] == statistics.median_low(lengths)
    assert spread.quantiles["90 %"] == sorted(lengths)[-(-len(lengths) * 9 // 10) - 1]
    counted = {}
    for last, count in spread.histogram.items():
        counted[last] = sum((last + 1) // 2 <= length <= last for length in lengths)
        assert counted[last] == count
    assert sum(counted.values()) == len(lengths)


def test_lengths_at_the_edges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = summarize(dataset(tmp_path, [0, 1, 2, 3, 4, 7, 8, 15, 16])).lengths
    assert found.histogram == {0: 1, 1: 1, 3: 2, 7: 2, 15: 2, 31: 1}
    monkeypatch.setattr(inspection, "_MAX_LENGTH", 8)
    found = summarize(dataset(tmp_path, [1, 2, 100, 200])).lengths
    assert (found.longest, found.quantiles["median"], found.quantiles["99 %"]) == (200, 2, 8)
    # A damaged index must not crash the command.
    prefix = dataset(tmp_path, [4, 4, 4])
    put(Path(f"{prefix}.idx"), 34 + 4, "<i", -7)
    assert summarize(prefix).lengths.shortest == -7


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(lambda lengths: sum(lengths) > 8),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_a_window_is_cut_where_documents_end(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], data: st.DataObject
) -> None:
    prefix = dataset(tmp_path_factory.mktemp("set"), lengths)
    number = data.draw(st.integers(0, (sum(lengths) - 1) // 8 - 1))
    parts = window_parts(prefix, number, 8)
    assert np.concatenate([part.tokens for part in parts]).tolist() == list(range(number * 8, number * 8 + 9))
    begins = np.cumsum([0, *lengths])
    for part in parts:
        assert part.tokens[0] == begins[part.document] + part.first
        assert part.ends == (part.tokens[-1] == begins[part.document + 1] - 1)
    assert [part.ends for part in parts[:-1]] == [True] * (len(parts) - 1)


def test_what_a_path_may_name(tmp_path: Path) -> None:
    prefix = dataset(tmp_path, [5, 6])
    for path in (tmp_path, prefix, Path(f"{prefix}.bin"), Path(f"{prefix}.idx")):
        assert find_datasets(path) == [prefix]
    second = dataset(tmp_path, [3, 3], name="other")
    assert find_datasets(tmp_path) == [second, prefix]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CommandError, match=r"empty: got no \.idx"):
        find_datasets(tmp_path / "empty")
    with pytest.raises(CommandError, match="absent: got neither a folder nor a dataset"):
        find_datasets(tmp_path / "absent")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    assert make(folder, TEXTS)
    return folder


def test_both_datasets_of_a_folder_are_printed(sample: Path) -> None:
    status, output = inspect(sample)
    assert status == 0
    assert output.index(TRAIN_PREFIX) < output.index(VALIDATION_PREFIX)
    found = json.loads(inspect(sample, "--json", "--sequence-length", 64)[1])
    assert [each["name"] for each in found] == [TRAIN_PREFIX, VALIDATION_PREFIX]
    assert found[0]["windows"] == (found[0]["tokens"] - 1) // 64
    manifest = json.loads((sample / "sample.json").read_text())
    for prefix in (TRAIN_PREFIX, VALIDATION_PREFIX):
        split = manifest["splits"][prefix]
        assert re.search(rf"documents +{split['documents']:,} *\n", output)
        assert re.search(rf"tokens +{split['tokens']:,} \(int32\)", output)
    assert "█" * 40 in output and "█" * 41 not in output and "…" not in output
    assert re.search(r"document length +1\d to \d+ tokens, mean \d+\.\d *\n +median \d+, 90 % \d+, 99 % \d+", output)


def test_one_document_of_many_still_has_a_bar_and_none_has_none(tmp_path: Path) -> None:
    status, output = inspect(dataset(tmp_path, [1] * 500 + [4]))
    assert status == 0
    bars = re.findall(r"^ *(1|2 to 3|4 to 7) +(\d+) *(█*) *$", output, re.MULTILINE)
    assert bars == [("1", "500", "█" * 40), ("2 to 3", "0", ""), ("4 to 7", "1", "█")]


def test_the_text_of_a_sequence(sample: Path) -> None:
    prefix = sample / TRAIN_PREFIX
    options = ("--sequence-length", 200, "--tokenizer", "bytes")
    whole = (sample / f"{TRAIN_PREFIX}.bin").read_bytes()[::4]
    status, output = inspect(prefix, "--sample", 3, *options)
    assert status == 0
    heads = re.findall(r"^--- document \d+, tokens \d+ to \d+(?:, its end)?\n", output, re.MULTILINE)
    assert heads
    text = "".join(re.split(r"^--- .*\n", output, flags=re.MULTILINE))
    assert text.replace("\n", "") == whole[600:801].decode(errors="replace").replace("\n", "")
    described = json.loads(inspect(prefix, "--sample", 3, *options, "--json")[1])
    assert bytes(token for part in described for token in part["tokens"]) == whole[600:801]
    assert "".join(part["text"] for part in described).startswith(text[:20])
    assert len(described) == len(heads)


def test_without_a_tokenizer_the_ids_are_shown(tmp_path: Path) -> None:
    shown = inspect(dataset(tmp_path, [5, 20]), "--sample", 0, "--sequence-length", 8)
    assert shown == (0, "--- document 0, tokens 0 to 4, its end\n0 1 2 3 4\n--- document 1, tokens 0 to 3\n5 6 7 8\n")
    write_dataset(tmp_path / "x", [np.array([7, 2_000_000, 8])])
    shown = inspect(tmp_path / "x", "--sample", 0, "--sequence-length", 2)
    assert shown == (0, "--- document 0, tokens 0 to 2, its end\n7 2000000 8\n")


def test_neither_text_nor_names_control_the_terminal(tmp_path: Path) -> None:
    raw = np.frombuffer("a\x1b[31mb\x07\tc\u202e\n".encode(), np.uint8)
    prefix = tmp_path / "a[bold]\x1b[31mb"
    write_dataset(prefix, [raw])
    assert "a[bold]\\x1b[31mb" in inspect(prefix)[1]
    _, output = inspect(prefix, "--sample", 0, "--sequence-length", raw.size - 1, "--tokenizer", "bytes")
    assert output.splitlines()[1] == "a\\x1b[31mb\\x07\tc\\u202e"


def test_failures_are_a_line(sample: Path, tmp_path: Path) -> None:
    prefix = dataset(tmp_path, [400])
    for arguments, words in [
        ((sample, "--sample", 0), "got 2 datasets"),
        ((tmp_path / "absent",), "absent"),
        ((sample / TRAIN_PREFIX, "--sample", 0, "--tokenizer", tmp_path / "absent.model"), "absent.model"),
        ((prefix, "--sample", 2, "--sequence-length", 200), "window 2; expected 0 to 0"),
        # an id that the tokenizer lacks
        ((prefix, "--sample", 0, "--sequence-length", 399, "--tokenizer", "bytes"), f"{prefix}: ids: got 256"),
    ]:
        status, output = inspect(*arguments)
        assert status == 1 and output.startswith("error: ") and len(output.splitlines()) == 1
        assert words in output


@pytest.mark.parametrize(("pointer", "sequence"), [(4, 2), (400, 2), (-8, 2), (4, 1)])
def test_tables_that_contradict_the_tokens_are_an_error_and_no_text_is_made_up(
    tmp_path: Path, pointer: int, sequence: int
) -> None:
    prefix = dataset(tmp_path, [5, 6, 7, 8])
    put(Path(f"{prefix}.idx"), 34 + 4 * 4 + 8 * sequence, "<q", pointer)
    status, output = inspect(prefix, "--sample", 0, "--sequence-length", 20)
    assert status == 1 and len(output.splitlines()) == 1
    assert f"{prefix}.idx: got sequence {sequence} from token" in output or "expected the one with token" in output
