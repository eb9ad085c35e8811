"""Misspelt settings: a variable that is close to the name of a setting, and would silently change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches

from .checks import Problem
from .environment import PREFIXES, other_variables, settings

# Variables of the launchers, which are no leaves of the configuration.
LAUNCHER_VARIABLES = (
    "NEXP", "SEED_BASE", "STOP_ON_FAILURE", "CHECK_COMPLIANCE", "CLEAR_CACHES", "CONT", "MODELDIR", "PYTHON",
    "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "EXTRA_MOUNTS", "BINDCMD", "HOST_VARIABLES",
)  # fmt: skip
# Families of other programs: their names are never ours, however close.
_FOREIGN = (
    "NCCL_", "RCCL_", "GLOO_", "UCX_", "UCC_", "FI_", "OMPI_", "PMI_", "PMIX_", "PRTE_", "SLURM_", "SBATCH_", "SPANK_",
    "CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "NVTE_", "NVSHMEM_", "HIP_", "HSA_", "ROCR_", "ROCM_", "GPU_", "AMD_",
    "TORCH", "PYTORCH_", "TRITON_", "TF_", "XLA_", "HF_", "WANDB_", "MKL_", "OMP_", "KMP_", "PIP_", "UV_",
    "CONDA_", "DOCKER_", "KUBERNETES_", "PYTHON", "PYTEST_", "XDG_", "SSH_", "LC_", "GROUP_", "ROLE_", "LOCAL_",
)  # fmt: skip
# Other programs' names that are as close to one of ours as a slip of the keyboard.
_AMBIGUOUS = {"LOG_DIR": "LOGDIR", "DATA_DIR": "DATADIR", "MODEL_DIR": "MODELDIR"}
_OTHERS = frozenset({"COMPILER", *_AMBIGUOUS})
# Ratio of equal letters. Shorter names are too close to too many words.
_CLOSE, _SHORTEST = 0.88, 6
# Below that, one letter more or less at the end is a slip; and so is a long beginning alone, such as STOP_ON_FAIL.
_SHORT, _LONG_BEGINNING = 4, 8


def find_misspelt(environment: Mapping[str, str]) -> list[Problem]:
    """Return a problem for each variable of an environment that looks like a setting and is none.

    ALLOW_UNKNOWN=1 turns the check off, for a name that belongs to another program.
    """
    advice = "Unset it, or set ALLOW_UNKNOWN=1 if it belongs to another program."
    return [
        Problem((name,), f"is not a setting; expected {meant}. {advice}")
        for name, meant in close_names(other_variables(environment), _known_names())
    ]


def find_ambiguous(environment: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable that many programs read, and that may be meant for one of ours."""
    return [
        f"{name}: is not read here. If it was meant for this run, set {meant}."
        for name, meant in _AMBIGUOUS.items()
        if name in other_variables(environment) and not environment.get(meant)
    ]


def close_names(names: Iterable[str], known: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each name that is close to a known one, without being one, and the known name that is meant.

    >>> list(close_names(["GLOBAL_BATCHSIZE", "NCCL_DEBUG", "SEED"], ["GLOBAL_BATCH_SIZE", "SEED"]))
    [('GLOBAL_BATCHSIZE', 'GLOBAL_BATCH_SIZE')]
    """
    known = frozenset(known)
    targets = {each.replace("_", ""): each for each in known}
    for name in sorted(set(names) - known - _OTHERS):
        letters = name.replace("_", "")
        if name.isupper() and not name.startswith(_FOREIGN) and (meant := _closest(letters, targets)):
            yield name, meant


def _closest(letters: str, targets: Mapping[str, str]) -> str | None:
    """Return the name that is meant: nearly the same letters, the same in another order, or without the end."""
    if len(letters) < _SHORTEST:
        same = (each for each in targets if letters in (each[:-1], each + letters[-1:]))
        return next((targets[each] for each in same if len(each) >= _SHORT), None)
    alike = (each for each in targets if sorted(each) == sorted(letters) or _is_beginning(letters, each))
    match = next(alike, None) or next(iter(get_close_matches(letters, targets, 1, _CLOSE)), None)
    return targets[match] if match and len(match) >= _SHORTEST else None


def _is_beginning(letters: str, name: str) -> bool:
    return len(letters) >= _LONG_BEGINNING and name.startswith(letters)


def _known_names() -> list[str]:
    names = [*settings(), *LAUNCHER_VARIABLES, "ALLOW_UNKNOWN"]
    return [*names, *(prefix + each for each in names if each.startswith("SUBMISSION_") for prefix in PREFIXES)]
