"""Run all checks of a dataset and collect their findings. Writes and prints nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from stat import S_ISREG

from gptoss20b.data.files import REBUILD, DataError
from gptoss20b.data.index import DTYPE_OFFSET, Index
from gptoss20b.data.indexed_dataset import IndexedDataset
from gptoss20b.data.samples import TRAIN_PREFIX, VALIDATION_PREFIX, ValidationSamples, Windows, count_windows

from ..c4 import FILES, PREFIXES
from ..dataset_writer import TOKEN_DTYPE
from ..progress import ByteProgress
from .expectations import Expectations
from .findings import CappedFindings, Finding
from .md5_lists import LIST_AGAIN, ExpectedFile, read_lists
from .reading import Reader, TokenRange
from .report import Scope, Verification
from .swap import OpenedDataset, Swap, find_swap, open_dataset
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
        self._datasets: dict[str, OpenedDataset] = {}
        self._swap: Swap | None = None
        self._listed: list[ExpectedFile] = []
        # files to read: the checksums to compute of each, and whether to check its tokens
        self._reads: dict[str, tuple[list[str], bool]] = {}
        # prefixes whose tables are right, so that a token's document can be looked up
        self._right_tables: set[str] = set()
        self._evaluated: ValidationSamples | None = None

    def open_datasets(self) -> None:
        """Open both datasets, and detect whether they have each other's names."""
        for prefix in PREFIXES:
            self._datasets[prefix], findings = open_dataset(self._directory / prefix, self._stack)
            self.result.findings += findings
        documents = self._expected.documents.get(VALIDATION_PREFIX, 0)
        self._swap = find_swap(self._datasets[TRAIN_PREFIX], self._datasets[VALIDATION_PREFIX], documents)
        if self._swap is not None:
            self.result.findings.append(self._swap.finding)

    def plan_reads(self) -> None:
        """Read the MD5 lists and add up the bytes to read."""
        self._listed = list(self._expected.files)
        if self._scope.checksums:
            listed, findings = read_lists(self._directory)
            self._listed += listed
            self.result.findings += findings
            self._check_all_listed(len(findings))
        for name in dict.fromkeys([*FILES, *(entry.file for entry in self._listed)]):
            self.result.sizes[name] = size = _file_size(self._directory / name)
            algorithms = {entry.algorithm for entry in self._listed if self._actual_name(entry.file) == name}
            requested = sorted(algorithms) if self._scope.checksums else []
            tokens = self._scope.tokens and name in self._token_files()
            if size is not None and (requested or tokens):
                self._reads[name] = requested, tokens
        indexes = [dataset.index.path.name for dataset in self._datasets.values() if dataset.index is not None]
        self._progress.begin(sum(self.result.sizes[name] or 0 for name in [*indexes, *self._reads]))

    def check_structure(self) -> None:
        """Check the tables of both indexes, the numbers of documents and the numbers of windows."""
        for prefix, dataset in self._datasets.items():
            if dataset.index is not None:
                self._check_tables(prefix, dataset, dataset.index)
        for prefix, number in self._expected.documents.items():
            self._check_documents(prefix, number)
        for prefix in PREFIXES:
            self._check_windows(prefix)
        done = [f"{prefix}.idx" for prefix, dataset in self._datasets.items() if dataset.index is not None]
        # A .bin counts as checked against its index.
        for prefix, dataset in self._datasets.items():
            if dataset.index is not None and dataset.data_bytes is not None:
                done.append(f"{prefix}.bin")
        self._record("structure", FILES, done)

    def check_contents(self) -> None:
        """Read every file once, for its checksums and its tokens."""
        scanned = []
        with Reader(self._scope.threads, self._progress.advance) as reader:
            for name, (algorithms, tokens) in self._reads.items():
                try:
                    vocab_size = self._expected.vocab_size if tokens else None
                    scan = reader.scan(self._directory / name, algorithms, vocab_size)
                except DataError as error:
                    self._add_error(error)
                    continue
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

    def _add_error(self, error: DataError) -> None:
        self.result.findings.append(Finding.from_error(error, self._directory))

    def _actual_name(self, name: str) -> str:
        """Return the file that holds the content of `name`: another one if the sets are swapped."""
        return name if self._swap is None else self._swap.names.get(name, name)

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

    def _token_files(self) -> list[str]:
        """Return the `.bin` files whose tokens can be checked."""
        datasets = self._datasets.items()
        return [f"{prefix}.bin" for prefix, each in datasets if each.index and each.index.dtype == TOKEN_DTYPE]

    def _check_tables(self, prefix: str, dataset: OpenedDataset, index: Index) -> None:
        facts = self.result.datasets[prefix]
        facts.documents, facts.sequences = index.document_count, index.sequence_count
        if index.dtype != TOKEN_DTYPE:
            self._add(index.path.name, f"token type {index.dtype} (at byte {DTYPE_OFFSET})", f"{TOKEN_DTYPE}")
        try:
            tables = check_tables(index, self._progress.advance)
        except DataError as error:
            self._add_error(error)
            return
        self.result.findings += tables.findings
        facts.empty_sequences, facts.empty_documents = tables.empty_sequences, tables.empty_documents
        if dataset.consistent and not tables.findings:
            self._right_tables.add(prefix)

    def _check_documents(self, prefix: str, expected: int) -> None:
        """Compare the number of documents of a set, under whichever name its index is; 0 expects any number."""
        name = self._actual_name(f"{prefix}.idx")
        got = self.result.datasets[name.removesuffix(".idx")].documents
        if expected and got is not None and got != expected:
            fix = f"{REBUILD}; for another dataset, pass --validation-documents"
            self._add(name, f"{got:,} documents", f"{expected:,}", fix)

    def _check_windows(self, prefix: str) -> None:
        """Cut the tokens of a set into windows as a run does, under whichever name they are."""
        if self._swap is not None and len(self._swap.suffixes) == 1:
            # Neither .bin belongs to its .idx.
            return
        actual_prefix = self._actual_name(f"{prefix}.bin").removesuffix(".bin")
        opened, facts = self._datasets[actual_prefix], self.result.datasets[actual_prefix]
        if opened.index is None or opened.data_bytes is None:
            return
        length = self._expected.sequence_length
        try:
            dataset = self._stack.enter_context(IndexedDataset.open(opened.prefix))
            facts.tokens, facts.windows = dataset.token_count, count_windows(dataset.token_count, length)
            windows = Windows(dataset, length, self._expected.vocab_size)
            if prefix == VALIDATION_PREFIX:
                self._evaluated = ValidationSamples(windows, self._expected.eval_samples)
        except DataError as error:
            self._add_error(error)

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
        index = self._datasets[prefix].index
        if index is not None and prefix in self._right_tables:
            # An index that shrinks meanwhile has its own finding, now or in the next verification.
            with suppress(DataError):
                document, within = document_at(index, number)
                place += f", token {within} of document {document}"
        expected = f"0 to {self._expected.vocab_size - 1}"
        return Finding.about(f"{prefix}.bin", f"token id {value} ({place})", expected, _OTHER_TOKENS)

    def _check_listed(self, entry: ExpectedFile) -> None:
        """Compare a file with its entry in a list."""
        name = self._actual_name(entry.file)
        size = self.result.sizes[name]
        got = expected = ""
        if size is None:
            # Missing files of the two datasets have a finding already.
            got, expected = ("" if name in FILES else "no such file"), "a file"
        elif entry.size is not None and entry.size != size:
            got, expected = f"{size} bytes", f"{entry.size}"
        else:
            digest = self.result.digests.get(name, {}).get(entry.algorithm, entry.digest)
            if digest != entry.digest:
                got, expected = f"{entry.algorithm.upper()} {digest}", entry.digest
        if got:
            self._add(name, got, f"{expected}, as in {entry.source}", entry.fix)


def _file_size(path: Path) -> int | None:
    """Return the bytes of a regular file, or None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if S_ISREG(status.st_mode) else None
