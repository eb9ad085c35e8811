"""Conversion between GptOssForCausalLM's folders and ours: bits, layout, faults, interruptions, memory, command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from gptoss20b.cli import app
from gptoss20b.hf.convert import ConversionError, from_hugging_face, to_hugging_face
from gptoss20b.hf.mxfp4 import dequantize
from tests.support.hf_folders import (
    EXPERTS,
    FFN,
    GROUPS,
    HEAD_DIM,
    HEADS,
    LAYERS,
    SMALL,
    equal_bits,
    hf_tensors,
    read_folder,
    to_bytes,
    write_folder,
)
from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    """Return where the folder of GptOssForCausalLM goes."""
    return tmp_path / "hf"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """Return where this project's folder goes."""
    return tmp_path / "ours"


@pytest.fixture
def back(tmp_path: Path) -> Path:
    """Return where the folder that is converted back goes."""
    return tmp_path / "back"


def run_command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    return result.exit_code, result.stderr


def convert_problems(convert: Callable[[Path, Path], None], source: Path, target: Path) -> tuple[str, ...]:
    with pytest.raises(ConversionError) as caught:
        convert(source, target)
    return caught.value.problems


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("files", [1, 3])
def test_there_and_back_is_bit_exact(
    dtype: torch.dtype, files: int, hf: Path, ours: Path, back: Path, tmp_path: Path
) -> None:
    tensors = write_folder(hf, hf_tensors(dtype), files=files)
    from_hugging_face(hf, ours)
    to_hugging_face(ours, back)
    assert equal_bits(read_folder(back), tensors)
    # Once more, so that the exported config.json is read too.
    from_hugging_face(back, tmp_path / "again")
    assert equal_bits(read_folder(tmp_path / "again"), read_folder(ours))
    assert (tmp_path / "again/config.json").read_text() == (ours / "config.json").read_text()


def test_each_number_is_where_megatron_expects_it(hf: Path, ours: Path) -> None:
    theirs = write_folder(hf, hf_tensors(torch.float32))
    from_hugging_face(hf, ours)
    converted = read_folder(ours)
    per_group = HEADS // GROUPS
    for layer in range(LAYERS):
        for part in ("weight", "bias"):
            merged = converted[f"decoder.layers.{layer}.self_attention.linear_qkv.{part}"].split(HEAD_DIM)
            proj = {x: theirs[f"model.layers.{layer}.self_attn.{x}_proj.{part}"].split(HEAD_DIM) for x in "qkv"}
            for group in range(GROUPS):
                first = group * (per_group + 2)
                for head in range(per_group):
                    assert to_bytes(merged[first + head]) == to_bytes(proj["q"][group * per_group + head])
                assert to_bytes(merged[first + per_group]) == to_bytes(proj["k"][group])
                assert to_bytes(merged[first + per_group + 1]) == to_bytes(proj["v"][group])
        name, hf_name = f"decoder.layers.{layer}.mlp.experts", f"model.layers.{layer}.mlp.experts"
        fc1, gate_up = converted[f"{name}.linear_fc1.weight"], theirs[f"{hf_name}.gate_up_proj"]
        fc1_bias, gate_up_bias = converted[f"{name}.linear_fc1.bias"], theirs[f"{hf_name}.gate_up_proj_bias"]
        for expert in range(EXPERTS):
            for number in range(FFN):
                for row, column in ((number, 2 * number), (FFN + number, 2 * number + 1)):
                    assert to_bytes(fc1[expert, row]) == to_bytes(gate_up[expert, :, column])
                    assert to_bytes(fc1_bias[expert, row]) == to_bytes(gate_up_bias[expert, column])
            down = theirs[f"{hf_name}.down_proj"][expert]
            assert to_bytes(converted[f"{name}.linear_fc2.weight"][expert]) == to_bytes(down.T)


def test_mxfp4_becomes_bf16_and_goes_back_plain(hf: Path, ours: Path, back: Path) -> None:
    tensors = write_folder(hf, hf_tensors(packed=True), files=2)
    from_hugging_face(hf, ours)
    to_hugging_face(ours, back)
    plain = {name: x for name, x in tensors.items() if x.dtype != torch.uint8}
    for name in {name.removesuffix("_blocks") for name in tensors if name.endswith("_blocks")}:
        plain[name] = dequantize(tensors[f"{name}_blocks"], tensors[f"{name}_scales"]).mT
    assert equal_bits(read_folder(back), plain)


def test_our_folder_has_a_file_for_each_layer_and_an_index(hf: Path, ours: Path, tmp_path: Path) -> None:
    tensors = write_folder(hf, hf_tensors())
    from_hugging_face(hf, ours)
    files = [f"model-{number:05d}-of-00005.safetensors" for number in range(1, LAYERS + 3)]
    assert {path.name for path in ours.iterdir()} == {*files, "config.json", "model.safetensors.index.json"}
    index = json.loads((ours / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(x.nbytes for x in tensors.values())}
    for name, file in index["weight_map"].items():
        if name.startswith("decoder.layers."):
            assert file == files[int(name.split(".")[2]) + 1]
        else:
            assert file == files[0 if name.startswith("embedding.") else -1]
    section = json.loads((ours / "config.json").read_text())["model"]
    assert (section["variant"], section["num_layers"], section["window_left"]) == ("openai", LAYERS, 8)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def damage(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    del tensors["model.layers.1.self_attn.sinks"]
    tensors["model.layers.0.mlp.router.weight"] = torch.zeros(EXPERTS, 63)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].half()
    tensors["model.layers.2.self_attn.k_proj.bias"] = tensors["model.layers.2.self_attn.k_proj.bias"].float()
    tensors["model.layers.3.self_attn.sinks"] = torch.zeros(HEADS)
    tensors["extra"] = torch.zeros(1)
    return tensors


# Facts that each message must have: the tensor, what was got, the file, what was expected.
DAMAGE = (
    ("model.layers.0.mlp.router.weight", "[4, 63] F32", "model.safetensors", "[4, 64] F32 or BF16"),
    ("model.layers.1.self_attn.sinks", "missing", "[6] F32 or BF16"),
    ("lm_head.weight", "[40, 64] F16", "model.safetensors", "[40, 64] F32 or BF16"),
    ("extra", "unexpected", "model.safetensors"),
    ("model.layers.3.self_attn.sinks", "unexpected", "model.safetensors"),
    ("model.layers.2.self_attn.q_proj.bias", "k_proj.bias", "v_proj.bias", "BF16, F32, BF16"),
)


def test_every_fault_of_the_tensors_is_named_at_once(hf: Path, ours: Path, tmp_path: Path) -> None:
    write_folder(hf, damage(hf_tensors()))
    ours.mkdir()
    before = sorted(tmp_path.iterdir())
    code, error = run_command("--from-hf", hf, "--to", ours)
    first, *problems = error.splitlines()
    assert code == 2
    assert f"{len(DAMAGE) + 1} problems" in first and str(hf) in first and str(ours) in first
    for problem, facts in zip(problems, (*DAMAGE, (str(ours), "exists")), strict=True):
        assert problem.strip().startswith(facts[0])
        assert all(fact in problem for fact in facts)
    assert sorted(tmp_path.iterdir()) == before


def test_packed_experts_with_faults(hf: Path, ours: Path) -> None:
    tensors = hf_tensors(packed=True)
    prefix = "model.layers.0.mlp.experts"
    del tensors[f"{prefix}.gate_up_proj_scales"]
    tensors[f"{prefix}.down_proj_blocks"] = tensors[f"{prefix}.down_proj_blocks"].float()
    tensors["model.layers.1.mlp.experts.down_proj"] = torch.zeros(EXPERTS, FFN, 64)  # beside the packed one
    write_folder(hf, tensors)
    assert [text.split(": ")[0] for text in convert_problems(from_hugging_face, hf, ours)] == [
        f"{prefix}.gate_up_proj_scales",
        f"{prefix}.down_proj_blocks",
        "model.layers.1.mlp.experts.down_proj",
    ]


def test_faults_of_our_own_folder(hf: Path, ours: Path, back: Path) -> None:
    write_folder(hf, hf_tensors())
    from_hugging_face(hf, ours)
    config = json.loads((ours / "config.json").read_text())
    config["model"]["router_softmax_before_topk"] = True
    (ours / "config.json").write_text(json.dumps(config))
    file = "model-00002-of-00005.safetensors"
    lost = len(load_file(ours / file)) - 1
    save_file({"decoder.layers.0.mlp.router.bias": torch.zeros(3)}, ours / file)
    problems = convert_problems(to_hugging_face, ours, back)
    assert problems[-1].startswith("config.json: model.router_softmax_before_topk: got True, expected False")
    assert sum("missing" in problem for problem in problems) == lost
    (wrong_shape,) = (problem for problem in problems if problem.startswith("decoder.layers.0.mlp.router.bias: got"))
    assert all(fact in wrong_shape for fact in ("[3] F32", file, "[4]"))
    (problem,) = convert_problems(to_hugging_face, hf, back)
    assert problem.startswith("config.json: model: missing")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda hf: truncate(hf / "model-00001.safetensors"), "model-00001.safetensors: cannot be read"),
        (lambda hf: (hf / "model-00001.safetensors").write_bytes(b""), "model-00001.safetensors: cannot be read"),
        (lambda hf: (hf / "model-00000.safetensors").unlink(), "model-00000.safetensors: cannot be read"),
        (lambda hf: (hf / "config.json").unlink(), "config.json: missing"),
        (lambda hf: (hf / "config.json").write_text("{"), "config.json: cannot be read"),
        (lambda hf: (hf / "config.json").write_text("[]"), "config.json: got a JSON list"),
        (lambda hf: (hf / "model.safetensors.index.json").unlink(), "model.safetensors.index.json: missing"),
        (
            lambda hf: (hf / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}'),
            "model.safetensors.index.json: names '../x.safetensors'",
        ),
        (
            lambda hf: save_file(read_folder(hf), hf / "model-00001.safetensors"),
            "in model-00000.safetensors and in model-00001.safetensors",
        ),
    ],
)
def test_unusable_files(break_it: Callable[[Path], Any], expected: str, hf: Path, ours: Path) -> None:
    write_folder(hf, hf_tensors(), files=2)
    break_it(hf)
    problems = convert_problems(from_hugging_face, hf, ours)
    assert any(expected in problem for problem in problems), problems
    assert not ours.exists()


def test_a_target_without_a_parent_and_a_full_disk(hf: Path, ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = write_folder(hf, hf_tensors(packed=True))
    (problem,) = convert_problems(from_hugging_face, hf, hf.parent / "no" / "ours")
    assert f"no folder {hf.parent / 'no'}" in problem
    plain = sum(x.nbytes for x in tensors.values() if x.dtype != torch.uint8)
    unpacked = sum(4 * x.nbytes for name, x in tensors.items() if name.endswith("_blocks"))
    needed = plain + unpacked + 2**24
    usage = shutil.disk_usage(hf)
    monkeypatch.setattr("gptoss20b.hf.folder.shutil.disk_usage", lambda path: usage._replace(free=needed - 1))
    (problem,) = convert_problems(from_hugging_face, hf, ours)
    assert f"got {needed - 1:,} bytes free" in problem and f"expected {needed:,}" in problem
    assert list(hf.parent.iterdir()) == [hf]
    monkeypatch.setattr("gptoss20b.hf.folder.shutil.disk_usage", lambda path: usage._replace(free=needed))
    from_hugging_face(hf, ours)
    assert sum(path.stat().st_size for path in ours.iterdir()) < needed


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), (1, "[Errno 28] No space left on device")),
        (KeyboardInterrupt(), (130, "")),
    ],
)
def test_an_interrupted_conversion_leaves_nothing(
    error: BaseException, expected: tuple[int, str], hf: Path, ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(hf, hf_tensors())

    def fail_at_the_last_file(tensors: dict[str, Tensor], path: Path, **rest: Any) -> None:
        save_file(tensors, path, **rest)
        if path.name.startswith("model-00005"):
            raise error

    monkeypatch.setattr("gptoss20b.hf.folder.save_file", fail_at_the_last_file)
    code, message = run_command("--from-hf", hf, "--to", ours)
    assert code == expected[0]
    assert expected[1] in message
    assert list(hf.parent.iterdir()) == [hf]


def run_script(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        # With a fixed threshold glibc gives large pieces of memory back at once.
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


CONVERT_AND_GET_KILLED = """
import os, signal, sys
from pathlib import Path
from gptoss20b.hf import convert, folder
def kill(path):  # when everything is written and not yet renamed
    os.kill(os.getpid(), signal.SIGKILL)
folder.fsync_path = kill
convert.from_hugging_face(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_conversion_leaves_no_folder_of_that_name(hf: Path, ours: Path) -> None:
    write_folder(hf, hf_tensors())
    done = run_script(CONVERT_AND_GET_KILLED, hf, ours)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = (path.name for path in hf.parent.iterdir() if path != hf)
    assert left.startswith(".ours.")
    assert left.endswith(".unfinished")
    from_hugging_face(hf, ours)  # the rest does not disturb


CONVERT_IN_LIMITED_MEMORY = """
import resource, sys
from pathlib import Path
import torch
from gptoss20b.hf import convert, folder
torch.set_num_threads(1)
root, room = Path(sys.argv[1]), int(sys.argv[2])

def read_all(source, target):
    opened = folder.WeightsFolder(source)
    return [opened.read(name).clone() for name in opened.tensors]

convert.from_hugging_face(root / "small", root / "loaded")  # what a first conversion imports and keeps
used = 1024 * int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0])
for command, source, target in (
    (convert.from_hugging_face, "packed", "ours"),
    (convert.to_hugging_face, "ours", "plain"),
    (convert.from_hugging_face, "plain", "again"),
    (read_all, "plain", "nothing"),
):
    # Mapped files count, though they are not read.
    mapped = sum(path.stat().st_size for path in (root / source).glob("*.safetensors"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + mapped + room, resource.RLIM_INFINITY))
    command(root / source, root / target)
"""


def test_one_layer_at_a_time_is_in_memory(tmp_path: Path) -> None:
    layers, ffn = 8, 4096
    config = SMALL | {"num_hidden_layers": layers, "intermediate_size": ffn}
    config["layer_types"] = ["sliding_attention", "full_attention"] * 4
    write_folder(tmp_path / "packed", hf_tensors(packed=True, layers=layers, ffn=ffn), config)
    write_folder(tmp_path / "small", hf_tensors())
    layer_bytes = 2 * EXPERTS * 3 * 64 * ffn
    done = run_script(CONVERT_IN_LIMITED_MEMORY, tmp_path, 3 * layer_bytes)
    # The last command shows that the limit works.
    assert "in read_all" in done.stderr, done.stderr[-2000:]
    assert "allocate memory" in done.stderr, done.stderr[-2000:]
    assert equal_bits(read_folder(tmp_path / "ours"), read_folder(tmp_path / "again"))


def test_the_command_converts_both_ways(hf: Path, ours: Path, back: Path) -> None:
    tensors = write_folder(hf, hf_tensors())
    assert run_command("--from-hf", hf, "--to", ours) == (0, "")
    assert run_command("--from", ours, "--to-hf", back) == (0, "")
    assert equal_bits(read_folder(back), tensors)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--from-hf", "a"],
        ["--from-hf", "a", "--to-hf", "b"],
        ["--from-hf", "a", "--to", "b", "--to-hf", "c"],
        ["--from", "a", "--to-hf", "b", "--to", "c"],
    ],
)
def test_the_command_takes_one_of_two_pairs(arguments: list[str]) -> None:
    code, error = run_command(*arguments)
    assert code == 2
    assert all(option in error for option in ("--from-hf", "--to", "--from", "--to-hf"))
