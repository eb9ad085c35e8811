"""What a trial in a container gets from its host: folders and variables."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from launch.errors import RefusedError
from launch.plan import Plan
from launch.variables import Environment

DATA, RESULTS, MODEL = "/data", "/results", "/model"
WORKDIR = "/workspace/gptoss20b"
# Variables of run_and_time.sh that are no settings of the run.
_OF_A_RUN = (
    *("ALLOW_UNKNOWN", "BINDCMD", "CHECK_COMPLIANCE", "CLEAR_CACHES", "HOST_VARIABLES", "MASTER_ADDR", "MASTER_PORT"),
    *("NEXP", "NODE_RANK", "NVIDIA_VISIBLE_DEVICES", "TZ"),
)
# Families of the libraries that a run uses, and of the log's submission fields.
_FAMILIES = (
    *("NCCL_", "RCCL_", "GLOO_", "FI_", "UCX_", "CUDA_", "CUBLAS_", "CUDNN_", "NVTE_", "HIP_", "ROCM_", "ROCR_"),
    *("HSA_", "GPU_", "TORCH", "PYTORCH_", "TRITON_", "OMP_", "MLPERF_SUBMISSION_", "MLLOG_"),
)
# Where and in which version the host has these libraries. The image has its own.
_OF_THE_HOST = re.compile(r".*_(HOME|PATH|ROOT|VERSION|(?<!_CACHE_)DIR)")
# The image sets the first, and run_and_time.sh the second.
_OF_THE_IMAGE = ("GIT_COMMIT", "CACHE_CLEARED")


def known_variables(environment: Environment, settings: Iterable[str] = ()) -> frozenset[str]:
    """Return the names that a container gets beside the families: settings as the image lists them, and exports."""
    return frozenset({*settings, *_OF_A_RUN, *exports_of_configuration(environment)})


def forwarded_variables(environment: Environment, known: frozenset[str]) -> list[str]:
    """Return the names of the variables that a container gets: of the known ones and the families, those set."""
    return sorted(
        name
        for name, value in environment.items()
        if value
        and name not in _OF_THE_IMAGE
        and (name in known or (name.startswith(_FAMILIES) and not _OF_THE_HOST.fullmatch(name)))
    )


def exports_of_configuration(environment: Environment) -> set[str]:
    """Return the names that the sourced configuration exports, which may be more than settings of the run."""
    file = Path(f"config_{environment['DGXSYSTEM']}.sh").resolve()
    done = subprocess.run(
        ["bash", "--norc", "-c", 'source "$1" > /dev/null && env -0', "bash", str(file)],
        env={"PATH": environment.get("PATH", os.defpath)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    names = {line.split("=", 1)[0] for line in done.stdout.split("\0") if line}
    return names - {"CONFIG_DIR", "PATH", "PWD", "OLDPWD", "SHLVL", "_"}


def mounts(environment: Environment, plan: Plan) -> list[str]:
    """Return the mounts of a trial as HOST:CONTAINER[:ro]: data, results, model, and EXTRA_MOUNTS."""
    folders = [("DATADIR", plan.data, DATA, ":ro"), ("LOGDIR", str(plan.files.folder), RESULTS, "")]
    if plan.model:
        folders.append(("MODELDIR", plan.model, MODEL, ":ro"))
    for name, host, _, _ in folders:
        if re.search("[:,]", host):
            raise RefusedError(
                f"{name}: got '{host}', which cannot be mounted into a container. Use a path without ':' and ','"
            )
    return [f"{host}:{inside}{mode}" for _, host, inside, mode in folders] + _extra_mounts(environment)


def _extra_mounts(environment: Environment) -> list[str]:
    given = [mount for mount in environment.get("EXTRA_MOUNTS", "").split(",") if mount]
    taken = {DATA, RESULTS, MODEL, WORKDIR}
    for mount in given:
        matched = re.fullmatch(r"(/[^:]*):(/[^:]*?)/*(:r[ow])?", mount)
        if matched is None or not Path(matched[1]).exists() or matched[2] in ("", *taken):
            raise RefusedError(
                f"EXTRA_MOUNTS: got '{mount}', expected HOST:CONTAINER or HOST:CONTAINER:ro with absolute paths, of "
                f"which HOST exists and CONTAINER is none of {', '.join(sorted(taken))}. Separate mounts by ','"
            )
        taken.add(matched[2])
    return given
