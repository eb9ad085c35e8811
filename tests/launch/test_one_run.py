"""A single run: what it starts, and how it ends by what torchrun, the log and the checker say."""

from __future__ import annotations

import os
import pty
import re

from tests.support.configs import load_config, read_environment
from tests.support.launch_stubs import Done, Sandbox, cases, read_pairs

# What Python is asked, with the folder in place of FOLDER.
ASKED = {
    "result": "gptoss20b result FOLDER",
    "checker": "mlperf_logging.compliance_checker --usage training --ruleset 6.1.0 "
    "--log_output FOLDER/compliance_checker.log FOLDER/result_0.txt",
    "import": "import compliance.render.report_file",
    "report": "compliance report --out FOLDER/report.html --curve FOLDER/loss_curve.svg FOLDER/result_0.txt",
}


def run(sandbox: Sandbox, given: str = "", config: str = "config_CPU_1x2.sh", **more: str) -> Done:
    """Run node 0 or another, in this process. "--task" is for --slurm-task."""
    options = ["--slurm-task"] if "--task" in given else []
    variables = {"MASTER_ADDR": "leader", **read_pairs(given.replace("--task", "")), **more}
    return sandbox.run("run_and_time.sh", config, *options, **variables)


# torchrun returns 0 or 1. The log gives the rest, but a failure that is not in the log stays one, and a failed run has
# no compliant log. Status 1 of a report is a log that violates a rule. A failure to draw changes no status.
@cases(r"""
given                             | controls              | status | words                        | said
                                  | log=0                 | 0      | result checker import        | : passed
                                  | torchrun=1 log=1      | 1      | result                       | the result
                                  | torchrun=0 log=3      | 3      | result import                |
                                  | torchrun=1 log=4      | 4      | result import                |
                                  | torchrun=1 log=0      | 1      | result                       |
                                  | torchrun=0 log=1      | 1      | result                       | the result
                                  | torchrun=1 log=143    | 1      | result                       |
                                  | log=0 check=1         | 5      | result checker import        | compliance_checker
CHECK_COMPLIANCE=0                | log=0 check=1         | 0      | result import                |
                                  | log=0 report=0        | 0      | result checker import report | report: .*report
                                  | log=3 report=1        | 3      | result import report         | report: .*report
                                  | log=0 report=2        | 0      | result checker import report | warning: .*the cause
                                  | no_log=1 torchrun=0   | 1      |                              | error: .*status 0
                                  | no_log=1 torchrun=1   | 1      |                              | error: .*status 1
                                  | no_log=1 torchrun=2   | 2      |                              |
                                  | torchrun=2 log=0      | 2      |                              |
DGXNNODES=2 NODE_RANK=1           | no_log=1 torchrun=0   | 0      |                              |
DGXNNODES=2 NODE_RANK=1           | no_log=1 torchrun=3   | 3      |                              |
DGXNNODES=2 SLURM_NODEID=1        | no_log=1 torchrun=1   | 1      |                              |
--task SLURM_NODEID=1 DGXNNODES=2 | no_log=1 torchrun=1   | 0      |                              |
--task SLURM_NODEID=1 DGXNNODES=2 | no_log=1 torchrun=2   | 2      |                              |
--task SLURM_NODEID=0 DGXNNODES=2 | torchrun=1 log=1      | 1      | result                       |
--task SLURM_NODEID=0 DGXNNODES=2 | torchrun=1 log=4      | 4      | result import                |
""")
def test_the_end_of_a_run(sandbox: Sandbox, given: str, controls: str, status: str, words: str, said: str) -> None:
    sandbox.control(**read_pairs(controls))
    done = run(sandbox, given)
    assert str(done.returncode) == status
    assert sandbox.asked()[2:] == [ASKED[word].replace("FOLDER", str(sandbox.set)) for word in words.split()]
    assert done.stdout == ""  # which is reserved for the log's records
    assert re.match(r"run of CPU_1x2 started at .*\nrun of CPU_1x2 ended after \d+ s\n", done.stderr)
    assert re.search(said, done.stderr)
    # The run itself shows how it ended, unless it failed.
    assert ("the result" in done.stderr) == ({"log=1", "log=143"} & set(controls.split()) != set())


@cases("""
config             | given                      | arguments
config_CPU_1x2.sh  |                            | 2 --standalone -m
config_CPU_1x2.sh  | BINDCMD=nice               | 2 --standalone --no-python nice PYTHON -u -m
config_B200_2x8.sh | NODE_RANK=0 MASTER_PORT=   | 8 --nnodes=2 --node_rank=0 --master_addr=leader --master_port=29500 -m
config_B200_2x8.sh | NODE_RANK=1 MASTER_PORT=99 | 8 --nnodes=2 --node_rank=1 --master_addr=leader --master_port=99 -m
""")
def test_a_node_is_launched_with_exactly_these_arguments(
    sandbox: Sandbox, config: str, given: str, arguments: str
) -> None:
    run(sandbox, given, config, DATADIR=str(sandbox.folder / "data"))
    expected = arguments.replace("PYTHON", f"{sandbox.folder}/bin/stub-python")
    launched = f"gptoss20b.launch --nproc_per_node={expected} gptoss20b train"
    assert sandbox.asked()[:2] == ["gptoss20b preflight", launched]


def test_the_run_gets_the_configuration_that_was_checked_and_paths_may_contain_spaces(sandbox: Sandbox) -> None:
    data, logdir = sandbox.folder / "my data", sandbox.folder / "my log"
    data.mkdir()
    given = {"SEED": "7", "SAVE_DIR": "/checkpoints", "DATADIR": str(data), "LOGDIR": str(logdir)}
    run(sandbox, **given, BINDCMD="env -u 'A B'")
    expected = {name: value for name, value in load_config("config_CPU_1x2.sh").items() if name != "CONFIG_DIR"}
    assert (expected | given).items() <= read_environment(sandbox.record("torchrun.env")).items()
    launch, result = sandbox.calls("stub-python")[1:3]
    assert {"env", "-u", "A B"} < set(launch) and result[-1] == str(logdir)


def test_the_default_result_is_a_new_folder_and_a_terminal_is_told_the_next_step(sandbox: Sandbox) -> None:
    sandbox.control(log=0)
    assert "./run_local.sh" not in run(sandbox).stderr  # the log may be of a set
    terminal, sandbox.stderr = pty.openpty()
    # A false RESUME is no request to resume, and may come without LOGDIR.
    assert sandbox.finish(sandbox.start("run_and_time.sh", LOGDIR="", RESUME="0")).returncode == 0
    os.close(sandbox.stderr)
    seen = b""
    while b"./run_local.sh" not in seen:
        seen += os.read(terminal, 65_536)  # an error at the end
    folder = read_environment(sandbox.record("torchrun.env"))["LOGDIR"]
    assert re.fullmatch(r"results/CPU_1x2_\d{8}_\d{6}_\d+", folder)
    assert (sandbox.scripts / folder / "result_0.txt").exists()


# "sudo" needs no password; "kernel" lets its file be written. "done": a launcher has cleared the caches, and they must
# not be cleared again. A value from the environment is no fact.
@cases("""
given                          | way    | cleared
CLEAR_CACHES=1                 |        | 0
CLEAR_CACHES=1                 | sudo   | 1
CLEAR_CACHES=1                 | kernel | 1
CLEAR_CACHES=done              | kernel | 1
CLEAR_CACHES=0 CACHE_CLEARED=1 | kernel | 0
""")
def test_cache_cleared_is_what_happened(sandbox: Sandbox, given: str, way: str, cleared: str) -> None:
    sandbox.control(sudo_status=int(way != "sudo"))
    if way == "kernel":
        sandbox.drop_caches.parent.mkdir()
    done = run(sandbox, given)
    assert read_environment(sandbox.record("torchrun.env"))["CACHE_CLEARED"] == cleared
    asked_for = given == "CLEAR_CACHES=1"
    written = [path.read_text() for path in sandbox.drop_caches.parent.glob("*")]
    assert written == ["3\n"] * (asked_for and way == "kernel")
    command = "sudo -n /sbin/sysctl --quiet --write vm.drop_caches=3"
    assert [" ".join(call) for call in sandbox.calls("sudo")] == [command] * (asked_for and way != "kernel")
    assert ("warning: could not drop the page cache" in done.stderr) == (not way)
    assert "No such file" not in done.stderr
