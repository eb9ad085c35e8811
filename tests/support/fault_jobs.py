"""Runs that go wrong at their third step. Each job ends its process as the command does, with the run's exit status."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from gptoss20b.callbacks import Callback
from gptoss20b.config import resolve
from gptoss20b.data.samples import TRAIN_PREFIX
from gptoss20b.stopping import hard_exit
from gptoss20b.train import run
from gptoss20b.trainer import Trainer

Variables = dict[str, str]
AT = 3


def train(variables: Variables, fault: str = "none", rank: int = 0, port: int = 0) -> None:
    """A run in which one of the faults below happens to this rank.

    Args:
        variables: the configuration.
        fault: a key of ``FAULTS``.
        rank: that it happens to.
        port: where the ranks are told to meet, if not where they can.
    """
    if port:
        os.environ["MASTER_PORT"] = str(port)

    class Fault(Callback):
        def on_step_start(self, step: int) -> None:
            if step == AT:
                FAULTS[fault](variables, self.trainer, int(os.environ["RANK"]) == rank)

    _run(variables, Fault())


def clock_jumps(variables: Variables, seconds: float) -> None:
    """A run before whose third step the system's clock is set by so much."""
    wall = time.time

    class Jump(Callback):
        def on_step_start(self, step: int) -> None:
            if step == AT:
                time.time = lambda: wall() + seconds

    _run(variables, Jump())


def leftover(variables: Variables) -> None:
    """What an earlier run left: a process where ranks can meet. Says on stderr at which port, and stays."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    print(f"port {store.port}", file=sys.stderr, flush=True)
    signal.pause()


def _run(variables: Variables, callback: Callback) -> None:
    # Only what goes to stderr is looked at: all of it is shorter than the log, which "fill" relies on.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    hard_exit(run(resolve(variables), [callback]))


def _not_a_number(_: Variables, trainer: Trainer, here: bool) -> None:
    if here:
        with torch.no_grad():
            next(trainer.model.parameters()).fill_(float("nan"))


def _signal(number: signal.Signals) -> Callable[[Variables, Trainer, bool], None]:
    def send(_: Variables, __: Trainer, here: bool) -> None:
        if here:
            os.kill(os.getpid(), number)

    return send


def _fill(variables: Variables, _: Trainer, here: bool) -> None:
    """No file of this process grows by more than ten bytes beyond its log: a disk that is as good as full."""
    if here:
        limit = (Path(variables["LOGDIR"]) / "result_0.txt").stat().st_size + 10
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def _truncate(variables: Variables, _: Trainer, here: bool) -> None:
    if here:
        os.truncate(Path(variables["DATADIR"]) / f"{TRAIN_PREFIX}.bin", 400)
    dist.barrier()  # no rank reads its fourth step before


FAULTS: dict[str, Callable[[Variables, Trainer, bool], None]] = {
    "none": lambda *_: None,
    "nan": _not_a_number,
    "kill": _signal(signal.SIGKILL),
    "stop": _signal(signal.SIGSTOP),
    "hang up": _signal(signal.SIGHUP),
    "fill": _fill,
    "truncate": _truncate,
}
