"""Settings that differ from the sourced configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptoss20b.config.changes import describe_changes


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_settings: None) -> None:
    monkeypatch.chdir(tmp_path)


def changes(monkeypatch: pytest.MonkeyPatch, name: str, given: dict[str, str], **options: str) -> str | None:
    for variable, value in (given | {"CONFIG_FILENAME": name}).items():
        monkeypatch.setenv(variable, value)
    return describe_changes(options)


B200 = {
    "DGXSYSTEM": "B200_1x8", "SUBMISSION_DIVISION": "closed", "SUBMISSION_STATUS": "onprem",
    "MODEL_VARIANT": "reference", "PRECISION": "bf16", "BACKEND": "auto", "TENSOR_PARALLEL": "1",
    "PIPELINE_PARALLEL": "1", "CONTEXT_PARALLEL": "1", "DGXNNODES": "1", "DGXNGPU": "8", "EXPERT_PARALLEL": "8",
    "GLOBAL_BATCH_SIZE": "16", "MICRO_BATCH_SIZE": "2", "LEARNING_RATE": "4e-4", "WARMUP_STEPS": "128",
}  # fmt: skip


def test_a_configuration_as_it_is_has_no_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    per_start = {"LOGDIR": "/r", "DATADIR": "/d", "SEED": "7", "GIT_COMMIT": "f00", "CACHE_CLEARED": "1"}
    assert changes(monkeypatch, "config_B200_1x8.sh", B200 | per_start) is None
    assert changes(monkeypatch, "config_B200_1x8.sh", {"LEARNING_RATE": "0.0004"}) is None


def test_changes_name_the_values_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    given = B200 | {"LEARNING_RATE": "6e-4", "MICRO_BATCH_SIZE": ""}
    shown = changes(monkeypatch, "config_B200_1x8.sh", given, MAX_STEPS="200")
    assert shown is not None
    title, _, listed = shown.partition(": ")
    assert title.endswith("config_B200_1x8.sh")
    assert sorted(listed.split(", ")) == [
        "LEARNING_RATE 6e-4 (file: 4e-4)", "MAX_STEPS 200 (file: not set)", "MICRO_BATCH_SIZE not set (file: 2)",
    ]  # fmt: skip


def test_the_file_is_sourced_in_a_clean_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'echo noise; export MAX_STEPS=${MAX_STEPS:-10} NOTES="two\nlines"'
    (tmp_path / "config_own.sh").write_text(script)
    assert changes(monkeypatch, "config_own.sh", {"MAX_STEPS": "20"}) == (
        "changed after config_own.sh: MAX_STEPS 20 (file: 10)"
    )


@pytest.mark.parametrize("script", [None, "exit 3", "if"])
def test_without_a_file_that_can_be_sourced_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    if script:
        (tmp_path / "config_own.sh").write_text(script)
    assert changes(monkeypatch, "config_own.sh", {"MAX_STEPS": "20"}) is None
