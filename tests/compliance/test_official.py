"""Official tools in subprocesses: their verdicts, isolation from logs, time limits, untouched input."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import mlperf_logging
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance.findings import OfficialResult
from compliance.official import OfficialTools, OfficialToolsError, messages, staging, version
from compliance.official.guard import RefusedError, unsafe_reason
from compliance.official.messages import shorten, shorten_all
from compliance.official.staging import plain_copy
from tests.support.made_logs import (
    PLATFORM,
    compliant_log,
    compliant_set,
    event,
    line,
    system_description,
    write_set,
    write_tree,
)
from tests.support.paths import ROOT

RULE_FILES = Path(mlperf_logging.__file__).parent / "compliance_checker" / "training_6.1.0"
# The official parser takes minutes for one long line.
SLOW = ":::MLLOG run_stop " + "x" * 400_000 + "\n"


def check(start: Callable[[OfficialTools], None], ruleset: str = "6.1.0", **options: Any) -> list[OfficialResult]:
    with OfficialTools(ruleset, **options) as official:
        start(official)
        return list(official.collect())


def check_file(path: Path, **options: Any) -> OfficialResult:
    return check(lambda official: official.check_files({path.name: path}), **options)[0]


def check_set(paths: list[Path], **options: Any) -> dict[str, OfficialResult]:
    results = check(lambda official: official.check_set({path.name: path for path in paths}), **options)
    return {result.subject: result for result in results}


def check_tree(root: Path) -> OfficialResult:
    return check(lambda official: official.check_tree(root.name, root))[0]


def official_command(tool: str, *arguments: Any, cwd: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run an official tool unguarded, as its documentation does."""
    command = [sys.executable, "-m", f"mlperf_logging.{tool}", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, timeout=timeout, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return a compliant set of ten at GBS 16, to read only."""
    return write_set(tmp_path_factory.mktemp("runs"), compliant_set(16))


@pytest.fixture
def evil(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Return a name that leads from the rule files to a planted one, and the file that executing it creates."""
    marker = tmp_path / "executed"
    (tmp_path / "evil_common.yaml").write_text(f"- BEGIN:\n    CODE: \"open({str(marker)!r}, 'w').close()\"\n")
    # Of real paths: the kernel resolves links before "..".
    yield os.path.relpath((tmp_path / "evil").resolve(), RULE_FILES.resolve()), marker


# --- one log


@pytest.mark.parametrize("ruleset", ["6.0.0", "6.1.0"])
@pytest.mark.parametrize("division", ["closed", "open"])
def test_a_compliant_log_passes(tmp_path: Path, ruleset: str, division: str) -> None:
    log = compliant_log(ruleset=ruleset, division=division).write(tmp_path / "a.txt")
    result = check_file(log, ruleset=ruleset)
    assert (result.tool, result.subject, result.verdict, result.messages) == ("compliance_checker", "a.txt", "pass", ())
    assert 0 < result.seconds < 60


def test_the_ruleset_is_the_one_asked_for(tmp_path: Path) -> None:
    log = compliant_log(ruleset="6.0.0", disclosures=False).write(tmp_path / "a.txt")
    assert check_file(log, ruleset="6.0.0").verdict == "pass"
    assert "Required EXACTLY_ONE occurrence of 'micro_batch_size' but found 0" in check_file(log).messages


def test_a_failing_log_says_why_in_one_line_each(tmp_path: Path) -> None:
    log = compliant_log().set("max_sequence_length", 4096).set("submission_org", "").drop("max_steps")
    result = check_file(log.write(tmp_path / "a.txt"))
    assert result.verdict == "fail"
    place = log.index("max_sequence_length")
    assert set(result.messages) == {
        f"CHECK for 'max_sequence_length' failed in line {place}: failed test: v['value'] == 8192",
        f"CHECK for 'submission_org' failed in line {log.index('submission_org')}: failed test: v['value'] != ''",
        "Required EXACTLY_ONE occurrence of 'max_steps' but found 0",
    }


@pytest.mark.parametrize(
    ("added", "verdict", "messages"),
    [
        ("max_steps", "pass", [r"warning: .*'max_steps' but found 2"]),
        (':::MLLOG {"key": oops}', "fail", [r"Log lines had parsing errors\.", r"parsing error: .*:::MLLOG .*oops}"]),
        (None, "fail", ["No log lines detected"]),
    ],
)
def test_messages_on_odd_lines(tmp_path: Path, added: str | None, verdict: str, messages: list[str]) -> None:
    log = compliant_log()
    text = "" if added is None else log.text() + (line(log.find(added)) if added == "max_steps" else added) + "\n"
    (tmp_path / "a.txt").write_text(text)
    result = check_file(tmp_path / "a.txt")
    assert result.verdict == verdict
    for message, pattern in zip(result.messages, messages, strict=False):
        assert re.fullmatch(pattern, message)


@pytest.mark.parametrize(
    ("text", "last_line"),
    [
        (":::MLLOG {}\n", "KeyError: 'time_ms'"),
        (":::MLLOG []\n", "TypeError: list indices must be integers or slices, not str"),
        (':::MLLOG {"time_ms": 1, "key": "k", "metadata": {}}\n', "KeyError: 'value'"),
        (":::MLLOG " + "[" * 5_000 + "\n", "RecursionError: "),
    ],
)
def test_a_crash_of_the_official_parser(tmp_path: Path, text: str, last_line: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    result = check_file(tmp_path / "a.txt")
    assert result.verdict == "crashed"
    assert result.messages[0].startswith(last_line)


def test_a_crash_of_the_official_checker_keeps_earlier_messages(tmp_path: Path) -> None:
    log = compliant_log().set("submission_org", "").set("eval_accuracy", "3.3")
    result = check_file(log.write(tmp_path / "a.txt"))
    assert result.verdict == "crashed"
    assert result.messages[0] == "TypeError: '<=' not supported between instances of 'str' and 'float'"
    assert any(message.startswith("CHECK for 'submission_org' failed") for message in result.messages)


@pytest.mark.parametrize(("key", "value"), [("submission_benchmark", "gpt-oss-20b"), ("submission_division", "Closed")])
def test_a_wrong_but_harmless_name_is_left_to_the_official_checker(tmp_path: Path, key: str, value: str) -> None:
    result = check_file(compliant_log().set(key, value).write(tmp_path / "a.txt"))
    assert result.verdict == "crashed"
    assert result.messages[0].startswith("FileNotFoundError: ")
    assert any(message.startswith(f"CHECK for '{key}' failed") for message in result.messages)
    assert any(message.startswith("Could not find config file: compliance_checker/") for message in result.messages)


# --- names of rule files in logs


def plain(name: str) -> str:
    return line(event("submission_division", name, 1))


def escaped_key(name: str) -> str:
    return plain(name).replace("submission_division", "submission\\u005fdiv\\u0069sion")


def escaped_value(name: str) -> str:
    return plain(name).replace("..", "\\u002e\\u002e")


def repeated_json_key(name: str) -> str:
    return plain(name).replace('"key": ', '"value": "closed", "key": "seed", "key": ')


def repeated_json_value(name: str) -> str:
    return plain("closed").replace('"metadata": ', f'"value": {json.dumps(name)}, "metadata": ')


def last_of_several(name: str) -> str:
    return f"{plain('closed')} {plain(name)}"


def after_a_carriage_return(name: str) -> str:
    return f"progress 10%\r{plain(name)}\rprogress 20%"


def after_odd_bytes(name: str) -> str:
    return f"0: \x85\x1c\x0b\xff {plain(name)}\x85"


@pytest.mark.parametrize(
    "spell",
    [
        plain, escaped_key, escaped_value, repeated_json_key, repeated_json_value, last_of_several,
        after_a_carriage_return, after_odd_bytes,
    ],
)  # fmt: skip
def test_a_log_does_not_choose_code(tmp_path: Path, evil: tuple[str, Path], spell: Callable[[str], str]) -> None:
    name, marker = evil
    log = tmp_path / "a.txt"
    log.write_text(
        f"{spell(name)}\n{compliant_log().drop('submission_division').text()}", encoding="latin-1", newline=""
    )
    result = check_file(log)
    assert result.verdict == "refused"
    (message,) = result.messages
    assert re.match(rf"record \d+: submission_division is '{re.escape(name[:60])}", message)
    assert message.endswith("expected closed or open")
    assert not marker.exists()
    # The control: the official checker by itself does what the log says.
    official_command("compliance_checker", "--ruleset", "6.1.0", log, cwd=tmp_path)
    assert marker.exists()


def test_every_record_is_judged_and_not_only_the_first(tmp_path: Path, evil: tuple[str, Path]) -> None:
    log = compliant_log()
    log.insert_after("run_stop", 0, event("submission_division", evil[0], 1))
    result = check_file(log.write(tmp_path / "a.txt"))
    assert result.verdict == "refused"
    assert result.messages[0].startswith(f"record {len(log.events)}: submission_division is ")


@pytest.mark.parametrize("key", ["submission_division", "submission_benchmark"])
@pytest.mark.parametrize(
    "value",
    [
        "a/b", "a\\b", "/etc/closed", ".", "closed.", "closed\x00", "closed\n", "\u2215", None, 3, True, ["closed"],
        {"a": "/"},
    ],
)  # fmt: skip
def test_names_that_could_be_paths_are_refused(key: str, value: Any) -> None:
    reason = unsafe_reason(key, value)
    assert reason is not None and reason.startswith(f"{key} is {value!r}, ")
    assert unsafe_reason("submission_org", value) is None


def test_a_rule_file_that_names_itself(tmp_path: Path) -> None:
    log = compliant_log().set("submission_benchmark", "common").write(tmp_path / "a.txt")
    result = check_file(log)
    assert result.verdict == "refused"
    assert "submission_benchmark is 'common'" in result.messages[0]
    with pytest.raises(subprocess.TimeoutExpired):
        official_command("compliance_checker", log, cwd=tmp_path, timeout=4)


def test_a_tree_does_not_choose_code(tmp_path: Path, evil: tuple[str, Path]) -> None:
    name, marker = evil
    root = write_tree(tmp_path / "tree", [compliant_log()])
    hidden = root / "results" / PLATFORM / "gpt_oss_20b" / "more" / "gpt_oss_20b"
    hidden.mkdir(parents=True)
    compliant_log().set("submission_division", name).write(hidden / "result_7.txt")
    # The package checker takes the name of this folder for a pattern, and looks at any depth.
    (root / "results" / "**" / "gpt_oss_20b").mkdir(parents=True)
    shutil.copy(root / "systems" / f"{PLATFORM}.json", root / "systems" / "**.json")
    result = check_tree(root)
    assert result.verdict == "refused"
    place = f"results/{PLATFORM}/gpt_oss_20b/more/gpt_oss_20b/result_7.txt"
    assert result.messages[0].startswith(f"{place}, record 4: submission_division is ")
    assert not marker.exists()
    official_command("package_checker", root, "training", "6.1.0", cwd=tmp_path)
    assert marker.exists()


@pytest.mark.parametrize("where", ["value", "another record"])
def test_a_set_does_not_choose_a_path(tmp_path: Path, where: str) -> None:
    log = compliant_log()
    if where == "value":
        log.set("submission_benchmark", "../../evil")
    else:
        log.insert_after("seed", 0, event("note", "../../evil", 1, {"about": "submission_benchmark"}))
    results = check_set([log.write(tmp_path / "a.txt")])
    for subject in ("pruned", "full"):
        assert results[subject].verdict == "refused"
        assert "submission_benchmark is '../../evil', " in results[subject].messages[0]


# --- sets


def test_a_compliant_set_passes(runs: list[Path]) -> None:
    results = check(lambda official: official.check_set({path.name: path for path in runs}, "sys_1x8"))
    assert [(result.tool, result.subject, result.verdict) for result in results] == [
        ("rcp_checker", "sys_1x8 pruned", "pass"),
        ("rcp_checker", "sys_1x8 full", "pass"),
        ("seed_checker", "sys_1x8 seeds", "pass"),
    ]
    assert all(result.messages == () for result in results)


def test_a_set_between_the_two_minima(tmp_path: Path) -> None:
    # GBS 32: pruned minimum 222,720.8, full minimum 229,258.6, pruned mean 230,058.7.
    logs = compliant_set(32, samples_to_target=[221_184, *[221_184] * 3, *[233_472] * 6])
    results = check_set(write_set(tmp_path, logs))
    assert results["pruned"].verdict == "pass"
    mean = (3 * 221_184 + 5 * 233_472) / 8
    assert results["pruned"].messages == (f"score to be normalized by a factor of {230_058.666667 / mean:.6f}",)
    assert results["full"].verdict == "fail"
    assert results["full"].messages == ("RCP test failed: RCP found",)


def test_repeated_seeds_are_named_by_the_users_names(tmp_path: Path) -> None:
    logs = compliant_set(16)
    logs[3].set("seed", logs[0].find("seed")["value"])
    paths = write_set(tmp_path, logs)
    results = check(lambda official: official.check_set({f"run {n}": path for n, path in enumerate(paths)}))
    seeds = results[-1]
    assert seeds.verdict == "fail"
    assert len(seeds.messages) == 1
    assert re.fullmatch("Result file run 3 logs seed .* result file run 0 already logs the same .*", seeds.messages[0])


def test_an_unknown_benchmark_crashes_the_rcp_checker(tmp_path: Path) -> None:
    results = check_set([compliant_log().set("submission_benchmark", "gpt-oss-20b").write(tmp_path / "a.txt")])
    for subject in ("pruned", "full"):
        # It takes any other benchmark's evaluations to be counted in epochs.
        assert (results[subject].verdict, results[subject].messages) == ("crashed", ("KeyError: 'epoch_num'",))
    assert results["seeds"].verdict == "pass"


def test_different_batch_sizes_crash_the_rcp_checker_with_a_message(tmp_path: Path) -> None:
    results = check_set(write_set(tmp_path, [compliant_log(16), compliant_log(32, run=1)]))
    assert results["full"].verdict == "crashed"
    assert results["full"].messages == ("KeyError: None", "Batch sizes in files do not match.")


def test_two_runs_that_do_not_converge(tmp_path: Path) -> None:
    logs = [compliant_log(run=n, converged=n > 1) for n in range(10)]
    results = check_set(write_set(tmp_path, logs))
    assert results["pruned"].verdict == "fail"
    assert results["pruned"].messages[0] == "RCP test failed: Insufficient convergence"


def rcp_reading(path: Path) -> Any:
    """Return the official RCP checker's reading of a log: its values, or its exception."""
    from mlperf_logging.rcp_checker import rcp_checker

    try:
        return rcp_checker.read_submission_file(str(path), "6.1.0", False)
    except Exception as error:
        return type(error), str(error)


def same_reading(log: Path) -> bool:
    """Return True if the RCP checker reads the same from the lines that it gets."""
    copy = log.with_suffix(".copy")
    copy.unlink(missing_ok=True)
    staging.copy_lines(log, copy, staging.RCP_WORDS)
    return bool(rcp_reading(copy) == rcp_reading(log))


RCP_LINES = [
    *(
        line(event(key, value, 1, extra))
        for key, value, extra in (
            ("global_batch_size", 16, {}),
            ("submission_benchmark", "gpt_oss_20b", {}),
            ("submission_benchmark", "bert", {}),
            ("train_samples", 7, {}),
            ("train_loss", 3.0, {}),
            ("eval_accuracy", 3.3, {"samples_count": 12_288, "epoch_num": 1.5}),
            ("eval_accuracy", 3.3, {}),
            ("run_stop", None, {"status": "success"}),
            ("run_stop", None, {"status": "aborted"}),
            ("note", "eval_accuracy", {"samples_count": 3, "status": "success"}),
        )
    ),
    *(":::MLLOG {run_stop", ":::MLLOG ", "eval_error", "global_batch_size", "\x85", "\x1c", "\xff", " "),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(RCP_LINES), st.sampled_from(["\n", "\r\n", "\r", "", " "])), max_size=12))
def test_the_rcp_checker_gets_every_line_that_it_uses(parts: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "a.txt"
        log.write_text("".join(text + end for text, end in parts), encoding="latin-1", newline="")
        assert same_reading(log)


def test_the_rcp_checker_gets_every_line_of_real_logs_that_it_uses(tmp_path: Path, runs: list[Path]) -> None:
    real = sorted((ROOT.parent / "shared" / "data" / "rcp_logs" / "gbs32").glob("*.gz"))
    for path in [*runs, *real[:2]]:
        log = tmp_path / f"{path.name}.txt"
        shutil.copy(plain_copy(path, tmp_path), log)
        assert same_reading(log)
        assert log.with_suffix(".copy").stat().st_size < log.stat().st_size


def test_no_files_are_no_set() -> None:
    assert check(lambda official: official.check_set({})) == []


# --- system descriptions and trees


@pytest.mark.parametrize(
    ("text", "verdict", "said"),
    [
        (json.dumps(system_description()), "pass", ()),
        (json.dumps(system_description(status="soon")), "fail", ("Field status contains a non valid value",)),
        (
            json.dumps(system_description()).replace('"cooling"', '"heating"').replace('"hw_notes"', '"notes"'),
            "fail",
            ("Missing field cooling", "Missing field hw_notes"),
        ),
        ("{", "crashed", ("json.decoder.JSONDecodeError: ",)),
        ("3", "crashed", ("TypeError: ",)),
        (json.dumps(system_description(submitter=3)), "crashed", ("TypeError: ",)),
    ],
)
def test_system_descriptions(tmp_path: Path, text: str, verdict: str, said: tuple[str, ...]) -> None:
    (tmp_path / "s.json").write_text(text)
    (result,) = check(lambda official: official.check_system("systems/s.json", tmp_path / "s.json"))
    assert (result.tool, result.subject, result.verdict) == ("system_desc_checker", "systems/s.json", verdict)
    assert len(result.messages) == len(said)
    of_system = f"{PLATFORM}: " if verdict == "fail" else ""
    assert all(message.startswith(of_system + start) for message, start in zip(result.messages, said, strict=True))


def snapshot(root: Path) -> dict[str, Any]:
    """Return everything about the files of a tree that a tool could change."""
    found: dict[str, Any] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        state = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path)] = (state.st_mode, state.st_mtime_ns, state.st_ino, state.st_nlink, content)
    return found


@pytest.fixture(scope="module")
def fast_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tree whose set is too fast for the RCPs, with its own scaling and bypass files. Read only."""
    logs = compliant_set(16, samples_to_target=[12_288 * 10] * 10)
    root = write_tree(tmp_path_factory.mktemp("fast") / "tree", logs)
    folder = root / "results" / PLATFORM / "gpt_oss_20b"
    (folder / "scaling.json").write_text('{"scaling_factor": 0.5}')
    (folder / "package_checker_params").write_text("rcp-bypass")
    (root / "results" / PLATFORM / "package_checker_params").write_text("rcp-bypass")
    for path in root.rglob("*"):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    return root


def test_a_tree_is_not_changed_and_its_bypass_files_are_ignored(fast_tree: Path) -> None:
    before = snapshot(fast_tree)
    result = check_tree(fast_tree)
    folder = f"results/{PLATFORM}/gpt_oss_20b"
    assert (result.tool, result.subject, result.verdict) == ("package_checker", "tree", "fail")
    assert result.messages == (f"{folder}: RCP Test Failed: RCP found",)
    results = check_set(sorted((fast_tree / folder).glob("result_*.txt")))
    assert results["pruned"].verdict == "fail"
    assert snapshot(fast_tree) == before


def test_the_unguarded_package_checker_changes_the_tree(fast_tree: Path, tmp_path: Path) -> None:
    # The control of the test above.
    copy = shutil.copytree(fast_tree, tmp_path / "tree")
    done = official_command("package_checker", copy, "training", "6.1.0", cwd=tmp_path)
    assert "FOUND NO ERRORS" in done.stderr
    assert not (copy / "results" / PLATFORM / "gpt_oss_20b" / "scaling.json").exists()


def test_a_compliant_tree_passes(tmp_path: Path) -> None:
    result = check_tree(write_tree(tmp_path / "tree", compliant_set(16)))
    assert (result.verdict, result.messages) == ("pass", ())


def test_one_log_that_breaks_the_rules_is_accepted_and_named(tmp_path: Path) -> None:
    logs = compliant_set(16)
    logs[4].set("max_sequence_length", 4096)
    result = check_tree(write_tree(tmp_path / "tree", logs))
    folder = f"results/{PLATFORM}/gpt_oss_20b"
    assert result.verdict == "pass"
    assert result.messages[0] == f"{folder}: 1 file does not comply, accepting this under olympic scoring"
    assert result.messages[1].startswith(f"{folder}/result_4.txt: CHECK for 'max_sequence_length' failed in line ")


def test_a_tree_without_descriptions_crashes_the_package_checker(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", [compliant_log()])
    shutil.rmtree(root / "systems")
    result = check_tree(root)
    assert result.verdict == "crashed"
    assert result.messages[0].endswith(f"No such file or directory: 'systems/{PLATFORM}.json'")


@pytest.mark.parametrize("make", [lambda root: None, Path.touch, Path.mkdir])
def test_a_root_that_is_no_tree(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "tree")
    result = check_tree(tmp_path / "tree")
    assert result.verdict == "crashed"
    assert result.messages[0].startswith("FileNotFoundError: ")


def test_links_and_odd_files_in_a_tree(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", compliant_set(16))
    folder = root / "results" / PLATFORM / "gpt_oss_20b"
    outside = tmp_path / "outside"
    outside.mkdir()
    # Linked from outside, as some keep their results: they count.
    shutil.move(folder / "result_0.txt", outside / "run.txt")
    (folder / "result_0.txt").symlink_to(outside / "run.txt")
    shutil.move(root / "systems", outside / "systems")
    (root / "systems").symlink_to(outside / "systems")
    # These lead nowhere, round in circles, or to something that never ends.
    (folder / "result_90.txt").symlink_to(tmp_path / "nowhere")
    (folder / "result_91.txt").symlink_to("result_91.txt")
    (folder / "result_92.txt").symlink_to("/dev/zero")
    os.mkfifo(folder / "result_93.txt")
    (folder / "loop").symlink_to(".")
    (folder / "weird \udcff\n[*] name").write_bytes(b"\xff")
    result = check_tree(root)
    assert result.verdict == "pass"
    assert all("result_" not in message.replace("rename them to result_*", "") for message in result.messages)


# --- files


def test_compressed_logs(tmp_path: Path, runs: list[Path]) -> None:
    packed = []
    for number, path in enumerate(runs):
        packed.append(tmp_path / f"run_{number}.log.gz")
        packed[-1].write_bytes(gzip.compress(path.read_bytes()))
    before = snapshot(tmp_path)
    assert check_file(packed[0]).verdict == "pass"
    assert [result.verdict for result in check_set(packed).values()] == ["pass"] * 3
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "last_line"),
    [
        (gzip.compress(b"x" * 100, mtime=0)[:-9], "EOFError: "),
        (b"plain", "gzip.BadGzipFile: "),
        (gzip.compress(b"x" * 100, mtime=0)[:10] + b"\xff" * 20, "zlib.error: "),
    ],
)
def test_damaged_compressed_logs(tmp_path: Path, content: bytes, last_line: str) -> None:
    (tmp_path / "a.GZ").write_bytes(content)
    result = check_file(tmp_path / "a.GZ")
    assert result.verdict == "crashed"
    assert result.messages[0].startswith(last_line)


def test_a_copy_has_a_new_name_and_a_limited_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, plain_file, folder = tmp_path / "a.txt.gz", tmp_path / "a.txt", tmp_path / "copies"
    packed.write_bytes(gzip.compress(b"x" * 3_000_000))
    plain_file.write_bytes(b"y")
    folder.mkdir()
    assert plain_copy(plain_file, folder) == plain_file
    copies = [plain_copy(packed, folder), plain_copy(packed, folder)]
    assert [copy.name for copy in copies] == ["plain_0.txt", "plain_1.txt"]
    assert all(copy.parent == folder and copy.read_bytes() == b"x" * 3_000_000 for copy in copies)
    monkeypatch.setattr(staging, "MAX_DECOMPRESSED_BYTES", 2_999_999)
    with pytest.raises(RefusedError, match=r"a.txt.gz is larger than 2,999,999 bytes decompressed"):
        plain_copy(packed, folder)


def test_irregular_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe.txt", tmp_path / "folder", Path("/dev/zero")):
        result = check_file(path)
        assert result.verdict == "refused"
        assert result.messages[0].startswith(f"{path.name} is not a regular file, ")
        assert check_set([path])["seeds"].verdict == "refused"
    result = check_file(tmp_path / "missing.txt")
    assert result.verdict == "crashed"
    assert result.messages[0].startswith("FileNotFoundError: ")


def test_odd_file_names(tmp_path: Path, runs: list[Path]) -> None:
    names = [
        "--help", "a b.txt", "[x]*?.txt", "$(touch touched)", "\u00fc\u4e16.txt", "line\nbreak",
        os.fsdecode(b"\xff\xfe.txt"), "x" * 255, "result_1.txt", ".hidden",
    ]  # fmt: skip
    for name, run in zip(names, runs, strict=True):
        shutil.copy(run, tmp_path / name)
    files = {name: tmp_path / name for name in names}
    with OfficialTools() as official:
        official.check_files(files)
        official.check_set(files)
        results = official.collect()
    assert [result.subject for result in results] == [*names, "pruned", "full", "seeds"]
    assert {result.verdict for result in results} == {"pass"}
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_unreadable_files(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", compliant_set(16))
    folder = root / "results" / PLATFORM / "gpt_oss_20b"
    (folder / "result_0.txt").chmod(0)
    if os.access(folder / "result_0.txt", os.R_OK):
        pytest.skip("this user may read everything")
    assert check_file(folder / "result_0.txt").messages[0].startswith("PermissionError: ")
    assert check_tree(root).verdict == "crashed"
    folder.chmod(0)
    result = check_tree(root)
    folder.chmod(0o755)
    assert result.verdict == "crashed"
    assert result.messages[0].startswith("PermissionError: ")


def test_the_current_directory_is_neither_imported_from_nor_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Path]
) -> None:
    for name in ("json", "yaml", "mlperf_logging", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current directory')")
    (tmp_path / "compliance").mkdir()
    (tmp_path / "compliance" / "__init__.py").write_text("raise SystemExit('imported from the current directory')")
    (tmp_path / "logs").mkdir()
    shutil.copy(runs[0], tmp_path / "logs" / "a.txt")
    before = snapshot(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert check_file(Path("logs/a.txt")).verdict == "pass"
    assert check_set([Path("logs/a.txt")])["seeds"].verdict == "pass"
    assert snapshot(tmp_path) == before


def test_a_temporary_folder_with_an_odd_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Path]) -> None:
    # The official tools build glob patterns from folders.
    odd = tmp_path / "tmp [a-z]* \u00fc"
    odd.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(odd))
    assert [result.verdict for result in check_set(runs).values()] == ["pass"] * 3
    assert list(odd.iterdir()) == []


# --- processes


def active(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def subprocesses(of: int | None = None) -> list[psutil.Process]:
    """Return the active processes below one, ours by default, that this test has started."""
    below = psutil.Process(of).children(recursive=True)
    return [process for process in below if process not in BEFORE and active(process)]


# Other tests in this process may have left servers running.
BEFORE: list[psutil.Process] = []


@pytest.fixture(autouse=True)
def _earlier_processes() -> None:
    BEFORE[:] = psutil.Process().children(recursive=True)


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not met after {seconds} s"
        time.sleep(0.02)


@pytest.fixture
def slow(tmp_path: Path) -> dict[str, Path]:
    """Return five logs that each keep an official tool busy for minutes."""
    folder = tmp_path / "slow"
    folder.mkdir()
    files = {f"slow_{number}.txt": folder / f"slow_{number}.txt" for number in range(5)}
    for path in files.values():
        path.write_text(SLOW)
    return files


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of temporary folders."""
    folder = tmp_path / "private"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_starting_returns_at_once_and_runs_one_process_per_cpu(
    slow: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with OfficialTools() as official:
        started = time.monotonic()
        official.check_set(slow)
        official.check_files(slow)
        assert time.monotonic() - started < 1
        wait_for(lambda: len(subprocesses()) == 2)
        time.sleep(0.5)
        assert len(subprocesses()) == 2
    assert subprocesses() == []


def test_the_time_limit(slow: dict[str, Path], private: Path, runs: list[Path]) -> None:
    name, path = next(iter(slow.items()))
    with OfficialTools(timeout_s=0.7) as official:
        official.check_files({name: path})
        official.check_set({name: path, "again": path})
        file, pruned, full, seeds = official.collect()
        assert subprocesses() == []
    assert (file.subject, file.verdict, file.messages) == (name, "timeout", ("not finished after 0.7 s",))
    assert 0.7 <= file.seconds < 10
    for result in (pruned, full, seeds):
        assert (result.verdict, result.messages) == ("timeout", ("not finished after 1.4 s",))
    assert list(private.iterdir()) == []
    assert check_file(runs[0], timeout_s=0.001).verdict == "timeout"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, None])
def test_leaving_early_ends_everything(slow: dict[str, Path], private: Path, error: type[BaseException] | None) -> None:
    started = time.monotonic()
    try:
        with OfficialTools() as official:
            official.check_files(slow)
            official.check_set(slow)
            wait_for(lambda: len(subprocesses()) > 0)
            if error is not None:
                raise error
    except (KeyboardInterrupt, RuntimeError) as raised:
        assert type(raised) is error
    assert subprocesses() == []
    assert list(private.iterdir()) == []
    assert time.monotonic() - started < 30


def test_control_c_while_waiting_for_results(slow: dict[str, Path]) -> None:
    def interrupt() -> None:
        wait_for(lambda: len(subprocesses()) > 0)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt), OfficialTools(timeout_s=20) as official:
            official.check_files(slow)
            thread.start()
            official.collect()
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert subprocesses() == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_subprocesses_end_with_their_parent(slow: dict[str, Path], how: signal.Signals) -> None:
    program = (
        "import sys; from pathlib import Path; from compliance.official import OfficialTools\n"
        "with OfficialTools() as official:\n"
        "    official.check_files({name: Path(name) for name in sys.argv[1:]})\n"
        "    official.collect()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, *map(str, slow.values())], cwd=ROOT)
    # Longer than their start: they are inside the official parser.
    wait_for(lambda: any(child.cpu_times().user > 1 for child in subprocesses(parent.pid)))
    children = subprocesses(parent.pid)
    parent.send_signal(how)
    parent.wait()
    wait_for(lambda: not any(active(child) for child in children))


def test_a_subprocess_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Path]) -> None:
    python = tmp_path / "python"
    for script, message in (
        ("echo first; echo last >&2; exit 3", "ended with status 3: last"),
        ("kill -9 $$", "killed by signal 9"),
    ):
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        assert [(result.verdict, result.messages) for result in check_set(runs).values()] == [
            ("crashed", (message,))
        ] * 3
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    result = check_file(runs[0])
    assert result.verdict == "crashed"
    assert result.messages[0].startswith("the official tool could not be started: [Errno 2] No such file")


def test_the_time_limit_ends_children_of_a_subprocess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Path]
) -> None:
    python, child = tmp_path / "python", ["sleep", "299.75"]
    python.write_text(f"#!/bin/sh\n{' '.join(child)} &\nwait\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert check_file(runs[0], timeout_s=0.5).verdict == "timeout"
    wait_for(lambda: not any(process.info["cmdline"] == child for process in psutil.process_iter(["cmdline"])))


def test_results_come_in_the_order_of_the_calls(tmp_path: Path, runs: list[Path]) -> None:
    description = tmp_path / "s.json"
    description.write_text(json.dumps(system_description()))
    root = write_tree(tmp_path / "tree", [compliant_log()])
    with OfficialTools() as official:
        official.check_tree("tree", root)
        official.check_set({path.name: path for path in runs[:2]})
        official.check_system("s.json", description)
        official.check_files({path.name: path for path in runs[:2]})
        results = official.collect()
    assert [(result.tool, result.subject) for result in results] == [
        ("package_checker", "tree"),
        ("rcp_checker", "pruned"),
        ("rcp_checker", "full"),
        ("seed_checker", "seeds"),
        ("system_desc_checker", "s.json"),
        ("compliance_checker", "result_0.txt"),
        ("compliance_checker", "result_1.txt"),
    ]


# --- versions and messages


def test_the_version() -> None:
    assert version() == "4.1.68" == metadata.version("mlperf-logging")


def test_another_version_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "4.1.67")
    with pytest.raises(OfficialToolsError, match=r"4\.1\.68, found 4\.1\.67: pip install mlperf-logging==4"):
        OfficialTools()

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(OfficialToolsError, match=r"4\.1\.68, found none: .* --no-official"):
        version()


def test_the_official_tools_are_not_imported_here() -> None:
    program = (
        "import sys, compliance.official as official; official.version()\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('mlperf_logging', 'scipy', 'numpy', 'yaml')])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_messages_cannot_command_a_terminal_and_are_not_endless(tmp_path: Path) -> None:
    log = compliant_log()
    for number in range(3):
        value = f"\x1b[31m\x1b]0;title\x07\r\t\ud800\u202e{number}" + "y" * 5_000
        log.insert_after("opt_name", 0, event("opt_name", value, 1))
    result = check_file(log.write(tmp_path / "a.txt"))
    assert result.verdict == "fail"
    (message,) = [message for message in result.messages if "different values" in message]
    assert len(message) == 300
    assert message.startswith("Required EXACTLY_ONE occurrence of 'opt_name' but found 4 with different values: [")
    assert message.isprintable()
    assert "[31m" not in message


def test_messages_are_the_same_every_time(tmp_path: Path) -> None:
    log = compliant_log()
    for value in "abcdefgh":
        log.insert_after("opt_name", 0, event("opt_name", value, 1))
    path = log.write(tmp_path / "a.txt")
    assert check_file(path).messages == check_file(path).messages


def test_shortening() -> None:
    assert shorten(" one  \t two\nthree") == "one two"
    assert (
        shorten("Failed executing CHECK code:\n a > b \ntriggered by line:\n:::MLLOG")
        == "Failed executing CHECK code: a > b"
    )
    assert shorten("x" * 301) == "x" * 297 + "..."
    assert shorten("x" * 300) == "x" * 300
    assert shorten("") == ""
    assert shorten_all(str(n) for n in range(20)) == [str(n) for n in range(20)]
    assert shorten_all(["a", "a"] + [str(n) for n in range(30)])[18:] == ["17", "12 more messages are not shown"]


def test_at_most_twenty_messages_are_shown(tmp_path: Path) -> None:
    log = compliant_log()
    for key in [record["key"] for record in log.events if record["key"].startswith(("opt_", "submission_", "lowest_"))]:
        log.drop(key)
    for key in (
        "seed", "max_steps", "train_samples", "eval_samples", "micro_batch_size", "config_filename", "run_stop",
    ):  # fmt: skip
        log.drop(key)
    (tmp_path / "a.txt").write_text(log.text() + "".join(f":::MLLOG {number}x\n" for number in range(40)))
    result = check_file(tmp_path / "a.txt")
    assert len(result.messages) == messages.MAX_MESSAGES == 20
    assert re.fullmatch(r"\d+ more messages are not shown", result.messages[-1])
