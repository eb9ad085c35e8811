"""Build and load guard.cpp, once per process; the library is cached for this torch and this source."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("guard.cpp")


class ProofError(RuntimeError):
    """The GPU code cannot be run on this machine: the message says what is missing."""


@functools.cache
def load_guard() -> None:
    """Install the stand-ins of guard.cpp in this process.

    Raises:
        ProofError: there is no C++ compiler, or this torch is a ROCm build.
    """
    if torch.version.hip:
        raise ProofError("torch: got a ROCm build, expected one for CPUs or CUDA. Install torch==2.13.0 from PyPI")
    compiler = shutil.which("g++")
    if compiler is None:
        raise ProofError("g++: not found. Install a C++ compiler, e.g. apt-get install g++")
    ctypes.CDLL(str(_build(compiler)))


def _build(compiler: str) -> Path:
    key = hashlib.sha256(f"{torch.__version__} {_SOURCE.read_text()}".encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptoss20b"
    library = cache / f"guard-{key}.so"
    if library.exists():
        return library
    root = Path(torch.__file__).parent
    include = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder, library.name)
        command = [compiler, "-O1", "-shared", "-fPIC", "-std=c++20", *include, str(_SOURCE), "-o", str(made)]
        command += [f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ProofError(
                f"{_SOURCE.name}: does not compile against torch {torch.__version__}: {done.stderr[-2000:]}"
            )
        made.rename(library)
    return library
