"""Test the Dockerfile, the files that the builder gets, and the pinned packages, as written."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.dockerfile import DockerIgnore, parse_assignments, parse_dockerfile, substitute
from tests.support.paths import ROOT, files_in_git

STEPS = parse_dockerfile((ROOT / "Dockerfile").read_text())
DOCKERIGNORE = DockerIgnore((ROOT / ".dockerignore").read_text())
PINS = (ROOT / "requirements" / "container.txt").read_text()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Torch comes from the base image, and so does NumPy, which torch was built against.
BASE_PACKAGES = {"torch", "numpy"}
# All files of these in git must reach the image.
CODE = ("gptoss20b/", "compliance/", "data_scripts/", "system_info/", "launch/", "docker/", "config_")


def values(keyword: str) -> list[str]:
    return [step.value for step in STEPS if step.keyword == keyword]


def position(keyword: str, part: str) -> int:
    """Return the index of the only instruction with this keyword whose value contains the part."""
    (index,) = [i for i, step in enumerate(STEPS) if step.keyword == keyword and part in step.value]
    return index


def assigned(keyword: str) -> dict[str, str]:
    return dict(pair for value in values(keyword) for pair in parse_assignments(value))


# --- the Dockerfile


def test_the_base_is_an_argument_with_a_pinned_default() -> None:
    assert [step.keyword for step in STEPS][:2] == ["ARG", "FROM"]
    assert values("FROM") == ["${BASE_IMAGE}"]
    name, default = STEPS[0].value.split("=", 1)
    assert name == "BASE_IMAGE"
    assert re.fullmatch(r"nvcr\.io/nvidia/pytorch:\d\d\.\d\d-py3@sha256:[0-9a-f]{64}", default)


def test_only_the_script_that_checks_hashes_installs_anything() -> None:
    for command in values("RUN"):
        assert not re.search(r"\b(pip|apt|apt-get|curl|wget|git|conda|uv)\b (?!describe)", command), command
    flags = [flag for step in STEPS for flag in step.flags]
    assert flags == ["--mount=type=cache,target=/root/.cache/pip"]
    assert "ADD" not in {step.keyword for step in STEPS}
    text = (ROOT / "docker" / "install_packages.sh").read_text()
    options = ("--no-deps", "--require-hashes", "--only-binary :all:", "--ignore-installed", "unset PIP_CONSTRAINT")
    assert [option for option in options if option not in text] == []


def test_packages_do_not_depend_on_the_commit_or_the_code() -> None:
    install = position("RUN", "install_packages.sh")
    assert install < position("ARG", "GIT_COMMIT") < position("RUN", "check_commit.sh") < position("COPY", ". .")


def test_the_commit_is_checked_and_recorded() -> None:
    given = {"GIT_COMMIT": COMMIT}
    assert "GIT_COMMIT" in values("ARG")  # no default
    assert substitute(STEPS[position("RUN", "check_commit.sh")].value, given).endswith(f'"{COMMIT}"')
    assert substitute(assigned("ENV")["GIT_COMMIT"], given) == COMMIT
    labels = assigned("LABEL")
    assert substitute(labels["org.opencontainers.image.revision"], given) == COMMIT
    assert labels["org.opencontainers.image.base.name"] == "${BASE_IMAGE}"
    # An ARG from before FROM is empty after it unless it is declared again.
    assert position("LABEL", "base.name") > max(i for i, step in enumerate(STEPS) if step.value == "BASE_IMAGE")


def test_it_runs_as_its_own_user_is_checked_as_that_user_and_needs_no_entry_in_etc_passwd() -> None:
    environment = assigned("ENV")
    added = STEPS[position("RUN", "useradd")].value
    uid = re.search(r"--uid (\d+)", added)
    assert uid is not None
    assert values("USER")[-1] == uid[1] != "0"
    assert position("USER", uid[1]) < position("RUN", "check_image.sh")
    assert f"--home-dir {environment['HOME']} " in added
    assert environment["USER"] == environment["LOGNAME"] == "gptoss20b"
    for name in ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        assert environment[name].startswith(f"{environment['HOME']}/")


def test_a_command_runs_unchanged_with_the_library_path_of_the_base(tmp_path: Path) -> None:
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
    # The command replaces the shell, so that it gets signals. Nothing else is on stdout.
    assert out == f"/compat|a  b*|{process.pid}\n"
    assert json.loads(values("CMD")[0]) == ["bash"]


# --- the files that the builder gets


def test_all_code_reaches_the_image_and_nothing_else() -> None:
    files = files_in_git()
    included = {name for name in files if not DOCKERIGNORE.ignores(name)}
    scripts = {name for name in files if re.fullmatch(r"run_\w+\.sh", name)}
    code = {name for name in files if name.startswith(CODE) and not name.startswith("launch/kubernetes/")}
    assert included == code | scripts | {"pyproject.toml", "requirements/container.txt"}


# Untracked files that may lie in a checkout.
UNWANTED = """
results/CPU_1x2/result_0.txt  results/gptoss20b/cli.py  data/sample/a.bin  data/c4.idx  .venv/bin/python  .git/config
.env  gptoss20b/.env  gptoss20b/key.pem  gptoss20b/__pycache__/cli.cpython-312.pyc  x.whl  compliance/x.whl
launch/.trials.py.swp  docker/id_rsa  data_scripts/token.json  config_secrets.json  notes.sh  model.py
tests/unit/test_scripts.py  requirements/lock.txt  compliance/render/templates/a.html  sub/run_and_time.sh
"""


def test_no_other_file_of_a_checkout_reaches_the_image(tmp_path: Path) -> None:
    wanted = ["gptoss20b/cli.py", "gptoss20b/model/deep/new.py", "run_and_time.sh"]
    for name in [*UNWANTED.split(), *wanted]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert DOCKERIGNORE.context(tmp_path) == wanted


def test_every_copied_file_is_in_the_context() -> None:
    for value in values("COPY"):
        source = value.split()[0]
        assert source == "." or ((ROOT / source).is_file() and not DOCKERIGNORE.ignores(source)), source


# --- the pinned packages


def read_pins(text: str) -> dict[str, set[tuple[str, str]]]:
    """Return the versions of each package, with their markers."""
    found: dict[str, set[tuple[str, str]]] = {}
    for line in re.sub(r"\\\n", " ", re.sub(r"#.*", "", text)).splitlines():
        if line.strip():
            pin = Requirement(line.split("--hash")[0])
            found.setdefault(canonicalize_name(pin.name), set()).add((str(pin.specifier), str(pin.marker or "")))
    return found


def test_versions_are_those_of_the_tests_and_the_cpu_run() -> None:
    expected = read_pins((ROOT / "requirements" / "cpu.txt").read_text())
    assert read_pins(PINS) == {name: versions for name, versions in expected.items() if name not in BASE_PACKAGES}


def test_every_package_has_hashes_and_no_index_is_named() -> None:
    blocks = re.split(r"\n(?=\w)", PINS.split("\n", 1)[1])
    packages = [block for block in blocks if "==" in block.splitlines()[0] and not block.startswith("#")]
    assert len(packages) == sum(map(len, read_pins(PINS).values()))
    for block in packages:
        assert re.fullmatch(r"\S+==\S+( ; [^\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\s*", block), block[:200]
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted|\.(com|org|io|net)\b", PINS)
