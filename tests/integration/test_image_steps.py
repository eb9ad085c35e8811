"""The image without a container engine: the Dockerfile's own steps, in folders that stand for those of the image.

A copy of this interpreter that sees torch and what torch brings, and nothing else, stands for the base image. What a
container alone can do is listed below, with the reason.
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

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.dockerfile import Ignored, assignments, instructions, sent, substitute
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

COMMIT = "0123456789abcdef0123456789abcdef01234567-dirty"
# RUN steps that need a container, by their first word.
IN_A_CONTAINER_ONLY = {"useradd": "it changes the users of the machine"}
# Folders of the image that stand elsewhere here.
MOVED = ("/opt/gptoss20b", "/workspace/gptoss20b", "/home/gptoss20b")
# A user that no line in /etc/passwd knows.
STRANGER = 12345
BASE_HAS = ("torch", "numpy", "setuptools", "pip")


@dataclass
class Built:
    """An image as far as it is folders: where they are, its environment, and what its RUN steps did."""

    root: Path
    environment: dict[str, str]
    entry: list[str]
    workdir: str = ""
    user: str = "0"
    ran: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    output: str = ""

    def run(self, command: list[str], user: int | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the image's environment has it, and as another user where this one may become one."""
        # A container that is started by root with --user has no groups of root.
        identity = {} if user is None or os.getuid() != 0 else {"user": user, "group": user, "extra_groups": []}
        return subprocess.run(
            command,
            cwd=self.workdir,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
            **identity,  # type: ignore[call-overload]
        )

    def start(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """What `docker run --user 12345:12345 IMAGE COMMAND` does."""
        return self.run([*self.entry, *command], user=STRANGER, **more)


def base_python(folder: Path) -> Path:
    """A copy of this interpreter with pip, torch and what torch brings, for every user; the folder of its python3."""
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
    for entry in entries_of(closure(BASE_HAS)):
        (packages / entry.name).symlink_to(entry)
    if torch.version.cuda or torch.version.hip:  # such a base has it, and these tests may not
        (packages / "transformer_engine-0.dist-info").mkdir()
        (packages / "transformer_engine-0.dist-info" / "METADATA").write_text("Name: transformer-engine\nVersion: 0\n")
    return folder / "bin"


def closure(names: tuple[str, ...]) -> set[str]:
    """The installed packages that the named ones need, and they themselves."""
    found: set[str] = set()
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            needs = map(Requirement, importlib.metadata.requires(name) or [])
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        waiting += [canonicalize_name(need.name) for need in needs if need.marker is None or need.marker.evaluate()]
    return found


def entries_of(names: set[str]) -> set[Path]:
    """The files and folders of packages, directly under site-packages."""
    found = set()
    for name in names:
        package = importlib.metadata.distribution(name)
        for file in package.files or ():
            if file.parts[0] not in {"..", "__pycache__"} and not file.name.endswith("-nspkg.pth"):
                found.add(Path(str(package.locate_file(file.parts[0]))))
    return found


def build(root: Path, base: dict[str, str]) -> Built:
    """Carry out the Dockerfile over a base image's environment."""
    steps = instructions(moved((ROOT / "Dockerfile").read_text(), root))
    image = Built(root, dict(base), [])
    arguments = {"GIT_COMMIT": COMMIT}
    context = sent(ROOT, Ignored((ROOT / ".dockerignore").read_text()))
    declared: dict[str, str] = {}
    for step in steps:
        known = {**declared, **image.environment}
        if step.keyword == "ARG":
            name, _, default = step.value.partition("=")
            declared[name] = arguments.get(name, default)
        elif step.keyword == "ENV":
            image.environment |= {name: substitute(value, known) for name, value in assignments(step.value)}
        elif step.keyword == "WORKDIR":
            image.workdir = substitute(step.value, known)
            Path(image.workdir).mkdir(parents=True)
        elif step.keyword == "USER":
            image.user = step.value
        elif step.keyword == "COPY":
            copy(context, *step.value.split(), Path(image.workdir))
        elif step.keyword == "RUN":
            run_step(image, step.value, declared)
        elif step.keyword == "ENTRYPOINT":
            image.entry = json.loads(step.value)
        else:
            assert step.keyword in {"FROM", "CMD", "LABEL"}, step
    return image


def moved(text: str, root: Path) -> str:
    """The same text with the folders of the image under another root."""
    for folder in MOVED:
        text = text.replace(folder, f"{root}{folder}")
    return text


def copy(context: list[str], source: str, target: str, workdir: Path) -> None:
    """COPY of one file or of the whole context."""
    names = context if source == "." else [source]
    assert set(names) <= set(context), f"{source} is not sent"
    for name in names:
        place = workdir / name if source == "." else workdir / target / Path(name).name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place)


def run_step(image: Built, command: str, arguments: dict[str, str]) -> None:
    """RUN by the shell, as the image's user."""
    if command.split(maxsplit=1)[0] in IN_A_CONTAINER_ONLY:
        image.left_out.append(command)
        return
    user = None if image.user == "0" else STRANGER
    done = image.run(["/bin/sh", "-c", command], user=user, **arguments)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    image.ran.append(command)
    image.output += done.stdout


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Not pytest's own, into which no other user can look.
    place = Path(tempfile.mkdtemp(prefix="image-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def base(folder: Path) -> dict[str, str]:
    """The environment of the base image."""
    probe = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder / "probe"), "mdurl==0.1.2"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("no package index can be reached: pip download mdurl==0.1.2 failed")
    programs = base_python(folder / "base")
    given = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    # As in NVIDIA's images: a file that holds every installation to other versions, and one that each bash reads.
    (folder / "constraint.txt").write_text("rich==1.0\nnumpy==1.0\n")
    (folder / "bashrc").write_text('[ -z "$PS1" ] || echo interactive\n')
    return given | {
        "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
        "LD_LIBRARY_PATH": str(folder / "base" / "lib"),
        "PIP_CONSTRAINT": str(folder / "constraint.txt"),
        "BASH_ENV": str(folder / "bashrc"),
        # The fake of Transformer Engine has nothing to load, which is tried where there is a GPU.
        "CUDA_VISIBLE_DEVICES": "-1",
        "HOME": str(folder / "root"),
    }


@pytest.fixture(scope="module")
def image(folder: Path, base: dict[str, str]) -> Built:
    readable = Built(folder, base, [], workdir="/").run(["python3", "-c", "import torch"], user=STRANGER)
    if readable.returncode != 0:
        pytest.skip(f"another user cannot load this torch: {readable.stderr.splitlines()[-1]}")
    before = listing(folder / "base")
    built = build(folder, base)
    assert listing(folder / "base") == before, "a step changed the base"
    return built


def listing(place: Path) -> list[tuple[str, int, int]]:
    # Python keeps its compiled modules where it may; that is no change.
    files = [
        path for path in place.rglob("*") if "__pycache__" not in path.parts and (path.is_symlink() or path.is_file())
    ]
    return sorted((str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in files)


def test_every_run_step_is_run_or_needs_a_container(image: Built) -> None:
    steps = [step.value for step in instructions(moved((ROOT / "Dockerfile").read_text(), image.root))]
    text = (ROOT / "Dockerfile").read_text()
    assert len(image.ran) + len(image.left_out) == len(re.findall(r"^RUN ", text, re.MULTILINE))
    assert set(image.ran) | set(image.left_out) <= set(steps)
    assert [command.split()[0] for command in image.left_out] == list(IN_A_CONTAINER_ONLY)
    assert [Path(command.split()[0]).name for command in image.ran] == [
        *["install_packages.sh", "check_commit.sh", "open_to_all.sh", "check_image.sh"]
    ]


def test_the_packages_are_the_pinned_ones_over_the_base_s_torch(image: Built) -> None:
    versions = dict(re.findall(r"^(\S+) (\S+) \((?:base|pinned)\)$", image.output, re.MULTILINE))
    assert f"torch {importlib.metadata.version('torch')} (base)\n" in image.output
    assert f"numpy {importlib.metadata.version('numpy')} (base)\n" in image.output
    text = (ROOT / "requirements" / "container.txt").read_text()
    pinned = [Requirement(line.rstrip(" \\")) for line in text.splitlines() if re.match(r"\w\S*==", line)]
    for pin in pinned:
        if pin.marker is None or pin.marker.evaluate():
            assert f"{pin.name} {versions[pin.name]} (pinned)\n" in image.output
            assert versions[pin.name] in pin.specifier
    done = image.start("python3", "-c", "import pydantic, torch; print(pydantic.__file__); print(torch.__file__)")
    ours, theirs = done.stdout.splitlines()
    assert ours.startswith(f"{image.root}/opt/gptoss20b/lib/")
    assert theirs.startswith(f"{image.root}/base/lib/")


def test_a_package_whose_hash_differs_is_not_installed(folder: Path, base: dict[str, str]) -> None:
    text = (ROOT / "requirements" / "container.txt").read_text()
    block = re.search(r"^mdurl==.*\n(?:    .*\n)+", text, re.MULTILINE)
    assert block is not None
    (folder / "changed.txt").write_text(re.sub(r"sha256:\w{4}", "sha256:0000", block[0]))
    done = Built(folder, base, [], workdir="/").run(
        [str(ROOT / "docker" / "install_packages.sh"), str(folder / "other"), str(folder / "changed.txt")]
    )
    assert done.returncode != 0
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr
    assert not list((folder / "other").rglob("mdurl*"))


def test_another_user_reads_and_runs_the_code_and_changes_nothing(image: Built) -> None:
    if os.getuid() != 0:
        pytest.skip("becoming another user needs root")
    done = image.start(
        "sh", "-c", "id -u; touch gptoss20b/x 2> /dev/null || echo no; rm -f pyproject.toml 2> /dev/null || echo no"
    )
    assert done.stdout.split() == [str(STRANGER), "no", "no"]
    done = image.start("docker/check_image.sh", "requirements/container.txt", TRITON_CACHE_DIR=f"{image.root}/base")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {image.root}/base: not a folder that user {STRANGER} can write.")
    who = "import getpass, pathlib; print(getpass.getuser(), pathlib.Path.home())"
    assert image.start("python3", "-c", who).stdout == f"gptoss20b {image.root}/home/gptoss20b\n"
    assert list((image.root / "workspace" / "gptoss20b" / "gptoss20b").glob("__pycache__/cli.*.pyc"))
    assert not list((image.root / "home" / "gptoss20b").rglob("*.json")), "the check left something in the home"


@pytest.mark.parametrize(
    "command",
    [
        "source config_CPU_1x2.sh && python3 -m gptoss20b train --dry-run",
        "source config_MI355X_1x8.sh && python3 -m gptoss20b train --dry-run",
        "python3 -m compliance rules",
        "python3 -m data_scripts --help",
    ],
)
def test_the_commands_of_the_readme_run_as_another_user(image: Built, command: str) -> None:
    done = image.start("bash", "-c", command)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_two_ranks_train_as_another_user_and_stdout_is_the_log(image: Built) -> None:
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
    assert all(line.startswith(":::MLLOG {") for line in lines), "something beside the log is on stdout"
    assert any('"key": "run_stop"' in line and '"status": "success"' in line for line in lines)
    (folder,) = (image.root / "workspace" / "gptoss20b" / "results").glob("CPU_1x2_*")
    record = json.loads((folder / "config.json").read_text())
    assert record["git_commit"] == COMMIT
    assert record["versions"]["torch"] == importlib.metadata.version("torch")
