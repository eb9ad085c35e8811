"""Where values come from: options, environment variables with their aliases, presets, the launcher's variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptoss20b.config import Config, resolve, settings
from gptoss20b.config.environment import read_settings
from tests.support.config_cases import EVERY_SETTING, EVERY_TEXT, OPEN, run_cli

pytestmark = pytest.mark.usefixtures("no_settings")

# Users, launchers and other submissions' scripts rely on these names.
PROMISED = {
    *("DGXSYSTEM", "DGXNNODES", "DGXNGPU", "DATADIR", "LOGDIR", "SEED", "MODEL_VARIANT", "PRECISION", "BACKEND"),
    *("GLOBAL_BATCH_SIZE", "MICRO_BATCH_SIZE", "LEARNING_RATE", "WARMUP_STEPS"),
    *("EXPERT_PARALLEL", "TENSOR_PARALLEL", "PIPELINE_PARALLEL", "CONTEXT_PARALLEL"),
    *("SUBMISSION_ORG", "SUBMISSION_PLATFORM", "SUBMISSION_DIVISION", "SUBMISSION_STATUS"),
}


def all_values(config: Config) -> dict[str, Any]:
    return {name: setting.value_in(config) for name, setting in settings().items()}


def test_every_setting_has_its_promised_name_a_description_and_a_case_in_these_tests() -> None:
    assert set(settings()) >= PROMISED
    assert set(settings()) == set(EVERY_SETTING)
    assert all(setting.description for setting in settings().values())
    defaults = all_values(resolve())
    at_default = {name for name, (_, value) in EVERY_SETTING.items() if value == defaults[name]}
    assert at_default == {"TENSOR_PARALLEL", "AUX_LOSS_COEFF", "COMPILE", "ATTENTION_KERNEL", "INIT_FROM"}


@pytest.mark.parametrize("source", ["environment", "options"])
def test_every_setting_is_read(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    if source == "environment":
        for name, text in EVERY_TEXT.items():
            monkeypatch.setenv(name, text)
    config = resolve(EVERY_TEXT if source == "options" else {})
    assert all_values(config) == {name: value for name, (_, value) in EVERY_SETTING.items()}


@pytest.mark.parametrize(
    ("name", "in_environment", "option", "expected"),
    [
        ("SEED", "1", "2", 2),
        ("LEARNING_RATE", "1e-3", "2e-3", 2e-3),
        ("SUBMISSION_ORG", "one", "two", "two"),
        ("DATADIR", "/one", "/two", Path("/two")),
        ("CACHE_CLEARED", "1", "0", False),
        ("SUBMISSION_STATUS", "cloud", "preview", "preview"),
    ],
)
def test_an_option_overrides_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, in_environment: str, option: str, expected: object
) -> None:
    monkeypatch.setenv(name, in_environment)
    assert settings()[name].value_in(resolve({name: option})) == expected
    assert settings()[name].value_in(resolve({name: None})) != expected


def test_option_over_environment_over_preset_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"MODEL_VARIANT": "tiny", **OPEN}
    config = resolve(tiny)
    assert (config.fixed.target_loss, config.execution.precision, config.parallel.expert) == (3.05, "fp32", 2)
    assert config.fixed.sequence_length == 8192  # the official checker requires it of every log
    assert config.free.global_batch_size == 4
    monkeypatch.setenv("GLOBAL_BATCH_SIZE", "8")
    assert resolve(tiny).free.global_batch_size == 8
    assert resolve({**tiny, "GLOBAL_BATCH_SIZE": "12"}).free.global_batch_size == 12


@pytest.mark.parametrize("prefix", ["MLPERF_", "MLLOG_"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SUBMISSION_ORG", "Somebody"),
        ("SUBMISSION_PLATFORM", "Something"),
        ("SUBMISSION_DIVISION", "open"),
        ("SUBMISSION_STATUS", "cloud"),
    ],
)
def test_submission_names_have_aliases(monkeypatch: pytest.MonkeyPatch, prefix: str, name: str, text: str) -> None:
    monkeypatch.setenv(prefix + name, text)
    monkeypatch.setenv(name, "")
    assert settings()[name].value_in(resolve()) == text


def test_the_plain_name_overrides_its_aliases_and_options_override_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLOG_SUBMISSION_ORG", "third")
    monkeypatch.setenv("MLPERF_SUBMISSION_ORG", "second")
    assert resolve().submission.org == "second"
    monkeypatch.setenv("SUBMISSION_ORG", "first")
    assert resolve().submission.org == "first"
    assert resolve({"SUBMISSION_ORG": "option"}).submission.org == "option"


def test_other_names_have_no_alias_and_case_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLPERF_SEED", "MLLOG_GLOBAL_BATCH_SIZE", "seed"):
        monkeypatch.setenv(name, "5")
    assert read_settings() == {}


@pytest.mark.parametrize("name", sorted(EVERY_SETTING))
def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    expected = resolve()
    monkeypatch.setenv(name, "")
    assert resolve() == expected


def test_platform_and_configuration_file_default_to_the_system() -> None:
    submission = resolve({"DGXSYSTEM": "box"}).submission
    assert (submission.platform, submission.config_filename) == ("box", "config_box.sh")


@pytest.mark.parametrize("name", ["SUBMISSION_PLATFORM", "CONFIG_FILENAME", "DGXSYSTEM"])
def test_an_option_cannot_make_a_record_empty(name: str) -> None:
    assert resolve({name: ""}) == resolve()


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "WORLD_SIZE"])
def test_a_launcher_s_variable_that_is_no_number_is_one_clear_line(variable: str) -> None:
    done = run_cli("train", "--dgxngpu", "1", "--expert-parallel", "1", **{"MASTER_ADDR": "::1", variable: "abc"})
    assert done.returncode == 2
    assert f"{variable}: got 'abc'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("address", "reports"), [("", True), ("127.0.0.1", False)])
def test_only_rank_zero_of_a_launcher_reports_problems(address: str, reports: bool) -> None:
    launcher = {"RANK": "1"} | ({"MASTER_ADDR": address} if address else {})
    done = run_cli("train", "--global-batch-size", "x", **launcher)
    assert done.returncode == 2
    assert ("GLOBAL_BATCH_SIZE" in done.stderr) == reports
