"""Every kind of damage is told by the command, with its file and place."""

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gptoss20b.data.samples import TRAIN_PREFIX
from tests.support.small_sets import (
    FILES,
    HEADER,
    LIST,
    TRAIN_DOCUMENTS,
    VALIDATION_DOCUMENTS,
    WRITERS,
    cut,
    exchange,
    flip,
    list_files,
    put,
    tables_at,
    write_by_megatron,
    write_set,
)
from tests.support.verify_runs import app, findings, report, verify

TRAIN_BIN, TRAIN_IDX, VALIDATION_BIN, VALIDATION_IDX = FILES
LENGTHS, POINTERS, BORDERS = tables_at(TRAIN_DOCUMENTS)


@pytest.fixture(params=sorted(WRITERS))
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    write_set(tmp_path / "set", WRITERS[request.param])
    return tmp_path / "set"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    write_set(tmp_path / "set")
    return tmp_path / "set"


# --- each damage of the issue, with file and place


def test_a_flipped_bit_that_only_md5_can_see(folder: Path) -> None:
    flip(folder / TRAIN_BIN, 41, 1)
    (told,) = findings(folder)
    assert re.match(rf"{TRAIN_BIN}: got MD5 [0-9a-f]{{32}}; expected [0-9a-f]{{32}}, as line 1 of {LIST}", told)
    assert findings(folder, "--no-md5") == []
    assert findings(folder, "--quick") == []


def test_a_flipped_byte_that_makes_a_huge_id(folder: Path) -> None:
    lengths = np.fromfile(folder / TRAIN_IDX, "<i4", TRAIN_DOCUMENTS, offset=HEADER)
    token = int(lengths[:11].sum()) + 3
    flip(folder / TRAIN_BIN, 4 * token + 3, 0x40)
    md5, told = sorted(findings(folder))
    assert md5.startswith(f"{TRAIN_BIN}: got MD5")
    assert re.match(
        rf"{TRAIN_BIN}: got token id 107\d{{7}} \(token {token}, byte {4 * token}, token 3 of document 11\)", told
    )
    assert "expected 0 to 128255" in told
    assert findings(folder, "--no-md5") == [told]
    assert findings(folder, "--quick") == []


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        # a length: the next pointer is not where it ends
        (
            LENGTHS + 4 * 5 + 1,
            ["for sequence 6", f"at byte {POINTERS + 8 * 6}", f"at byte {LENGTHS + 4 * 5}"],
        ),
        (LENGTHS + 4 * 5 + 3, ["length of -", "for sequence 5", f"at byte {LENGTHS + 4 * 5}", "expected 0 or more"]),
        (POINTERS + 8 * 7, ["for sequence 7", f"at byte {POINTERS + 8 * 7}", "where sequence 6 ends"]),
        (POINTERS + 8 * 7 + 7, ["pointer -", "for sequence 7", f"at byte {POINTERS + 8 * 7}", "outside the"]),
        (
            BORDERS + 8 * 9 + 1,
            ["of document 9", f"at byte {BORDERS + 8 * 9}", f"expected 0 to {TRAIN_DOCUMENTS}"],
        ),
        (BORDERS + 8 * 9 + 7, ["sequence -", "border of document 9", f"at byte {BORDERS + 8 * 9}"]),
    ],
)
def test_a_flipped_byte_in_each_table(folder: Path, offset: int, words: list[str]) -> None:
    flip(folder / TRAIN_IDX, offset)
    for options in (["--quick"], ["--no-md5"], []):
        told = findings(folder, *options)
        assert all(line.startswith(f"{TRAIN_IDX}: ") for line in told)
        assert all(word in told[0] for word in words), told[0]
        assert ("got MD5" in told[-1]) == (options == [])
        assert len(told) <= 2 + (options == []), "one damage, not one finding per entry behind it"


def test_a_flipped_bit_in_a_border_that_only_md5_can_see(ours: Path) -> None:
    flip(ours / TRAIN_IDX, BORDERS + 8 * 9, 1)
    (told,) = findings(ours)
    assert told.startswith(f"{TRAIN_IDX}: got MD5")


@pytest.mark.parametrize("name", [TRAIN_BIN, VALIDATION_BIN])
def test_a_truncated_bin(folder: Path, name: str) -> None:
    whole = (folder / name).stat().st_size
    cut(folder / name, 4)
    for options in (["--quick"], ["--no-md5"], []):
        told = findings(folder, *options)
        assert told[0].startswith(f"{name}: got {whole - 4} bytes; expected {whole}, where the last sequence")
        assert len(told) == 1 + (options == [])
    cut(folder / name, -5)
    assert findings(folder, "--no-md5")[0].startswith(f"{name}: got {whole + 1} bytes; expected a multiple of 4")
    (folder / name).write_bytes(b"")
    assert findings(folder, "--no-md5")[0].startswith(f"{name}: got 0 bytes; expected {whole}")


@pytest.mark.parametrize("less", [1, 8, 200, 1100])
def test_a_truncated_idx(folder: Path, less: int) -> None:
    whole = (folder / TRAIN_IDX).stat().st_size
    cut(folder / TRAIN_IDX, min(less, whole - 3))
    expected = f"expected {whole}" if whole - less > HEADER else "expected at least the 34 bytes of a header"
    told = findings(folder)
    assert told[0].startswith(f"{TRAIN_IDX}: got {max(3, whole - less)} bytes; {expected}")
    assert told[1].startswith(f"{TRAIN_IDX}: got MD5")
    assert len(told) == 2
    saved = report(folder)
    assert saved["not_checked"]["tokens"] == [TRAIN_BIN]
    assert saved["checked"]["tokens"] == [VALIDATION_BIN]


@pytest.mark.parametrize(("code", "name"), [(1, "uint8"), (3, "int16"), (5, "int64"), (8, "uint16")])
def test_another_type_in_the_header(folder: Path, code: int, name: str) -> None:
    put(folder / VALIDATION_IDX, 17, "<B", code)
    told = findings(folder, "--no-md5")
    assert told[0].startswith(f"{VALIDATION_IDX}: got token type {name} (at byte 17); expected int32")


@pytest.mark.parametrize(
    ("offset", "words"),
    [(17, "dtype code 7 at byte 17 (float32)"), (9, "version 7 at byte 9"), (0, r"b'\x07MIDIDX\x00\x00' at byte 0")],
)
def test_a_header_that_is_none(folder: Path, offset: int, words: str) -> None:
    put(folder / TRAIN_IDX, offset, "<B", 7)
    (told,) = findings(folder, "--quick")
    assert told.startswith(f"{TRAIN_IDX}: got {words}")


def test_a_whole_set_written_as_uint16(tmp_path: Path) -> None:
    write_set(tmp_path / "set", write_by_megatron, largest=60_000, dtype=np.uint16)
    told = findings(tmp_path / "set")
    assert [line.split(";")[0] for line in told] == [
        f"{name}: got token type uint16 (at byte 17)" for name in (TRAIN_IDX, VALIDATION_IDX)
    ]


def test_pointers_out_of_range_overlapping_and_shrinking(folder: Path) -> None:
    good = np.fromfile(folder / TRAIN_IDX, "<i8", TRAIN_DOCUMENTS, offset=POINTERS)
    for number, value, outside in [(8, 1 << 40, True), (8, int(good[7]) + 4, False), (8, int(good[6]), False)]:
        put(folder / TRAIN_IDX, POINTERS + 8 * 8, "<q", value)
        (told,) = findings(folder, "--quick")
        assert told.startswith(
            f"{TRAIN_IDX}: got pointer {value} for sequence {number} (at byte {POINTERS + 8 * number})"
        )
        assert f"expected {good[8]}, where sequence 7 ends" in told
        assert ("outside the" in told) == outside


def test_borders_out_of_range_and_shrinking(folder: Path) -> None:
    for value, expected in [(TRAIN_DOCUMENTS + 1, f"0 to {TRAIN_DOCUMENTS}"), (-1, "0 to"), (3, "at least 8")]:
        put(folder / TRAIN_IDX, BORDERS + 8 * 9, "<q", value)
        (told,) = findings(folder, "--quick")
        assert told.startswith(
            f"{TRAIN_IDX}: got sequence {value} as the border of document 9 (at byte {BORDERS + 8 * 9})"
        )
        assert f"expected {expected}" in told


@pytest.mark.parametrize("name", [TRAIN_BIN, VALIDATION_BIN])
@pytest.mark.parametrize(("value", "right"), [(128_256, False), (-1, False), (128_255, True), (0, True)])
def test_token_ids_at_the_edge_of_the_vocabulary(folder: Path, name: str, value: int, right: bool) -> None:
    put(folder / name, 4 * 66, "<i", value)
    told = findings(folder, "--no-md5")
    assert len(told) == (0 if right else 1)
    for line in told:
        assert line.startswith(f"{name}: got token id {value} (token 66, byte 264, token ")
    if not right and name == VALIDATION_BIN:
        # beyond the three sequences: what is evaluated can be hashed
        assert "3 sequences: none" not in verify(folder, "--no-md5").stdout
        put(folder / name, 4 * 30, "<i", value)
        assert "3 sequences: none" in verify(folder, "--no-md5").stdout
        # The evaluation sequences are read in a quick verification too.
        (told,) = findings(folder, "--quick")
        assert told.startswith(f"{name}: got id {value} at token 30")


def test_many_wrong_tokens_are_the_first_few_and_a_count(ours: Path) -> None:
    tokens = np.fromfile(ours / TRAIN_BIN, "<i4")
    tokens[100:400] = 999_999
    tokens.tofile(ours / TRAIN_BIN)
    told = findings(ours, "--no-md5")
    assert len(told) == 6
    assert [re.search(r"token (\d+),", line)[1] for line in told[:5]] == ["100", "101", "102", "103", "104"]  # type: ignore[index]
    assert told[5].startswith(f"{TRAIN_BIN}: got 300 wrong token ids in all, of which the first 5 are told")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    for options in (["--quick"], []):
        (told,) = findings(folder, *options)
        assert told.startswith(f"{name}: got no such file")
    (folder / name).mkdir()
    assert findings(folder)[0].startswith(f"{name}: got ")


def test_an_empty_folder_misses_everything(tmp_path: Path) -> None:
    told = findings(tmp_path)
    assert [line.split(":")[0] for line in told] == [TRAIN_IDX, TRAIN_BIN, VALIDATION_IDX, VALIDATION_BIN, "*.md5"]


@pytest.mark.parametrize("suffixes", [(".bin", ".idx"), (".bin",), (".idx",)])
@pytest.mark.parametrize("documents", [str(VALIDATION_DOCUMENTS), "0"])
@pytest.mark.parametrize("options", [[], ["--no-md5"], ["--quick"]])
def test_two_sets_swapped_are_one_finding(
    folder: Path, suffixes: tuple[str, ...], documents: str, options: list[str]
) -> None:
    exchange(folder, *suffixes)
    if documents == "0" and len(suffixes) == 2:
        # any number may be right, and so may a validation set that is the larger one; only the lists know better
        assert all(" got MD5 " in line for line in findings(folder, "--validation-documents", "0", *options))
        return
    (told,) = findings(folder, "--validation-documents", documents, *options)
    what = " and ".join(suffixes)
    assert told.startswith(f"{TRAIN_PREFIX}{suffixes[0]}: got the two sets swapped: {what} of training and validation")
    if documents != "0":
        assert f"exchange the names of the two {what} files" in told


def test_damage_of_a_swapped_set_is_told_beside_it(folder: Path) -> None:
    flip(folder / VALIDATION_BIN, 0, 1)
    exchange(folder, ".bin", ".idx")
    told = findings(folder)
    assert len(told) == 2
    assert told[1].startswith(f"{TRAIN_BIN}: got MD5")


def test_a_small_training_set_is_not_taken_for_a_swapped_one(folder: Path) -> None:
    """A download that was cut: less in the training file than in the validation file, but the indexes are right."""
    cut(folder / TRAIN_BIN, (folder / TRAIN_BIN).stat().st_size - 40)
    (told,) = findings(folder, "--quick")
    assert told.startswith(f"{TRAIN_BIN}: got 40 bytes")


def test_two_truncated_files_are_not_taken_for_swapped_ones(folder: Path) -> None:
    sizes = [(folder / name).stat().st_size for name in (TRAIN_BIN, VALIDATION_BIN)]
    cut(folder / TRAIN_BIN, 4)
    cut(folder / VALIDATION_BIN, 4)
    told = findings(folder, "--quick")
    assert len(told) == 2
    for line, name, size in zip(told, (TRAIN_BIN, VALIDATION_BIN), sizes, strict=True):
        assert line.startswith(f"{name}: got {size - 4} bytes; expected {size}")


def test_wrong_number_of_documents(folder: Path) -> None:
    (told,) = findings(folder, "--validation-documents", "8")
    assert told.startswith(f"{VALIDATION_IDX}: got 7 documents; expected 8")
    assert findings(folder, "--validation-documents", "0") == []
    done = CliRunner().invoke(app, [str(folder), "--sequences", "1", "--sequence-length", "16", "--quick"])
    assert f"{VALIDATION_IDX}: got 7 documents; expected 91,205" in done.stdout


def test_too_few_sequences(folder: Path) -> None:
    tokens = (folder / VALIDATION_BIN).stat().st_size // 4
    enough = (tokens - 1) // 16
    assert findings(folder, "--quick", "--sequences", str(enough)) == []
    (told,) = findings(folder, "--quick", "--sequences", str(enough + 1))
    assert told.startswith(f"{VALIDATION_BIN}: got {enough} sequences of 16 tokens; expected at least {enough + 1}")
    # Of as many tokens there is no last label.
    (told,) = findings(folder, "--quick", "--sequences", "1", "--sequence-length", str(tokens))
    assert told.startswith(f"{VALIDATION_BIN}: got {tokens} tokens; expected at least {tokens + 1}")
    assert len(findings(folder, "--quick", "--sequence-length", "100000")) == 2
    done = CliRunner().invoke(app, [str(folder), "--validation-documents", "7", "--quick"])
    assert f"{TRAIN_BIN}: got " in done.stdout
    assert "one sequence of 8192 and its last label" in done.stdout


def test_everything_wrong_is_told_at_once(folder: Path) -> None:
    put(folder / TRAIN_IDX, BORDERS + 8 * 9, "<q", 3)
    put(folder / TRAIN_BIN, 80, "<i", -5)
    (folder / VALIDATION_IDX).unlink()
    flip(folder / VALIDATION_BIN, 3, 1)
    (folder / "other.md5").write_text("nonsense\n")
    starts = [
        f"{VALIDATION_IDX}: got no such file",
        "other.md5: line 1: got 'nonsense'",
        f"{TRAIN_IDX}: got sequence 3",
        f"{TRAIN_BIN}: got token id -5 (token 20, byte 80)",
        f"{TRAIN_BIN}: got MD5",
        f"{TRAIN_IDX}: got MD5",
        f"{VALIDATION_BIN}: got MD5",
    ]
    told = findings(folder)
    assert len(told) == len(starts)
    assert all(line.startswith(start) for line, start in zip(told, starts, strict=True))


# --- MD5 lists


def test_no_list_tells_how_to_get_one(ours: Path) -> None:
    (ours / LIST).unlink()
    (told,) = findings(ours)
    assert told.startswith("*.md5: got no such list")
    assert "data_scripts/download_dataset.sh" in told
    assert "--no-md5" in told
    assert findings(ours, "--no-md5") == []
    (ours / ".hidden.md5").write_text("unfinished")
    assert len(findings(ours)) == 1


def test_other_listed_files_and_files_that_no_list_names(ours: Path) -> None:
    (ours / "more").mkdir()
    (ours / "more" / "tokens.txt").write_text("abc")
    list_files(ours, ["more/tokens.txt"], "second.md5")
    assert findings(ours) == []
    saved = report(ours)
    assert saved["files"]["more/tokens.txt"] == {"bytes": 3, "md5": "900150983cd24fb0d6963f7d28e17f72"}
    assert "more/tokens.txt" in saved["checked"]["checksums"]
    (ours / "more" / "tokens.txt").write_text("abd")
    (told,) = findings(ours)
    assert told.startswith("more/tokens.txt: got MD5")
    (ours / "more" / "tokens.txt").unlink()
    (told,) = findings(ours)
    assert told.startswith("more/tokens.txt: got no such file; expected a file, as line 1 of second.md5 has it")
    (ours / "second.md5").unlink()
    list_files(ours, FILES[:3])
    (told,) = findings(ours)
    assert told.startswith(f"{VALIDATION_IDX}: got no checksum in any list")
