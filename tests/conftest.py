"""Fixtures and settings for all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.config_cases import without_settings

# A shell's background jobs ignore Ctrl-C, and so would what they start: tests send it, to themselves and to others.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Other tests run beside each, on a machine that may be busy: no example is wrong because it took long.
settings.register_profile("shared machine", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=10)  # of `make check`
settings.load_profile("shared machine")

# Files test_<name>.py by folder whose tests start programs or take seconds: `make check` leaves them out.
SLOW_FILES = {
    "compliance": (
        "calibration cli compare figures fuzz machine_fields made_logs official report_file review telemetry_report "
        "text"
    ),
    "data_scripts": (
        "bad_lines download download_faults download_resume make_sample_data preprocess preprocess_resume "
        "tokenizer verify verify_damage verify_fuzz"
    ),
    "launch": "containers end_to_end one_run trials",
    "unit": (
        "callbacks_console check_packages cli configs docs doctor_checks flatness flex hf_convert launch "
        "mlperf_log size stopping telemetry_sampler tuning_guide"
    ),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files."""
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW_FILES.get(item.path.parent.name, "").split():
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace PATH by one empty folder, which the test fills. There is no driver of a GPU, either."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for library in ("nvidia.read_nvml", "amd.read_amdsmi"):
        monkeypatch.setattr(f"system_info.{library}", lambda limit_s=None: None)
    return folder


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove every setting from the environment."""
    for name in set(os.environ) - set(without_settings(dict(os.environ))):
        monkeypatch.delenv(name)
