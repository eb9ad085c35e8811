"""The default of PyTorch's allocator of GPU memory."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from gptoss20b import cli
from gptoss20b.gpu_allocator import VARIABLES, allocator_settings, use_expandable_segments

EXPANDABLE = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize(
    ("version", "given", "expected"),
    [
        ({"cuda": "13.0", "hip": None}, {}, EXPANDABLE),
        ({"cuda": None, "hip": "7.2"}, {}, {}),
        ({"cuda": None, "hip": None}, {}, {}),
        *(({"cuda": "13.0", "hip": None}, {name: value}, {name: value}) for name in VARIABLES for value in ("a:1", "")),
    ],
)
def test_segments_expand_on_nvidia_unless_the_user_chose(
    monkeypatch: pytest.MonkeyPatch, version: dict[str, str | None], given: dict[str, str], expected: dict[str, str]
) -> None:
    set_variables(monkeypatch, version, given)
    use_expandable_segments()
    assert allocator_settings() == expected


@pytest.mark.parametrize("arguments", [["train"], ["bench", "tiny"]])
def test_commands_choose_before_packages_are_loaded(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    set_variables(monkeypatch, {"cuda": "13.0", "hip": None}, {})

    def load() -> None:
        raise InterruptedError

    monkeypatch.setattr(cli, "_load_megatron", load)
    done = CliRunner().invoke(cli.app, [*arguments, "--help"])
    assert done.exit_code == 0 and allocator_settings() == {}
    done = CliRunner().invoke(cli.app, ["bench", "--scenario", "tiny"] if arguments[0] == "bench" else arguments)
    assert isinstance(done.exception, InterruptedError), done.output
    assert allocator_settings() == EXPANDABLE


def set_variables(monkeypatch: pytest.MonkeyPatch, version: dict[str, str | None], given: dict[str, str]) -> None:
    """Pretend to be a build of torch, in an environment with only these of the allocator's variables."""
    for name, value in version.items():
        monkeypatch.setattr(torch.version, name, value)
    for name in VARIABLES:
        monkeypatch.setenv(name, given.get(name, ""))  # so that it is restored after the test
        if name not in given:
            monkeypatch.delenv(name)
