"""Execute the Dockerfile's steps without a container engine, in folders that stand for those of the image.

The base image is a copy of this interpreter that sees only torch and its dependencies. `RUN useradd` is skipped: it
would change the users of this machine.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import fake_pip
from tests.support.dockerfile import DockerIgnore, parse_assignments, parse_dockerfile, substitute
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

COMMIT = "0123456789abcdef0123456789abcdef01234567-dirty"
# Folders of the image, which are under another root here.
IMAGE_FOLDERS = ("/opt/gptoss20b", "/workspace/gptoss20b", "/home/gptoss20b")
# A user id without an entry in /etc/passwd.
UNKNOWN_USER = 12345
BASE_PACKAGES = ("torch", "numpy", "setuptools", "pip")


@dataclass
class Image:
    """A built image: its root folder, its environment, and the RUN steps that were executed."""

    root: Path
    environment: dict[str, str]
    entry: list[str] = field(default_factory=list)
    workdir: str = "/"
    user: str = "0"
    executed: list[str] = field(default_factory=list)
    output: str = ""

    def run(self, command: list[str], user: int | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the image's environment, as another user if this process is root."""
        # Like a container that root starts with --user, which has none of root's groups.
        identity: dict[str, Any] = {"user": user, "group": user, "extra_groups": []}
        return subprocess.run(
            command,
            cwd=self.workdir,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
            **identity if user is not None and os.getuid() == 0 else {},
        )

    def start(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command like `docker run --user 12345:12345 IMAGE COMMAND`."""
        return self.run([*self.entry, *command], user=UNKNOWN_USER, **more)


def make_base_python(folder: Path) -> Path:
    """Copy this interpreter, with pip and torch, so that every user can run it. Return the folder of its python3."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    origin = Path(sys.base_prefix) / "lib"
    unneeded = shutil.ignore_patterns("test", "tests", "idlelib", "site-packages", "dist-packages", "config-*")
    shutil.copytree(origin / version, folder / "lib" / version, ignore=unneeded, symlinks=True)
    for library in origin.glob("libpython3*.so*"):
        shutil.copy(library, folder / "lib", follow_symlinks=False)
    (folder / "bin").mkdir()
    shutil.copy(Path(sys.executable).resolve(), folder / "bin" / "python3")
    packages = folder / "lib" / version / "site-packages"
    packages.mkdir()
    fake_pip.link(fake_pip.with_dependencies(BASE_PACKAGES), packages)
    if torch.version.cuda or torch.version.hip:  # a base for GPUs has Transformer Engine, this machine may not
        (packages / "transformer_engine-0.dist-info").mkdir()
        (packages / "transformer_engine-0.dist-info" / "METADATA").write_text("Name: transformer-engine\nVersion: 0\n")
    return folder / "bin"


def build(root: Path, base: dict[str, str]) -> Image:
    """Execute the Dockerfile in the environment of a base image."""
    text = (ROOT / "Dockerfile").read_text()
    for folder in IMAGE_FOLDERS:
        text = text.replace(folder, f"{root}{folder}")
    image = Image(root, dict(base))
    context = DockerIgnore((ROOT / ".dockerignore").read_text()).context(ROOT)
    arguments: dict[str, str] = {}
    for step in parse_dockerfile(text):
        variables = {**arguments, **image.environment}
        if step.keyword == "ARG":
            name, _, default = step.value.partition("=")
            arguments[name] = COMMIT if name == "GIT_COMMIT" else default
        elif step.keyword == "ENV":
            pairs = parse_assignments(step.value)
            image.environment |= {name: substitute(value, variables) for name, value in pairs}
        elif step.keyword == "WORKDIR":
            image.workdir = substitute(step.value, variables)
            Path(image.workdir).mkdir(parents=True)
        elif step.keyword == "USER":
            image.user = step.value
        elif step.keyword == "COPY":
            source, target = step.value.split()
            copy_files(context, source, Path(image.workdir, target))
        elif step.keyword == "RUN":
            execute_run(image, step.value, arguments)
        elif step.keyword == "ENTRYPOINT":
            image.entry = json.loads(step.value)
        else:
            assert step.keyword in {"FROM", "CMD", "LABEL"}, step
    return image


def copy_files(context: list[str], source: str, folder: Path) -> None:
    """Execute COPY of one file or of the whole context."""
    names = context if source == "." else [source]
    assert set(names) <= set(context), f"{source} is not in the context"
    for name in names:
        path = folder / (name if source == "." else Path(name).name)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, path)


def execute_run(image: Image, command: str, arguments: dict[str, str]) -> None:
    """Execute RUN with the shell, as the image's user."""
    if command.startswith("useradd "):
        return
    user = None if image.user == "0" else UNKNOWN_USER
    done = image.run(["/bin/sh", "-c", command], user=user, **arguments)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    image.executed.append(command)
    image.output += done.stdout


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Not in pytest's folder, which other users cannot enter.
    path = Path(tempfile.mkdtemp(prefix="image-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def base(folder: Path) -> dict[str, str]:
    """Make a base image, and return its environment."""
    probe = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder / "probe"), "mdurl==0.1.2"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("no package index: pip download mdurl==0.1.2 failed")
    programs = make_base_python(folder / "base")
    # Like NVIDIA's images: constraints that force other versions, and a file that every bash reads.
    (folder / "constraint.txt").write_text("rich==1.0\nnumpy==1.0\n")
    (folder / "bashrc").write_text('[ -z "$PS1" ] || echo interactive\n')
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_")} | {
        "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
        "LD_LIBRARY_PATH": str(folder / "base" / "lib"),
        "PIP_CONSTRAINT": str(folder / "constraint.txt"),
        "BASH_ENV": str(folder / "bashrc"),
        # With a GPU, check_packages.py would import the fake Transformer Engine, which has no module.
        "CUDA_VISIBLE_DEVICES": "-1",
        "HOME": str(folder / "root"),
    }


@pytest.fixture(scope="module")
def image(folder: Path, base: dict[str, str]) -> Image:
    readable = Image(folder, base).run(["python3", "-c", "import torch"], user=UNKNOWN_USER)
    if readable.returncode != 0:
        pytest.skip(f"another user cannot import this torch: {readable.stderr.splitlines()[-1]}")
    before = list_files(folder / "base")
    built = build(folder, base)
    assert list_files(folder / "base") == before, "a step changed the base"
    return built


def list_files(folder: Path) -> list[tuple[str, int, int]]:
    """Return path, size and time of all files, without the modules that Python compiles."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    stats = [(str(path), path.lstat()) for path in paths if "__pycache__" not in path.parts]
    return sorted((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)


def test_every_run_step_but_one_is_executed(image: Image) -> None:
    assert [Path(command.split()[0]).name for command in image.executed] == [
        *["install_packages.sh", "check_commit.sh", "open_to_all.sh", "check_image.sh"]
    ]
    steps = parse_dockerfile((ROOT / "Dockerfile").read_text())
    assert [step.keyword for step in steps].count("RUN") == 1 + len(image.executed)


def test_the_pinned_packages_are_installed_on_top_of_the_bases_torch(image: Image) -> None:
    for name in ("torch", "numpy"):
        assert f"{name} {importlib.metadata.version(name)} (base)\n" in image.output
    done = image.start("python3", "-c", "import pydantic, torch; print(pydantic.__file__); print(torch.__file__)")
    ours, theirs = done.stdout.splitlines()
    assert ours.startswith(f"{image.root}/opt/gptoss20b/lib/")
    assert theirs.startswith(f"{image.root}/base/lib/")


def test_a_package_with_another_hash_is_not_installed(folder: Path, base: dict[str, str]) -> None:
    text = (ROOT / "requirements" / "container.txt").read_text()
    block = re.search(r"^mdurl==.*\n(?:    .*\n)+", text, re.MULTILINE)
    assert block is not None
    (folder / "changed.txt").write_text(re.sub(r"sha256:\w{4}", "sha256:0000", block[0]))
    done = Image(folder, base).run(
        [str(ROOT / "docker" / "install_packages.sh"), str(folder / "other"), str(folder / "changed.txt")]
    )
    assert done.returncode != 0
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr
    assert not list((folder / "other").rglob("mdurl*"))


def test_another_user_can_run_the_code_but_not_change_it(image: Image) -> None:
    if os.getuid() != 0:
        pytest.skip("running as another user needs root")
    done = image.start(
        "sh", "-c", "id -u; touch gptoss20b/x 2> /dev/null || echo no; rm -f pyproject.toml 2> /dev/null || echo no"
    )
    assert done.stdout.split() == [str(UNKNOWN_USER), "no", "no"]
    who = "import getpass, pathlib; print(getpass.getuser(), pathlib.Path.home())"
    assert image.start("python3", "-c", who).stdout == f"gptoss20b {image.root}/home/gptoss20b\n"
    assert list((image.root / "workspace" / "gptoss20b" / "gptoss20b").glob("__pycache__/cli.*.pyc"))
    assert not list((image.root / "home" / "gptoss20b").rglob("*.json")), "the check wrote to the home"


def test_two_ranks_train_as_another_user_and_only_the_log_is_on_stdout(image: Image) -> None:
    made = image.start("python3", "-m", "data_scripts", "sample", "data/sample")
    assert made.returncode == 0, made.stderr
    short = (
        "SEQUENCE_LENGTH=64 MICRO_BATCH_SIZE=1 GLOBAL_BATCH_SIZE=4 EVAL_SAMPLES=4 EVAL_INTERVAL_SAMPLES=8 TARGET_LOSS=9"
    )
    done = image.start(
        "bash", "-c", f"source config_CPU_1x2.sh && exec env {short} CHECK_COMPLIANCE=0 ./run_and_time.sh"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines
    assert all(line.startswith(":::MLLOG {") for line in lines), "there is other output on stdout"
    assert any('"key": "run_stop"' in line and '"status": "success"' in line for line in lines)
    (folder,) = (image.root / "workspace" / "gptoss20b" / "results").glob("CPU_1x2_*")
    record = json.loads((folder / "config.json").read_text())
    assert record["git_commit"] == COMMIT
    assert record["versions"]["torch"] == importlib.metadata.version("torch")
