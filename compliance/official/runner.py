"""Program of the subprocess: runs one official tool in a private folder that holds `request.json`.

It writes `answer.json` there: a list with the verdict, the messages and the seconds of each subject.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlperf_logging

from .guard import RefusedError, refuse_unsafe, refuse_unsafe_benchmark
from .messages import MAX_MESSAGES, Complaints, shorten_all
from .staging import RCP_WORDS, SET_FOLDER, TREE_FOLDER, plain_copy, stage_set, stage_tree, staged_name

_VERDICTS = {True: "pass", False: "fail"}


class Request(NamedTuple):
    """Subjects of one official tool: ruleset, absolute paths, the user's names of these paths, a tree's only system."""

    tool: str
    ruleset: str
    paths: list[str]
    names: list[str]
    only: str | None = None


class ToolVerdict(NamedTuple):
    """Verdict of `findings.OfficialResult` with the messages at full length."""

    verdict: str
    messages: list[str]


def _check_compliance(path: Path, ruleset: str) -> ToolVerdict:
    from mlperf_logging.compliance_checker import mlp_compliance, mlp_parser

    records, errors = mlp_parser.parse_file(str(plain_copy(path, Path.cwd())), ruleset=ruleset)
    refuse_unsafe(records)
    checker = mlp_compliance.make_checker("training", ruleset, quiet=False, werror=False)
    if errors:
        checker.put_message("Log lines had parsing errors.")
    crash = []
    try:
        checker.check_loglines(records, f"training_{ruleset}/common.yaml")
    except Exception as error:  # any crash: the messages before it are still of use
        crash.append(_last_line(error))
    # "Overwritable" messages are those that a later record of the same key could still settle.
    messages = [*crash, *checker.not_overwritable, *checker.overwritable.values()]
    messages += [f"parsing error: {error}: {line}" for line, error in errors[:MAX_MESSAGES]]
    messages += [f"warning: {warning}" for warning in checker.warnings.values()]
    return ToolVerdict("crashed" if crash else _VERDICTS[not checker.has_messages()], messages)


def _check_rcp(rcp_pass: str, paths: list[Path], ruleset: str, complaints: Complaints) -> ToolVerdict:
    from mlperf_logging.rcp_checker import rcp_checker

    for path in stage_set(paths, RCP_WORDS):
        refuse_unsafe_benchmark(path)
    # set_scaling=True writes scaling.json beside the logs. mlperf-logging without it removes /scaling.json.
    passed, message, factor = rcp_checker.check_directory(
        str(SET_FOLDER), "training", ruleset, verbose=False, bert_train_samples=False, rcp_pass=rcp_pass,
        set_scaling=True,
    )  # fmt: skip
    if not passed:
        return ToolVerdict("fail", [f"RCP test failed: {message}", *complaints.messages])
    normalized = [f"score to be normalized by a factor of {factor:.6f}"] if factor > 1 else []
    return ToolVerdict("pass", normalized + complaints.messages)


def _check_seeds(paths: list[Path], ruleset: str, complaints: Complaints) -> ToolVerdict:
    from mlperf_logging.package_checker.seed_checker import SeedChecker

    passed = SeedChecker(ruleset).check_seeds([str(path) for path in stage_set(paths)])
    return ToolVerdict(_VERDICTS[passed], complaints.messages)


def _check_system(path: Path, ruleset: str, complaints: Complaints) -> ToolVerdict:
    from mlperf_logging.system_desc_checker import system_desc_checker

    valid, *_ = system_desc_checker.check_system_desc(str(plain_copy(path, Path.cwd())), "training", ruleset)
    return ToolVerdict(_VERDICTS[valid], complaints.messages)


def _check_package(root: Path, only: str | None, ruleset: str, complaints: Complaints) -> ToolVerdict:
    from mlperf_logging.compliance_checker import mlp_parser
    from mlperf_logging.package_checker import package_checker

    tree = stage_tree(root, only)
    # At any depth: the package checker globs, and a folder named "**" makes it descend.
    for log in sorted(tree.rglob("result_*.txt")):
        records, _ = mlp_parser.parse_file(str(log), ruleset=ruleset)
        try:
            refuse_unsafe(records)
            refuse_unsafe_benchmark(log)
        except RefusedError as error:
            raise RefusedError(f"{log}, {error}") from None
    package_checker.check_training_package(
        str(tree), "training", ruleset, quiet=False, werror=False, rcp_bypass=False, rcp_bert_train_samples=False,
        seed_checker_bypass=False, log_output=os.devnull,
    )  # fmt: skip
    return ToolVerdict(_VERDICTS[complaints.success], complaints.messages)


def _checks(request: Request, complaints: Complaints) -> Iterator[Callable[[], ToolVerdict]]:
    """Yield a function for each subject of the request."""
    paths, ruleset = [Path(path) for path in request.paths], request.ruleset
    match request.tool:
        case "compliance_checker":
            yield partial(_check_compliance, paths[0], ruleset)
        case "rcp_checker":
            yield partial(_check_rcp, "pruned_rcps", paths, ruleset, complaints)
            yield partial(_check_rcp, "full_rcps", paths, ruleset, complaints)
        case "seed_checker":
            yield partial(_check_seeds, paths, ruleset, complaints)
        case "system_desc_checker":
            yield partial(_check_system, paths[0], ruleset, complaints)
        case "package_checker":
            yield partial(_check_package, paths[0], request.only, ruleset, complaints)


def _answer(check: Callable[[], ToolVerdict], request: Request, complaints: Complaints) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        result = check()
    except RefusedError as error:
        result = ToolVerdict("refused", [str(error)])
    except Exception as error:  # on bad input the official tools raise anything, and that is their verdict
        result = ToolVerdict("crashed", [_last_line(error), *complaints.messages])
    seconds = time.perf_counter() - started
    # The next check stages its own files.
    shutil.rmtree(SET_FOLDER, ignore_errors=True)
    messages = shorten_all(_with_user_names(message, request) for message in result.messages)
    return {"verdict": result.verdict, "messages": messages, "seconds": seconds}


def _with_user_names(message: str, request: Request) -> str:
    package = str(Path(mlperf_logging.__file__).parent)
    message = message.replace(f"{package}/", "").replace(f"{TREE_FOLDER}/", "")
    for number, name in enumerate(request.names):
        message = message.replace(str(staged_name(number)), name)
    return message


def _last_line(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def _die_with_parent() -> None:
    """End this process by a signal when the parent closes stdin, or dies.

    A thread that waits for stdin would not do: it needs the interpreter lock, which the regular expressions of the
    official parser can hold for minutes on one line.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    # No signal comes for a pipe that was closed before.
    if select.select([0], [], [], 0)[0]:
        sys.exit("the parent process has ended")


def main() -> None:
    """Answer the request in the current directory."""
    _die_with_parent()
    request = Request(**json.loads(Path("request.json").read_text(encoding="utf-8")))
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    logging.getLogger().setLevel(logging.INFO)
    answers = [_answer(check, request, complaints) for check in _checks(request, complaints)]
    Path("answer.json").write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main()
