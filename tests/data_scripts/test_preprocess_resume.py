"""An interrupted `preprocess` resumes after the last whole shard and makes the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import psutil
import pytest

from data_scripts.dataset_writer import IndexedDatasetWriter
from data_scripts.errors import CommandError
from data_scripts.preprocess import Task
from data_scripts.tokenization import journal
from gptoss20b.data.files import DataError
from tests.support.llama3_files import model_file
from tests.support.preprocess_runs import (
    BYTES,
    GOOD,
    check_md5,
    command,
    in_second_shard,
    journal_state,
    json_line,
    make,
    names_in,
    output_names,
    started,
    texts_of,
    wait_for,
    write_shard,
)
from tests.support.small_sets import dataset_bytes


@pytest.fixture(scope="module")
def long_shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write a short shard, and two that take one worker seconds."""
    folder = tmp_path_factory.mktemp("long")
    text = ("\n".join(topics.values()) * 9)[:2_000_000]
    content = b"".join(json_line(text[start : start + 1_999]) for start in range(0, len(text), 1_999))
    return [
        write_shard(folder / "a.json.gz", json_line("short") * 3),
        write_shard(folder / "b.json", content * 10),
        write_shard(folder / "c.jsonl", content),
    ]


@pytest.fixture(scope="module")
def long_bytes(tmp_path_factory: pytest.TempPathFactory, long_shards: list[Path]) -> tuple[bytes, bytes]:
    """Make the dataset of the long shards without interruption."""
    prefix = tmp_path_factory.mktemp("once") / "o"
    make(Task(long_shards, model_file(), prefix), 2)
    return dataset_bytes(prefix)


def test_whole_shards_are_kept_after_a_bad_line(tmp_path: Path) -> None:
    good = write_shard(tmp_path / "good.json", GOOD)
    bad = write_shard(tmp_path / "bad.json", json_line("fine") + b"{\n" + json_line("fine"))
    last = write_shard(tmp_path / "last.json", json_line("last"))
    result = command(good, bad, last, out=tmp_path / "o")
    note, error = result.stderr.splitlines()[-2:]
    assert note.startswith(f"1 of 3 shards are kept in {tmp_path / 'o.partial'}")
    assert error.startswith(f"error: {bad}:2: ")
    assert names_in(tmp_path) == ["bad.json", "good.json", "last.json", "o.partial"]
    assert journal_state(tmp_path / "o")["written"] == [4, 16]
    skipped = command(good, bad, last, "--skip-bad", out=tmp_path / "o")
    assert skipped.exit_code == 0
    assert "16 of the tokens were kept" in skipped.stdout
    assert texts_of(tmp_path / "o") == ["good"] * 4 + ["fine"] * 2 + ["last"]
    check_md5(tmp_path / "o")


def test_after_kill_9_in_a_shard_the_second_run_makes_the_same_bytes(
    tmp_path: Path, long_shards: list[Path], long_bytes: tuple[bytes, bytes]
) -> None:
    out = tmp_path / "o"
    with started(*long_shards, "--workers", 2, tokenizer=model_file(), out=out) as process:
        wait_for(process, lambda: in_second_shard(out))
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        process.kill()
        assert psutil.wait_procs(children, timeout=20)[1] == [], "a worker outlives its parent"
    assert names_in(tmp_path) == ["o.partial"]
    assert in_second_shard(out)
    # A journal may have been half written, too.
    Path(f"{out}.partial/.journal.json-0").write_bytes(b'{"shards": 2, "wri')
    outcome = make(Task(long_shards, model_file(), out), 2)
    assert outcome.kept_tokens > 0
    assert dataset_bytes(out) == long_bytes
    check_md5(out)
    assert names_in(tmp_path) == output_names("o")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_all_end_it_at_once_and_a_second_process_is_refused(
    tmp_path: Path, long_shards: list[Path], number: signal.Signals
) -> None:
    out = tmp_path / "o"
    with started(*long_shards, "--workers", 2, tokenizer=model_file(), out=out) as process:
        wait_for(process, lambda: in_second_shard(out))
        second = command(*long_shards, tokenizer=model_file(), out=out)
        assert second.exit_code == 1
        assert f"{out}.partial: got a folder that another process writes to" in second.stderr
        children = psutil.Process(process.pid).children(recursive=True)
        began = time.monotonic()
        os.killpg(process.pid, number)
        stdout, stderr = process.communicate(timeout=20)
        assert time.monotonic() - began < 3
        assert psutil.wait_procs(children, timeout=20)[1] == []
    assert (process.returncode, stdout) == (128 + number, "")
    note, error = stderr.splitlines()[-2:]
    assert note.startswith(f"1 of 3 shards are kept in {out}.partial")
    assert error == ("error: interrupted" if number == signal.SIGINT else "error: terminated")


def test_a_killed_worker_is_one_line(tmp_path: Path, long_shards: list[Path]) -> None:
    out = tmp_path / "o"
    with started(long_shards[1], "--workers", 2, tokenizer=model_file(), out=out) as process:
        data = Path(f"{out}.partial/tokens.bin")
        wait_for(process, lambda: data.exists() and data.stat().st_size > 0)
        children = psutil.Process(process.pid).children(recursive=True)
        worker = next(child for child in children if "spawn_main" in " ".join(child.cmdline()))
        worker.kill()
        _, stderr = process.communicate(timeout=20)
        assert psutil.wait_procs(children, timeout=20)[1] == []
    assert process.returncode == 1
    error = stderr.splitlines()[-1]
    assert error.startswith("error: worker: got killed by signal 9") and "--workers" in error
    assert names_in(tmp_path) == []


def test_after_a_full_disk_the_second_run_resumes(
    tmp_path: Path, long_shards: list[Path], long_bytes: tuple[bytes, bytes]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    out = disk / "o"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        result = command(*long_shards, "--workers", 1, tokenizer=model_file(), out=out)
        error = result.stderr.splitlines()[-1]
        assert result.exit_code == 1
        assert error.startswith(f"error: {out}.partial: got No space left on device; expected a disk with room")
        assert "1 of 3 shards are kept" in result.stderr
        assert names_in(disk) == ["o.partial"]
        subprocess.run(["mount", "-o", "remount,size=400m", disk], check=True)
        make(Task(long_shards, model_file(), out), 2)
        assert dataset_bytes(out) == long_bytes
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_that_may_not_grow_is_one_line(tmp_path: Path, long_shards: list[Path]) -> None:
    out = tmp_path / "o"
    # 1,000 blocks of 512 or 1,024 bytes, depending on the shell
    limited = ["sh", "-c", 'ulimit -f 1000; exec "$@"', "sh"]
    with started(long_shards[2], "--workers", 1, tokenizer=BYTES, out=out, wrapper=limited) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    error = stderr.splitlines()[-1]
    assert error.startswith(f"error: {out}.partial: got File too large; expected a disk with room")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("renamed", [0, 1, 2, 3])
def test_after_a_kill_between_the_final_names_the_next_run_gives_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: int
) -> None:
    shard = write_shard(tmp_path / "a.json", GOOD)
    task = Task([shard], BYTES, tmp_path / "o")
    make(Task([shard], BYTES, tmp_path / "whole"))
    rename, done = Path.rename, 0

    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    def rename_some(path: Path, target: Path) -> Path:
        nonlocal done
        if done == renamed:
            raise KeyboardInterrupt
        done += 1
        return rename(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        if renamed < 3:
            patched.setattr(Path, "rename", rename_some)
        else:
            patched.setattr(journal, "clear_folder", interrupt)
        make(task)
    # .idx last: whoever finds it finds the others
    present = [suffix for suffix in (".bin", ".md5", ".idx") if Path(f"{task.prefix}{suffix}").exists()]
    assert present == [".bin", ".md5", ".idx"][:renamed]
    outcome = make(task)
    assert dataset_bytes(task.prefix) == dataset_bytes(tmp_path / "whole")
    assert outcome.files == [Path(f"{task.prefix}{suffix}") for suffix in (".bin", ".md5", ".idx")]
    assert names_in(tmp_path) == sorted(["a.json", *output_names("o"), *output_names("whole")])


def interrupted(folder: Path, tokenizer: Path = BYTES, **others: Any) -> Task:
    """Return a task of two shards, stopped by a bad line in the second."""
    shards = [write_shard(folder / "first.json", GOOD), write_shard(folder / "second.json", b"{\n")]
    task = Task(shards, tokenizer, folder / "o", **others)
    with pytest.raises(CommandError, match=r"second\.json:1"):
        make(task)
    return task


def with_changed_time(task: Task) -> Task:
    os.utime(task.shards[0], ns=(1, 1))
    return task


@pytest.mark.parametrize(
    ("tokenizer", "change", "words"),
    [
        (BYTES, lambda task: replace(task, shards=task.shards[::-1]), ["shards second.json"]),
        (BYTES, lambda task: replace(task, shards=task.shards[:1]), ["shards 1 of them; expected 2 of them"]),
        (BYTES, lambda task: replace(task, tokenizer=model_file()), ["tokenizer", "; expected bytes"]),
        (BYTES, lambda task: replace(task, key="k"), ["key k; expected text"]),
        (BYTES, with_changed_time, ["first.json", "changed at 1 ns); expected first.json"]),
        (model_file(), lambda task: replace(task, append_eod=True), ["append_eod True; expected False"]),
    ],
    ids=["order", "shards", "tokenizer", "key", "time", "eod"],
)
def test_another_task_than_the_interrupted_one_is_refused(
    tmp_path: Path, tokenizer: Path, change: Callable[[Task], Task], words: list[str]
) -> None:
    task = interrupted(tmp_path, tokenizer)
    folder = Path(f"{task.prefix}.partial")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CommandError) as caught:
        make(change(task))
    message = str(caught.value)
    assert all(part in message for part in [*words, "--out", f"remove {folder}"])
    assert message.startswith(f"{folder}: got a job with ")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_stopped_before_its_index_resumes_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = replace(interrupted(tmp_path), skip_bad=True)

    def interrupt(writer: IndexedDatasetWriter, path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(IndexedDatasetWriter, "write_index", interrupt)
        make(task)
    assert journal_state(task.prefix)["shards"] == 2
    made = make(task)
    assert (made.kept_tokens, made.state.written, made.state.bad) == (16, (4, 16), {"not JSON": 1})


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("journal.json", b"{]\n", "expected the journal of a job"),
        ("journal.json", b"[]\n", "expected the journal of a job"),
        ("tokens.bin", b"1234", "got 4 bytes; expected at least 64"),
    ],
)
def test_a_damaged_work_folder_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    task = interrupted(tmp_path)
    path = Path(f"{task.prefix}.partial") / name
    path.write_bytes(content)
    with pytest.raises((CommandError, DataError)) as caught:
        make(task)
    assert words in str(caught.value) and f"remove {task.prefix}.partial" in str(caught.value)
    assert path.exists()
