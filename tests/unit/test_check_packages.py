"""The check of an image's packages, in made-up images."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT


class MadeImage:
    """Folders of a base image and of the virtual environment over it, with small packages that a project needs."""

    def __init__(self, folder: Path) -> None:
        self.base, self.ours, self.folder = folder / "base", folder / "venv" / "lib", folder
        version = Path(importlib.util.find_spec("packaging").origin).parent  # type: ignore[union-attr,arg-type]
        self.ours.mkdir(parents=True)
        (self.ours / "packaging").symlink_to(version)
        self.package(self.base, "numpy", "2.1.0")
        self.torch("None", "None")
        self.project("torch>=2.11", "numpy>=2.0", "small>=1")
        self.package(self.ours, "small", "1.5", "Requires-Dist: numpy>=2.0.2\n")

    def package(self, place: Path, name: str, version: str, more: str = "", code: str = "") -> None:
        module = name.replace("-", "_")
        (place / module).mkdir(parents=True, exist_ok=True)
        (place / module / "__init__.py").write_text(code)
        info = place / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}")
        (info / "top_level.txt").write_text(f"{module}\n")

    def torch(self, cuda: str, hip: str, gpus: str = "False", version: str = "2.12.0a0+5aff.nv26.05") -> None:
        shutil.rmtree(self.base / "torch", ignore_errors=True)
        for old in self.base.glob("torch-*"):
            shutil.rmtree(old)
        code = (
            f"class version: cuda = {cuda}; hip = {hip}\nclass cuda:\n    is_available = staticmethod(lambda: {gpus})\n"
        )
        self.package(self.base, "torch", version, code=code)

    def project(self, *needs: str) -> None:
        (self.folder / "pyproject.toml").write_text(f"[project]\ndependencies = {json.dumps(needs)}\n")

    def check(self, *lines: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "pins.txt").write_text("# a\n" + "".join(f"{line} \\\n    --hash=sha256:0\n" for line in lines))
        program = (
            f"import sys, runpy; sys.path[:0] = [{str(self.ours)!r}, {str(self.base)!r}]; "
            f"sys.prefix = {str(self.folder / 'venv')!r}; sys.argv = ['x', 'pins.txt']; "
            f"runpy.run_path({str(ROOT / 'docker' / 'check_packages.py')!r}, run_name='__main__')"
        )
        # Without site: nothing of the interpreter that runs the tests is seen.
        return subprocess.run(
            [sys.executable, "-S", "-I", "-c", program], cwd=self.folder, capture_output=True, text=True, check=False
        )


@pytest.fixture
def image(tmp_path: Path) -> MadeImage:
    return MadeImage(tmp_path)


def test_an_image_that_fits_is_listed(image: MadeImage) -> None:
    done = image.check("small==1.5", 'gone==1 ; python_version < "3"')
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "torch 2.12.0a0+5aff.nv26.05 (base)\nnumpy 2.1.0 (base)\nsmall 1.5 (pinned)\n"


@pytest.mark.parametrize(("cuda", "hip"), [("'13.2'", "None"), ("None", "'10.0'")])
def test_a_torch_for_gpus_asks_for_transformer_engine(image: MadeImage, cuda: str, hip: str) -> None:
    image.torch(cuda, hip)
    done = image.check("small==1.5")
    assert done.returncode == 2
    assert done.stderr.startswith("error: transformer-engine: not installed, expected with a torch for GPUs")
    image.package(image.base, "transformer-engine", "2.15", code="raise OSError('no libcuda')")
    done = image.check("small==1.5")
    assert (done.returncode, done.stderr) == (0, ""), "it is not loaded where there is no GPU"
    assert "transformer-engine 2.15 (base)\n" in done.stdout
    image.torch(cuda, hip, gpus="True")
    done = image.check("small==1.5")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: transformer-engine: transformer_engine.pytorch does not load (OSError('no libcuda'))"
    )


@pytest.mark.parametrize(
    ("pin", "message"),
    [
        ("small==1.6", "small: got 1.5, expected ==1.6 in "),
        ("other==2", "other: not installed, expected ==2 in "),
        ("theirs==3", "theirs: got the base image's, expected ==3 in "),
        ("broken==1", "broken: broken does not load (ImportError('no such symbol')), expected it to."),
        ("picky==1", "numpy: got 2.1.0, picky needs >=2.3."),
        ("lonely==1", "friend: not installed, lonely needs any."),
    ],
)
def test_a_package_that_does_not_fit(image: MadeImage, pin: str, message: str) -> None:
    image.package(image.base, "theirs", "3")
    image.package(image.ours, "broken", "1", code="raise ImportError('no such symbol')")
    image.package(image.ours, "picky", "1", "Requires-Dist: numpy>=2.3\n")
    image.package(image.ours, "lonely", "1", "Requires-Dist: friend\nRequires-Dist: enemy; extra == 'x'\n")
    done = image.check("small==1.5", pin) if not pin.startswith("small") else image.check(pin)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_a_torch_that_is_too_old_or_missing_or_replaced(image: MadeImage) -> None:
    image.torch("None", "None", version="2.10.0a0")
    assert image.check("small==1.5").stderr.startswith("error: torch: got 2.10.0a0, pyproject.toml needs >=2.11.")
    shutil.rmtree(image.base / "torch")
    assert image.check("small==1.5").stderr.startswith("error: torch: does not load (ModuleNotFoundError(")
    image.torch("None", "None")
    image.package(image.ours, "numpy", "2.4.6")
    assert image.check("small==1.5").stderr.startswith("error: numpy: got one in ")
