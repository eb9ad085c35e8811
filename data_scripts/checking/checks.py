"""Run all checks of a dataset and collect their findings. Writes and prints nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from stat import S_ISREG

from gptoss20b.data.files import REBUILD, DataError, open_binary
from gptoss20b.data.index import DTYPE_OFFSET, Index
from gptoss20b.data.indexed_dataset import IndexedDataset
from gptoss20b.data.samples import VALIDATION_PREFIX, ValidationSamples, Windows, count_windows

from ..c4 import FILES, PREFIXES
from ..dataset_writer import TOKEN_DTYPE
from ..md5_list import LIST_AGAIN
from ..progress import ByteProgress
from .expectations import Expectations, ExpectedFile, read_lists
from .findings import CappedFindings, Finding
from .reading import Reader, TokenRange
from .report import Scope, Verification
from .tables import check_tables, document_at

_OTHER_TOKENS = "use the file made with this model's tokenizer, set --vocab-size, or download it again"


def verify(directory: Path, expected: Expectations, scope: Scope, progress: ByteProgress) -> Verification:
    """Check the dataset in `directory`; damage of any kind ends in a finding, never in an error.

    Memory is bounded by scope.threads pieces of `reading.PIECE` and a few blocks of the tables.
    """
    with ExitStack() as stack:
        check = _Check(directory, Verification(expected, scope), progress, stack)
        check.open_datasets()
        check.plan_reads()
        check.check_structure()
        check.check_contents()
        check.hash_evaluation()
    return check.result


class _Check:
    """A verification in progress; `verify` calls its steps in order."""

    def __init__(self, directory: Path, result: Verification, progress: ByteProgress, stack: ExitStack) -> None:
        self.result = result
        self._directory, self._progress, self._stack = directory, progress, stack
        self._expected, self._scope = result.expected, result.scope
        # indexes and .bin files that open, by prefix
        self._indexes: dict[str, Index] = {}
        self._bins: set[str] = set()
        self._listed: list[ExpectedFile] = []
        # files to read: the checksums to compute of each, and whether to check its tokens
        self._reads: dict[str, tuple[list[str], bool]] = {}
        # prefixes whose tables are right, so that a token's document can be looked up
        self._right_tables: set[str] = set()
        self._evaluated: ValidationSamples | None = None

    def open_datasets(self) -> None:
        """Open both datasets. The indexes stay open."""
        for prefix in PREFIXES:
            with self._errors_as_findings():
                self._indexes[prefix] = self._stack.enter_context(Index.open(self._directory / prefix))
            with self._errors_as_findings():
                open_binary(self._directory / f"{prefix}.bin").close()
                self._bins.add(prefix)

    def plan_reads(self) -> None:
        """Read the MD5 lists and add up the bytes to read."""
        self._listed = list(self._expected.files)
        if self._scope.checksums:
            listed, findings = read_lists(self._directory)
            self._listed += listed
            self.result.findings += findings
            self._check_all_listed(len(findings))
        token_files = [f"{prefix}.bin" for prefix, index in self._indexes.items() if index.dtype == TOKEN_DTYPE]
        for name in dict.fromkeys([*FILES, *(entry.file for entry in self._listed)]):
            self.result.sizes[name] = size = _file_size(self._directory / name)
            algorithms = {entry.algorithm for entry in self._listed if entry.file == name}
            requested = sorted(algorithms) if self._scope.checksums else []
            tokens = self._scope.tokens and name in token_files
            if size is not None and (requested or tokens):
                self._reads[name] = requested, tokens
        indexes = [index.path.name for index in self._indexes.values()]
        self._progress.begin(sum(self.result.sizes[name] or 0 for name in [*indexes, *self._reads]))

    def check_structure(self) -> None:
        """Check the tables of both indexes, the numbers of documents and the numbers of windows."""
        for prefix, index in self._indexes.items():
            self._check_tables(prefix, index)
        for prefix, number in self._expected.documents.items():
            self._check_documents(prefix, number)
        for prefix in self._indexes:
            if prefix in self._bins:
                self._check_windows(prefix)
        done = [f"{prefix}.idx" for prefix in self._indexes]
        # A .bin counts as checked against its index.
        done += [f"{prefix}.bin" for prefix in self._indexes if prefix in self._bins]
        self._record("structure", FILES, done)

    def check_contents(self) -> None:
        """Read every file once, for its checksums and its tokens."""
        scanned = []
        with Reader(self._scope.threads, self._progress.advance) as reader:
            for name, (algorithms, tokens) in self._reads.items():
                with self._errors_as_findings():
                    vocab_size = self._expected.vocab_size if tokens else None
                    scan = reader.scan(self._directory / name, algorithms, vocab_size)
                    self.result.digests[name] = scan.digests
                    if scan.tokens is not None:
                        scanned.append(name)
                        self._check_tokens(name, scan.tokens)
        for entry in self._listed:
            self._check_listed(entry)
        self._record("checksums", self.result.sizes, [name for name, found in self.result.digests.items() if found])
        self._record("tokens", [name for name in FILES if name.endswith(".bin")], scanned)

    def hash_evaluation(self) -> None:
        """Hash the evaluation sequences with the code that a run uses."""
        if self._evaluated is None:
            return
        try:
            self.result.eval_tokens_sha256 = self._evaluated.sha256()
        except DataError as error:
            finding = Finding.from_error(error, self._directory)
            # Wrong tokens of the file may have been found before.
            if finding.file not in {known.file for known in self.result.findings}:
                self.result.findings.append(finding)

    def _add(self, file: str, got: str, expected: str, fix: str = REBUILD) -> None:
        self.result.findings.append(Finding.about(file, got, expected, fix))

    @contextmanager
    def _errors_as_findings(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            self.result.findings.append(Finding.from_error(error, self._directory))

    def _record(self, check: str, names: Iterable[str], done: Collection[str]) -> None:
        self.result.checked[check] = [name for name in names if name in done]
        self.result.skipped[check] = [name for name in names if name not in done]

    def _check_all_listed(self, list_findings: int) -> None:
        """Add a finding for each file without a checksum in any list."""
        if not self._listed and not list_findings:
            fix = "run data_scripts/download_dataset.sh, or pass --no-md5"
            self._add("*.md5", "no such list", "one with the MD5 of every file of the set", fix)
        known = {entry.file for entry in self._listed}
        for name in FILES if known else ():
            if name not in known:
                self._add(name, "no checksum in any list", "one for every file of the set", LIST_AGAIN)

    def _check_tables(self, prefix: str, index: Index) -> None:
        facts = self.result.datasets[prefix]
        facts.documents, facts.sequences = index.document_count, index.sequence_count
        if index.dtype != TOKEN_DTYPE:
            self._add(index.path.name, f"token type {index.dtype} (at byte {DTYPE_OFFSET})", f"{TOKEN_DTYPE}")
        with self._errors_as_findings():
            tables = check_tables(index, self._progress.advance)
            self.result.findings += tables.findings
            facts.empty_sequences, facts.empty_documents = tables.empty_sequences, tables.empty_documents
            if not tables.findings and index.data_bytes == self.result.sizes[f"{prefix}.bin"]:
                self._right_tables.add(prefix)

    def _check_documents(self, prefix: str, expected: int) -> None:
        """Compare the number of documents of a set; 0 expects any number."""
        got = self.result.datasets[prefix].documents
        if expected and got is not None and got != expected:
            fix = f"{REBUILD}; for another dataset, pass --validation-documents"
            self._add(f"{prefix}.idx", f"{got:,} documents", f"{expected:,}", fix)

    def _check_windows(self, prefix: str) -> None:
        """Cut the tokens of a set into windows as a run does."""
        facts, length = self.result.datasets[prefix], self._expected.sequence_length
        with self._errors_as_findings():
            dataset = self._stack.enter_context(IndexedDataset.open(self._directory / prefix))
            facts.tokens, facts.windows = dataset.token_count, count_windows(dataset.token_count, length)
            windows = Windows(dataset, length, self._expected.vocab_size)
            if prefix == VALIDATION_PREFIX:
                self._evaluated = ValidationSamples(windows, self._expected.eval_samples)

    def _check_tokens(self, name: str, found: TokenRange) -> None:
        """Record the range of a `.bin` and its first wrong tokens."""
        prefix = name.removesuffix(".bin")
        facts = self.result.datasets[prefix]
        facts.token_min, facts.token_max = found.low, found.high
        wrong = CappedFindings(name, "wrong token ids", _OTHER_TOKENS)
        wrong.add((self._wrong_token(prefix, number, value) for number, value in found.first_wrong), found.wrong)
        self.result.findings += wrong.findings()

    def _wrong_token(self, prefix: str, number: int, value: int) -> Finding:
        place = f"token {number}, byte {number * TOKEN_DTYPE.itemsize}"
        if prefix in self._right_tables:
            # An index that shrinks meanwhile has its own finding, now or in the next verification.
            with suppress(DataError):
                document, within = document_at(self._indexes[prefix], number)
                place += f", token {within} of document {document}"
        expected = f"0 to {self._expected.vocab_size - 1}"
        return Finding.about(f"{prefix}.bin", f"token id {value} ({place})", expected, _OTHER_TOKENS)

    def _check_listed(self, entry: ExpectedFile) -> None:
        """Compare a file with its entry in a list."""
        size = self.result.sizes[entry.file]
        got = expected = ""
        if size is None:
            # Missing files of the two datasets have a finding already.
            got, expected = ("" if entry.file in FILES else "no such file"), "a file"
        elif entry.size is not None and entry.size != size:
            got, expected = f"{size} bytes", f"{entry.size}"
        else:
            digest = self.result.digests.get(entry.file, {}).get(entry.algorithm, entry.digest)
            if digest != entry.digest:
                got, expected = f"{entry.algorithm.upper()} {digest}", entry.digest
        if got:
            self._add(entry.file, got, f"{expected}, as in {entry.source}", entry.fix)


def _file_size(path: Path) -> int | None:
    """Return the bytes of a regular file, or None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if S_ISREG(status.st_mode) else None
