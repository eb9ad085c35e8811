"""What a run reads: fixed windows of the token stream, in training order or, for validation, in file order."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gptoss20b.data.files import DataError
from gptoss20b.data.indexed_dataset import IndexedDataset
from gptoss20b.data.order import windows_at

# The published names (MLCommons, C4 en 3.0.1 tokenized for Llama 3.1).
TRAIN_PREFIX = "c4-train.en_6_text_document"
VALIDATION_PREFIX = "c4-validation-91205-samples.en_text_document"
# validation hashes are defined over int32, so no larger id can be represented
_LARGEST_VOCABULARY = 1 << 31


def count_windows(tokens: int, sequence_length: int) -> int:
    """How many windows so many tokens make; the last one needs its label too.

    >>> count_windows(17, 8), count_windows(16, 8), count_windows(0, 8)
    (2, 1, 0)
    """
    return max(0, tokens - 1) // sequence_length


class Windows:
    """A token file cut in file order into windows of `sequence_length` inputs and one more token for the last label.

    Neighbouring windows share that one token; what does not fill a last window is left out. Windows cross document
    borders: the benchmark concatenates documents.

    Attributes:
        tokens: the file.
        sequence_length: inputs per window, in tokens.
        vocab_size: token ids must be below it.
        count: number of windows, as `count_windows` returns it.
    """

    def __init__(self, tokens: IndexedDataset, sequence_length: int, vocab_size: int) -> None:
        """Cut the file.

        Raises:
            ValueError: sequence_length or vocab_size out of range.
            DataError: the file holds less than one window.
        """
        if sequence_length < 1:
            raise ValueError(f"sequence_length: got {sequence_length}; expected 1 or more. To fix: set it to 8192.")
        if not 1 <= vocab_size <= _LARGEST_VOCABULARY:
            raise ValueError(
                f"vocab_size: got {vocab_size}; expected 1 to {_LARGEST_VOCABULARY}. To fix: use the tokenizer's size."
            )
        self.tokens = tokens
        self.sequence_length = sequence_length
        self.vocab_size = vocab_size
        self.count = count_windows(tokens.token_count, sequence_length)
        if self.count == 0:
            raise DataError.about(
                tokens.path,
                f"{tokens.token_count} tokens",
                f"at least {sequence_length + 1}, one sequence of {sequence_length} and its last label",
                "use a larger file or a shorter sequence",
            )

    @property
    def path(self) -> Path:
        """The token file, for messages."""
        return self.tokens.path

    def window(self, number: int) -> npt.NDArray[np.int64]:
        """Tokens of window `number`, int64, shape [sequence_length + 1].

        Raises:
            DataError: no such window, an unreadable file, or a token id outside 0 to vocab_size - 1.
        """
        if not 0 <= number < self.count:
            raise DataError.about(
                self.path, f"window {number}", f"0 to {self.count - 1}", "ask for fewer sequences, or use a larger file"
            )
        start = number * self.sequence_length
        ids = self.tokens.read(start, self.sequence_length + 1)
        # Checked here because an id beyond the embedding is an asynchronous device fault, or silence, later on.
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            wrong = int(np.argmax((ids < 0) | (ids >= self.vocab_size)))
            raise DataError.about(
                self.path,
                f"id {ids[wrong]} at token {start + wrong} (byte {(start + wrong) * self.tokens.dtype.itemsize})",
                f"0 to {self.vocab_size - 1}",
                "use the file made with this model's tokenizer, set the vocabulary size, or download it again",
            )
        return ids


class TrainingSamples:
    """The windows of a training file in the order that `seed` gives, epoch after epoch, without end."""

    def __init__(self, windows: Windows, seed: int) -> None:
        """Keep both; nothing is read."""
        self.windows = windows
        self.seed = seed

    def sample(self, position: int) -> npt.NDArray[np.int64]:
        """Sample number `position` of the run (from 0), int64, shape [sequence_length + 1].

        Raises:
            ValueError: negative position.
            DataError: as `Windows.window`.
        """
        return self.windows.window(int(windows_at(position, self.seed, self.windows.count)))


class ValidationSamples:
    """The first `samples` windows of a validation file in file order: the same tokens for every seed and layout."""

    def __init__(self, windows: Windows, samples: int) -> None:
        """Check that the file is long enough; nothing is read.

        Raises:
            ValueError: samples below 1.
            DataError: the file has fewer windows.
        """
        if samples < 1:
            raise ValueError(f"samples: got {samples}; expected 1 or more. To fix: set it to 1024.")
        if windows.count < samples:
            raise DataError.about(
                windows.path,
                f"{windows.count} sequences of {windows.sequence_length} tokens",
                f"at least {samples} for validation",
                "use the complete validation file, or validate on fewer sequences",
            )
        self.windows = windows
        self.samples = samples

    def sample(self, number: int) -> npt.NDArray[np.int64]:
        """Validation sequence `number` (0 to samples - 1), int64, shape [sequence_length + 1].

        Raises:
            DataError: no such sequence, or as `Windows.window`.
        """
        if not 0 <= number < self.samples:
            raise DataError.about(
                self.windows.path,
                f"validation sequence {number}",
                f"0 to {self.samples - 1}",
                "ask for one of the validation sequences",
            )
        return self.windows.window(number)

    def sha256(self) -> str:
        """SHA-256 (hex) of the validation tokens: every window in order, its sequence_length + 1 ids as int32 LE.

        The token that two neighbours share is hashed in both. One window is in memory at a time.

        Raises:
            DataError: as `Windows.window`.
        """
        digest = hashlib.sha256()
        for number in range(self.samples):
            digest.update(self.sample(number).astype("<i4").tobytes())
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


def collate(windows: Sequence[npt.NDArray[np.int64]], eod_token: int | None) -> Batch:
    """Stack windows of shape [S + 1] into inputs, labels and loss mask; `eod_token` None masks nothing.

    Raises:
        ValueError: no window, windows of different length, or none longer than one token.
    """
    shapes = {window.shape for window in windows}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 1 or shape[0] < 2:
        raise ValueError(
            f"collate: got windows of shapes {[window.shape for window in windows]}; expected one or more of one shape "
            "[S + 1], S >= 1. To fix: take them from one Windows object."
        )
    stacked = np.stack(windows).astype(np.int64, copy=False)
    tokens, labels = stacked[:, :-1].copy(), stacked[:, 1:].copy()
    mask = np.ones(tokens.shape, np.float32)
    if eod_token is not None:
        mask[tokens == eod_token] = 0
    return Batch(tokens, labels, mask)
