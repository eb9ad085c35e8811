"""Bandwidth between the ranks of a node: sizes from the layout, the formulas of nccl-tests, and warnings."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from gptoss20b.cli import app
from gptoss20b.config import resolve
from gptoss20b.hardware import SYSTEMS
from gptoss20b.tools.doctor import bandwidth, checks
from gptoss20b.tools.doctor.bandwidth import Transfer, check_bandwidth, judge_transfer, plan_transfers
from gptoss20b.tools.doctor.finding import Finding, Verdict, failed, passed
from gptoss20b.tools.doctor.node_context import NodeContext
from gptoss20b.tools.doctor.ranks import RanksRun
from tests.support.findings import assert_finding

pytestmark = pytest.mark.usefixtures("no_settings")


def planned(**options: str) -> list[tuple[str, int, int]]:
    transfers = plan_transfers(resolve(options))
    return [(transfer.collective, transfer.size, transfer.group) for transfer in transfers]


def test_the_transfers_are_those_of_the_layout() -> None:
    # Buckets of 40 million fp32 gradients; 128,256 x 2,880 of the LM head; 2 x 8,192 tokens to 4 experts in bf16.
    head = 128_256 * 2880 * 4
    dispatched = 2 * 8192 * 4 * 2880 * 2
    reduced = [("all-reduce", 160_000_000, 8), ("all-reduce", head, 8)]
    assert planned() == [*reduced, ("all-to-all", dispatched, 8)]
    assert planned(MICRO_BATCH_SIZE="1", EXPERT_PARALLEL="4") == [*reduced, ("all-to-all", dispatched // 2, 4)]
    assert planned(EXPERT_PARALLEL="1") == reduced
    # A group of two nodes fills each of them.
    two_nodes = {"DGXNNODES": "2", "EXPERT_PARALLEL": "16", "GLOBAL_BATCH_SIZE": "32"}
    assert planned(**two_nodes)[-1] == ("all-to-all", dispatched, 8)
    assert planned(DGXNGPU="1", EXPERT_PARALLEL="1") == []


@pytest.mark.parametrize(
    ("collective", "group", "factor"),
    [("all-reduce", 2, 1), ("all-reduce", 8, 1.75), ("all-to-all", 2, 0.5), ("all-to-all", 8, 0.875)],
)
def test_the_bus_bandwidth_is_that_of_nccl_tests(collective: Any, group: int, factor: float) -> None:
    transfer = Transfer(name="bucket", collective=collective, size=4_000_000_000, group=group)
    assert transfer.bus_factor == factor
    found = judge_transfer(transfer, 0.5, None)
    assert_finding(found, Verdict.PASS, "500.00 ms", " 8.00 GB/s", f"bus bandwidth {8 * factor:.2f} GB/s")


@pytest.mark.parametrize(
    ("size", "microseconds", "verdict"),
    [
        (1_800_000_000, 7_400, Verdict.PASS),  # bus bandwidth 425 GB/s of 450
        (1_800_000_000, 28_300, Verdict.PASS),
        (1_800_000_000, 28_500, Verdict.WARN),  # less than a quarter
        (1_800_000_000, 100_000, Verdict.WARN),  # as over PCIe
        (1_000, 300, Verdict.PASS),  # a small message has its latency
        (1_000, 500, Verdict.WARN),
    ],
)
def test_links_that_are_far_slower_than_their_data_sheet_are_a_warning(
    size: int, microseconds: float, verdict: Verdict
) -> None:
    transfer = Transfer(name="bucket", collective="all-reduce", size=size, group=8)
    found = judge_transfer(transfer, microseconds * 1e-6, SYSTEMS["H200"])
    assert_finding(found, verdict, "links of H200: 450 GB/s", fix="nvlink" if verdict is Verdict.WARN else "")
    assert judge_transfer(transfer, microseconds * 1e-6, None).verdict is Verdict.PASS


def test_the_answer_of_the_ranks_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = '{"seconds": [0.001, 0.01, 1.0], "device": "NVIDIA H200"}'
    printed = [["started", "joined", "summed", answer, "NCCL INFO comm destroyed"], ["started", "joined", "summed"]]
    run = RanksRun("8 ranks over nccl", 9.0, None, printed)
    monkeypatch.setattr(bandwidth, "run_ranks", lambda *arguments: run)
    found = check_bandwidth(resolve({}), "nccl", 9)
    assert [finding.verdict for finding in found] == [Verdict.PASS, Verdict.PASS, Verdict.PASS, Verdict.WARN]
    one, *rest = check_bandwidth(resolve({"DGXNGPU": "1", "EXPERT_PARALLEL": "1"}), "nccl", 9)
    assert (one.verdict, [finding.verdict for finding in rest]) == (Verdict.PASS, [Verdict.SKIPPED])
    run = RanksRun("8 ranks over nccl", 9.0, "rank 3 never joined", [])
    assert [finding.verdict for finding in check_bandwidth(resolve({}), "nccl", 9)] == [Verdict.FAIL, Verdict.SKIPPED]


@pytest.mark.parametrize("option", [[], ["--bandwidth"]])
def test_the_option_chooses_what_the_ranks_do(monkeypatch: pytest.MonkeyPatch, option: list[str]) -> None:
    def run_checks(given: list[checks.Check]) -> list[Finding]:
        return [finding for check in given if check.name == "collectives" for finding in check.run()]

    monkeypatch.setattr(checks, "run_checks", run_checks)
    monkeypatch.setattr(checks, "check_collectives", lambda *arguments: [passed("collectives", "sum")])
    monkeypatch.setattr(checks, "check_bandwidth", lambda *arguments: [failed("bandwidth", "slow", "look")])
    assert checks.check_node(resolve({}), NodeContext(), bandwidth=True)[-1].name == "bandwidth"
    done = CliRunner().invoke(app, ["doctor", *option])
    assert (done.exit_code, "to fix: bandwidth" in done.output) == ((1, True) if option else (0, False))
