"""Draw the pictures of docs/images/: `make pictures`. Needs Chromium for report.png."""

from __future__ import annotations

import math
import shutil
import subprocess
from base64 import b64decode
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave
from matplotlib.patches import FancyBboxPatch
from numpy.typing import NDArray

from compliance.check import Options, check_set
from compliance.render.figures import draw_losses, render_figure

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
RUNS = ROOT / "examples" / "ten_runs"
# Each flow: stages from left to right, each a title and lines below it.
FLOWS: dict[str, list[tuple[str, str]]] = {
    "overview": [
        ("Data", "data_scripts\nC4 tokens: .bin, .idx\nevery token checked"),
        ("Run", "gptoss20b\nMegatron-Core on all ranks\nuntil the loss is at most 3.34"),
        ("Log", "result_0.txt\n:::MLLOG records\nand config.json"),
        ("Verdict", "compliance\nrules, official tools\nreport, submission tree"),
    ],
    "configuration": [
        ("Sources", "command line\nover environment\nover preset"),
        ("environment.py", "the only reader\nof the environment"),
        ("resolve.py", "typed tree (tree.py)\nall problems at once\n(checks.py)"),
        ("Config", "frozen; derived values\nare properties\nsaved as config.json"),
        ("train.py", "ranks compare settings\nprocess groups\nmodel, data, log"),
        ("Trainer", "step and evaluate\ncallbacks observe"),
    ],
    "loss": [
        ("order.py", "seed, epoch, position\nto a window number"),
        ("samples.py", "8,193 tokens of the\nindexed dataset"),
        ("dataloader.py", "micro batches\nof this rank's share"),
        ("model/", "embedding, 24 layers\nattention, router, experts"),
        ("loss.py", "logits of a chunk of rows\nloss and gradient at once"),
        ("trainer.py", "sum of losses / tokens\nover all ranks, in fp64"),
    ],
    "verdict": [
        ("parse.py", "bytes of a log\nto records, with\nparse errors"),
        ("run.py", "records of one run\nby key and line"),
        ("rules/", "a function per rule\nyields problems"),
        ("judge.py", "findings, summary\nscore, RCP tests"),
        ("official/", "the official tools, each\nin its own process"),
        ("render/", "text, JSON, JUnit\nHTML, Markdown"),
    ],
}


def draw_flow(stages: list[tuple[str, str]]) -> Figure:
    """Return boxes with arrows between them, two in a row: readable on a phone."""
    columns = 2
    width, height = 2.35 * columns, 1.75 * math.ceil(len(stages) / columns) - 0.15
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    arrow = {"arrowstyle": "-|>", "color": "#3f51b5", "lw": 1.5}
    for number, (title, lines) in enumerate(stages):
        left, top = 2.35 * (number % columns) + 0.1, 1.75 * (number // columns) + 0.1
        style = "round,pad=0,rounding_size=0.08"
        axes.add_patch(FancyBboxPatch((left, top), 1.92, 1.3, boxstyle=style, fc="#f4f6fb", ec="#3f51b5"))
        axes.text(left + 0.96, top + 0.28, title, ha="center", va="center", weight="bold", size=12, color="#1a237e")
        axes.text(left + 0.96, top + 0.82, lines, ha="center", va="center", size=9, linespacing=1.45, color="#222222")
        if number % columns:
            axes.annotate("", (left - 0.02, top + 0.65), (left - 0.41, top + 0.65), arrowprops=arrow)
        elif number:  # from below the last box of the row before to above this one
            last = width - 1.29
            axes.plot([last, last, left + 0.96], [top - 0.45, top - 0.25, top - 0.25], color="#3f51b5", lw=1.5)
            axes.annotate("", (left + 0.96, top - 0.01), (left + 0.96, top - 0.26), arrowprops=arrow)
    return figure


def draw_flows() -> None:
    """Write one SVG file per flow. The text stays text, and the bytes are the same every time."""
    for name, stages in FLOWS.items():
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
            draw_flow(stages).savefig(IMAGES / f"{name}.svg", metadata={"Date": None})


def draw_loss_curves() -> None:
    """Write the loss curves of the ten example runs, and of one of them, as in a report."""
    for name, logs in {"loss-curves": RUNS, "loss-curve": RUNS / "result_9.txt"}.items():
        drawn = render_figure(draw_losses, check_set([logs], Options(official=False)).sets[0], "svg")
        assert drawn is not None
        (IMAGES / f"{name}.svg").write_bytes(b64decode(drawn[1].partition(",")[2]))


def photograph_report() -> None:
    """Write a screenshot of the example report, if this machine has Chromium. It ends with a block of the page."""
    chromium = shutil.which("chromium")
    if chromium:
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1000,1600"]
        picture = IMAGES / "report.png"
        page = (ROOT / "examples" / "report.html").as_uri()
        subprocess.run([chromium, *options, f"--screenshot={picture}", page], check=True, capture_output=True)
        pixels = imread(picture)
        imsave(picture, pixels[: end_of_block(pixels.min(axis=(1, 2)) == 1, 960)])


def end_of_block(is_blank: NDArray[np.bool_], limit: int, gap: int = 30) -> int:
    """Return the last row below which ``gap`` blank rows begin at or before ``limit``, 10 rows of them included."""
    ends = [row for row in range(1, limit + 1) if not is_blank[row - 1] and is_blank[row : row + gap].all()]
    return ends[-1] + 10


def main() -> None:
    """Draw everything."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    draw_flows()
    draw_loss_curves()
    photograph_report()


if __name__ == "__main__":
    main()
