"""Weights from GptOssForCausalLM's folders to ours and back: bits, arrangement, faults, interruptions, memory."""

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
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from gptoss20b.cli import app
from gptoss20b.hf import folder as folder_module
from gptoss20b.hf.convert import from_hugging_face, to_hugging_face
from gptoss20b.hf.errors import ConversionError
from gptoss20b.hf.mxfp4 import dequantize
from tests.support.hf_folders import (
    EXPERTS,
    FFN,
    GROUPS,
    HEAD_DIM,
    HEADS,
    LAYERS,
    SMALL,
    bits,
    read,
    same_bits,
    their_tensors,
    write,
)
from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def problems(convert: Callable[[Path, Path], None], source: Path, target: Path) -> tuple[str, ...]:
    with pytest.raises(ConversionError) as caught:
        convert(source, target)
    return caught.value.problems


# --- what is converted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("files", [1, 3])
def test_there_and_back_is_bit_exact(dtype: torch.dtype, files: int, tmp_path: Path) -> None:
    there = write(tmp_path / "there", their_tensors(dtype), files=files)
    from_hugging_face(tmp_path / "there", tmp_path / "ours")
    to_hugging_face(tmp_path / "ours", tmp_path / "back")
    assert same_bits(read(tmp_path / "back"), there)
    # The way back from the way back, so that the exported config.json is read too.
    from_hugging_face(tmp_path / "back", tmp_path / "again")
    assert same_bits(read(tmp_path / "again"), read(tmp_path / "ours"))
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "ours/config.json").read_text()


def test_each_number_is_where_megatron_wants_it(tmp_path: Path) -> None:
    there = write(tmp_path / "there", their_tensors(torch.float32))
    from_hugging_face(tmp_path / "there", tmp_path / "ours")
    ours = read(tmp_path / "ours")
    per_group = HEADS // GROUPS
    for layer in range(LAYERS):
        for part in ("weight", "bias"):
            joined = ours[f"decoder.layers.{layer}.self_attention.linear_qkv.{part}"].split(HEAD_DIM)
            of = {x: there[f"model.layers.{layer}.self_attn.{x}_proj.{part}"].split(HEAD_DIM) for x in "qkv"}
            for group in range(GROUPS):
                first = group * (per_group + 2)
                for head in range(per_group):
                    assert bits(joined[first + head]) == bits(of["q"][group * per_group + head])
                assert bits(joined[first + per_group]) == bits(of["k"][group])
                assert bits(joined[first + per_group + 1]) == bits(of["v"][group])
        mine, yours = f"decoder.layers.{layer}.mlp.experts", f"model.layers.{layer}.mlp.experts"
        fc1, gate_up = ours[f"{mine}.linear_fc1.weight"], there[f"{yours}.gate_up_proj"]
        fc1_bias, gate_up_bias = ours[f"{mine}.linear_fc1.bias"], there[f"{yours}.gate_up_proj_bias"]
        for expert in range(EXPERTS):
            for number in range(FFN):
                for row, column in ((number, 2 * number), (FFN + number, 2 * number + 1)):
                    assert bits(fc1[expert, row]) == bits(gate_up[expert, :, column])
                    assert bits(fc1_bias[expert, row]) == bits(gate_up_bias[expert, column])
            down = there[f"{yours}.down_proj"][expert]
            assert bits(ours[f"{mine}.linear_fc2.weight"][expert]) == bits(down.T)


def test_mxfp4_becomes_bf16_and_goes_back_plain(tmp_path: Path) -> None:
    there = write(tmp_path / "there", their_tensors(packed=True), files=2)
    from_hugging_face(tmp_path / "there", tmp_path / "ours")
    to_hugging_face(tmp_path / "ours", tmp_path / "back")
    plain = {name: x for name, x in there.items() if x.dtype != torch.uint8}
    for name in {name.removesuffix("_blocks") for name in there if name.endswith("_blocks")}:
        plain[name] = dequantize(there[f"{name}_blocks"], there[f"{name}_scales"]).mT
    assert same_bits(read(tmp_path / "back"), plain)


def test_our_folder_has_a_file_for_each_layer_and_an_index(tmp_path: Path) -> None:
    there = write(tmp_path / "there", their_tensors())
    from_hugging_face(tmp_path / "there", tmp_path / "ours")
    files = [f"model-{number:05d}-of-00005.safetensors" for number in range(1, LAYERS + 3)]
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == sorted(
        [*files, "config.json", "model.safetensors.index.json"]
    )
    index = json.loads((tmp_path / "ours/model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(x.nbytes for x in there.values())}
    for name, file in index["weight_map"].items():
        layer = int(name.split(".")[2]) + 1 if name.startswith("decoder.layers.") else None
        assert file == files[layer if layer is not None else 0 if name.startswith("embedding.") else -1]
    section = json.loads((tmp_path / "ours/config.json").read_text())["model"]
    assert (section["variant"], section["num_layers"], section["window_left"]) == ("openai", LAYERS, 8)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# --- what is refused, before anything is written


def damage(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.1.self_attn.sinks"]
    tensors["model.layers.0.mlp.router.weight"] = torch.zeros(EXPERTS, 63)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].half()
    tensors["model.layers.2.self_attn.k_proj.bias"] = tensors["model.layers.2.self_attn.k_proj.bias"].float()
    tensors["model.layers.3.self_attn.sinks"] = torch.zeros(HEADS)
    tensors["extra"] = torch.zeros(1)


def test_every_fault_of_the_tensors_is_named_at_once(tmp_path: Path) -> None:
    tensors = their_tensors()
    damage(tensors)
    write(tmp_path / "there", tensors)
    (tmp_path / "target").mkdir()
    before = sorted(tmp_path.iterdir())
    found = problems(from_hugging_face, tmp_path / "there", tmp_path / "target")
    file = "model.safetensors"
    assert found == (
        f"model.layers.0.mlp.router.weight: got [4, 63] F32 in {file}, expected [4, 64] F32 or BF16",
        "model.layers.1.self_attn.sinks: missing, expected [6] F32 or BF16",
        f"lm_head.weight: got [40, 64] F16 in {file}, expected [40, 64] F32 or BF16",
        f"extra: unexpected, in {file}; the model has no such tensor",
        f"model.layers.3.self_attn.sinks: unexpected, in {file}; the model has no such tensor",
        "model.layers.2.self_attn.q_proj.bias, model.layers.2.self_attn.k_proj.bias, "
        "model.layers.2.self_attn.v_proj.bias: got BF16, F32, BF16, expected one dtype for all",
        f"{tmp_path / 'target'}: exists, and nothing is ever overwritten. Name another folder.",
    )
    assert sorted(tmp_path.iterdir()) == before


def test_packed_experts_with_faults(tmp_path: Path) -> None:
    tensors = their_tensors(packed=True)
    start = "model.layers.0.mlp.experts"
    del tensors[f"{start}.gate_up_proj_scales"]
    tensors[f"{start}.down_proj_blocks"] = tensors[f"{start}.down_proj_blocks"].float()
    tensors["model.layers.1.mlp.experts.down_proj"] = torch.zeros(EXPERTS, FFN, 64)  # beside the packed one
    write(tmp_path / "there", tensors)
    found = problems(from_hugging_face, tmp_path / "there", tmp_path / "ours")
    assert [text.split(": ")[0] for text in found] == [
        f"{start}.gate_up_proj_scales",
        f"{start}.down_proj_blocks",
        "model.layers.1.mlp.experts.down_proj",
    ]


def test_faults_of_our_own_folder(tmp_path: Path) -> None:
    write(tmp_path / "there", their_tensors())
    from_hugging_face(tmp_path / "there", tmp_path / "ours")
    settings = json.loads((tmp_path / "ours/config.json").read_text())
    settings["model"]["qk_norm"] = True
    (tmp_path / "ours/config.json").write_text(json.dumps(settings))
    save_file({"decoder.layers.0.mlp.router.bias": torch.zeros(3)}, tmp_path / "ours/model-00002-of-00005.safetensors")
    found = problems(to_hugging_face, tmp_path / "ours", tmp_path / "back")
    assert found[-1] == "config.json: model.qk_norm: got True, expected False as in GptOssForCausalLM"
    assert len(found) == 1 + 13  # what the layer's file held
    assert "decoder.layers.0.mlp.router.bias: got [3] F32 in model-00002-of-00005.safetensors, expected [4]" in str(
        found
    )
    assert problems(to_hugging_face, tmp_path / "there", tmp_path / "back") == (
        "config.json: model: missing; expected the model section of gptoss20b's configuration",
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def index(**places: str) -> str:
    return json.dumps({"weight_map": places})


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda there: cut(there / "model-00001.safetensors"), "model-00001.safetensors: cannot be read: "),
        (lambda there: (there / "model-00001.safetensors").write_bytes(b""), "model-00001.safetensors: cannot be read"),
        (lambda there: (there / "model-00000.safetensors").unlink(), "model-00000.safetensors: cannot be read: "),
        (lambda there: (there / "config.json").unlink(), "config.json: missing"),
        (lambda there: (there / "config.json").write_text("{"), "config.json: cannot be read: "),
        (lambda there: (there / "config.json").write_text("[]"), "config.json: got a JSON list, expected an object"),
        (
            lambda there: (there / "model.safetensors.index.json").unlink(),
            "model.safetensors.index.json: missing (and no model.safetensors)",
        ),
        (
            lambda there: (there / "model.safetensors.index.json").write_text(index(a="../x.safetensors")),
            "model.safetensors.index.json: names '../x.safetensors', expected a file in its own folder",
        ),
        (
            lambda there: save_file(read(there), there / "model-00001.safetensors"),
            "in model-00000.safetensors and in model-00001.safetensors, expected once",
        ),
    ],
)
def test_files_that_cannot_be_used(break_it: Callable[[Path], Any], expected: str, tmp_path: Path) -> None:
    write(tmp_path / "there", their_tensors(), files=2)
    break_it(tmp_path / "there")
    found = problems(from_hugging_face, tmp_path / "there", tmp_path / "ours")
    assert any(expected in problem for problem in found), found
    assert not (tmp_path / "ours").exists()


def test_a_target_without_a_parent_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = write(tmp_path / "there", their_tensors(packed=True))
    (problem,) = problems(from_hugging_face, tmp_path / "there", tmp_path / "no" / "ours")
    assert problem.endswith(f"there is no folder {tmp_path / 'no'} to create it in. Create that first.")
    plain = sum(x.nbytes for x in there.values() if x.dtype != torch.uint8)
    unpacked = sum(4 * x.nbytes for name, x in there.items() if name.endswith("_blocks"))
    needed = plain + unpacked + 2**24
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    (problem,) = problems(from_hugging_face, tmp_path / "there", tmp_path / "ours")
    assert f"got {needed - 1:,} bytes free on its disk, expected {needed:,}" in problem
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda path: usage._replace(free=needed))
    from_hugging_face(tmp_path / "there", tmp_path / "ours")
    assert sum(path.stat().st_size for path in (tmp_path / "ours").iterdir()) < needed


# --- interruptions and memory


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_is_interrupted_leaves_nothing(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "there", their_tensors())

    def fail_at_the_last_file(tensors: dict[str, Tensor], path: Path, **rest: Any) -> None:
        save_file(tensors, path, **rest)
        if path.name.startswith("model-00005"):
            raise error

    monkeypatch.setattr(folder_module, "save_file", fail_at_the_last_file)
    with pytest.raises(type(error)):
        from_hugging_face(tmp_path / "there", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def in_a_process(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
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


KILLED = """
import os, signal, sys
from pathlib import Path
from gptoss20b.hf import convert, folder
def killed(path):  # when all is written and nothing has its name yet
    os.kill(os.getpid(), signal.SIGKILL)
folder.fsync_path = killed
convert.from_hugging_face(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_what_is_killed_leaves_no_folder_of_that_name(tmp_path: Path) -> None:
    write(tmp_path / "there", their_tensors())
    done = in_a_process(KILLED, tmp_path / "there", tmp_path / "ours")
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = (path.name for path in tmp_path.iterdir() if path.name != "there")
    assert left.startswith(".ours.")
    assert left.endswith(".unfinished")
    from_hugging_face(tmp_path / "there", tmp_path / "ours")  # what is left is in nobody's way


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from gptoss20b.hf import convert, folder
torch.set_num_threads(1)
root, room = Path(sys.argv[1]), int(sys.argv[2])

def read_all(source, target):
    opened = folder.WeightsFolder(source)
    return [opened.read(name).clone() for name in opened.tensors]

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


def test_a_layer_at_a_time_is_in_memory(tmp_path: Path) -> None:
    layers, ffn = 8, 4096
    settings = SMALL | {"num_hidden_layers": layers, "intermediate_size": ffn}
    settings["layer_types"] = ["sliding_attention", "full_attention"] * 4
    write(tmp_path / "packed", their_tensors(packed=True, layers=layers, ffn=ffn), settings)
    layer_bytes = 2 * EXPERTS * 3 * 64 * ffn
    done = in_a_process(LIMITED, tmp_path, 2 * layer_bytes)
    # The last command shows that the limit bites.
    assert "in read_all" in done.stderr, done.stderr[-2000:]
    assert "allocate memory" in done.stderr, done.stderr[-2000:]
    assert same_bits(read(tmp_path / "ours"), read(tmp_path / "again"))


# --- the command


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    return result.exit_code, result.stderr


def test_the_command_converts_both_ways(tmp_path: Path) -> None:
    there = write(tmp_path / "there", their_tensors())
    assert run("--from-hf", tmp_path / "there", "--to", tmp_path / "ours") == (0, "")
    assert run("--from", tmp_path / "ours", "--to-hf", tmp_path / "back") == (0, "")
    assert same_bits(read(tmp_path / "back"), there)


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
def test_the_command_wants_one_of_two_pairs(arguments: list[str]) -> None:
    code, error = run(*arguments)
    assert code == 2
    assert "--from-hf DIR --to DIR, or --from DIR --to-hf DIR" in error


def test_the_command_names_all_problems_and_says_2(tmp_path: Path) -> None:
    tensors = their_tensors()
    damage(tensors)
    write(tmp_path / "there", tensors)
    code, error = run("--from-hf", tmp_path / "there", "--to", tmp_path / "ours")
    assert code == 2
    lines = error.splitlines()
    assert lines[0] == f"error: 6 problems in {tmp_path / 'there'}; {tmp_path / 'ours'} was not created:"
    assert len(lines) == 7


def test_the_command_says_1_when_the_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "there", their_tensors())

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(folder_module, "save_file", fail)
    code, error = run("--from-hf", tmp_path / "there", "--to", tmp_path / "ours")
    assert (code, error) == (1, "error: [Errno 5] Input/output error; the new folder has been removed\n")
