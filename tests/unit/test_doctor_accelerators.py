"""What the doctor says of GPUs: outputs of the vendors' tools in their form, and devices as torch would list them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gptoss20b.config import resolve
from gptoss20b.memory import activation_bytes
from gptoss20b.tools.doctor.accelerators import Device, judge_devices, judge_memory, judge_tool, visible_devices
from gptoss20b.tools.doctor.finding import Finding, Verdict
from gptoss20b.tools.doctor.vendor_tools import ToolReport, ask_vendor_tool
from tests.support.made_machines import amd_smi, made_tool, rocm_smi
from tests.support.paths import ROOT

GIB = 2**30
B200 = Device("NVIDIA B200", 180 * GIB, 178 * GIB)
NAMES = ["GPU driver", "GPU processes", "GPU health"]


def nvidia_xml(count: int = 2, **of_last: str) -> str:
    """What `nvidia-smi -q -x` prints of the fields that are read; those of the last GPU can be changed."""
    healthy = {
        "ecc": "<sram_correctable>7</sram_correctable><dram_uncorrectable>0</dram_uncorrectable>",
        "pending": "No",
        "failure": "No",
        "action": "<gpu_recovery_action>None</gpu_recovery_action>",
        "slowdown": "<clocks_event_reason_hw_slowdown>Not Active</clocks_event_reason_hw_slowdown>",
        "processes": "",
    }
    blocks = []
    for number in range(count):
        shown = healthy | (of_last if number == count - 1 else {})
        blocks.append(
            f'<gpu id="0000000{number}:1B:00.0"><product_name>NVIDIA B200</product_name>{shown["action"]}'
            f"<ecc_errors><volatile>{shown['ecc']}</volatile>"
            "<aggregate><dram_uncorrectable>9</dram_uncorrectable></aggregate></ecc_errors>"
            f"<remapped_rows><remapped_row_pending>{shown['pending']}</remapped_row_pending>"
            f"<remapped_row_failure>{shown['failure']}</remapped_row_failure></remapped_rows>"
            f"<clocks_event_reasons>{shown['slowdown']}</clocks_event_reasons>"
            f"<processes>{shown['processes']}</processes></gpu>"
        )
    head = '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n<nvidia_smi_log>'
    return f"{head}<driver_version>570.124.06</driver_version>{''.join(blocks)}</nvidia_smi_log>"


def process(kind: str, name: str, pid: int) -> str:
    return (
        f"<process_info><pid>{pid}</pid><type>{kind}</type><process_name>{name}</process_name>"
        "<used_memory>502 MiB</used_memory></process_info>"
    )


def by_tool(tools: Path, **answers: Any) -> list[Finding]:
    for name, answer in answers.items():
        made_tool(tools, name.replace("_", "-"), answer)
    found = judge_tool(ask_vendor_tool())
    assert [finding.name for finding in found] == NAMES
    return found


def verdicts(found: Sequence[Finding]) -> list[str]:
    return [str(finding.verdict) for finding in found]


def test_healthy_nvidia_gpus(tools: Path) -> None:
    found = by_tool(tools, nvidia_smi=nvidia_xml(8))
    assert verdicts(found) == ["pass"] * 3
    assert found[0].found == "570.124.06 (nvidia-smi)"
    report = ask_vendor_tool()
    assert report is not None
    assert report.gpus == 8


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ecc": "<dram_uncorrectable>2</dram_uncorrectable>"}, "GPU 1: 2 uncorrectable memory errors"),
        (
            {
                "ecc": "<dram_uncorrectable>N/A</dram_uncorrectable>"
                "<sram_uncorrectable_parity>1</sram_uncorrectable_parity>"
            },
            "GPU 1: 1 uncorrectable memory errors",
        ),
        ({"pending": "Yes"}, "GPU 1: a row is to be remapped"),
        ({"failure": "Yes"}, "GPU 1: remapping failed"),
        ({"action": "<gpu_recovery_action>Drain and Reset</gpu_recovery_action>"}, "asks for: Drain and Reset"),
    ],
)
def test_a_broken_nvidia_gpu_fails(tools: Path, changed: dict[str, str], said: str) -> None:
    found = by_tool(tools, nvidia_smi=nvidia_xml(**changed))
    assert verdicts(found) == ["pass", "pass", "fail"]
    assert said in found[2].found
    assert "GPU 0" not in found[2].found
    assert "reset" in found[2].fix


@pytest.mark.parametrize("changed", [{"action": ""}, {"ecc": "", "pending": "N/A"}, {"slowdown": ""}])
def test_what_an_older_nvidia_smi_does_not_tell_is_no_fault(tools: Path, changed: dict[str, str]) -> None:
    assert verdicts(by_tool(tools, nvidia_smi=nvidia_xml(**changed))) == ["pass"] * 3


@pytest.mark.parametrize("family", ["event", "throttle"])
def test_a_gpu_that_slows_itself_down_is_a_warning(tools: Path, family: str) -> None:
    tag = f"clocks_{family}_reason_hw_thermal_slowdown"
    text = nvidia_xml(slowdown=f"<{tag}>Active</{tag}>").replace("clocks_event_reasons>", f"clocks_{family}_reasons>")
    found = by_tool(tools, nvidia_smi=text)
    assert verdicts(found) == ["pass", "pass", "warn"]
    assert found[2].found == "slowed down: GPU 1: hw_thermal_slowdown"


def test_others_that_compute_on_a_gpu_are_a_warning_and_a_desktop_is_none(tools: Path) -> None:
    assert verdicts(by_tool(tools, nvidia_smi=nvidia_xml(processes=process("G", "Xorg", 812)))) == ["pass"] * 3
    found = by_tool(tools, nvidia_smi=nvidia_xml(processes=process("C", "python", 4242) + process("C+G", "vlc", 5)))
    assert verdicts(found) == ["pass", "warn", "pass"]
    assert found[1].found == "GPU 1: python (4242); GPU 1: vlc (5)"


def test_many_processes_are_counted(tools: Path) -> None:
    found = by_tool(tools, nvidia_smi=nvidia_xml(processes="".join(process("C", "p", pid) for pid in range(20))))
    assert found[1].found.endswith("GPU 1: p (5); and 14 more")


def test_a_driver_that_does_not_answer_fails_with_the_tools_words(tools: Path) -> None:
    words = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    made_tool(tools, "nvidia-smi", words, status=9)
    found = judge_tool(ask_vendor_tool())
    assert verdicts(found) == ["fail", "skipped", "skipped"]
    assert found[0].found == f"nvidia-smi: {words}"
    made_tool(tools, "nvidia-smi", "Unable to determine the device handle for GPU0: Unknown Error")
    found = judge_tool(ask_vendor_tool())
    assert verdicts(found) == ["fail", "skipped", "skipped"]
    assert "XML cannot be read" in found[0].found


def amd(ecc: Any = 0, info: Any = "No running processes detected", wrapped: bool = True) -> dict[str, str]:
    metric = [{"gpu": 0, "ecc": {"total_uncorrectable_count": 0, "total_deferred_count": "N/A"}}]
    metric.append({"gpu": 1, "ecc": {"total_correctable_count": 3, "total_uncorrectable_count": ecc}})
    processes = [{"gpu": 1, "process_list": [{"process_info": info}]}]
    words = {"metric": metric, "process": processes}
    printed = {word: json.dumps({"gpu_data": rows} if wrapped else rows) for word, rows in words.items()}
    return {"static": amd_smi(count=2, wrapped=wrapped)["static"], **printed}


@pytest.mark.parametrize("wrapped", [True, False])
def test_amd_gpus(tools: Path, wrapped: bool) -> None:
    found = by_tool(tools, amd_smi=amd(wrapped=wrapped))
    assert verdicts(found) == ["pass"] * 3
    assert found[0].found == "6.14.14 (amd-smi)"
    found = by_tool(tools, amd_smi=amd(ecc=2, info={"name": "python3", "pid": 77}, wrapped=wrapped))
    assert verdicts(found) == ["pass", "warn", "fail"]
    assert found[1].found == "GPU 1: python3 (77)"
    assert found[2].found == "GPU 1: 2 uncorrectable memory errors"
    assert verdicts(by_tool(tools, amd_smi=amd(ecc="N/A", wrapped=wrapped))) == ["pass"] * 3


def test_where_amd_smi_fails_rocm_smi_tells_the_driver(tools: Path) -> None:
    made_tool(tools, "amd-smi", "AMDSMI_STATUS_NOT_INIT", status=1)
    assert by_tool(tools)[0].found == "amd-smi: AMDSMI_STATUS_NOT_INIT"
    found = by_tool(tools, rocm_smi="WARNING: AMD GPU device(s) is/are in a low-power state\n" + json.dumps(rocm_smi()))
    assert verdicts(found) == ["pass", "skipped", "skipped"]
    assert found[0].found == "6.14.14 (rocm-smi)"


@pytest.mark.parametrize("printed", ["", "[]", "{", "[" * 100_000, '{"gpu_data": 3}', "[1, 2]"])
def test_what_is_no_answer_of_amd_smi_fails(tools: Path, printed: str) -> None:
    assert verdicts(by_tool(tools, amd_smi=printed)) == ["fail", "skipped", "skipped"]


def test_without_any_tool_what_only_they_tell_is_skipped(tools: Path) -> None:
    assert verdicts(by_tool(tools)) == ["skipped"] * 3


def devices(count: int, **tool: Any) -> Finding:
    report = ToolReport("nvidia-smi", **tool) if tool else None
    return judge_devices(resolve({}), [B200] * count, report)


def test_there_is_a_gpu_for_each_rank() -> None:
    assert (devices(8).verdict, devices(8).found) == (Verdict.PASS, "8 x NVIDIA B200")
    few = devices(7, gpus=8)
    assert few.verdict is Verdict.FAIL
    assert few.found == "7 x NVIDIA B200 (nvidia-smi lists 8), expected 8 (DGXNGPU)"
    assert "CUDA_VISIBLE_DEVICES" in few.fix
    none = devices(0, gpus=8)
    assert none.found == "torch sees none (nvidia-smi lists 8), expected 8 (DGXNGPU)"
    assert "CUDA_VISIBLE_DEVICES=-1" in none.fix


def test_more_gpus_than_ranks_are_idle_and_other_models_a_warning() -> None:
    found = judge_devices(resolve({}), [B200] * 8 + [Device("NVIDIA H200", GIB, GIB)], None)
    assert (found.verdict, found.found) == (Verdict.PASS, "9, of which the run uses 8 x NVIDIA B200")
    mixed = judge_devices(resolve({}), [B200] * 7 + [Device("NVIDIA H200", GIB, GIB)], None)
    assert (mixed.verdict, mixed.found) == (Verdict.WARN, "7 x NVIDIA B200 + 1 x NVIDIA H200, expected one model")


@pytest.mark.parametrize(
    ("free", "verdict"),
    [(130, Verdict.PASS), (129.9, Verdict.WARN), (52, Verdict.WARN), (51.9, Verdict.FAIL)],
)
def test_the_fullest_gpu_holds_the_state_and_should_hold_the_activations(free: float, verdict: Verdict) -> None:
    fullest = Device("NVIDIA B200", 180 * GIB, round(free * GIB))
    found = judge_memory([B200] * 5 + [fullest, B200], 50 * GIB, 78 * GIB)
    assert found.verdict is verdict
    assert f"{free:.1f} GiB of 180.0 GiB free on GPU 5" in found.found
    assert "50.0 GiB of state, about 78.0 GiB of activations" in found.found
    assert ("end what else is on it" in found.fix) == (verdict is not Verdict.PASS)


def test_activations_are_those_of_the_tuning_guide() -> None:
    one = resolve({"MICRO_BATCH_SIZE": "1"})
    assert activation_bytes(one) == 39 * GIB
    assert activation_bytes(resolve({"MICRO_BATCH_SIZE": "2"})) == 78 * GIB
    assert activation_bytes(resolve({"MICRO_BATCH_SIZE": "1", "PRECISION": "fp32"})) == 78 * GIB
    half = {"MICRO_BATCH_SIZE": "1", "SUBMISSION_DIVISION": "open", "SEQUENCE_LENGTH": "4096", "PIPELINE_PARALLEL": "2"}
    assert activation_bytes(resolve(half | {"EXPERT_PARALLEL": "4"})) == round(39 * GIB / 4)


def activations(recompute: str, **settings: str) -> float:
    """GiB with micro batch 1."""
    return activation_bytes(resolve({"MICRO_BATCH_SIZE": "1", "RECOMPUTE": recompute, **settings})) / GIB


def test_what_is_computed_again_is_not_kept_by_the_tuning_guide_s_figures() -> None:
    guide = " ".join((ROOT / "docs/tuning.md").read_text().split())
    pattern = r"`moe_act` frees ([\d.]+) GiB .*`moe` ([\d.]+) GiB .*`layers` all but ([\d.]+) GiB and a layer's needs"
    found = re.search(pattern, guide)
    assert found is not None
    of_activation, of_experts, of_inputs = (float(figure) for figure in found.groups())
    assert activations("moe_act") == pytest.approx(39 - of_activation, abs=0.05)
    assert activations("moe") == pytest.approx(39 - of_experts, abs=0.05)
    assert activations("layers") == pytest.approx(of_inputs + 39 / 24, abs=0.05)
    for level in ("none", "moe_act", "moe", "layers"):
        assert activations(level, MICRO_BATCH_SIZE="2") == pytest.approx(2 * activations(level))
        assert activations(level, PRECISION="fp32") == pytest.approx(2 * activations(level))


def test_stages_share_the_inputs_of_layers_and_not_the_one_that_is_computed_again() -> None:
    halves = {"SUBMISSION_DIVISION": "open", "PIPELINE_PARALLEL": "2", "EXPERT_PARALLEL": "4"}
    inputs = activations("layers") - 39 / 24
    assert activations("layers", **halves) == pytest.approx(inputs / 2 + 39 / 24)
    assert activations("moe", **halves) == pytest.approx(activations("moe") / 2)


def test_experts_of_another_size_or_number_free_their_own() -> None:
    # Of each chosen expert a row, a gate, an up and an activation; eight in place of four are as much again.
    tiny = {"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open", "PRECISION": "bf16"}
    four, without = resolve(tiny), resolve(tiny | {"RECOMPUTE": "moe"})
    model, tokens = four.model, four.fixed.sequence_length * four.execution.micro_batch_size
    experts = 2 * tokens * model.num_layers * model.router_topk * (model.hidden_size + 3 * model.moe_ffn_hidden_size)
    assert activation_bytes(four) - activation_bytes(without) == pytest.approx(experts, abs=1)
    eight = four.model_copy(update={"model": model.model_copy(update={"router_topk": 8})})
    assert activation_bytes(eight) - activation_bytes(four) == pytest.approx(experts, abs=1)


def test_torch_lists_what_this_machine_has() -> None:
    import torch

    assert len(visible_devices()) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
