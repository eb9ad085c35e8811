"""Verifying a data set: every check, and all that they find. Nothing is written, and nothing printed."""

from collections.abc import Collection, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Protocol

from data_scripts.c4 import PREFIXES
from data_scripts.checking.expectations import FILES, Expectations
from data_scripts.checking.findings import DOWNLOAD_AGAIN, Few, Finding
from data_scripts.checking.lists import LIST_AGAIN, Listed, read_lists
from data_scripts.checking.reading import Reader, TokenRange
from data_scripts.checking.report import Scope, Verification
from data_scripts.checking.swap import Pair, Swap, find_swap, open_pair
from data_scripts.checking.tables import check_tables, document_at
from data_scripts.dataset_writer import TOKEN
from gptoss20b.data.files import DataError
from gptoss20b.data.index import Index
from gptoss20b.data.indexed_dataset import IndexedDataset
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX, ValidationSamples, Windows, count_windows

# where the type of a token stands in an index
_DTYPE_OFFSET = 17
_OTHER_TOKENS = "use the file made with this model's tokenizer, set --vocab-size, or download it again"


class Progress(Protocol):
    """Observer of a verification."""

    def begin(self, total: int) -> None:
        """So many bytes will be checked."""

    def advance(self, size: int) -> None:
        """So many more bytes are checked."""


def verify(directory: Path, expected: Expectations, scope: Scope, progress: Progress) -> Verification:
    """Check the data set in `directory`; damage of any kind ends in a finding, never in an error.

    Memory is bounded by scope.threads pieces of `reading.PIECE` and a few blocks of the tables.
    """
    with ExitStack() as stack:
        check = _Check(directory, Verification(expected, scope), progress, stack)
        check.open()
        check.plan()
        check.structure()
        check.contents()
        check.evaluation()
    return check.result


class _Check:
    """One verification under way; its steps are taken in the order of `verify`."""

    def __init__(self, directory: Path, result: Verification, progress: Progress, stack: ExitStack) -> None:
        self.result = result
        self._directory, self._progress, self._stack = directory, progress, stack
        self._expected, self._scope = result.expected, result.scope
        self._pairs: dict[str, Pair] = {}
        self._swap: Swap | None = None
        self._listed: list[Listed] = []
        # files to read: the checksums to take of each, and whether to look at its tokens
        self._reads: dict[str, tuple[list[str], bool]] = {}
        # prefixes of pairs whose tables tell where a document is
        self._located: set[str] = set()
        self._evaluated: ValidationSamples | None = None

    def open(self) -> None:
        """Open both pairs, and see whether they are in each other's place."""
        for prefix in PREFIXES:
            self._pairs[prefix], findings = open_pair(self._directory / prefix, self._stack)
            self.result.findings += findings
        documents = self._expected.documents.get(VALIDATION_PREFIX, 0)
        self._swap = find_swap(self._pairs[TRAIN_PREFIX], self._pairs[VALIDATION_PREFIX], documents)
        if self._swap is not None:
            self.result.findings.append(self._swap.finding)

    def plan(self) -> None:
        """Read the lists, and add up what is to be read."""
        self._listed = list(self._expected.listed)
        if self._scope.checksums:
            listed, findings = read_lists(self._directory)
            self._listed += listed
            self.result.findings += findings
            self._unlisted(len(findings))
        for name in dict.fromkeys([*FILES, *(entry.file for entry in self._listed)]):
            self.result.sizes[name] = size = _size(self._directory / name)
            algorithms = {entry.algorithm for entry in self._listed if self._holder(entry.file) == name}
            asked = sorted(algorithms) if self._scope.checksums else []
            tokens = self._scope.tokens and name in self._token_files()
            if size is not None and (asked or tokens):
                self._reads[name] = asked, tokens
        indexes = [pair.index.path.name for pair in self._pairs.values() if pair.index is not None]
        self._progress.begin(sum(self.result.sizes[name] or 0 for name in [*indexes, *self._reads]))

    def structure(self) -> None:
        """What the indexes say: whether it is possible, expected and enough."""
        for prefix, pair in self._pairs.items():
            if pair.index is not None:
                self._tables(prefix, pair, pair.index)
        for prefix, number in self._expected.documents.items():
            self._documents(prefix, number)
        for prefix in PREFIXES:
            self._windows(prefix)
        opened = [f"{prefix}.idx" for prefix, pair in self._pairs.items() if pair.index is not None]
        both = [f"{prefix}.bin" for prefix, pair in self._pairs.items() if pair.index and pair.data_bytes is not None]
        self._note("structure", FILES, opened + both)

    def contents(self) -> None:
        """Read every file once, for its checksums and its tokens."""
        scanned = []
        with Reader(self._scope.threads, self._progress.advance) as reader:
            for name, (algorithms, tokens) in self._reads.items():
                try:
                    vocabulary = self._expected.vocabulary if tokens else None
                    contents = reader.read(self._directory / name, algorithms, vocabulary)
                except DataError as error:
                    self._refused(error)
                    continue
                self.result.digests[name] = contents.digests
                if contents.tokens is not None:
                    scanned.append(name)
                    self._tokens(name, contents.tokens)
        for entry in self._listed:
            self._compare(entry)
        self._note("checksums", self.result.sizes, [name for name, found in self.result.digests.items() if found])
        self._note("tokens", [name for name in FILES if name.endswith(".bin")], scanned)

    def evaluation(self) -> None:
        """Hash the evaluation sequences, with the code of a run."""
        if self._evaluated is None:
            return
        try:
            self.result.eval_tokens_sha256 = self._evaluated.sha256()
        except DataError as error:
            finding = Finding.of(error, self._directory)
            # The file's tokens may have been told before.
            if finding.file not in {known.file for known in self.result.findings}:
                self.result.findings.append(finding)

    def _refused(self, error: DataError) -> None:
        self.result.findings.append(Finding.of(error, self._directory))

    def _holder(self, name: str) -> str:
        """The file that has what `name` should have: another one if the sets are swapped."""
        return name if self._swap is None else self._swap.names.get(name, name)

    def _note(self, check: str, names: Iterable[str], done: Collection[str]) -> None:
        self.result.checked[check] = [name for name in names if name in done]
        self.result.skipped[check] = [name for name in names if name not in done]

    def _unlisted(self, findings: int) -> None:
        """Files whose checksum nothing tells."""
        if not self._listed and not findings:
            fix = "run data_scripts/download_dataset.sh, or pass --no-md5"
            self.result.findings.append(
                Finding.about("*.md5", "no such list", "one with the MD5 of every file of the set", fix)
            )
        known = {entry.file for entry in self._listed}
        for name in FILES if known else ():
            if name not in known:
                self.result.findings.append(
                    Finding.about(name, "no checksum in any list", "one for every file of the set", LIST_AGAIN)
                )

    def _token_files(self) -> list[str]:
        """The `.bin` files that can be looked at token by token."""
        pairs = self._pairs.items()
        return [f"{prefix}.bin" for prefix, pair in pairs if pair.index is not None and pair.index.dtype == TOKEN]

    def _tables(self, prefix: str, pair: Pair, index: Index) -> None:
        facts = self.result.pairs[prefix]
        facts.documents, facts.sequences = index.document_count, index.sequence_count
        if index.dtype != TOKEN:
            got = f"token type {index.dtype} (at byte {_DTYPE_OFFSET})"
            self.result.findings.append(Finding.about(index.path.name, got, f"{TOKEN}"))
        try:
            tables = check_tables(index, self._progress.advance)
        except DataError as error:
            self._refused(error)
            return
        self.result.findings += tables.findings
        facts.empty_sequences, facts.empty_documents = tables.empty_sequences, tables.empty_documents
        if pair.fits and not tables.findings:
            self._located.add(prefix)

    def _documents(self, prefix: str, expected: int) -> None:
        """Compare the number of documents of a set, wherever its index is; 0 is any."""
        name = self._holder(f"{prefix}.idx")
        got = self.result.pairs[name.removesuffix(".idx")].documents
        if expected and got is not None and got != expected:
            fix = f"{DOWNLOAD_AGAIN}; for another data set, pass --validation-documents"
            self.result.findings.append(Finding.about(name, f"{got:,} documents", f"{expected:,}", fix))

    def _windows(self, prefix: str) -> None:
        """Cut the tokens of a set, wherever they are, as a run does."""
        if self._swap is not None and len(self._swap.suffixes) == 1:
            # Neither pair fits together.
            return
        prefix_held = self._holder(f"{prefix}.bin").removesuffix(".bin")
        pair, facts = self._pairs[prefix_held], self.result.pairs[prefix_held]
        if pair.index is None or pair.data_bytes is None:
            return
        length = self._expected.sequence_length
        try:
            tokens = self._stack.enter_context(IndexedDataset.open(pair.prefix))
            facts.tokens, facts.windows = tokens.token_count, count_windows(tokens.token_count, length)
            windows = Windows(tokens, length, self._expected.vocabulary)
            if prefix == VALIDATION_PREFIX:
                self._evaluated = ValidationSamples(windows, self._expected.sequences)
        except DataError as error:
            self._refused(error)

    def _tokens(self, name: str, found: TokenRange) -> None:
        """Tell the first wrong tokens of a `.bin`."""
        prefix = name.removesuffix(".bin")
        facts = self.result.pairs[prefix]
        facts.token_min, facts.token_max = found.low, found.high
        wrong = Few(name, "wrong token ids", _OTHER_TOKENS)
        wrong.add((self._token(prefix, number, value) for number, value in found.first), found.wrong)
        self.result.findings += wrong.findings()

    def _token(self, prefix: str, number: int, value: int) -> Finding:
        place = f"token {number}, byte {number * TOKEN.itemsize}"
        index = self._pairs[prefix].index
        if index is not None and prefix in self._located:
            # A file that shrinks under our hands has been told, or the next verification tells it.
            with suppress(DataError):
                document, within = document_at(index, number)
                place += f", token {within} of document {document}"
        expected = f"0 to {self._expected.vocabulary - 1}"
        return Finding.about(f"{prefix}.bin", f"token id {value} ({place})", expected, _OTHER_TOKENS)

    def _compare(self, entry: Listed) -> None:
        """Compare a file with what a list says of it."""
        name = self._holder(entry.file)
        size = self.result.sizes[name]
        got = expected = ""
        if size is None:
            # What misses of the two pairs has been told.
            got, expected = ("" if name in FILES else "no such file"), "a file"
        elif entry.size is not None and entry.size != size:
            got, expected = f"{size} bytes", f"{entry.size}"
        else:
            digest = self.result.digests.get(name, {}).get(entry.algorithm, entry.digest)
            if digest != entry.digest:
                got, expected = f"{entry.algorithm.upper()} {digest}", entry.digest
        if got:
            self.result.findings.append(Finding.about(name, got, f"{expected}, as {entry.source} has it", entry.fix))


def _size(path: Path) -> int | None:
    """Bytes of a file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size if S_ISREG(found.st_mode) else None
