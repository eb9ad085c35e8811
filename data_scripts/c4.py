"""The C4 set that MLCommons publishes: its address, its file names, and what it must hold.

The layout is that of MLCommons' own R2 downloader. A metadata file `NAME.uri` holds the base address of the data;
`NAME.md5` beside it lists every file in md5sum's format, relative to that address.
"""

from __future__ import annotations

from gptoss20b.config.presets import PRESETS
from gptoss20b.config.tree import FixedHyperparameters
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX

# The only place that names the host. Everything is fetched from it over https, and from nowhere else.
SOURCE = "https://training.mlcommons-storage.org/metadata/llama-3-1-8b-preprocessed-c4-dataset.uri"
PREFIXES = (TRAIN_PREFIX, VALIDATION_PREFIX)
FILES = tuple(f"{prefix}{suffix}" for prefix in PREFIXES for suffix in (".bin", ".idx"))
# As in the file's name: the first 91,205 documents of C4's validation split.
VALIDATION_DOCUMENTS = 91_205
VOCAB_SIZE: int = PRESETS["reference"]["model"]["vocab_size"]
SEQUENCE_LENGTH, EVAL_SAMPLES = FixedHyperparameters().sequence_length, FixedHyperparameters().eval_samples
