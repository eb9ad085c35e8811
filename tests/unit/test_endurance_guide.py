"""docs/endurance.md has every fault, the tests that it names exist, and what it quotes is what the code says."""

from __future__ import annotations

import ast
import re

import pytest

from compliance.rules import ALL_RULES
from gptoss20b import determinism
from gptoss20b.config import resolve, settings
from gptoss20b.stopping import ExitCode, NonFiniteLossError, exit_code_for, signal_reason
from tests.support.paths import ROOT

GUIDE = (ROOT / "docs" / "endurance.md").read_text(encoding="utf-8")
FAULTS = (
    "SIGKILL of a rank",
    "SIGKILL of rank 0",
    "SIGKILL of the launcher",
    "SIGTERM",
    "SIGHUP",
    "hang of one rank",
    "NaN loss",
    "checkpoint folder full or read-only",
    "checkpoint disk that never answers",
    "data file truncated during the run",
    "corrupted checkpoint",
    "clock change",
    "two runs on one LOGDIR",
    "stale rendezvous port",
    "disk of the log full",
)


def rows() -> dict[str, list[str]]:
    """The table's cells by fault: last line, exit, the log, go on, tests."""
    table = GUIDE.split("<!-- faults -->\n")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {fault: rest for fault, *rest in cells}


def functions_of(name: str) -> set[str]:
    """The tests of a file of that name."""
    (path,) = (ROOT / "tests").glob(f"*/{name}.py")
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def named() -> list[str]:
    return sorted(set(re.findall(r"`(test_\w+::\w+)`", GUIDE)))


def test_every_fault_has_a_row_with_a_test() -> None:
    assert tuple(rows()) == FAULTS
    for fault, cells in rows().items():
        assert len(cells) == 5, fault
        assert all(cells), fault
        assert re.fullmatch(r"`test_\w+::test_\w+`(, `test_\w+::test_\w+`)*", cells[-1]), fault


@pytest.mark.parametrize("test", named())
def test_a_named_test_exists(test: str) -> None:
    file, _, function = test.partition("::")
    assert function in functions_of(file)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("SIGKILL of a rank", "RuntimeError: Connection closed by peer"),
        ("SIGTERM", signal_reason("SIGTERM")),
        ("SIGHUP", signal_reason("SIGHUP")),
        ("hang of one rank", "RuntimeError: Timed out waiting 45000ms for recv operation to complete"),
        ("NaN loss", f"{NonFiniteLossError.__name__}: training loss at step 3 is nan"),
        ("data file truncated during the run", "DataError: the file was cut while it was in use"),
        ("stale rendezvous port", "LaunchError: MASTER_ADDR, MASTER_PORT: the ranks do not meet: why"),
        ("disk of the log full", "OSError: [Errno 28] No space left on device"),
    ],
)
def test_the_exit_status_is_that_of_the_log_s_reason(fault: str, reason: str) -> None:
    assert rows()[fault][1] == str(int(exit_code_for("aborted", reason)))


def test_ranks_that_end_with_their_launcher_end_by_sigterm() -> None:
    status = int(exit_code_for("aborted", signal_reason("SIGTERM")))
    assert rows()["SIGKILL of the launcher"][1] == f"1, a rank's {status}"


def test_a_second_run_is_a_bad_configuration() -> None:
    status = int(ExitCode.BAD_CONFIGURATION)
    assert rows()["two runs on one LOGDIR"][1] == f"{status}; with `RESUME=1` a rank's {status}, the script's 1"


def test_only_faults_whose_cause_stays_are_not_gone_on_with() -> None:
    assert [fault for fault, cells in rows().items() if cells[3].startswith("no")] == ["NaN loss", "clock change"]


def test_the_last_lines_are_in_the_code_or_in_the_tests() -> None:
    texts = [*(ROOT / "gptoss20b").rglob("*.py"), *(ROOT / "tests" / "integration").glob("test_*.py")]
    code = "\n".join(path.read_text() for path in texts)
    for words in (
        "aborted: ",
        "the file was cut while it was in use",
        "the checkpoint before it is taken",
        "results are never overwritten",
        "another run is writing",
        "MASTER_ADDR, MASTER_PORT: the ranks do not meet: ",
        "the log could not be written",
    ):
        assert words in code
        assert words.strip() in GUIDE


def test_settings_and_rules_that_are_named_exist() -> None:
    variables = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b|\bRESUME\b|\bLOGDIR\b", GUIDE))
    assert variables - set(settings()) == {"MASTER_ADDR", "MASTER_PORT", *determinism.LIBRARY_VARIABLES}
    assert {"run-resumed", "clock-backwards"} <= {rule.id for rule in ALL_RULES}
    assert f"`COLLECTIVE_TIMEOUT` ({resolve({}).execution.timeout_seconds} s by default)" in GUIDE


WALL_CLOCK = re.compile(r"\btime\.(time|time_ns|localtime|gmtime|ctime|strftime)\b|\bdatetime\.(now|utcnow|today)\b")
# What a run is made of. `doctor` compares clocks, and measurements are dated.
OF_A_RUN = ("*.py", "checkpoint/*.py", "config/*.py", "data/*.py", "model/*.py")


def test_a_run_reads_the_wall_clock_for_the_log_and_a_folder_s_name() -> None:
    modules = [path for pattern in OF_A_RUN for path in (ROOT / "gptoss20b").glob(pattern)]
    assert {"train.py", "mlperf_log.py", "checkpoints.py", "dataloader.py"} <= {path.name for path in modules}
    assert [path.name for path in modules if WALL_CLOCK.search(path.read_text())] == ["run_metadata.py"]


@pytest.mark.parametrize(
    "text", ["time.time()", "time.time_ns()", "datetime.now()", "datetime.datetime.utcnow()", "wall=time.time,"]
)
def test_that_search_sees_the_wall_clock(text: str) -> None:
    assert WALL_CLOCK.search(text)
    assert not WALL_CLOCK.search("time.monotonic(); time.perf_counter(); time.sleep(1); each.time_ms")
