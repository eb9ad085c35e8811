"""Runs with a fault at their third step. Each job ends its process like the command, with the run's exit status."""

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
from torch._C._distributed_c10d import TCPStore

from gptoss20b.callbacks import Callback
from gptoss20b.config import resolve
from gptoss20b.data.samples import TRAIN_PREFIX
from gptoss20b.stopping import hard_exit
from gptoss20b.train import run
from gptoss20b.trainer import Trainer

Variables = dict[str, str]
FAULT_STEP = 3


class OnFaultStep(Callback):
    """Call an action before the third step."""

    def __init__(self, action: Callable[[Trainer], None]) -> None:
        self._action = action

    def on_step_start(self, step: int) -> None:
        if step == FAULT_STEP:
            self._action(self.trainer)


def train(variables: Variables, fault: str = "none", rank: int = 0, port: int = 0) -> None:
    """Run with a fault of one rank.

    Args:
        variables: the configuration.
        fault: a key of ``FAULTS``.
        rank: the rank that it happens to.
        port: a wrong rendezvous port, if not 0.
    """
    if port:
        os.environ["MASTER_PORT"] = str(port)
    own = int(os.environ["RANK"])
    is_here = own == rank
    if own:  # as where LOGDIR is not set, and rank 0 chooses a folder
        variables = {name: value for name, value in variables.items() if name != "LOGDIR"}
    _run(variables, OnFaultStep(lambda trainer: FAULTS[fault](variables, trainer, is_here)))


def clock_jumps(variables: Variables, seconds: float) -> None:
    """Run, and set the system clock by this many seconds before the third step."""
    wall = time.time

    def set_clock(_: Trainer) -> None:
        time.time = lambda: wall() + seconds

    _run(variables, OnFaultStep(set_clock))


def leftover(variables: Variables) -> None:
    """Serve a rendezvous like a process of an earlier run. Print its port on stderr and stay."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    print(f"port {store.port}", file=sys.stderr, flush=True)
    signal.pause()


def _run(variables: Variables, callback: Callback) -> None:
    # The tests read stderr alone. It is shorter than the log, which "fill" relies on.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    hard_exit(run(resolve(variables), [callback]))


def _fill_weights_with_nan(_: Variables, trainer: Trainer, is_here: bool) -> None:
    if is_here:
        with torch.no_grad():
            next(trainer.model.parameters()).fill_(float("nan"))


def _make_gradients_infinite(_: Variables, trainer: Trainer, is_here: bool) -> None:
    """Add infinity to a gradient of this rank, from this step on."""
    if is_here:
        list(trainer.model.parameters())[-1].register_hook(lambda gradient: gradient + float("inf"))


def _send(number: signal.Signals) -> Callable[[Variables, Trainer, bool], None]:
    def send(_: Variables, __: Trainer, is_here: bool) -> None:
        if is_here:
            os.kill(os.getpid(), number)

    return send


def _fill_disk(variables: Variables, _: Trainer, is_here: bool) -> None:
    """Forbid this process to write more than ten bytes beyond its log, as a full disk would."""
    if is_here:
        limit = (Path(variables["LOGDIR"]) / "result_0.txt").stat().st_size + 10
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def _truncate_data(variables: Variables, _: Trainer, is_here: bool) -> None:
    if is_here:
        os.truncate(Path(variables["DATADIR"]) / f"{TRAIN_PREFIX}.bin", 400)
    dist.barrier()  # no rank reads its fourth step before


FAULTS: dict[str, Callable[[Variables, Trainer, bool], None]] = {
    "none": lambda *_: None,
    "nan": _fill_weights_with_nan,
    "infinite gradient": _make_gradients_infinite,
    "kill": _send(signal.SIGKILL),
    "stop": _send(signal.SIGSTOP),
    "hang up": _send(signal.SIGHUP),
    "fill": _fill_disk,
    "truncate": _truncate_data,
}
