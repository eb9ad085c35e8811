"""Run the trials of a set: as the leader, which chooses them, or as a worker, which follows the leader."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

from launch.child import Child, Supervisor, log, tee
from launch.errors import RefusedError
from launch.launcher import Launcher
from launch.one_run import CACHES_NOT_CLEARED, checker_arguments
from launch.plan import Plan
from launch.trial_set import ENDED, lock, update_latest_link, warn_if_full

# Longest wait of a worker for the leader's next trial, in seconds.
RENDEZVOUS_TIMEOUT = 600
# Seconds until a worker stops a trial that the leader has left. The nodes do not end a trial at the same moment.
LEAVE_GRACE = 30
# Seconds without an announced trial after which the leader has ended: a network file system may hide a file briefly.
LEADER_GONE_AFTER = 5
# A result has ten runs, and an olympic mean at least three.
RUNS, FEWEST_RUNS = 10, 3
# Python itself failed, or its container.
_NO_ANSWER = (125, 126, 127, 137)


class TrialRunner:
    """Runs single trials of a set on this node."""

    def __init__(self, plan: Plan, launcher: Launcher) -> None:
        self.plan = plan
        self.files = plan.files
        self.launcher = launcher
        self.supervisor = Supervisor()
        name = f".lock_{plan.node_rank}" if plan.node_rank else ".lock"
        busy = (
            f"LOGDIR: trials are already running in '{self.files.folder}'. Wait until they end, or use another folder"
        )
        # Two sets in one folder, or two launchers of one node, would mix.
        self.lock = lock(self.files.folder / name, busy)

    def run_trial(self, number: int, seed: int, output: Path) -> int:
        """Run a trial, copy its output to a file, and return its exit status."""
        with tee(output) as pipe:
            cleared = self._clear_caches(pipe)
            if self.supervisor.terminated:
                return self.supervisor.terminated
            environment = self.launcher.environment | {
                "SEED": str(seed),
                "LOGDIR": self.launcher.folder(number),
                "MASTER_PORT": str(self.plan.master_port + number - 1),
                "CLEAR_CACHES": cleared,
            }
            status = self.supervisor.run(
                self.launcher.trial_command(seed, environment),
                environment,
                output=pipe,
                stop=self.launcher.stop_trial,
                pass_fds=(self.lock,),
                on_start=self._watch,
            )
            self.launcher.clean_up()
        return status

    def _watch(self, child: Child) -> None:
        """Terminate a trial that another node has left, or cannot start: ranks would wait for that node for minutes."""

        def terminate_if_abandoned() -> None:
            while child.returncode is None:
                time.sleep(1)
                if self._is_abandoned():
                    child.terminate()
                    return

        if self.plan.announces:
            threading.Thread(target=terminate_if_abandoned, daemon=True).start()

    def _is_abandoned(self) -> bool:
        """Return True if this node's part of the running trial has to end. Called every second."""
        return False

    def _clear_caches(self, pipe: int) -> str:
        """Clear the hosts' caches if the launcher does this, and return the CLEAR_CACHES of the trial."""
        if self.plan.clear_caches != "1" or not self.launcher.clear_caches:
            return self.plan.clear_caches
        if self.supervisor.run(self.launcher.clear_caches, self.launcher.environment, output=pipe) == 0:
            return "done"
        with suppress(OSError), open(pipe, "w", closefd=False) as output:
            print(CACHES_NOT_CLEARED, file=output)
        return "0"


class Leader(TrialRunner):
    """Runs every trial that has no result, records it, and checks the set."""

    def run(self) -> int:
        """Return the exit status of the set."""
        try:
            settings = self._preflight()
        except RefusedError:
            self.files.remove_if_unused()
            raise
        self.files.fix_settings(settings, self.plan.resume)
        seed_base = self.files.fix_seed_base(self.plan.seed_base)
        self.files.start_table()
        update_latest_link(self.files.folder)
        with self.supervisor.handle_signals():
            for number in list(self.files.missing()):
                status = self._complete(number, seed_base + number - 1)
                # A bad configuration would fail every other trial too.
                if self.supervisor.terminated or status == 2 or (status and self.plan.stop_on_failure):
                    break
            self.files.end_announcement()
        status = self._report()
        if status:
            warn_if_full(self.files.folder)
        return status

    def _preflight(self) -> str:
        """Check the configuration and this node, and return the resolved settings."""
        status, settings = self.launcher.ask_python("-m", "gptoss20b", "preflight", on_gpus=True)
        if status:
            raise RefusedError  # it has explained itself
        return settings

    def _complete(self, number: int, seed: int) -> int:
        """Recover the result of a trial whose launcher was killed, or run the trial. Return its status."""
        ended = self._status_of_log(number)
        if self.supervisor.terminated:
            return self.supervisor.terminated
        # A trial that failed after its log was complete has no result, and the run would refuse to resume it.
        if ended is not None and self.files.recorded_status(number) != 1:
            return self._recover(number, seed, ended)
        return self._run_and_record(number, seed, resume=ended is None and self.plan.resume)

    def _status_of_log(self, number: int) -> int | None:
        """Return the status that the log of an earlier start records, or None if its training did not end."""
        log_file = self.files.log(number)
        if not log_file.exists():
            return None
        status = self.launcher.run_python(self.supervisor, "-m", "gptoss20b", "result", self.launcher.folder(number))
        # The log may be a valid result, which must not be trained again.
        if status in _NO_ANSWER and not self.supervisor.terminated:
            raise RefusedError(f"LOGDIR: cannot read '{log_file}': python exited with status {status}. Start again")
        return status if status in ENDED else None

    def _recover(self, number: int, seed: int, status: int) -> int:
        """Publish a result, checked like that of a trial."""
        if status == 0 and self.plan.check_compliance:
            checker = checker_arguments(self.launcher.folder(number))
            status = 5 if self.launcher.run_python(self.supervisor, *checker) else 0
        log(
            f"trial {number} of {self.files.trials}: training had ended, result recovered from the log in "
            f"{self.files.trial(number)}"
        )
        self._record(number, seed, "-", "-", status)
        return status

    def _run_and_record(self, number: int, seed: int, resume: bool) -> int:
        started, begin = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
        output = self.files.trial(number) / "output.log"
        title = f"trial {number} of {self.files.trials}: seed {seed}"
        try:
            if not (resume and self.files.is_resumable(number)):
                self.files.keep_previous_attempt(number)
            output.parent.mkdir(exist_ok=True)
            if self.plan.announces:
                self.files.announce(number)
            with output.open("a") as file:
                print(f"{title}, started at {started}", file=file)
        except OSError as error:
            log(f"error: LOGDIR: cannot write '{output}': {error.strerror}")
            return 2
        log(f"{title}, output in {output}")
        status = self.run_trial(number, seed, output)
        if self.plan.announces and (node := self.files.refused_by()):
            log(f"error: NODE_RANK={node}: this worker was refused, as its output says. Start all nodes again")
            status = 2
        self._record(number, seed, started, round(time.monotonic() - begin), status)
        return status

    def _is_abandoned(self) -> bool:
        """Return True if a worker cannot start its part."""
        return self.files.refused_by() is not None

    def _record(self, number: int, seed: int, started: str, seconds: object, status: int) -> None:
        # Row first: if the launcher is killed in between, the next start recovers the result from the trial's log.
        try:
            self.files.append_row(number, seed, started, seconds, status)
        except OSError as error:
            log(f"warning: could not write trials.tsv ({error.strerror}); trial {number} ended with status {status}")
        self.files.publish(number, status)

    def _report(self) -> int:
        """Print the table of trials and the verdict on the set, and return the status of the set."""
        folder, trials = self.launcher.environment["LOGDIR"], self.files.trials
        status = self._show("summary.txt", "-m", "gptoss20b", "result", "--trials", str(trials), folder)
        if self.supervisor.terminated:
            command = f"LOGDIR={self.files.folder} {self.launcher.script}"
            log(f"to run the missing trials: {command}, with the same settings")
            return self.supervisor.terminated
        if not self.plan.check_compliance:
            return status
        if status not in ENDED:
            log("set not checked: a trial failed. Start again with the same LOGDIR to repeat it")
        elif trials < FEWEST_RUNS:
            log(f"set not checked: an olympic mean needs at least {FEWEST_RUNS} runs, a result needs {RUNS}")
        else:
            runs = str(min(trials, RUNS))
            verdict = self._show("compliance.txt", "-m", "compliance", "check-set", "--runs", runs, folder)
            status = status or (5 if verdict else 0)
        return status

    def _show(self, name: str, *arguments: str) -> int:
        """Run Python, show its output, keep it in a file of the set, and return its status."""
        status, text = self.launcher.ask_python(*arguments)
        with suppress(OSError):
            (self.files.folder / name).write_text(text)
        log(text.rstrip("\n"))
        return status


class Worker(TrialRunner):
    """Runs this node's part of the trials that the leader announces."""

    def __init__(self, plan: Plan, launcher: Launcher) -> None:
        super().__init__(plan, launcher)
        self.current = ""
        self._seconds_left = 0

    def run(self) -> int:
        """Follow the leader to its end, and return 0, or 1 if a trial failed here."""
        statuses = [0]
        with self.supervisor.handle_signals():
            while self._wait_for_next() and not self.supervisor.terminated:
                number = int(self.current.split()[0])
                seed = self.files.read_seed_base(self.plan.seed_base) + number - 1
                statuses.append(self._run_part(number, seed))
                if statuses[-1] == 2:
                    break
        # Only a signal to this process gives a status above 128: a trial that ended by one failed.
        worst = 1 if 1 in statuses or max(statuses) > 128 else max(statuses)
        return self.supervisor.terminated or worst

    def _run_part(self, number: int, seed: int) -> int:
        output = self.files.folder / f"node_{self.plan.node_rank}" / f"trial_{number}.log"
        title = f"trial {number} of {self.files.trials}: seed {seed}"
        try:
            output.parent.mkdir(exist_ok=True)
            with output.open("a") as file:
                print(title, file=file)
        except OSError as error:
            log(f"error: LOGDIR: cannot write '{output}': {error.strerror}")
            return 2
        log(f"{title}, output in {output}")
        self._seconds_left = 0
        status = self.run_trial(number, seed, output)
        if status == 2:
            self.files.refuse(self.plan.node_rank)
        # The leader's log has the outcome of a training that ended.
        return 0 if status in ENDED else status

    def _wait_for_next(self) -> bool:
        """Wait until the leader starts another trial. Return False when the leader has ended."""
        missed = 0
        for _ in range(RENDEZVOUS_TIMEOUT):
            current = self.files.current()
            if self.supervisor.terminated:
                return False
            if current and current != self.current:
                self.current = current
                return True
            missed = 0 if current else missed + 1
            if self.current and missed >= LEADER_GONE_AFTER:
                return False
            if not self.current and not any(self.files.missing()):
                log(f"nothing to do: {self.files.folder} has results 1 to {self.files.trials}")
                return False
            time.sleep(1)
        raise RefusedError(
            f"LOGDIR: the leader (NODE_RANK=0) started no trial in '{self.files.folder}' within "
            f"{RENDEZVOUS_TIMEOUT} s. Start it, and give all nodes one shared folder"
        )

    def _is_abandoned(self) -> bool:
        """Return True if the leader has left the trial for LEAVE_GRACE seconds."""
        self._seconds_left = 0 if self.files.current() == self.current else self._seconds_left + 1
        return self._seconds_left >= LEAVE_GRACE
