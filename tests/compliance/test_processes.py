"""Functions in processes of their own: results, errors, kills, interrupts."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from compliance import check
from compliance.check import Options, check_package, check_set
from compliance.log_files import InputError
from compliance.processes import ProcessError, run_apart
from tests.support.made_logs import compliant_set, write_set, write_tree


def act(task: object) -> object:
    match task:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(7)
        case "raise":
            raise KeyError("no such thing")
        case "unreadable":
            raise InputError("log.txt: damaged")
    return task, os.getpid()


def test_each_item_has_a_process_of_its_own_and_its_own_result() -> None:
    outcomes = dict(run_apart(act, list("abc"), 2))
    assert [outcomes[index][0] for index in range(3)] == ["a", "b", "c"]  # type: ignore[index]
    assert len({outcome[1] for outcome in outcomes.values()} | {os.getpid()}) == 4  # type: ignore[index]


def test_a_process_that_ends_badly_costs_its_own_result_only() -> None:
    outcomes = dict(run_apart(act, ["kill", "a", "exit", "raise", "unreadable", "b"], 2))
    killed, first, ended, raised, unreadable, second = (outcomes[index] for index in range(6))
    assert isinstance(killed, ProcessError) and "signal 9" in str(killed)
    assert isinstance(ended, ProcessError) and "status 7" in str(ended)
    assert isinstance(raised, ProcessError) and "KeyError: 'no such thing' (test_processes.py:" in str(raised)
    assert isinstance(unreadable, InputError) and str(unreadable) == "log.txt: damaged"
    assert (first[0], second[0]) == ("a", "b")  # type: ignore[index]


def test_a_large_result_arrives() -> None:
    ((_, outcome),) = run_apart(bytes, [5_000_000], 1)
    assert outcome == bytes(5_000_000)


def test_no_more_than_the_given_number_run_at_once(tmp_path: Path) -> None:
    def others(_: object) -> int:
        file = tmp_path / str(os.getpid())
        file.touch()
        time.sleep(0.05)
        running = len(list(tmp_path.iterdir()))
        file.unlink()
        return running

    assert {outcome for _, outcome in run_apart(others, range(6), 2)} <= {1, 2}


def test_an_interrupt_ends_the_processes_which_remove_their_files(tmp_path: Path) -> None:
    def hold(number: int) -> None:
        if number == 0:
            while len(list(tmp_path.iterdir())) < 2:
                time.sleep(0.01)
            return
        with tempfile.TemporaryDirectory(dir=tmp_path):
            time.sleep(60)

    before = set(psutil.Process().children())
    with pytest.raises(KeyboardInterrupt), closing(run_apart(hold, range(3), 3)) as outcomes:
        for _ in outcomes:
            started = set(psutil.Process().children()) - before
            raise KeyboardInterrupt
    assert len(started) == 2
    assert not set(psutil.Process().children()) - before
    assert not list(tmp_path.iterdir())


def test_logs_judged_in_parallel_give_the_same_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = compliant_set(16)
    for number in (2, 7):
        logs[number].set("cache_clear", False)
    tree = write_tree(tmp_path / "tree", logs)
    accepted = 'path = "*"\nreason = "known"\nwho = "A. Reviewer"\nuntil = 2999-01-01\n'
    waivers = tmp_path / "waivers.toml"
    waivers.write_text(f'[[waiver]]\nrule = "cache-clear"\n{accepted}[[waiver]]\nrule = "clock-order"\n{accepted}')
    options = Options(official=False, waive=waivers)
    serial = check_package(tree, options)
    assert [each.rule for each in serial.findings if each.severity == "info"] == ["waiver-unused"]
    forked: list[int] = []
    monkeypatch.setattr(check, "_PARALLEL_BYTES", 0)
    monkeypatch.setattr(check, "cores", lambda: 3)

    def counted(function: Any, shares: list[Any], jobs: int) -> Any:
        forked.extend(map(len, shares))
        return run_apart(function, shares, jobs)

    monkeypatch.setattr(check, "run_apart", counted)
    assert check_package(tree, options) == serial
    assert forked == [3, 3, 4]


def test_the_first_unreadable_log_is_the_error_in_parallel_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_PARALLEL_BYTES", 0)
    monkeypatch.setattr(check, "cores", lambda: 4)
    logs = write_set(tmp_path, compliant_set(16, runs=6))
    for number in (1, 4):
        logs[number].write_bytes(b"\x1f\x8b damaged")
    with pytest.raises(InputError, match="result_1"):
        check_set([tmp_path], Options(official=False))
