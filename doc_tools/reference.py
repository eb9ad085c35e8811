"""Write the generated pages of docs/reference/: `python -m doc_tools.reference [FOLDER]`, or `make reference`."""

from __future__ import annotations

import inspect
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer import Typer

import compliance.cli
import data_scripts.cli
import data_scripts.errors
import gptoss20b.cli
import gptoss20b.stopping
from compliance.render.text import rules_text
from compliance.rules import ALL_RULES
from doc_tools.memory import IMBALANCES, memory_rows, read_traced
from gptoss20b.config import Config, resolve
from gptoss20b.mlperf_log import RunLog

ROOT = Path(__file__).resolve().parents[1]
TOOLS: dict[str, tuple[Typer, type[IntEnum]]] = {
    "gptoss20b": (gptoss20b.cli.app, gptoss20b.stopping.ExitCode),
    "compliance": (compliance.cli.app, compliance.cli.ExitCode),
    "data_scripts": (data_scripts.cli.app, data_scripts.errors.ExitCode),
}
MEANINGS = {
    "CONVERGED": "the target was reached; or the command did its work",
    "FAILED": "an error, a failed check of a node, or faults in the data; stderr names them, and a run's log if it can",
    "BAD_CONFIGURATION": "invalid settings or usage, or a kernel that the self-test finds wrong; nothing was trained",
    "NOT_CONVERGED": "the target was not reached within `MAX_STEPS`",
    "DIVERGED": "a gradient, or the loss of an evaluation, was NaN or infinite",
    "NOT_COMPLIANT": "converged, but the checker rejects the log or the set",
    "PASS": "no rule is broken",
    "VIOLATION": "a rule is broken; with `--strict` also for a warning",
    "USAGE": "invalid usage, or a package is missing",
    "UNREADABLE": "an input file cannot be read",
    "INTERNAL": "a bug; please report it",
    "OK": "done; every file is present and valid",
    "INTERRUPTED": "Ctrl-C (SIGINT)",
    "TERMINATED": "SIGTERM, or SIGHUP of a closed terminal",
}


def table(header: str, rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table; ``header`` has its columns separated by bars."""
    lines = [[cell.strip() for cell in header.split("|")], ["---"] * (header.count("|") + 1)]
    lines += [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(value: object) -> str:
    """Return a value as inline code; nothing for None and empty text."""
    return "" if value is None or value == "" else f"`{value}`"


# --- settings


def settings_page() -> str:
    """Return all settings, a table per branch of the configuration tree."""
    parts = ["Each setting is an environment variable and an option of `python -m gptoss20b train`. "
             "Presets of `MODEL_VARIANT` and `config_*.sh` files change defaults. Variables of the launchers, such as "
             "`NEXP`, are on the page [Running](../running.md#ten-trials)."]  # fmt: skip
    leaves = [(name, field) for name, field in Config.model_fields.items() if field.json_schema_extra]
    branches: dict[str, tuple[type[BaseModel], list[tuple[str, FieldInfo]]]] = {"run": (Config, leaves)}
    for name, field in Config.model_fields.items():
        if isinstance(branch := field.annotation, type) and issubclass(branch, BaseModel):
            branches[name] = (branch, [each for each in branch.model_fields.items() if each[1].json_schema_extra])
    for name, (branch, fields) in branches.items():
        rows = [_setting_row(field) for _, field in fields]
        parts += [f"## {name}", inspect.getdoc(branch) or "", table("variable | default | values | meaning", rows)]
    return "\n\n".join(part.strip() for part in parts)


def _setting_row(field: FieldInfo) -> tuple[str, str, str, str]:
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    default = "" if field.is_required() else {True: 1, False: 0}.get(field.default, field.default)
    return code(extra["env"]), code(default), ", ".join(_values(field)), field.description or ""


def _values(field: FieldInfo) -> Iterator[str]:
    """Yield the type of a field's values, and its bounds."""
    types = get_args(field.annotation) or (field.annotation,)
    if get_origin(field.annotation) is Literal:
        yield ", ".join(code(choice) for choice in types)
        return
    names = {int: "whole number", float: "number", bool: "`0` or `1`", str: "text", Path: "path"}
    yield names[next(kind for kind in types if kind in names)]
    for constraint in field.metadata:
        for word, sign in {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}.items():
            if hasattr(constraint, word):
                yield f"{sign} {getattr(constraint, word)}"


# --- exit codes, rules, command lines


def exit_codes_page() -> str:
    """Return the exit statuses of each command line."""
    parts = []
    for tool, (_, codes) in TOOLS.items():
        rows = [(status.value, code(status.name), MEANINGS[status.name]) for status in codes]
        parts.append(f"## {tool}\n\n{table('status | name | meaning', rows)}")
    return "\n".join(parts)


def rules_page() -> str:
    """Return every rule, as `python -m compliance rules --markdown` prints it."""
    return rules_text(ALL_RULES, markdown=True)


def cli_page() -> str:
    """Return every command with its arguments and options. Settings are on a page of their own."""
    parts = []
    for tool, (app, _) in TOOLS.items():
        parts += [f"## {tool}", f"`python -m {tool} COMMAND`. {app.info.help or ''}"]
        group: Any = typer.main.get_command(app)
        for name, command in group.commands.items():
            own = [each for each in command.params if not getattr(each, "rich_help_panel", None)]
            text = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(command.help or ""))
            parts += [f"### {tool} {name}", text]
            if own:
                parts.append(table("argument or option | default | meaning", map(_option_row, own)))
            if len(own) < len(command.params):
                parts.append("It also takes every [setting](settings.md) as an option, e.g. `--global-batch-size`.")
    return "\n\n".join(part.strip() for part in parts)


def _option_row(option: Any) -> tuple[str, str, str]:
    is_argument = option.param_type_name == "argument"
    name = option.metavar or option.name.upper() if is_argument else "/".join([*option.opts, *option.secondary_opts])
    default = "required" if option.required else _default(option)
    return code(name), default, option.help or ""


def _default(option: Any) -> str:
    shown = (
        option.show_default
        if isinstance(option.show_default, str)
        else getattr(option.default, "value", option.default)
    )
    return "" if shown in (None, False, ()) else code("on" if shown is True else shown)


# --- records of the log


def log_records_page() -> str:
    """Return the records of a run's log, taken from a log that `RunLog` writes for the `tiny` model."""
    config = resolve({"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open", "DGXNGPU": "2", "PRECISION": "fp32"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        log = RunLog(path, echo=lambda line: None)
        calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
            (log.init_start, (config,)), (log.caches_not_cleared, ()), (log.describe, (config, 1)),
            (log.self_test, ("self-test: attention ...",)), (log.code, ("commit",)), (log.run_start, ()),
            (log.data_opened, ("hash",)), (log.block_start, (0,)),
            (log.train_loss, (40, 5.5, 0.006)), (log.block_stop, (96, 1.5)), (log.eval_start, (96,)),
            (log.eval_stop, (96, 3.02)), (log.resumed, (0, 64)), (log.run_stop, (False, "received SIGTERM")),
        ]  # fmt: skip
        parts = ["Records in the order of the log. Values are examples of the `tiny` model. Every record also has "
                 "`time_ms`, and `file` and `lineno` of the code that wrote it."]  # fmt: skip
        for method, arguments in calls:
            start = 0 if method == log.resumed else path.stat().st_size
            method(*arguments)
            records = [json.loads(line.split(" ", 1)[1]) for line in path.read_text()[start:].splitlines()]
            text = (inspect.getdoc(method) or "").split("\n\n")[0].replace("\n", " ")
            keys = [record["key"] for record in records]
            parts += [f"## {', '.join(keys[:2])}{', ...' if keys[2:] else ''}", text]
            parts.append(table("key | event | value | metadata", map(_record_row, records)))
        log.close()
    return "\n\n".join(part.strip() for part in parts)


def _record_row(record: dict[str, Any]) -> tuple[str, ...]:
    more = [key for key in record["metadata"] if key not in ("file", "lineno")]
    return code(record["key"]), record["event_type"], code(json.dumps(record["value"])), ", ".join(map(code, more))


# --- peak memory


def memory_page() -> str:
    """Return the traced peak memory of the shipped configurations."""
    traced = read_traced()
    versions = " and ".join(f"{package} {version}" for package, version in traced.versions.items())
    header = " | ".join(
        [
            *("configuration", "micro batch", "recompute"),
            *(f"{imbalance:g} x mean rows" for imbalance in IMBALANCES),
            "memory of one GPU",
        ]
    )
    return "\n\n".join(
        [
            "Peak memory of one rank's step, in GiB, as [traced without a GPU](../gpu-proof.md): what the caching "
            f"allocator takes with expandable segments, with {versions}. `python -m doc_tools.memory` traces it again, "
            "in some six minutes on two cores.",
            table(header, memory_rows(traced)).strip(),
            "- Columns of rows: this rank's experts get that many times the mean of all ranks, in every layer.\n"
            "- The memory of a GPU is its data sheet's, in GiB. Devices report up to a tenth more, which contexts, "
            "communicators and libraries take.\n"
            "- **Have room for 2 times the mean rows.** This is a judgement: nothing balances the routing of the "
            "closed division, and no public log shows how unbalanced it gets. `bench` measures the balance of its "
            "steps.\n"
            "- `doctor`, `estimate` and `info` compute the peak of any configuration from the model's sizes "
            "(`gptoss20b/memory.py`), and [the rows that fit](../tuning.md#memory-and-layout). Tests hold them within "
            "3 % of traces: of this table, and of every `RECOMPUTE`, `EXPERT_PARALLEL` 1, 4 and 8, `MICRO_BATCH_SIZE` "
            "1 to 3, pipeline parallel and both variants.\n"
            "- Transformer Engine is not traced.",
        ]
    )


PAGES: dict[str, tuple[str, Callable[[], str]]] = {
    "settings": ("Settings", settings_page),
    "rules": ("Rules", rules_page),
    "exit-codes": ("Exit codes", exit_codes_page),
    "log-records": ("Log records", log_records_page),
    "cli": ("Command line", cli_page),
    "memory": ("Peak memory", memory_page),
}


def main(folder: Path = ROOT / "docs" / "reference") -> None:
    """Write every page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (title, make) in PAGES.items():
        text = f"<!-- Generated by `make reference`. Do not edit. -->\n# {title}\n\n{make().strip()}\n"
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
