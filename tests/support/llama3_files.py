"""Llama 3's tokenizer for tests: the file in llama-models, and a tokenizer.json made of the same ranks."""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

# A copy, independent of the code under test. Source: Llama 3's published tokenizer.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def meta_tokenizer() -> Any:
    """Load Meta's own tokenizer."""
    from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer  # type: ignore[import-untyped]

    return MetaTokenizer(model_file())


def model_file() -> Path:
    """Return the real tokenizer.model, found without importing the package."""
    found = importlib.util.find_spec("llama_models")
    assert found is not None and found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "llama3" / "tokenizer.model"


def write_json(path: Path) -> Path:
    """Write the same tokenizer as a tokenizer.json: each token's merges are the splits into two others."""
    lines = model_file().read_bytes().split(b"\n")
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    merges = []
    for token, rank in ranks.items():
        splits = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [(ranks[left], ranks[right], left, right) for left, right in splits if left in ranks and right in ranks]
        merges += [(rank, *pair) for pair in sorted(known)]
    merges.sort()
    spelled = _spelling()
    tokenizer = Tokenizer(
        models.BPE(
            vocab={_spell(token, spelled): rank for token, rank in ranks.items()},
            merges=[(_spell(left, spelled), _spell(right, spelled)) for *_, left, right in merges],
            ignore_merges=True,
        )
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERN), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|other_{number}|>" for number in range(254))]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    # A file may enable both; they must not change a document.
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=7)
    tokenizer.save(str(path))
    return path


def _spelling() -> dict[int, str]:
    """Return a printable character for each byte, as in GPT-2's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def _spell(token: bytes, spelled: dict[int, str]) -> str:
    return "".join(spelled[byte] for byte in token)
