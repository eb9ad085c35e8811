"""Submission tree on disk: systems, result files and code.

ROOT holds `systems/<system>.json`, `benchmarks/gpt_oss_20b/` and `results/<system>/gpt_oss_20b/result_<i>.txt`. Names
are listed; only system descriptions are read. Nothing outside ROOT is opened: links out of it are listed and not
followed. Folders of other benchmarks are listed and not entered.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import benchmark
from .file_tree import FileTree, Link, TreeFile, list_tree, printable
from .records import ParseError
from .run import Machine

MAX_DESCRIPTION_BYTES = 1 << 20
CODE_FOLDER = f"benchmarks/{benchmark.NAME}"
DIVISIONS = ("closed", "open")
# By the submission_status of the logs.
LOGGED_STATUSES = {
    "onprem": "Available on-premise",
    "cloud": "Available cloud",
    "research": "Research, Development, or Internal (RDI)",
    "preview": "Preview",
}
STATUSES = tuple(LOGGED_STATUSES.values())
# Fields required by mlperf-logging's system_desc_checker, with help texts. No commas in the text fields below, which
# the official summary separates by commas.
FIELD_HELP = {
    "submitter": "organisation that submits; spelled as submission_org in the logs",
    "division": f"one of {', '.join(DIVISIONS)}",
    "status": f"one of {' | '.join(STATUSES)}",
    "system_name": "name of the system; e.g. 1xNODE_8xACCELERATOR",
    "number_of_nodes": "nodes that one run uses, a whole number",
    "host_processors_per_node": "processors (sockets) in one node, a whole number",
    "host_processor_model_name": "maker and model of the processor",
    "host_processor_core_count": "processors x cores in one node; e.g. 2 x 64 cores",
    "host_processor_vcpu_count": "processors x logical processors in one node, e.g. 2 x 128 threads",
    "host_processor_frequency": "base and highest frequency, e.g. 2.40 GHz base, 3.80 GHz max",
    "host_processor_caches": "caches with their sizes, e.g. L2: 128 x 1 MiB, L3: 16 x 32 MiB",
    "host_processor_interconnect": "link between the processors and its speed, e.g. 4 x xGMI 32 GT/s",
    "host_memory_capacity": "installed memory of one node, e.g. 2304 GB",
    "host_storage_type": "kind of storage that one node uses, e.g. NVMe SSD",
    "host_storage_capacity": "number and size of the disks in one node, e.g. 8 x 3.84 TB",
    "host_networking": "ports of one node and their rates, e.g. 8 x InfiniBand 400 Gb/s",
    "host_networking_topology": "how the nodes are connected, e.g. fat tree; N/A for one node",
    "host_memory_configuration": "memory modules of one node, e.g. 24 x 96 GB DDR5 5600 MT/s (root may read it)",
    "accelerators_per_node": "accelerators in one node as a whole number; 0 without any",
    "accelerator_model_name": "maker and model of the accelerator",
    "accelerator_host_interconnect": "link between processor and accelerator, e.g. PCIe 5.0 x16",
    "accelerator_frequency": "highest clock, e.g. 1965 MHz max",
    "accelerator_on-chip_memories": "caches and on-chip memories from the data sheet, e.g. L2: 50 MB",
    "accelerator_memory_configuration": "kind of memory, e.g. HBM3e",
    "accelerator_memory_capacity": "memory of one accelerator, e.g. 140.4 GiB",
    "accelerator_interconnect": "link between accelerators and its speed, e.g. NVLink 5, 900 GB/s per direction",
    "accelerator_interconnect_topology": "how accelerators are connected, e.g. all to all by NVSwitch",
    "cooling": "air or liquid",
    "hw_notes": "remarks on the hardware, or nothing",
    "framework": "framework and version; e.g. PyTorch 2.9.0 + Megatron-Core 0.16.1",
    "other_software_stack": "libraries and drivers with versions, e.g. CUDA 13.0, NCCL 2.27, driver 580.95",
    "operating_system": "distribution, version and kernel, e.g. Ubuntu 24.04 LTS, Linux 6.8.0",
    "sw_notes": "remarks on the software, or nothing",
}  # fmt: skip
REQUIRED_FIELDS = tuple(FIELD_HELP)
# mlperf-logging's system_desc_checker joins these into one line, and crashes on a number.
TEXT_FIELDS = (
    "submitter", "system_name", "host_processor_model_name", "host_processor_core_count", "accelerator_model_name",
    "accelerators_per_node", "framework",
)  # fmt: skip
_RESULT = re.compile(r"result_(\d{1,9})\.txt", re.ASCII)


@dataclass(frozen=True, slots=True)
class SystemDescription:
    """Contents of `systems/<name>.json`: the whole JSON object, and the path for messages."""

    name: str
    path: str
    raw: dict[str, Any]

    def text(self, field: str) -> str | None:
        """Return a field as written, None if it is absent or no text."""
        value = self.raw.get(field)
        return value if isinstance(value, str) else None

    def count(self, field: str, minimum: int = 1) -> int | None:
        """Return a whole number that is written as a JSON number or as text; None if it is below the minimum."""
        value = self.raw.get(field)
        if isinstance(value, str) and re.fullmatch(r"\s*\d{1,9}\s*", value, re.ASCII):
            value = int(value)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= minimum else None

    @property
    def machine(self) -> Machine | None:
        """Return the size of the whole system, None unless both counts are known. CPUs alone have 0 accelerators."""
        nodes, accelerators = self.count("number_of_nodes"), self.count("accelerators_per_node")
        if nodes is None or accelerators is None:
            return None
        names = (self.text("system_name"), self.text("accelerator_model_name") if accelerators else None)
        return Machine(nodes * accelerators, self.path, ", ".join(filter(None, names)) or None)


@dataclass(frozen=True, slots=True)
class ResultFolder:
    """Folder `results/<system>/gpt_oss_20b`, with its path for messages.

    Attributes:
        logs: files named result_<i>.txt, ordered by i; each is a regular file inside the tree.
        others: names of everything else in the folder.
        scaling: scaling_factor of the folder's scaling.json, of whatever type; None without one.
        power: files power/<run>/<name>, regular and inside the tree; None without a folder power/.
    """

    system: str
    path: str
    logs: tuple[Path, ...]
    others: tuple[str, ...]
    scaling: Any = None
    power: tuple[Path, ...] | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """A submission tree.

    Attributes:
        root: path for messages.
        systems: readable system descriptions by name.
        system_names: names of all system files, including unreadable ones.
        results: folders of this benchmark.
        only: system whose result was asked for; None: all systems.
        files, folders, links: everything listed, named below the root, without the files of systems not asked for.
        problems: parts that could not be listed or read, each with its path for messages.
    """

    root: Path
    systems: dict[str, SystemDescription]
    system_names: tuple[str, ...]
    results: tuple[ResultFolder, ...]
    files: tuple[TreeFile, ...]
    folders: frozenset[str]
    links: tuple[Link, ...]
    problems: tuple[tuple[str, ParseError], ...]
    only: str | None = None

    @property
    def code(self) -> tuple[TreeFile, ...]:
        """Return the files of this benchmark's code."""
        return tuple(file for file in self.files if file.name.startswith(f"{CODE_FOLDER}/"))

    @property
    def folder_division(self) -> str | None:
        """Return the division that the root, or the nearest folder above it, is named after; None without one."""
        # normpath instead of resolve: the division is in the path as given, not in the target of a link.
        parts = [part.lower() for part in Path(os.path.normpath(self.root.absolute())).parts]
        return next((part for part in reversed(parts) if part in DIVISIONS), None)

    def subfolders(self, folder: str) -> list[str]:
        """Return the names of the folders directly in a folder."""
        return sorted(_names_in(folder, self.folders))

    def path(self, name: str) -> str:
        """Return the path for messages of a file or folder of the tree."""
        return printable(self.root / name)


def read_submission(root: Path, display_root: Path | None = None, only: str | None = None) -> Submission:
    """List a submission tree and read its system descriptions.

    Args:
        root: folder of the tree.
        display_root: replaces the root in messages.
        only: system to read. The results and descriptions of the tree's other results are left out.

    Raises:
        NotADirectoryError: root is missing or no folder.
    """
    if not root.is_dir():
        raise NotADirectoryError(f"{printable(root)}: no such folder; expected one with systems and results")
    shown = display_root or root
    tree = list_tree(root, _should_enter)
    if only is not None:
        _keep_system(tree, only)
    problems = [(printable(shown / name), ParseError("package-structure", None, why)) for name, why in tree.unlisted]
    files = _names_in("systems", (file.name for file in tree.files))
    system_names = [name.removesuffix(".json") for name in files if name.endswith(".json")]
    systems = {}
    for name in system_names:
        file = Path("systems", f"{name}.json")
        system = read_system_description(root / file, printable(shown / file))
        if isinstance(system, ParseError):
            problems.append((printable(shown / file), system))
        else:
            systems[name] = system
    folders = [f"results/{name}/{benchmark.NAME}" for name in _names_in("results", tree.folders)]
    return Submission(
        root=shown,
        systems=systems,
        system_names=tuple(system_names),
        results=tuple(_result_folder(root, shown, each, tree) for each in folders if each in tree.folders),
        files=tuple(tree.files),
        folders=frozenset(tree.folders),
        links=tuple(tree.links),
        problems=tuple(problems),
        only=only,
    )


def read_system_description(path: Path, display_path: str | None = None) -> SystemDescription | ParseError:
    """Read a system description. Whatever the file holds, raise no exception.

    Returns:
        The description, or a parse error for the rule `package-system-description`.
    """
    line, got = None, None
    try:
        if not path.is_file():
            raise ValueError("no such file, or not a regular one; give the system's JSON file")
        with path.open("rb") as file:
            data = file.read(MAX_DESCRIPTION_BYTES + 1)
        if len(data) > MAX_DESCRIPTION_BYTES:
            raise ValueError(f"larger than {MAX_DESCRIPTION_BYTES:,} bytes; expected a short JSON file")
        raw = json.loads(data.decode("utf-8"))
        if isinstance(raw, dict):
            return SystemDescription(path.stem, display_path or printable(path), raw)
        line, got, message = 1, type(raw).__name__, "not a JSON object; expected names and values in braces"
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        line, message = error.object.count(b"\n", 0, error.start) + 1, "not UTF-8; save the file as UTF-8"
    except json.JSONDecodeError as error:
        got = error.doc.split("\n")[error.lineno - 1].strip()[:80] or None
        line, message = error.lineno, f"not JSON: {error.msg} in column {error.colno}"
    except ValueError as error:
        message = str(error)
    except RecursionError:
        message = "JSON nested too deeply"
    return ParseError("package-system-description", line, message, got)


def _should_enter(folder: str) -> bool:
    """Return False for version control and for folders of other benchmarks."""
    parts = folder.split("/")
    depth = {"benchmarks": 1, "results": 2}.get(parts[0])
    is_other = depth is not None and len(parts) > depth and parts[depth] != benchmark.NAME
    return parts[-1] != ".git" and not is_other


def _keep_system(tree: FileTree, system: str) -> None:
    """Leave out the other folders of results/, and the descriptions of their systems."""
    others = {*_names_in("results", tree.folders)} - {system}
    left_out = {*(f"results/{other}" for other in others), *(f"systems/{other}.json" for other in others)}

    def is_kept(name: str) -> bool:
        return "/".join(name.split("/")[:2]) not in left_out

    tree.files = [file for file in tree.files if is_kept(file.name)]
    tree.folders = [name for name in tree.folders if is_kept(name)]
    tree.links = [link for link in tree.links if is_kept(link.name)]
    tree.unlisted = [(name, why) for name, why in tree.unlisted if is_kept(name)]


def _result_folder(root: Path, display_root: Path, folder: str, tree: FileTree) -> ResultFolder:
    files = _names_in(folder, (file.name for file in tree.files))
    numbered = sorted((int(match[1]), name) for name in files if (match := _RESULT.fullmatch(name)))
    logs = [name for _, name in numbered]
    others = sorted({*files, *_names_in(folder, tree.folders)} - set(logs))
    paths = tuple(root / folder / name for name in logs)
    scaling = _scaling_factor(root / folder / "scaling.json") if "scaling.json" in files else None
    parts = (file.name.removeprefix(f"{folder}/").split("/") for file in tree.files if file.name.startswith(folder))
    power = tuple(root.joinpath(folder, *each) for each in parts if each[0] == "power" and len(each) == 3)
    has_power = f"{folder}/power" in tree.folders
    system = folder.split("/")[1]
    shown = printable(display_root / folder)
    return ResultFolder(system, shown, paths, tuple(others), scaling, power if has_power else None)


def _scaling_factor(path: Path) -> Any:
    """Return the factor of a scaling.json, or a text that says why it has none."""
    try:
        with path.open("rb") as file:
            return json.loads(file.read(MAX_DESCRIPTION_BYTES))["scaling_factor"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"not read: {type(error).__name__}"


def _names_in(folder: str, names: Iterable[str]) -> list[str]:
    """Return the last parts of the names that lie directly in a folder."""
    parted = (name.rpartition("/") for name in names)
    return [name for parent, _, name in parted if parent == folder]
