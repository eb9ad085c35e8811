"""Command line: `python -m gptoss20b COMMAND`. The launchers call preflight, train and result; people call all.

Every setting of a run is an option of the commands that take a configuration. Imports of torch happen inside commands,
so that `--help` and `--dry-run` are fast and need no GPU.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from .config import Config, ConfigError, fixed_hyperparameter_overrides, resolve, settings
from .config.environment import LaunchError, is_rank_zero, read_launch, read_settings
from .setting_options import with_settings
from .stopping import ExitCode, hard_exit
from .tools import new_config

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train GPT-OSS 20B, a mixture-of-experts model, for MLPerf Training.",
    epilog="Exit status: 0 converged or done, 1 failed, 2 invalid configuration or usage, 3 target not reached, "
    "4 diverged, 5 converged but not compliant, 130 interrupted (SIGINT), 143 terminated (SIGTERM, SIGHUP).",
)


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
@with_settings
def train(
    given: dict[str, str | None],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print the configuration, then exit.")] = False,
) -> None:
    """Train until the evaluation loss reaches the target, and write the MLPerf log.

    Run one process per GPU with torchrun, or use run_and_time.sh.
    """
    config = _resolve_or_exit(given)
    if dry_run:
        print_config(config)
        return
    try:
        read_launch()  # before torch is imported, which takes seconds
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(ExitCode.BAD_CONFIGURATION) from error
    _prepare_gpu()
    _load_megatron()
    from .train import run

    code = run(config)
    if code in (ExitCode.FAILED, ExitCode.DIVERGED, ExitCode.BAD_CONFIGURATION):
        hard_exit(code)  # communicators whose peers are gone may not let the interpreter shut down
    raise typer.Exit(code)


@app.command()
@with_settings
def preflight(given: dict[str, str | None]) -> None:
    """Print the configuration as train --dry-run does, and check in seconds that this node can start the run.

    The launchers call it before every start. Errors and warnings are on stderr. Exit status 2 if an error is found.
    """
    config = _resolve_or_exit(given)
    print_config(config)
    from .config.changes import describe_changes
    from .config.misspelt import find_ambiguous
    from .tools.doctor.finding import Verdict
    from .tools.doctor.preflight import check_start

    if changes := describe_changes(given):
        print(changes, file=sys.stderr)
    for warning in find_ambiguous(os.environ):
        print(f"warning: {warning}", file=sys.stderr)
    findings = check_start(config, os.environ)
    for finding in findings:
        level = "error" if finding.verdict is Verdict.FAIL else "warning"
        print(f"{level}: {finding.name}: {finding.found}. To fix: {finding.fix}.", file=sys.stderr)
    if any(finding.verdict is Verdict.FAIL for finding in findings):
        raise typer.Exit(ExitCode.BAD_CONFIGURATION)


@app.command()
@with_settings
def info(
    given: dict[str, str | None],
    variant: Annotated[str | None, typer.Option(help="Short for --model-variant.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the model's parameters, FLOPs and memory, counted from its modules. Needs no GPU."""
    if variant is not None:
        given["MODEL_VARIANT"] = variant
    known = read_settings() | {name: value for name, value in given.items() if value}
    if "SUBMISSION_DIVISION" not in known and known.get("MODEL_VARIANT", "reference") != "reference":
        given["SUBMISSION_DIVISION"] = "open"  # the closed division would reject every other variant
    config = _resolve_or_exit(given)
    _load_megatron()
    from .hardware import system_of_configuration
    from .memory import RECOMMENDED_IMBALANCE, peak_memory
    from .model.size import compute_model_size

    size = compute_model_size(config)
    peak, system = peak_memory(config, size.state_bytes_per_gpu), system_of_configuration(config.submission.system)
    survivable = peak.survivable_imbalance(system.memory_bytes) if system else None
    if as_json:
        memory = {"peak_reserved_bytes": peak.reserved_bytes(), "survivable_imbalance": survivable}
        print(json.dumps(asdict(size) | memory, indent=2))
        return
    table = Table("figure", "value", title=f"{size.variant} at sequence length {config.fixed.sequence_length}")
    for name, value in asdict(size).items():
        shown = f"{value:,.0f}" if isinstance(value, int | float) else str(value)
        table.add_row(name.replace("_", " "), shown)
    table.add_row("state GiB per GPU", f"{size.state_bytes_per_gpu / 2**30:.1f}")
    for imbalance in (1.0, 1.5, RECOMMENDED_IMBALANCE):
        name = f"peak GiB per GPU, {imbalance:g} x mean rows" if imbalance > 1 else "peak GiB per GPU, balanced"
        table.add_row(name, f"{peak.reserved_bytes(imbalance) / 2**30:.1f}")
    if system:
        table.add_row(f"memory of one {system.name}", peak.describe(system.memory_bytes))
    Console().print(table)


@app.command("settings")
def list_settings() -> None:
    """List the environment variables that configure a run, one per line."""
    print(*settings(), sep="\n")


@app.command("new-config")
def write_new_config(
    name: Annotated[str, typer.Argument(help="Name of the system, such as B200. Nodes and GPUs are appended.")],
    gpus: Annotated[int, typer.Option(min=1, help="GPUs per node.", metavar="N")],
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the run.", metavar="N")] = 1,
    expert_parallel: Annotated[
        int | None, typer.Option(min=1, help="Default: 8, or what divides it within a node.", metavar="N")
    ] = None,
    micro_batch: Annotated[
        int, typer.Option(min=1, help="Sequences per forward pass of one GPU.", metavar="N")
    ] = new_config.MICRO_BATCH_SIZE,
    global_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Default: the smallest convergence point that fits.", metavar="N")
    ] = None,
    learning_rate: Annotated[str | None, typer.Option(help="Default: the point's.", metavar="RATE")] = None,
    warmup_steps: Annotated[int | None, typer.Option(min=0, help="Default: the point's.", metavar="N")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Name of the GPU, as estimate takes it: warn if its memory may be too small.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print the file; do not write it.")] = False,
) -> None:
    """Write config_NAME_<nodes>x<gpus>.sh for a new system, after checking it as train --dry-run does.

    Run it in the project's folder. Defaults are the reference's layout and hyperparameters. No file is overwritten.
    """
    request = new_config.Request(
        name, nodes, gpus, expert_parallel, micro_batch, global_batch_size, learning_rate, warmup_steps
    )
    try:
        text, config = new_config.prepare_config(request, Path.cwd())
        if warning := new_config.layout_warning(config):
            print(f"warning: {warning}", file=sys.stderr)
        if gpu is not None:
            _load_megatron()
            if warning := new_config.memory_warning(config, gpu):
                print(f"warning: {warning}", file=sys.stderr)
        if dry_run:
            print(text, end="")
            return
        new_config.write_config(request, text, Path.cwd())
    except ConfigError as error:
        _exit_with_error(str(error))
    print(f"{request.filename}: written. Next: source {request.filename} && python -m gptoss20b doctor")


@app.command()
@with_settings
def doctor(
    given: dict[str, str | None],
    bandwidth: Annotated[
        bool, typer.Option("--bandwidth", help="Measure the bandwidth between the ranks of this node, too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check this node before a run: hardware, kernels, software, network, data, disks. Print a fix for every problem.

    It changes nothing and takes about a minute. Exit status 1 if a check fails.
    """
    config = _resolve_or_exit(given)
    from .tools.doctor.checks import check_node
    from .tools.doctor.finding import Verdict, as_document, as_table, overall_verdict, summary_line
    from .tools.doctor.node_context import read_node_context

    findings = check_node(config, read_node_context(os.environ), bandwidth)
    if as_json:
        print(json.dumps(as_document(findings), indent=2))
    else:
        _console().print(as_table(findings))
        print(summary_line(findings))
    raise typer.Exit(ExitCode.FAILED if overall_verdict(findings) is Verdict.FAIL else ExitCode.CONVERGED)


@app.command()
@with_settings
def estimate(
    given: dict[str, str | None],
    system: Annotated[
        str, typer.Option(help="H100, H200, B200, B300, GB200, GB300 or MI355X; any other with all its figures.")
    ],
    nodes: Annotated[str | None, typer.Option(help="Number of nodes; the same as --dgxnnodes.", metavar="N")] = None,
    mfu: Annotated[float | None, typer.Option(help="Measured MFU of bench scenario S1, without the optimizer.")] = None,
    s1_json: Annotated[
        Path | None, typer.Option(help="Result of bench --scenario S1 --out FILE.", metavar="FILE")
    ] = None,
    assume: Annotated[list[str] | None, typer.Option(help="Change a printed assumption.", metavar="NAME=VALUE")] = None,
    peak_tflops: Annotated[float | None, typer.Option(help="Override dense bf16 TFLOP/s per GPU.")] = None,
    memory_gb: Annotated[float | None, typer.Option(help="Override GB of memory per GPU.")] = None,
    memory_tbs: Annotated[float | None, typer.Option(help="Override TB/s of memory per GPU.")] = None,
    link_gbs: Annotated[float | None, typer.Option(help="Override GB/s per GPU on NVLink or xGMI, one way.")] = None,
    network_gbs: Annotated[float | None, typer.Option(help="Override GB/s per GPU on the network, one way.")] = None,
    domain: Annotated[int | None, typer.Option(help="Override the GPUs per NVLink or xGMI domain.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate step time, time to train and memory of a layout on a system. Prints every assumption; runs no model."""
    from .tools.estimate.assumptions import EstimateError
    from .tools.estimate.command import run

    overrides = {
        "peak_tflops": peak_tflops,
        "memory_gb": memory_gb,
        "memory_tbs": memory_tbs,
        "link_gbs": link_gbs,
        "network_gbs": network_gbs,
        "domain": domain,
    }
    _load_megatron()
    try:
        parts = run(given, system, overrides, assume or (), nodes=nodes, mfu=mfu, s1_json=s1_json, as_json=as_json)
    except (ConfigError, EstimateError) as error:
        _exit_with_error(str(error))
    console = _console()
    for part in parts:
        print(part) if as_json else console.print(part)


@app.command()
def bench(
    scenario: Annotated[
        Literal["S1", "S2", "S3", "tiny"], typer.Option(help="What to time; see docs/gpu-benchmarks.md.")
    ],
    backend: Annotated[
        Literal["torch", "transformer_engine", "megatron_local"], typer.Option(help="Layer back end.")
    ] = "torch",
    variant: Annotated[Literal["reference", "openai"], typer.Option(help="Architecture.")] = "reference",
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Sequences per step; default: the scenario's.", metavar="N")
    ] = None,
    warmup: Annotated[int, typer.Option(min=1, help="Warm-up steps.", metavar="N")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps, with and without the optimizer.", metavar="N")] = 20,
    no_optimizer: Annotated[bool, typer.Option("--no-optimizer", help="Skip the steps with the optimizer.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the result as JSON to this new file.", metavar="FILE")] = None,
) -> None:
    """Time training steps and their parts, in one process on random tokens.

    RECOMPUTE, COMPILE and PRECISION come from the environment.
    """
    if out and (out.exists() or not out.parent.is_dir()):
        _exit_with_error(f"--out: got {out}, expected a new file in a folder that exists. Name another.")
    _prepare_gpu()
    _load_megatron()
    from torch import OutOfMemoryError

    from .model.backend import BackendError
    from .tools.bench.measure import Timing, time_scenario
    from .tools.bench.result import as_table

    try:
        measured = time_scenario(scenario, backend, variant, Timing(warmup, steps, not no_optimizer), micro_batch)
    except (ConfigError, LaunchError, BackendError) as error:
        _exit_with_error(str(error))
    except OutOfMemoryError as error:
        print(f"error: {scenario} does not fit: {error}. Set RECOMPUTE, or a smaller --micro-batch.", file=sys.stderr)
        raise typer.Exit(ExitCode.FAILED) from error
    if out:
        out.write_text(measured.model_dump_json(indent=2) + "\n", encoding="utf-8")
    _console().print(as_table(measured))


@app.command()
def telemetry(
    directory: Annotated[
        Path, typer.Argument(metavar="LOGDIR", help="Folder for telemetry.csv: that of the run's log.")
    ],
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between samples.", metavar="S")] = 1.0,
    node: Annotated[
        int, typer.Option(min=0, help="Number of this node; from 1 on in the name of the file.", metavar="R")
    ] = 0,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Sample the first N visible GPUs; default: all.", metavar="N")
    ] = None,
    parent: Annotated[int | None, typer.Option(help="Process id of the parent, to end with it.", metavar="PID")] = None,
) -> None:
    """Sample power, clocks, temperature and throttle reasons of this node's GPUs into a CSV file, until Ctrl-C.

    TELEMETRY=1 starts this beside each run. Rows are appended to an existing file. Exit status 1 without a GPU.
    """
    from .telemetry.sampler import csv_name, sample_until_signal

    succeeded = sample_until_signal(directory / csv_name(node), interval, gpus, parent)
    raise typer.Exit(ExitCode.CONVERGED if succeeded else ExitCode.FAILED)


@app.command()
@with_settings
def trace(
    given: dict[str, str | None],
    imbalance: Annotated[
        float, typer.Option(min=0.1, max=32, help="Rows of this rank's experts over the mean of all ranks.")
    ] = 1.0,
    system: Annotated[
        str | None, typer.Option(help="GPU for the memory limit: H200, B200, ...; default: that of DGXSYSTEM.")
    ] = None,
    as_json: JsonOption = False,
    html: Annotated[
        Path | None, typer.Option(help="Write the trace as a page to this new file.", metavar="FILE")
    ] = None,
) -> None:
    """Run one rank's training step on fake GPU tensors: memory, waits, collectives, FLOPs, bytes. Needs no GPU.

    It needs a build of torch for CPUs or CUDA, and g++. Values, speed and the vendors' libraries are not simulated.
    """
    if html and (html.exists() or not html.parent.is_dir()):
        _exit_with_error(f"--html: got {html}, expected a new file in a folder that exists. Name another.")
    config = _resolve_or_exit(given)
    _load_megatron()
    from .proof.command import run
    from .proof.guard import ProofError
    from .proof.report import as_page, as_tables

    try:
        report = run(config, imbalance, system)
    except ProofError as error:
        _exit_with_error(str(error))
    if html:
        html.write_text(as_page(report), encoding="utf-8")
    if as_json:
        print(report.model_dump_json(indent=2))
    else:
        _console().print(*as_tables(report), sep="\n\n")


@app.command()
@with_settings
def kernels(
    given: dict[str, str | None],
    target: Annotated[
        str | None, typer.Option(help="Architecture: sm_90, sm_100 or gfx950; default: that of DGXSYSTEM.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compile the fused functions of a configuration for a GPU: registers, spills, shared memory. Needs no GPU.

    It needs a build of torch for CPUs or CUDA, g++ and Triton (requirements/proof.txt).
    """
    config = _resolve_or_exit(given)
    from .proof.guard import ProofError
    from .proof.kernel_report import as_table
    from .proof.kernels import run

    try:
        report = run(config, target)
    except ProofError as error:
        _exit_with_error(str(error))
    if as_json:
        print(report.model_dump_json(indent=2))
    else:
        _console().print(as_table(report))


@app.command()
def result(
    path: Annotated[Path, typer.Argument(help="Result folder or result file; with --trials, the folder of a set.")],
    trials: Annotated[
        int | None, typer.Option(min=1, help="Print the outcome of trials 1 to N of a set.", metavar="N")
    ] = None,
) -> None:
    """Print the outcome of a run, or of all trials of a set, from the logs. Exit with the run's or the set's status."""
    from .result import read_result
    from .trials import build_table, count_outcomes, exit_code_of_set, read_trials

    try:
        if trials is None:
            outcome = read_result(path)
            print(outcome)
            raise typer.Exit(outcome.exit_code)
        outcomes = read_trials(path, trials)
    except (OSError, ValueError) as error:
        is_set = trials is None and (path / "trials.tsv").exists()
        _exit_with_error(
            f"{path}: the folder of a set. Add --trials N, or name a trial's folder" if is_set else str(error)
        )
    print(count_outcomes(path, outcomes))  # not the table's title: a long folder would be cut
    _console().print(build_table(outcomes))
    raise typer.Exit(exit_code_of_set(outcomes))


@app.command()
def convert(
    from_hf: Annotated[
        Path | None, typer.Option(help="Folder of a Hugging Face GptOssForCausalLM; needs --to.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="New folder for this project's format.")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Folder in this project's format; needs --to-hf.")
    ] = None,
    to_hf: Annotated[Path | None, typer.Option(help="New folder for GptOssForCausalLM.from_pretrained.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--from-checkpoint", help="Folder step_<number> of a run; needs --to or --to-hf.")
    ] = None,
) -> None:
    """Convert weights between Hugging Face's GptOssForCausalLM, this project's format and checkpoints of runs.

    Only models with the released gpt-oss's features can become a GptOssForCausalLM; --to takes every model. bf16 and
    fp32 weights stay bit-identical; MXFP4 experts can be read. One layer is in memory at a time. All input is checked
    before anything is written, and existing folders are never overwritten.
    """
    from .hf.convert import ConversionError, from_checkpoint, from_hugging_face, to_hugging_face

    try:
        match from_hf, source, checkpoint, to, to_hf:
            case Path(), None, None, Path(), None:
                from_hugging_face(from_hf, to)
            case None, Path(), None, None, Path():
                to_hugging_face(source, to_hf)
            case None, None, Path(), None, Path():
                to_hugging_face(checkpoint, to_hf, is_checkpoint=True)
            case None, None, Path(), Path(), None:
                from_checkpoint(checkpoint, to)
            case _:
                _exit_with_error(
                    "convert takes --from-hf DIR --to DIR, --from DIR --to-hf DIR, or --from-checkpoint DIR with --to "
                    "DIR or --to-hf DIR"
                )
    except ConversionError as error:
        _exit_with_error(str(error))
    except OSError as error:
        print(f"error: {error}; the new folder has been removed", file=sys.stderr)
        raise typer.Exit(ExitCode.FAILED) from error


def _resolve_or_exit(given: dict[str, str | None]) -> Config:
    try:
        return resolve(given)
    except ConfigError as error:
        _exit_with_error(str(error))


def _prepare_gpu() -> None:
    """Set what torch reads when it first uses a GPU, before any package does."""
    from .gpu_allocator import use_expandable_segments

    use_expandable_segments()


def _load_megatron() -> None:
    """Import Megatron-Core, and hide its and torch's warnings of optional packages and of their own deprecations.

    On a CPU their calls pass through `megatron_cpu`, so Python names that module as the source.
    """
    for category in (UserWarning, FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=r"megatron|torch|gptoss20b\.megatron_cpu")
    from .megatron_cpu import import_megatron

    import_megatron()


def _exit_with_error(message: str) -> NoReturn:
    if is_rank_zero():
        print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(ExitCode.BAD_CONFIGURATION)


def print_config(config: Config) -> None:
    """Print the configuration on stdout: overridden rules of the closed division first, then derived and set values."""
    overrides = fixed_hyperparameter_overrides(config)
    print(f"differs from the closed division's fixed values: {len(overrides) or 'nothing'}")
    for _, variable, value, required in overrides:
        print(f"  {variable} = {value} (rule: {required})")
    print("derived:")
    for name, value in config.derived().items():
        # 0.1 x 0.006 is 0.0006000000000000001 in binary.
        print(f"  {name} = {float(f'{value:.12g}') if isinstance(value, float) else value}")
    print("settings:")
    for variable, setting in settings().items():
        value = setting.value_in(config)
        print(f"  {variable} = {'(not set)' if value is None else value}")


def _console() -> Console:
    """Return a console for tables: as wide as the terminal, or 120 columns in a pipe."""
    return Console(markup=False, width=None if sys.stdout.isatty() else 120)
