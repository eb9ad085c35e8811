"""Shards to tokenize, and the command `preprocess` in this or another process."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from typer.testing import Result

from data_scripts.preprocess import Outcome, Task, preprocess
from data_scripts.progress import ByteProgress
from data_scripts.tokenization.shards import BLOCK_BYTES
from tests.support.data_commands import run_data_command
from tests.support.paths import ROOT
from tests.support.small_sets import open_with_megatron

BYTES = Path("bytes")


def json_line(text: object, **others: object) -> bytes:
    return json.dumps({"url": "https://a.example/\u00fc", "text": text, **others}, ensure_ascii=False).encode() + b"\n"


GOOD = json_line("good") * 4


def write_shard(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def make(task: Task, workers: int = 1, block_bytes: int = BLOCK_BYTES) -> Outcome:
    return preprocess(task, workers, ByteProgress("test"), block_bytes)


def documents(prefix: Path) -> list[list[int]]:
    theirs = open_with_megatron(prefix)
    return [theirs[number].tolist() for number in range(len(theirs))]


def texts_of(prefix: Path) -> list[str]:
    """Decode the documents of a dataset of bytes."""
    return [bytes(ids).decode() for ids in documents(prefix)]


def command(*arguments: object, tokenizer: Path = BYTES, out: Path) -> Result:
    return run_data_command("preprocess", *arguments, "--tokenizer", tokenizer, "--out", out)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def output_names(name: str) -> list[str]:
    return [f"{name}.bin", f"{name}.idx", f"{name}.md5"]


def check_md5(prefix: Path) -> None:
    subprocess.run(["md5sum", "--check", "--strict", f"{prefix.name}.md5"], cwd=prefix.parent, check=True)


@contextmanager
def started(
    *arguments: object, tokenizer: Path, out: Path, wrapper: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Start the command in its own process group; kill the group at the end."""
    options = ["--tokenizer", str(tokenizer), "--out", str(out)]
    process = subprocess.Popen(
        [*wrapper, sys.executable, "-m", "data_scripts.preprocess", *map(str, arguments), *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def private_bytes(pid: int) -> int:
    """Return the private memory of a process and its descendants; 0 if one has just ended."""
    try:
        process = psutil.Process(pid)
        return sum(each.memory_full_info().uss for each in (process, *process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


def journal_state(prefix: Path) -> dict[str, Any]:
    """Parse the journal; before there is one, no shard is complete."""
    path = Path(f"{prefix}.partial/journal.json")
    state: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {"shards": 0}
    return state


def in_second_shard(prefix: Path) -> bool:
    """Check whether tokens of the second shard are written."""
    state = journal_state(prefix)
    data = Path(f"{prefix}.partial/tokens.bin")
    return bool(state["shards"] == 1 and data.stat().st_size > 4 * state["written"][1])
