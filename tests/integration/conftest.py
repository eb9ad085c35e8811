"""Data and settings of a small run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX

SEQUENCE = 64


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a data folder of learnable byte tokens: 200 training and 40 validation windows of 64 tokens."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(7)
    for prefix, windows in ((TRAIN_PREFIX, 200), (VALIDATION_PREFIX, 40)):
        builder = IndexedDatasetBuilder(str(folder / f"{prefix}.bin"), dtype=np.int32)
        # A random walk over 32 of the 256 tokens. A model learns which ones, and that neighbours are close.
        walk = np.cumsum(random.integers(-3, 4, windows * SEQUENCE + 10)) % 32
        for document in np.array_split(walk.astype(np.int32), 11):
            builder.add_document(document, [len(document)])
        builder.finalize(str(folder / f"{prefix}.idx"))
    return folder


@pytest.fixture(scope="session")
def tiny(data: Path) -> dict[str, str]:
    """Return the settings of a quick run of the small model on one rank. Shared: change a copy, with `|`."""
    return {
        "MODEL_VARIANT": "tiny",
        "SUBMISSION_DIVISION": "open",
        "DGXNGPU": "1",
        "EXPERT_PARALLEL": "1",
        "MICRO_BATCH_SIZE": "1",
        "GLOBAL_BATCH_SIZE": "8",
        "SEQUENCE_LENGTH": str(SEQUENCE),
        "WARMUP_STEPS": "1",
        "EVAL_SAMPLES": "10",
        "DATADIR": str(data),
        "COLLECTIVE_TIMEOUT": "60",
    }


@pytest.fixture
def short(tiny: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Return the settings of one trial of 4 steps and 2 evaluations, on two ranks, that does not reach its target."""
    return tiny | {
        "NEXP": "1",
        "SEED_BASE": "1234",
        "EXPERT_PARALLEL": "2",
        "MAX_STEPS": "4",
        "EVAL_INTERVAL_SAMPLES": "16",
        "TARGET_LOSS": "0.01",
        "LOGDIR": str(tmp_path / "set"),
    }
