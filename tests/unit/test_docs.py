"""README and docs: generated pages are current, links lead somewhere, and commands exist with their options."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer.main

from doc_tools import pictures, reference
from gptoss20b.config import settings
from tests.support.paths import ROOT

README = ROOT / "README.md"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text().replace("\\\n", "")
    for path in [README, *(ROOT / "docs").rglob("*.md")]
}
# A command of docs/add-your-system.md writes it, which tests/unit/test_new_config.py runs.
NEW_CONFIG = "config_MYSYSTEM_1x8.sh"
GROUPS = {name: typer.main.get_command(app) for name, (app, _) in reference.TOOLS.items()}


def test_generated_pages_are_current(tmp_path: Path) -> None:
    reference.main(tmp_path)
    committed = {path.name: path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md")}
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == committed, "run `make reference`"


def test_the_page_of_settings_has_every_setting() -> None:
    """The generator walks the tree itself."""
    assert re.findall(r"^\| `(\w+)`", PAGES["docs/reference/settings.md"], re.MULTILINE) == sorted(
        settings(), key=list(settings()).index
    )


def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert (built.returncode, built.stderr) == (0, "")
    page = (tmp_path / "index.html").read_text()
    assert not re.findall(r'(?:src|href)="https?://(?!squidfunk)[^"]+\.(?:js|css|woff2)', page)


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub and mkdocs make of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


def test_links_of_the_readme_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", PAGES["README.md"])
    assert len(targets) >= 20
    for target in targets:
        path, _, anchor = target.partition("#")
        assert (ROOT / path).exists(), target
        assert not anchor or anchor in anchors(PAGES[path]), target


def test_the_readme_is_short() -> None:
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 200
    tables = re.findall(r"(?:^\|.*\n)+", PAGES["README.md"], re.MULTILINE)
    assert max(table.count("\n") for table in tables) <= 15 + 2


def commands() -> set[str]:
    found = set()
    for name, page in PAGES.items():
        if not name.startswith("docs/reference/"):
            found |= set(re.findall(r"python -m ((?:gptoss20b|compliance|data_scripts) [^`\n&|#<>;]*)", page))
    return found


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_python_command_exists_with_its_options(command: str) -> None:
    tool, name, *words = shlex.split(command)
    options = {option for each in GROUPS[tool].commands[name].params for option in [*each.opts, *each.secondary_opts]}  # type: ignore[attr-defined]
    assert {word for word in words if word.startswith("--")} <= options


def test_every_script_named_in_a_command_exists() -> None:
    for page in PAGES.values():
        for name in re.findall(r"(?:\./|source )([\w/]+\.sh)|(data_scripts/\w+\.sh)", page):
            assert (ROOT / "".join(name)).is_file() or NEW_CONFIG in name, name


def test_the_dry_run_of_each_configuration_works() -> None:
    names = {name for page in PAGES.values() for name in re.findall(r"config_\w+x\d+\.sh", page)}
    names.remove(NEW_CONFIG)
    assert len(names) == len(list(ROOT.glob("config_*x*.sh")))
    for name in sorted(names):
        command = f"source {name} && {shlex.quote(sys.executable)} -m gptoss20b train --dry-run"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr


def test_a_screenshot_ends_with_a_block() -> None:
    blocks = [0] * 5 + [1] * 20 + [0] * 5 + [1] * 40 + [0] * 5 + [1] * 40
    rows = np.array(blocks) == 1
    assert pictures.end_of_block(rows, limit=72) == 30 + 10  # within the last block
    assert pictures.end_of_block(rows, limit=80) == 75 + 10
