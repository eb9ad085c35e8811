"""Llama 3's tokenizer for tests: the file in llama-models, and a tokenizer.json made of the same ranks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from transformers.convert_slow_tokenizer import TikTokenConverter

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
    """Write the same tokenizer as a tokenizer.json, through the converter that Hugging Face's own file came from."""
    names = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|other_{number}|>" for number in range(254))]
    tokenizer = TikTokenConverter(str(model_file()), PATTERN, extra_special_tokens=names).converted()
    # A file may enable both; they must not change a document.
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=7)
    tokenizer.save(str(path))
    return path
