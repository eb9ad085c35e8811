"""The samples of a run: fixed windows of the token stream, shuffled for training, in file order for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .files import DataError
from .indexed_dataset import IndexedDataset
from .order import windows_at

# The published names (MLCommons, C4 en 3.0.1 tokenized for Llama 3.1).
TRAIN_PREFIX = "c4-train.en_6_text_document"
VALIDATION_PREFIX = "c4-validation-91205-samples.en_text_document"


def count_windows(tokens: int, sequence_length: int) -> int:
    """Return the number of whole windows. The last window needs one token more, for its last label.

    >>> count_windows(17, 8), count_windows(16, 8), count_windows(0, 8)
    (2, 1, 0)
    """
    return max(0, tokens - 1) // sequence_length


class Windows:
    """A dataset cut in file order into windows of `sequence_length` inputs and one more token for the last label.

    Neighbouring windows share that token. A rest shorter than a window is dropped. Windows cross document boundaries:
    the benchmark concatenates documents.

    Attributes:
        dataset: the indexed dataset.
        sequence_length: inputs per window, in tokens.
        vocab_size: token ids must be below it. At most 2**31: validation hashes are over int32.
        count: number of windows, as `count_windows` returns it.
    """

    def __init__(self, dataset: IndexedDataset, sequence_length: int, vocab_size: int) -> None:
        """Check that the dataset holds at least one window.

        Raises:
            DataError: the dataset holds less than one window.
        """
        self.dataset = dataset
        self.sequence_length = sequence_length
        self.vocab_size = vocab_size
        self.count = count_windows(dataset.token_count, sequence_length)
        if self.count == 0:
            raise DataError.about(
                dataset.path,
                f"{dataset.token_count} tokens",
                f"at least {sequence_length + 1}, one sequence of {sequence_length} and its last label",
                "use a larger file or a shorter sequence",
            )

    def window(self, number: int) -> npt.NDArray[np.int64]:
        """Read the tokens of window `number` as int64, shape [sequence_length + 1].

        Raises:
            DataError: no such window, an unreadable file, or a token id outside 0 to vocab_size - 1.
        """
        if not 0 <= number < self.count:
            raise DataError.about(
                self.dataset.path,
                f"window {number}",
                f"0 to {self.count - 1}",
                "ask for fewer sequences, or use a larger file",
            )
        start = number * self.sequence_length
        ids = self.dataset.read(start, self.sequence_length + 1)
        # Checked here because a later lookup of an id beyond the embedding is an asynchronous device fault, or silent.
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            wrong = int(np.argmax((ids < 0) | (ids >= self.vocab_size)))
            raise DataError.about(
                self.dataset.path,
                f"id {ids[wrong]} at token {start + wrong} (byte {(start + wrong) * self.dataset.dtype.itemsize})",
                f"0 to {self.vocab_size - 1}",
                "use the file made with this model's tokenizer, set the vocabulary size, or download it again",
            )
        return ids

    def train_sample(self, position: int, seed: int) -> npt.NDArray[np.int64]:
        """Read the window at a global position of a run (from 0), in the order that `seed` gives, without end.

        Raises:
            DataError: as `window`.
        """
        return self.window(int(windows_at(position, seed, self.count)))


class ValidationSamples:
    """The first `samples` windows of a validation set in file order: the same tokens for every seed and layout."""

    def __init__(self, windows: Windows, samples: int) -> None:
        """Check that the dataset is long enough.

        Raises:
            DataError: the dataset has fewer windows.
        """
        if windows.count < samples:
            raise DataError.about(
                windows.dataset.path,
                f"{windows.count} sequences of {windows.sequence_length} tokens",
                f"at least {samples} for validation",
                "use the complete validation file, or validate on fewer sequences",
            )
        self.windows = windows
        self.samples = samples

    def sha256(self) -> str:
        """Return the SHA-256 (hex) of the validation tokens: all windows in order, their ids as int32 little-endian.

        The token that two neighbours share is hashed twice. One window is in memory at a time.

        Raises:
            DataError: as `Windows.window`.
        """
        digest = hashlib.sha256()
        for number in range(self.samples):
            digest.update(self.windows.window(number).astype("<i4").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Batch:
    """Model inputs for b sequences of S tokens.

    Attributes:
        tokens: int64 [b, S], the inputs.
        labels: int64 [b, S], the token after each input.
        loss_mask: float32 [b, S], 0 where the input is the end-of-document token, else 1.
    """

    tokens: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    loss_mask: npt.NDArray[np.float32]


def collate(samples: Sequence[npt.NDArray[np.int64]], eod_token: int | None) -> Batch:
    """Stack samples of shape [S + 1] into inputs, labels and loss mask; `eod_token` None masks nothing."""
    stacked = np.stack(samples).astype(np.int64, copy=False)
    # Labels are the inputs shifted by one token.
    tokens, labels = stacked[:, :-1].copy(), stacked[:, 1:].copy()
    loss_mask = np.ones(tokens.shape, np.float32)
    if eod_token is not None:
        loss_mask[tokens == eod_token] = 0
    return Batch(tokens, labels, loss_mask)
