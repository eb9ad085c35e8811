"""Result folder, link to the newest result, config.json and its commit."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path

import pytest

from gptoss20b import run_metadata
from gptoss20b.config import Config, resolve
from gptoss20b.run_metadata import (
    build_metadata,
    create_result_directory,
    distrusted_repository,
    git_commit,
    update_latest_link,
    versions,
    write_metadata,
)
from gptoss20b.tools.doctor.finding import Verdict
from gptoss20b.tools.doctor.software import check_commit
from tests.support.findings import assert_finding


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_settings: None) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the project's repository by one with a single commit."""
    root = tmp_path / "repository"
    root.mkdir()
    for name in list(os.environ):
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    (root / "file").write_text("one")
    git(root, "init", "--quiet")
    git(root, "add", "file")
    git(root, "commit", "--quiet", "-m", "one")
    monkeypatch.setattr(run_metadata, "_ROOT", root)
    return root


def git(root: Path, *arguments: str) -> str:
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(root), *who, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def create_and_link(options: dict[str, str]) -> Path:
    """Create a result folder and link `latest` to it, as a run does."""
    directory = create_result_directory(resolve(options))
    update_latest_link(directory)
    return directory


def test_the_default_is_a_new_folder_under_results(tmp_path: Path) -> None:
    directory = create_and_link({"DGXSYSTEM": "box"})
    assert re.fullmatch(rf"results/box_\d{{8}}_\d{{6}}_{os.getpid()}", str(directory))
    assert directory.is_dir()
    assert (tmp_path / "results/latest").resolve() == directory.resolve()


def test_latest_is_a_relative_link_to_the_newest(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        assert create_and_link({"LOGDIR": f"results/{name}"}) == Path(f"results/{name}")
        assert (tmp_path / "results/latest").readlink() == Path(name)  # still right when the folder moves
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["latest", "one", "three", "two"]


def test_latest_itself_may_be_named(tmp_path: Path) -> None:
    create_and_link({"LOGDIR": "results/one"})
    assert create_and_link({"LOGDIR": "results/latest"}).resolve() == (tmp_path / "results/one").resolve()
    assert (tmp_path / "results/latest").readlink() == Path("one")


def test_a_folder_called_latest_stays_and_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results" / "latest").mkdir(parents=True)
    (tmp_path / "results" / "one").mkdir()  # an existing folder is used
    create_and_link({"LOGDIR": "results/one"})
    assert re.match("warning: results/latest .* results/one: ", capsys.readouterr().err)
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["latest", "one"]


# In a container the folder of a set is /results, and a trial's /results/trial_1.
@pytest.mark.parametrize("name", ["elsewhere/results/trial_1", "results/deeper/log"])
def test_a_folder_elsewhere_gets_no_link(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    assert create_and_link({"LOGDIR": str(directory)}) == directory
    assert list(directory.parent.iterdir()) == [directory]


def test_the_metadata_hold_the_whole_configuration(tmp_path: Path) -> None:
    config = resolve(
        {"MODEL_VARIANT": "openai", "SUBMISSION_DIVISION": "open", "TARGET_LOSS": "9", "DATADIR": "/d", "SEED": "5"}
    )
    write_metadata(tmp_path, build_metadata(config) | {"seed": 5, "total_parameters": 20_914_757_184})
    text = (tmp_path / "config.json").read_text()
    found = json.loads(text)
    keys = {"config", "derived", "differs_from_the_rules", "seed", "total_parameters", "versions", "git_commit"}
    assert found.keys() == keys
    assert Config.model_validate(found["config"]) == config
    assert found["derived"] == config.derived()
    assert found["differs_from_the_rules"] == {"TARGET_LOSS": {"got": 9.0, "rule": 3.34}}
    assert (found["seed"], found["total_parameters"]) == (5, 20_914_757_184)
    assert text.endswith("}\n")


def test_the_metadata_wait_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # They are written again after run_start, and a disk that is slow to flush must not take the run's time.
    monkeypatch.setattr("os.fsync", lambda descriptor: pytest.fail("waits for the disk"))
    write_metadata(tmp_path, {"seed": 5})
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 5}
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_later_metadata_replace_the_earlier_atomically(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    write_metadata(tmp_path, {"seed": 1})
    before = file.stat().st_ino
    write_metadata(tmp_path, {"seed": 2})
    assert (json.loads(file.read_text()), file.stat().st_ino == before) == ({"seed": 2}, False)


def test_versions_are_the_installed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = ("torch", "megatron-core", "mlperf-logging", "numpy", "pydantic")
    assert set(packages) <= versions().keys()
    monkeypatch.setattr(run_metadata, "_PACKAGES", (*packages, "no-such-package-anywhere"))
    installed = {package: importlib.metadata.version(package) for package in packages}
    assert versions() == installed | {"python": platform.python_version(), "no-such-package-anywhere": None}


def test_the_commit_of_clean_and_of_changed_code(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", head)
    assert git_commit() == head
    git(repository, "tag", "-a", "v1", "-m", "v1")
    assert git_commit() == head
    (repository / "file").write_text("two")
    assert git_commit() == f"{head}-dirty"


def test_without_git_or_a_repository_there_is_no_commit(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        patch.setattr(run_metadata, "_ROOT", tmp_path)
        assert git_commit() is None
    assert git_commit() is not None
    monkeypatch.setenv("PATH", str(repository))
    assert git_commit() is None


def test_a_repository_of_another_user_has_no_commit_and_is_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert distrusted_repository() is None
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    for path in (repository, repository / ".git"):
        os.chown(path, 12345, 12345)
    assert (git_commit(), distrusted_repository()) == (None, repository)
    assert_finding(check_commit(resolve({})), Verdict.WARN, str(repository), fix="GIT_COMMIT")
    # The advice works.
    trust = next(part for part in check_commit(resolve({})).fix.split(", or ") if part.startswith("git config"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(repository.parent / "gitconfig"))
    subprocess.run(trust.split(), check=True)
    assert git_commit() is not None


@pytest.mark.parametrize(
    ("described", "given", "recorded"), [(None, None, "unknown"), (None, "abc123", "abc123"), ("f00", "abc123", "f00")]
)
def test_git_commit_is_used_without_a_repository(
    monkeypatch: pytest.MonkeyPatch, described: str | None, given: str | None, recorded: str
) -> None:
    monkeypatch.setattr(run_metadata, "git_commit", lambda: described)
    assert build_metadata(resolve({"GIT_COMMIT": given}))["git_commit"] == recorded
