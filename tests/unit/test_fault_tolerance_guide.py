"""docs/fault-tolerance.md: each fault has tests that exist; exit statuses, settings and rules are those of the code."""

from __future__ import annotations

import ast
import re

import pytest

from compliance.rules import ALL_RULES
from gptoss20b.config import resolve, settings
from gptoss20b.determinism import LIBRARY_VARIABLES
from gptoss20b.stopping import ExitCode, NonFiniteGradientError, exit_code_for, signal_reason
from tests.support.guides import read_guide, table_rows
from tests.support.paths import ROOT

GUIDE = read_guide(ROOT / "docs" / "fault-tolerance.md")


def fault_table(mark: str = "faults") -> dict[str, list[str]]:
    """Return the cells by fault: last line, exit, log, resume; or tests."""
    return {fault: rest for fault, *rest in table_rows(GUIDE, mark)}


def test_every_fault_has_a_complete_row_with_a_test() -> None:
    tests = fault_table("tests of faults")
    assert list(tests) == list(fault_table()) and len(tests) == 16
    for fault, cells in fault_table().items():
        assert len(cells) == 4 and all(cells), fault
        (named,) = tests[fault]
        assert re.fullmatch(r"`test_\w+::test_\w+`(, `test_\w+::test_\w+`)*", named), fault


@pytest.mark.parametrize("test", sorted(set(re.findall(r"`(test_\w+::\w+)`", GUIDE))))
def test_a_named_test_exists(test: str) -> None:
    file, _, function = test.partition("::")
    modules = [ast.parse(path.read_text()) for path in (ROOT / "tests").glob(f"*/{file}.py")]
    assert function in {node.name for module in modules for node in module.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("SIGKILL of a rank", "RuntimeError: Connection closed by peer"),
        ("SIGTERM", signal_reason("SIGTERM")),
        ("SIGINT (Ctrl-C)", signal_reason("SIGINT")),
        ("SIGHUP", signal_reason("SIGHUP")),
        ("hang of one rank", "RuntimeError: Timed out waiting 45000ms for recv operation to complete"),
        ("NaN or infinite gradient", f"{NonFiniteGradientError.__name__}: gradient norm at step 3 is nan"),
        ("data file truncated during the run", "DataError: the file was cut while it was in use"),
        ("stale rendezvous port", "LaunchError: MASTER_ADDR, MASTER_PORT: the rendezvous failed"),
        ("disk of the log full", "LogWriteError: LOGDIR: cannot write x: No space left on device"),
    ],
)
def test_the_exit_status_follows_from_the_reason_in_the_log(fault: str, reason: str) -> None:
    assert fault_table()[fault][1] == str(int(exit_code_for("aborted", reason)))


def test_the_exit_status_of_a_refused_run_and_of_a_rank_whose_launcher_died() -> None:
    assert fault_table()["two runs on one LOGDIR"][1] == str(int(ExitCode.BAD_CONFIGURATION))
    status = exit_code_for("aborted", signal_reason("SIGTERM"))
    assert f"a rank's {int(status)}" in fault_table()["SIGKILL of the launcher"][1]


def test_settings_and_rules_that_are_named_exist() -> None:
    variables = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b|\bRESUME\b|\bLOGDIR\b", GUIDE))
    assert variables - set(settings()) == {"MASTER_ADDR", "MASTER_PORT", *LIBRARY_VARIABLES}
    assert {"run-resumed", "clock-backwards"} <= {rule.id for rule in ALL_RULES}
    assert f"`COLLECTIVE_TIMEOUT` ({resolve({}).execution.timeout_seconds} s by default)" in GUIDE


WALL_CLOCK = re.compile(r"\btime\.(time|time_ns|localtime|gmtime|ctime|strftime)\b|\bdatetime\.(now|utcnow|today)\b")
WALL_CLOCK_MODULES = ["failure_report.py", "run_metadata.py", "stacks.py"]
# The modules of a run. `doctor` compares clocks, and measurements are dated.
RUN_MODULES = ("*.py", "callbacks/*.py", "checkpoint/*.py", "config/*.py", "data/*.py", "model/*.py")


def test_only_the_name_of_a_folder_and_reports_of_failures_read_the_wall_clock() -> None:
    modules = [path for pattern in RUN_MODULES for path in (ROOT / "gptoss20b").glob(pattern)]
    assert {"train.py", "mlperf_log.py", "checkpointer.py", "mlperf.py"} <= {path.name for path in modules}
    assert [path.name for path in sorted(modules) if WALL_CLOCK.search(path.read_text())] == WALL_CLOCK_MODULES


@pytest.mark.parametrize(
    "text", ["time.time()", "time.time_ns()", "datetime.now()", "datetime.datetime.utcnow()", "wall=time.time,"]
)
def test_the_search_finds_the_wall_clock(text: str) -> None:
    assert WALL_CLOCK.search(text)
    assert not WALL_CLOCK.search("time.monotonic(); time.perf_counter(); time.sleep(1); each.time_ms")
