"""Test docker/check_packages.py with fake images."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import packaging
import pytest

from tests.support.paths import ROOT


class FakeImage:
    """Folders of a base image and of the virtual environment on top of it, with small packages that a project needs."""

    def __init__(self, folder: Path) -> None:
        self.base, self.venv, self.folder = folder / "base", folder / "venv" / "lib", folder
        self.venv.mkdir(parents=True)
        (self.venv / "packaging").symlink_to(Path(packaging.__file__).parent)
        self.add_package(self.base, "numpy", "2.1.0")
        self.add_torch("None", "None")
        self.set_dependencies("torch>=2.11", "numpy>=2.0", "small>=1")
        self.add_package(self.venv, "small", "1.5", "Requires-Dist: numpy>=2.0.2\n")

    def add_package(self, place: Path, name: str, version: str, more: str = "", code: str = "") -> None:
        module = name.replace("-", "_")
        (place / module).mkdir(parents=True, exist_ok=True)
        (place / module / "__init__.py").write_text(code)
        info = place / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}")
        (info / "top_level.txt").write_text(f"{module}\n")

    def add_torch(self, cuda: str, hip: str, gpus: str = "False", version: str = "2.12.0a0+5aff.nv26.05") -> None:
        shutil.rmtree(self.base / "torch", ignore_errors=True)
        for old in self.base.glob("torch-*"):
            shutil.rmtree(old)
        code = (
            f"class version: cuda = {cuda}; hip = {hip}\nclass cuda:\n    is_available = staticmethod(lambda: {gpus})\n"
        )
        self.add_package(self.base, "torch", version, code=code)

    def set_dependencies(self, *dependencies: str) -> None:
        (self.folder / "pyproject.toml").write_text(
            f"[project]\ndependencies = []\n[project.optional-dependencies]\n"
            f"run = {json.dumps(dependencies)}\ndata = []\ncompliance = []\n"
        )

    def check(self, *lines: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "pins.txt").write_text("# a\n" + "".join(f"{line} \\\n    --hash=sha256:0\n" for line in lines))
        program = (
            f"import sys, runpy; sys.path[:0] = [{str(self.venv)!r}, {str(self.base)!r}]; "
            f"sys.prefix = {str(self.folder / 'venv')!r}; sys.argv = ['x', 'pins.txt']; "
            f"runpy.run_path({str(ROOT / 'docker' / 'check_packages.py')!r}, run_name='__main__')"
        )
        # -S hides the packages of the interpreter that runs the tests.
        return subprocess.run(
            [sys.executable, "-S", "-I", "-c", program], cwd=self.folder, capture_output=True, text=True, check=False
        )


@pytest.fixture
def image(tmp_path: Path) -> FakeImage:
    return FakeImage(tmp_path)


def assert_problem(done: subprocess.CompletedProcess[str], package: str, *facts: str) -> None:
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {package}: ")
    assert done.stderr.count("\n") == 1
    assert all(fact in done.stderr for fact in facts), done.stderr


def test_an_image_that_fits_is_listed(image: FakeImage) -> None:
    done = image.check("small==1.5", 'gone==1 ; python_version < "3"')
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "torch 2.12.0a0+5aff.nv26.05 (base)\nnumpy 2.1.0 (base)\nsmall 1.5 (pinned)\n"


@pytest.mark.parametrize(("cuda", "hip"), [("'13.2'", "None"), ("None", "'10.0'")])
def test_a_torch_for_gpus_needs_transformer_engine(image: FakeImage, cuda: str, hip: str) -> None:
    image.add_torch(cuda, hip)
    assert_problem(image.check("small==1.5"), "transformer-engine", "not installed")
    image.add_package(image.base, "transformer-engine", "2.15", code="raise OSError('no libcuda')")
    done = image.check("small==1.5")
    assert (done.returncode, done.stderr) == (0, ""), "it must not be imported without a GPU"
    assert "transformer-engine 2.15 (base)\n" in done.stdout
    image.add_torch(cuda, hip, gpus="True")
    facts = ("transformer_engine.pytorch", "OSError('no libcuda')")
    assert_problem(image.check("small==1.5"), "transformer-engine", *facts)


@pytest.mark.parametrize(
    ("pin", "package", "facts"),
    [
        ("small==1.6", "small", ("got 1.5", "==1.6")),
        ("other==2", "other", ("not installed", "==2")),
        ("theirs==3", "theirs", ("the base image's", "==3")),
        ("broken==1", "broken", ("ImportError('no such symbol')",)),
        ("picky==1", "numpy", ("got 2.1.0", "picky needs >=2.3")),
        ("lonely==1", "friend", ("not installed", "lonely needs any")),
    ],
)
def test_a_package_that_does_not_fit_is_a_problem(
    image: FakeImage, pin: str, package: str, facts: tuple[str, ...]
) -> None:
    image.add_package(image.base, "theirs", "3")
    image.add_package(image.venv, "broken", "1", code="raise ImportError('no such symbol')")
    image.add_package(image.venv, "picky", "1", "Requires-Dist: numpy>=2.3\n")
    image.add_package(image.venv, "lonely", "1", "Requires-Dist: friend\nRequires-Dist: enemy; extra == 'x'\n")
    assert_problem(image.check(*({"small==1.5", pin} if package != "small" else {pin})), package, *facts)


def test_a_torch_that_is_too_old_or_missing_or_replaced_is_a_problem(image: FakeImage) -> None:
    image.add_torch("None", "None", version="2.10.0a0")
    assert_problem(image.check("small==1.5"), "torch", "got 2.10.0a0", "pyproject.toml needs >=2.11")
    shutil.rmtree(image.base / "torch")
    assert image.check("small==1.5").stderr.startswith("error: torch: cannot import it (ModuleNotFoundError(")
    image.add_torch("None", "None")
    image.add_package(image.venv, "numpy", "2.4.6")
    assert image.check("small==1.5").stderr.startswith("error: numpy: got one in ")
