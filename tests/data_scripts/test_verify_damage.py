"""Every kind of damage is found by the command, with its file and place."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.support.data_commands import run_data_command
from tests.support.small_sets import (
    FILES,
    HEADER,
    LIST,
    TRAIN_BIN,
    TRAIN_DOCUMENTS,
    TRAIN_IDX,
    VALIDATION_BIN,
    VALIDATION_IDX,
    exchange,
    flip,
    put,
    read_report,
    shorten,
    table_offsets,
    verify_findings,
    verify_set,
)

LENGTHS, POINTERS, BOUNDARIES = table_offsets(TRAIN_DOCUMENTS)


# --- tokens


@pytest.mark.parametrize(("name", "offset"), [(TRAIN_BIN, 41), (TRAIN_IDX, BOUNDARIES + 8 * 9)])
def test_a_flipped_bit_that_only_md5_can_see(folder: Path, name: str, offset: int) -> None:
    flip(folder / name, offset, 1)
    (finding,) = verify_findings(folder)
    assert re.match(rf"{name}: got MD5 [0-9a-f]{{32}}; expected [0-9a-f]{{32}}, as in {LIST}", finding)
    assert verify_findings(folder, "--no-md5") == []
    assert verify_findings(folder, "--quick") == []


def test_a_flipped_byte_that_makes_a_huge_id(folder: Path) -> None:
    lengths = np.fromfile(folder / TRAIN_IDX, "<i4", TRAIN_DOCUMENTS, offset=HEADER)
    token = int(lengths[:11].sum()) + 3
    flip(folder / TRAIN_BIN, 4 * token + 3, 0x40)
    md5, wrong = sorted(verify_findings(folder))
    assert md5.startswith(f"{TRAIN_BIN}: got MD5")
    place = rf"\(token {token}, byte {4 * token}, token 3 of document 11\)"
    assert re.match(rf"{TRAIN_BIN}: got token id 107\d{{7}} {place}; expected 0 to 128255", wrong)
    assert verify_findings(folder, "--no-md5") == [wrong]
    assert verify_findings(folder, "--quick") == []


@pytest.mark.parametrize("name", [TRAIN_BIN, VALIDATION_BIN])
@pytest.mark.parametrize(("value", "right"), [(128_256, False), (-1, False), (128_255, True), (0, True)])
def test_token_ids_at_the_edge_of_the_vocabulary(folder: Path, name: str, value: int, right: bool) -> None:
    put(folder / name, 4 * 66, "<i", value)
    found = verify_findings(folder, "--no-md5")
    assert len(found) == (0 if right else 1)
    for line in found:
        assert line.startswith(f"{name}: got token id {value} (token 66, byte 264, token ")
    if not right and name == VALIDATION_BIN:
        # beyond the three evaluated sequences, which can be hashed
        assert "3 sequences: none" not in verify_set(folder, "--no-md5").stdout
        put(folder / name, 4 * 30, "<i", value)
        assert "3 sequences: none" in verify_set(folder, "--no-md5").stdout
        # The evaluation sequences are read in a quick verification, too.
        (finding,) = verify_findings(folder, "--quick")
        assert finding.startswith(f"{name}: got id {value} at token 30")


def test_many_wrong_tokens_are_the_first_few_and_a_count(folder: Path) -> None:
    tokens = np.fromfile(folder / TRAIN_BIN, "<i4")
    tokens[100:400] = 999_999
    tokens.tofile(folder / TRAIN_BIN)
    *first, total = verify_findings(folder, "--no-md5")
    assert re.findall(r"token (\d+), byte", " ".join(first)) == ["100", "101", "102", "103", "104"]
    assert total.startswith(f"{TRAIN_BIN}: got 300 wrong token ids in all, of which the first 5 ")


# --- the index


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        # a length: the next pointer is not where it ends
        (LENGTHS + 4 * 5 + 1, ["for sequence 6", f"at byte {POINTERS + 8 * 6}", f"at byte {LENGTHS + 4 * 5}"]),
        (LENGTHS + 4 * 5 + 3, ["length of -", "for sequence 5", f"at byte {LENGTHS + 4 * 5}", "expected 0 or more"]),
        (POINTERS + 8 * 7, ["for sequence 7", f"at byte {POINTERS + 8 * 7}", "where sequence 6 ends"]),
        (POINTERS + 8 * 7 + 7, ["pointer -", "for sequence 7", f"at byte {POINTERS + 8 * 7}", "outside the"]),
        (
            BOUNDARIES + 8 * 9 + 1,
            ["of document 9", f"at byte {BOUNDARIES + 8 * 9}", f"expected 0 to {TRAIN_DOCUMENTS}"],
        ),
        (BOUNDARIES + 8 * 9 + 7, ["sequence -", "of document 9", f"at byte {BOUNDARIES + 8 * 9}"]),
    ],
)
def test_a_flipped_byte_in_each_table(folder: Path, offset: int, words: list[str]) -> None:
    flip(folder / TRAIN_IDX, offset)
    for options in (["--quick"], ["--no-md5"], []):
        found = verify_findings(folder, *options)
        assert all(line.startswith(f"{TRAIN_IDX}: ") for line in found)
        assert all(word in found[0] for word in words), found[0]
        assert ("got MD5" in found[-1]) == (options == [])
        assert len(found) <= 2 + (options == []), "one damage, not one finding per entry after it"


@pytest.mark.parametrize(("code", "name"), [(1, "uint8"), (3, "int16"), (5, "int64"), (8, "uint16")])
def test_another_type_in_the_header(folder: Path, code: int, name: str) -> None:
    put(folder / VALIDATION_IDX, 17, "<B", code)
    found = verify_findings(folder, "--no-md5")
    assert found[0].startswith(f"{VALIDATION_IDX}: got token type {name} (at byte 17); expected int32")


# --- whole files


@pytest.mark.parametrize("name", [TRAIN_BIN, VALIDATION_BIN])
def test_a_truncated_bin(folder: Path, name: str) -> None:
    whole = (folder / name).stat().st_size
    shorten(folder / name, 4)
    for options in (["--quick"], ["--no-md5"], []):
        found = verify_findings(folder, *options)
        assert found[0].startswith(f"{name}: got {whole - 4} bytes; expected {whole}")
        assert len(found) == 1 + (options == [])
    shorten(folder / name, -5)
    assert verify_findings(folder, "--no-md5")[0].startswith(f"{name}: got {whole + 1} bytes; expected a multiple of 4")
    (folder / name).write_bytes(b"")
    assert verify_findings(folder, "--no-md5")[0].startswith(f"{name}: got 0 bytes; expected {whole}")


def test_a_truncated_idx(folder: Path) -> None:
    whole = (folder / TRAIN_IDX).stat().st_size
    shorten(folder / TRAIN_IDX, 8)
    size, md5 = verify_findings(folder)
    assert size.startswith(f"{TRAIN_IDX}: got {whole - 8} bytes; expected {whole}")
    assert md5.startswith(f"{TRAIN_IDX}: got MD5")
    saved = read_report(folder)
    assert saved["not_checked"]["tokens"] == [TRAIN_BIN]
    assert saved["checked"]["tokens"] == [VALIDATION_BIN]


def test_two_truncated_files(folder: Path) -> None:
    sizes = {name: (folder / name).stat().st_size for name in (TRAIN_BIN, VALIDATION_BIN)}
    for name in sizes:
        shorten(folder / name, 4)
    found = verify_findings(folder, "--quick")
    expected = [f"{name}: got {size - 4} bytes; expected {size}" for name, size in sizes.items()]
    assert [line[: len(start)] for line, start in zip(found, expected, strict=True)] == expected


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    for options in (["--quick"], []):
        (finding,) = verify_findings(folder, *options)
        assert finding.startswith(f"{name}: got no such file")
    (folder / name).mkdir()
    assert verify_findings(folder)[0].startswith(f"{name}: got ")


@pytest.mark.parametrize("suffixes", [(".bin", ".idx"), (".bin",), (".idx",)])
def test_two_sets_with_each_others_names_are_found_without_a_list(folder: Path, suffixes: tuple[str, ...]) -> None:
    exchange(folder, *suffixes)
    (finding, *others) = verify_findings(folder, "--quick")
    if len(suffixes) == 2:
        assert (finding[: len(VALIDATION_IDX)], others) == (VALIDATION_IDX, [])
        assert "got 40 documents; expected 7" in finding
    else:
        assert {TRAIN_BIN, VALIDATION_BIN} <= {each.split(":")[0] for each in (finding, *others)}


# --- numbers of documents and sequences


def test_wrong_number_of_documents(folder: Path) -> None:
    (finding,) = verify_findings(folder, "--validation-documents", "8")
    assert finding.startswith(f"{VALIDATION_IDX}: got 7 documents; expected 8")
    assert verify_findings(folder, "--validation-documents", "0") == []
    done = run_data_command("verify", folder, "--sequences", "1", "--sequence-length", "16", "--quick")
    assert f"{VALIDATION_IDX}: got 7 documents; expected 91,205" in done.stdout


def test_too_few_sequences(folder: Path) -> None:
    tokens = (folder / VALIDATION_BIN).stat().st_size // 4
    enough = (tokens - 1) // 16
    assert verify_findings(folder, "--quick", "--sequences", str(enough)) == []
    (finding,) = verify_findings(folder, "--quick", "--sequences", str(enough + 1))
    assert finding.startswith(f"{VALIDATION_BIN}: got {enough} sequences of 16 tokens; expected at least {enough + 1}")
    # A window of all tokens lacks its last label.
    (finding,) = verify_findings(folder, "--quick", "--sequences", "1", "--sequence-length", str(tokens))
    assert finding.startswith(f"{VALIDATION_BIN}: got {tokens} tokens; expected at least {tokens + 1}")
    assert len(verify_findings(folder, "--quick", "--sequence-length", "100000")) == 2
    done = run_data_command("verify", folder, "--validation-documents", "7", "--quick")
    assert re.search(rf"{TRAIN_BIN}: got .* tokens; expected at least 8193", done.stdout)


def test_everything_wrong_is_reported_at_once(folder: Path) -> None:
    put(folder / TRAIN_IDX, BOUNDARIES + 8 * 9, "<q", 3)
    put(folder / TRAIN_BIN, 80, "<i", -5)
    (folder / VALIDATION_IDX).unlink()
    flip(folder / VALIDATION_BIN, 3, 1)
    (folder / "other.md5").write_text("nonsense\n")
    expected = [
        f"{VALIDATION_IDX}: got no such file",
        "other.md5: line 1: got 'nonsense'",
        f"{TRAIN_IDX}: got sequence 3",
        f"{TRAIN_BIN}: got token id -5 (token 20, byte 80)",
        f"{TRAIN_BIN}: got MD5",
        f"{TRAIN_IDX}: got MD5",
        f"{VALIDATION_BIN}: got MD5",
    ]
    found = verify_findings(folder)
    assert "expected at least 8, " in found[2]
    assert [line[: len(start)] for line, start in zip(found, expected, strict=True)] == expected
