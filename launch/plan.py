"""The set of trials that the variables of a launcher ask for."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from launch.errors import RefusedError
from launch.trial_set import TrialSet
from launch.variables import (
    Environment,
    check_system,
    make_folder,
    read_choice,
    read_integer,
    read_node_rank,
    resolve_folder,
    resume_requested,
)


@dataclass(frozen=True)
class Plan:
    """NEXP trials in one folder, started by this node.

    Attributes:
        files: folder of the set.
        data: DATADIR, absolute.
        model: MODELDIR, absolute, or "".
        nodes: number of nodes.
        node_rank: this node's rank; 0 is the leader.
        clear_caches: CLEAR_CACHES: "0", "1", or "done" by the caller.
        announces: the leader announces its trials, because workers follow it.
        seed_base: SEED_BASE, the seed of trial 1, if given.
        master_port: the rendezvous port of trial 1.
    """

    files: TrialSet
    data: str
    model: str
    nodes: int
    node_rank: int
    announces: bool
    seed_base: int | None
    master_port: int
    resume: bool
    clear_caches: str
    check_compliance: bool
    stop_on_failure: bool


def default_logdir(environment: Environment) -> str:
    """Return LOGDIR, or a new folder in results/."""
    stamp = time.strftime("%Y%m%d_%H%M%S")
    return environment.get("LOGDIR") or f"results/{environment['DGXSYSTEM']}_{stamp}_{os.getpid()}"


def read_plan(environment: Environment, single_launcher: bool) -> Plan:
    """Check all variables that can be checked before a trial, and create LOGDIR.

    Args:
        environment: variables of the launcher.
        single_launcher: this launcher starts all nodes, as Slurm's does; otherwise each node has a launcher.
    """
    trials = read_integer(environment, "NEXP", 10, 1, 1000)
    # Trial i uses port MASTER_PORT + i - 1: the port of the trial before may still be in use.
    master_port = read_integer(environment, "MASTER_PORT", 29500, 1, 65536 - trials)
    # "done": whoever starts this only trial has just dropped the host's caches, such as a Kubernetes init container.
    clear_caches = read_choice(environment, "CLEAR_CACHES", "0", "0", "1", *(["done"] if trials == 1 else []))
    check_compliance = read_choice(environment, "CHECK_COMPLIANCE", "1", "0", "1") == "1"
    stop_on_failure = read_choice(environment, "STOP_ON_FAILURE", "0", "0", "1") == "1"
    check_system(environment)
    seed_base = _read_seed_base(environment, trials)
    if environment.get("SAVE_DIR"):
        raise RefusedError(
            f"SAVE_DIR: '{environment['SAVE_DIR']}' would mix the checkpoints of all trials. "
            "Unset it: each trial saves its checkpoints in LOGDIR/trial_<i>/checkpoints"
        )
    nodes = read_integer(environment, "DGXNNODES", 1, 1, 100_000)
    # One launcher can choose a folder for all nodes. Several launchers would choose different ones.
    if nodes > 1 and not environment.get("LOGDIR") and not single_launcher:
        raise RefusedError("LOGDIR: not set. Trials on several nodes need one folder that all nodes share")
    node_rank = 0 if single_launcher else read_node_rank(environment, nodes)
    logdir = default_logdir(environment)
    make_folder("LOGDIR", logdir)
    return Plan(
        # Resolve links now: LOGDIR may be results/latest, which is about to change.
        files=TrialSet(Path(resolve_folder("LOGDIR", logdir)), trials),
        data=resolve_folder("DATADIR", environment["DATADIR"]),
        model=resolve_folder("MODELDIR", environment["MODELDIR"]) if environment.get("MODELDIR") else "",
        nodes=nodes,
        node_rank=node_rank,
        announces=nodes > 1 and not single_launcher,
        seed_base=seed_base,
        master_port=master_port,
        resume=resume_requested(environment),
        clear_caches=clear_caches,
        check_compliance=check_compliance,
        stop_on_failure=stop_on_failure,
    )


def _read_seed_base(environment: Environment, trials: int) -> int | None:
    """Return SEED_BASE, if given. SEED, which would make all trials identical, is accepted for a single trial."""
    seed, base = environment.get("SEED", ""), environment.get("SEED_BASE", "")
    if seed:
        if trials != 1 or (base or seed) != seed:
            raise RefusedError(
                f"SEED: got {seed}, which all {trials} trials would use. "
                f"Unset it; SEED_BASE={seed} gives this seed to the first trial only"
            )
        base = seed
    return read_integer({"SEED_BASE": base}, "SEED_BASE", None, 0, 10**18 - 1 - trials) if base else None
