"""Runs that start from the weights of a folder, of this project or of Hugging Face."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptoss20b.config import ConfigError, resolve
from gptoss20b.hf.convert import from_hugging_face
from tests.support.configs import BARE
from tests.support.hf_folders import HIDDEN, SMALL, hf_tensors, write_folder
from tests.support.local_runs import records, values
from tests.support.paths import ROOT
from tests.support.ranks import NO_GPU, run_ranks

VOCABULARY = 256  # of the data of the tests


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the same random weights as `hf` and as `ours`, and with `cut`, which lacks some."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(4)
    shapes = {name: x.shape for name, x in hf_tensors().items()}
    shapes |= dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), torch.Size((VOCABULARY, HIDDEN)))
    tensors = {name: 0.05 * torch.randn(shape) for name, shape in shapes.items()}
    config = SMALL | {"vocab_size": VOCABULARY}
    write_folder(folder / "hf", tensors, config)
    from_hugging_face(folder / "hf", folder / "ours")
    cut = ("lm_head.weight", "model.layers.1.self_attn.sinks")
    write_folder(folder / "cut", {name: x for name, x in tensors.items() if name not in cut}, config)
    return folder


def start(folder: Path, logdir: Path, tiny: dict[str, str]) -> subprocess.Popen[str]:
    settings = tiny | {"MAX_STEPS": "2", "WARMUP_STEPS": "1", "LOG_INTERVAL": "1", "SEED": "3", "WARMUP_PASSES": "0"}
    settings |= {"DGXNGPU": "1", "EXPERT_PARALLEL": "1", "INIT_FROM": str(folder), "LOGDIR": str(logdir)}
    return subprocess.Popen(
        [sys.executable, "-m", "gptoss20b", "train"],
        cwd=ROOT, env=BARE | NO_GPU | {"HOME": os.environ.get("HOME", "/")} | settings,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_starts_from_either_folder_and_says_what_is_missing(
    folders: Path, tmp_path: Path, tiny: dict[str, str]
) -> None:
    tiny = {name: value for name, value in tiny.items() if name != "MODEL_VARIANT"}
    runs = {name: start(folders / name, tmp_path / name, tiny) for name in ("hf", "ours", "cut")}
    ended = {name: (run.communicate()[1], run.returncode) for name, run in runs.items()}
    assert [status for _, status in ended.values()] == [3, 3, 2], ended
    logs = {name: tmp_path / name / "result_0.txt" for name in runs}
    losses = values(logs["hf"], "train_loss")
    assert losses == values(logs["ours"], "train_loss") and len(losses) == 2
    assert values(logs["hf"], "init_from") == [str(folders / "hf")]
    last = ended["cut"][0].splitlines()[-1]
    for log, said in ((records(logs["cut"])[-1]["metadata"]["reason"], last), (last, last)):
        assert "lm_head.weight: missing" in log and "layers.1.self_attn.sinks: missing" in said


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "hf"), [("tiny", False), ("openai_tiny", True)])
def test_a_checkpoint_starts_a_run_of_any_layout(tiny: dict[str, str], tmp_path: Path, variant: str, hf: bool) -> None:
    two = tiny | {"MODEL_VARIANT": variant, "DGXNGPU": "2", "EXPERT_PARALLEL": "2"}
    variables = [two, two | {"EXPERT_PARALLEL": "1"}]
    for trained, *started in run_ranks(
        "weights_jobs.export_and_import", 2, variables=variables, place=str(tmp_path), hf=hf
    ):
        same_layout, other_layout = started[: 1 + hf], started[1 + hf :]
        assert len(other_layout) == 1 + hf
        assert all(each == trained for each in same_layout), "to the last bit"
        assert all(each["loss"] == pytest.approx(trained["loss"], rel=1e-6) for each in other_layout)


@pytest.mark.slow
def test_three_steps_are_those_of_transformers_and_plain_adamw(tiny: dict[str, str], tmp_path: Path) -> None:
    architecture = {
        **{"vocab_size": 64, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "head_dim": 16},
        **{"num_key_value_heads": 2, "num_local_experts": 8, "intermediate_size": 48, "num_experts_per_tok": 3},
        "sliding_window": 8,
    }
    two = tiny | {"WARMUP_STEPS": "0", "GLOBAL_BATCH_SIZE": "2", "DGXNGPU": "2", "LEARNING_RATE": "1e-3"}
    variables = [two | {"EXPERT_PARALLEL": size} for size in ("2", "1")]
    for layout in run_ranks(
        "weights_jobs.train_beside_transformers",
        2,
        variables=variables,
        place=str(tmp_path),
        sequence=48,
        architecture=architecture,
    )[0]:
        assert layout["weights"] < 1e-5 and layout["loss"] < 1e-5
        assert layout["smallest change"] > 1e-4


def test_the_folder_gives_the_model_and_the_closed_division_has_none(folders: Path, tmp_path: Path) -> None:
    given = {"INIT_FROM": str(folders / "hf"), "SUBMISSION_DIVISION": "open", "BACKEND": "torch"}
    given |= {"DGXNGPU": "1", "EXPERT_PARALLEL": "1"}
    models = [resolve(given | {"INIT_FROM": str(folders / name)}).model for name in ("hf", "ours")]
    assert models[0] == models[1] and (models[0].num_layers, models[0].variant) == (3, "openai")
    assert resolve(given | {"MODEL_VARIANT": "tiny"}).model == models[0], "the preset gives the rest"
    for changes, fact in (
        ({"SUBMISSION_DIVISION": "closed"}, "random weights"),
        ({"BACKEND": "transformer_engine"}, "BACKEND"),
        ({"INIT_FROM": str(tmp_path)}, "config.json: missing"),
    ):
        with pytest.raises(ConfigError, match=rf"INIT_FROM.*{fact}"):
            resolve(given | changes)
