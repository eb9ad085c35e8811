"""The command line ``python -m gptoss20b``: options, exit status, and what it does not import."""

from __future__ import annotations

import pytest

from gptoss20b.config import settings
from tests.support.config_cases import EVERY_SETTING, EVERY_TEXT, run_cli, run_python


def as_options(values: dict[str, str]) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name.lower().replace('_', '-')}", value)]


def printed_settings(text: str) -> dict[str, str]:
    return dict(line.strip().split(" = ", 1) for line in text.split("settings:\n", 1)[1].splitlines())


def test_dry_run_prints_the_resolved_configuration() -> None:
    done = run_cli("train", "--dry-run", "--global-batch-size", "32", SEED="3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].endswith(": nothing")  # no value of the closed division is overridden
    assert "  eval_interval_steps = 384\n" in done.stdout
    shown = printed_settings(done.stdout)
    assert set(shown) == set(settings())
    assert (shown["SEED"], shown["GLOBAL_BATCH_SIZE"], shown["LOGDIR"]) == ("3", "32", "(not set)")


def test_a_dry_run_prints_short_numbers() -> None:
    assert "  end_learning_rate = 0.0006\n" in run_cli("train", "--dry-run", "--learning-rate", "0.006").stdout


def test_dry_run_shows_overridden_rules_first() -> None:
    done = run_cli("train", "--dry-run", "--target-loss", "9", "--submission-division", "open")
    assert done.returncode == 0
    first, second, *_ = done.stdout.splitlines()
    assert first.endswith(": 1")
    assert second.startswith("  TARGET_LOSS = 9.0 ")
    assert "3.34" in second


def test_every_setting_is_an_option_of_the_same_name() -> None:
    with_options = run_cli("train", "--dry-run", *as_options(EVERY_TEXT))
    assert (with_options.returncode, with_options.stderr) == (0, "")
    assert with_options.stdout == run_cli("train", "--dry-run", **EVERY_TEXT).stdout
    shown = printed_settings(with_options.stdout)
    assert shown == {name: "(not set)" if value is None else str(value) for name, (_, value) in EVERY_SETTING.items()}


def test_an_invalid_configuration_exits_2_with_every_problem_on_stderr() -> None:
    for command in (["train", "--dry-run"], ["train"]):
        done = run_cli(*command, "--seed", "soon", "--target-loss", "9", GLOBAL_BATCH_SIZE="17")
        assert (done.returncode, done.stdout) == (2, "")
        first, *rest = done.stderr.splitlines()
        assert first.startswith("error: 3 problems")
        assert [line.split(":")[0] for line in rest] == ["  SEED", "  TARGET_LOSS", "  GLOBAL_BATCH_SIZE"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--dry-run", "--global-batch", "3"], "--global-batch"),
        (["train", "--dry-run", "--seed"], "--seed"),
        (["train", "--dry-run", "more"], "more"),
        (["trane"], "trane"),
        (["info", "--variant", "tinny"], "tinny"),
        (["result"], "path"),
        (["result", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_wrong_usage_exits_2_without_a_traceback(arguments: list[str], named: str) -> None:
    done = run_cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr.replace("PATH", "path")
    assert "Traceback" not in done.stderr


def test_help_names_every_setting() -> None:
    assert run_cli("--help").returncode == 0
    done = run_cli("train", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name in settings():
        assert f"--{name.lower().replace('_', '-')} " in done.stdout
        assert f"[{name}]" in done.stdout


@pytest.mark.parametrize("arguments", [["train", "--dry-run"], ["train", "--help"], ["train", "--seed", "soon"]])
def test_checking_a_configuration_imports_no_framework(arguments: list[str]) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['gptoss20b', *{arguments!r}]\n"
        "try:\n"
        "    runpy.run_module('gptoss20b', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print('status', end.code)\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    *_, status, imported = run_python("-c", code).stdout.splitlines()
    assert status == f"status {2 if 'soon' in arguments else 0}"
    assert "gptoss20b" in imported.split()
    assert not {"torch", "megatron", "numpy", "transformer_engine"} & set(imported.split())


def test_info_takes_the_variant_from_the_environment_too() -> None:
    code = (
        "from unittest import mock; import gptoss20b.cli as cli\n"
        "with mock.patch.object(cli, '_load_megatron', side_effect=SystemExit(7)):\n"
        "    cli.app(['info'])\n"
    )
    done = run_python("-c", code, MODEL_VARIANT="openai")
    assert done.returncode == 7, done.stderr


def test_a_cpu_run_loads_no_compiler() -> None:
    code = "import sys, gptoss20b.cli as cli; cli._load_megatron(); import gptoss20b.train; print(*sys.modules)"
    loaded = run_python("-c", code, CUDA_VISIBLE_DEVICES="-1", HIP_VISIBLE_DEVICES="-1").stdout.split()
    assert "megatron.core.transformer" in loaded and "torch._inductor.compile_fx" not in loaded


def test_a_name_that_the_terminal_cannot_show_is_escaped() -> None:
    done = run_cli("train", "--dry-run", "--dgxsystem", "n\u0153ud", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "DGXSYSTEM = n\\u0153ud" in done.stdout
