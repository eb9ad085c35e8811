"""The set that MLCommons publishes: where it is, what it is called, what it must hold.

The layout is that of MLCommons' own R2 downloader: a metadata file `NAME.uri` holds the base address of the data, and
`NAME.md5` beside it lists every file in md5sum's format, relative to that address.
"""

from gptoss20b.config.presets import PRESETS
from gptoss20b.config.tree import FixedHyperparameters
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX

# The one place where the host is named: everything is fetched from it, over https, and from nowhere else.
SOURCE = "https://training.mlcommons-storage.org/metadata/llama-3-1-8b-preprocessed-c4-dataset.uri"
PREFIXES = (TRAIN_PREFIX, VALIDATION_PREFIX)
# The file's name says it: the first 91,205 documents of C4's validation split.
VALIDATION_DOCUMENTS = 91_205
VOCABULARY: int = PRESETS["reference"]["model"]["vocab_size"]
SEQUENCE_LENGTH, EVALUATION_SEQUENCES = FixedHyperparameters().sequence_length, FixedHyperparameters().eval_samples
