"""What runs inside the subprocess: one official tool, in a private folder that holds `request.json`.

Writes `answer.json` there: a list of verdicts with messages and seconds, one for each thing that was to be judged.
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

PASSED = {True: "pass", False: "fail"}


class Request(NamedTuple):
    """What to judge: the official tool, the ruleset, the absolute paths and the names by which the user knows them."""

    tool: str
    ruleset: str
    paths: list[str]
    names: list[str]


class Said(NamedTuple):
    """A verdict of `findings.OfficialResult` and the messages behind it, not yet shortened."""

    verdict: str
    messages: list[str]


def _compliance(path: Path, ruleset: str) -> Said:
    from mlperf_logging.compliance_checker import mlp_compliance, mlp_parser

    records, errors = mlp_parser.parse_file(str(plain_copy(path, Path.cwd())), ruleset=ruleset)
    refuse_unsafe(records)
    checker = mlp_compliance.make_checker("training", ruleset, quiet=False, werror=False)
    if errors:
        checker.put_message("Log lines had parsing errors.")
    crash = []
    try:
        checker.check_loglines(records, f"training_{ruleset}/common.yaml")
    except Exception as error:  # whatever the checker fails on, what it said before is worth having
        crash.append(_ending(error))
    messages = [*crash, *checker.not_overwritable, *checker.overwritable.values()]
    messages += [f"parsing error: {error}: {line}" for line, error in errors[:MAX_MESSAGES]]
    messages += [f"warning: {warning}" for warning in checker.warnings.values()]
    return Said("crashed" if crash else PASSED[not checker.has_messages()], messages)


def _rcp(points: str, paths: list[Path], ruleset: str, heard: Complaints) -> Said:
    from mlperf_logging.rcp_checker import rcp_checker

    for path in stage_set(paths, RCP_WORDS):
        refuse_unsafe_benchmark(path)
    # set_scaling makes it write scaling.json beside them. Without, it removes /scaling.json.
    passed, message, factor = rcp_checker.check_directory(
        str(SET_FOLDER), "training", ruleset, verbose=False, bert_train_samples=False, rcp_pass=points, set_scaling=True
    )
    if not passed:
        return Said("fail", [f"RCP test failed: {message}", *heard.messages])
    normalized = [f"score to be normalized by a factor of {factor:.6f}"] if factor > 1 else []
    return Said("pass", normalized + heard.messages)


def _seeds(paths: list[Path], ruleset: str, heard: Complaints) -> Said:
    from mlperf_logging.package_checker.seed_checker import SeedChecker

    passed = SeedChecker(ruleset).check_seeds([str(path) for path in stage_set(paths)])
    return Said(PASSED[passed], heard.messages)


def _system(path: Path, ruleset: str, heard: Complaints) -> Said:
    from mlperf_logging.system_desc_checker import system_desc_checker

    valid, *_ = system_desc_checker.check_system_desc(str(plain_copy(path, Path.cwd())), "training", ruleset)
    return Said(PASSED[valid], heard.messages)


def _package(root: Path, ruleset: str, heard: Complaints) -> Said:
    from mlperf_logging.compliance_checker import mlp_parser
    from mlperf_logging.package_checker import package_checker

    tree = stage_tree(root)
    # At any depth: a folder named like a pattern ("**") makes the package checker look there too.
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
    return Said(PASSED[heard.success], heard.messages)


def _checks(request: Request, heard: Complaints) -> Iterator[Callable[[], Said]]:
    """What to call for each of the answers that the request wants."""
    paths, ruleset = [Path(path) for path in request.paths], request.ruleset
    match request.tool:
        case "compliance_checker":
            yield partial(_compliance, paths[0], ruleset)
        case "rcp_checker":
            yield partial(_rcp, "pruned_rcps", paths, ruleset, heard)
            yield partial(_rcp, "full_rcps", paths, ruleset, heard)
        case "seed_checker":
            yield partial(_seeds, paths, ruleset, heard)
        case "system_desc_checker":
            yield partial(_system, paths[0], ruleset, heard)
        case "package_checker":
            yield partial(_package, paths[0], ruleset, heard)


def _answer(check: Callable[[], Said], request: Request, heard: Complaints) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        said = check()
    except RefusedError as error:
        said = Said("refused", [str(error)])
    except Exception as error:  # on bad input the official tools fail in any way, and that is their verdict
        said = Said("crashed", [_ending(error), *heard.messages])
    seconds = time.perf_counter() - started
    # The next check stages its files anew.
    shutil.rmtree(SET_FOLDER, ignore_errors=True)
    messages = shorten_all(_in_the_users_words(message, request) for message in said.messages)
    return {"verdict": said.verdict, "messages": messages, "seconds": seconds}


def _in_the_users_words(message: str, request: Request) -> str:
    package = str(Path(mlperf_logging.__file__).parent)
    message = message.replace(f"{package}/", "").replace(f"{TREE_FOLDER}/", "")
    for number, name in enumerate(request.names):
        message = message.replace(str(staged_name(number)), name)
    return message


def _ending(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def _end_with_parent() -> None:
    """The other end of stdin closes when whoever waits for the answer is gone, however it went; that ends this process.

    By a signal, because a thread would have to wait for the regular expressions of the official parser, which can take
    minutes for one line.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([0], [], [], 0)[0]:
        sys.exit("whoever asked is gone")


def main() -> None:
    """Answers the request in the current directory."""
    _end_with_parent()
    request = Request(**json.loads(Path("request.json").read_text(encoding="utf-8")))
    heard = Complaints()
    logging.getLogger().addHandler(heard)
    logging.getLogger().setLevel(logging.INFO)
    answers = [_answer(check, request, heard) for check in _checks(request, heard)]
    Path("answer.json").write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main()
