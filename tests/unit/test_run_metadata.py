"""What lies beside the log: the folder, the link to the newest, config.json and its commit."""

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
from gptoss20b.config import Config, resolve, settings
from gptoss20b.run_metadata import git_commit, build_metadata, update_latest_link, create_result_directory, versions, write_metadata


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in settings():
        for prefix in ("", "MLPERF_", "MLLOG_"):
            monkeypatch.delenv(prefix + name, raising=False)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit in place of the project's."""
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


def placed(options: dict[str, str]) -> Path:
    """A result's folder, and the link to it, as a run makes them."""
    directory = create_result_directory(resolve(options))
    update_latest_link(directory)
    return directory


def test_the_default_is_a_new_folder_under_results(tmp_path: Path) -> None:
    directory = placed({"DGXSYSTEM": "box"})
    assert re.fullmatch(rf"results/box_\d{{8}}_\d{{6}}_{os.getpid()}", str(directory))
    assert directory.is_dir()
    assert (tmp_path / "results/latest").resolve() == directory.resolve()


def test_latest_is_a_relative_link_to_the_newest(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        assert placed({"LOGDIR": f"results/{name}"}) == Path(f"results/{name}")
        assert (tmp_path / "results/latest").readlink() == Path(name)  # still right when the folder moves
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["latest", "one", "three", "two"]


def test_latest_itself_may_be_named(tmp_path: Path) -> None:
    placed({"LOGDIR": "results/one"})
    assert placed({"LOGDIR": "results/latest"}).resolve() == (tmp_path / "results/one").resolve()
    assert (tmp_path / "results/latest").readlink() == Path("one")


def test_what_is_called_latest_already_stays_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results" / "latest").mkdir(parents=True)
    placed({"LOGDIR": "results/one"})
    assert capsys.readouterr().err.startswith("warning: results/latest could not be pointed to results/one: ")
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["latest", "one"]


def test_results_of_another_place_get_no_link(tmp_path: Path) -> None:
    """As in a container, where the folder of a set is /results and a trial's /results/trial_1."""
    directory = tmp_path / "elsewhere" / "results" / "trial_1"
    placed({"LOGDIR": str(directory)})
    assert list(directory.parent.iterdir()) == [directory]


def test_a_folder_elsewhere_gets_no_link(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "er" / "log"
    assert placed({"LOGDIR": str(directory)}) == directory
    assert directory.is_dir()
    assert [path.name for path in directory.parent.iterdir()] == ["log"]


def test_a_folder_that_exists_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "note").write_text("mine")
    create_result_directory(resolve({"LOGDIR": "log"}))
    assert (tmp_path / "log" / "note").read_text() == "mine"


def test_the_record_is_the_whole_configuration_and_more(tmp_path: Path) -> None:
    config = resolve(
        {"MODEL_VARIANT": "openai", "SUBMISSION_DIVISION": "open", "TARGET_LOSS": "9", "DATADIR": "/d", "SEED": "5"}
    )
    write_metadata(tmp_path, build_metadata(config) | {"seed": 5, "total_parameters": 20_914_757_184})
    text = (tmp_path / "config.json").read_text()
    found = json.loads(text)
    assert set(found) == {
        "config",
        "derived",
        "differs_from_the_rules",
        "seed",
        "total_parameters",
        "versions",
        "git_commit",
    }
    assert Config.model_validate(found["config"]) == config
    assert found["derived"] == config.derived()
    assert found["differs_from_the_rules"] == {"TARGET_LOSS": {"got": 9.0, "rule": 3.34}}
    assert (found["seed"], found["total_parameters"]) == (5, 20_914_757_184)
    assert text.endswith("}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_later_record_replaces_the_earlier_in_one_step(tmp_path: Path) -> None:
    write_metadata(tmp_path, build_metadata(resolve()) | {"seed": 1})
    before = (tmp_path / "config.json").stat().st_ino
    write_metadata(tmp_path, build_metadata(resolve()) | {"seed": 1, "eval_tokens_sha256": "0" * 64})
    assert (tmp_path / "config.json").stat().st_ino != before
    assert json.loads((tmp_path / "config.json").read_text())["eval_tokens_sha256"] == "0" * 64
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_versions_are_the_installed_ones() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    for package in ("torch", "megatron-core", "mlperf-logging", "numpy", "pydantic", "pydantic-settings"):
        assert found[package] == importlib.metadata.version(package)


def test_a_package_that_is_missing_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_metadata, "_PACKAGES", ("no-such-package-anywhere",))
    assert versions()["no-such-package-anywhere"] is None


def test_the_commit_of_clean_code(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", head)
    assert git_commit() == head


def test_a_tag_does_not_stand_for_the_commit(repository: Path) -> None:
    git(repository, "tag", "-a", "v1", "-m", "v1")
    assert git_commit() == git(repository, "rev-parse", "HEAD")


def test_changed_code_is_called_dirty(repository: Path) -> None:
    (repository / "file").write_text("two")
    assert git_commit() == git(repository, "rev-parse", "HEAD") + "-dirty"


def test_without_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(run_metadata, "_ROOT", tmp_path)
    assert git_commit() is None


def test_without_git_there_is_no_commit(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert git_commit() is None


@pytest.mark.parametrize(("given", "recorded"), [(None, "unknown"), ("abc123", "abc123")])
def test_git_commit_stands_in_where_git_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, recorded: str
) -> None:
    monkeypatch.setattr(run_metadata, "git_commit", lambda: None)
    write_metadata(tmp_path, build_metadata(resolve({"GIT_COMMIT": given})))
    assert json.loads((tmp_path / "config.json").read_text())["git_commit"] == recorded


def test_git_is_believed_before_the_variable(repository: Path, tmp_path: Path) -> None:
    write_metadata(tmp_path, build_metadata(resolve({"GIT_COMMIT": "abc123"})))
    assert json.loads((tmp_path / "config.json").read_text())["git_commit"] == git(repository, "rev-parse", "HEAD")
