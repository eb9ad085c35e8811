"""Compile the kernels of the shipped configurations, and record what they need: `make kernel-budget`."""

from __future__ import annotations

from gptoss20b.config import Config, resolve, settings
from gptoss20b.proof.kernel_report import KernelReport, budgets, write_budget
from gptoss20b.proof.kernels import compile_in_processes
from gptoss20b.proof.targets import Target, find_target
from tests.support.configs import CONFIGS, load_config

# The models that submitters train. openai_120b has openai's kernels with other numbers of rows.
MODELS = {"reference": {}, "openai": {"MODEL_VARIANT": "openai", "SUBMISSION_DIVISION": "open"}}


def shipped_jobs() -> list[tuple[Config, Target]]:
    """Return both models of each shipped GPU configuration, once if only the number of nodes differs."""
    jobs: dict[tuple[object, ...], tuple[Config, Target]] = {}
    for name in CONFIGS:
        variables = {key: value for key, value in load_config(name).items() if key in settings()}
        if "CPU" in name:
            continue
        for model in MODELS.values():
            config = resolve(variables | model)
            target = find_target(config.submission.system)
            shapes = config.model.variant, config.execution.micro_batch_size, config.parallel.expert
            jobs.setdefault((target.name, *shapes), (config, target))
    return list(jobs.values())


def compile_shipped() -> list[KernelReport]:
    """Return the kernels of all shipped configurations."""
    return compile_in_processes(shipped_jobs())


if __name__ == "__main__":
    write_budget(row for report in compile_shipped() for row in budgets(report))
