"""Whether ranks can talk: a sum over all ranks of this node, and the place where nodes meet."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ...config import Config
from .finding import Finding, failed, passed, skipped, warned
from .limits import one_line
from .place import Place

STEPS = ("started", "joined", "summed")
"""How far a rank of `collective` gets, in the words that it prints."""

_ROOT = Path(__file__).resolve().parents[2]
_CONNECT_S = 5.0
_POLL_S = 0.05


def look_at_collectives(ranks: int, backend: str, limit_s: float) -> Finding:
    """Start the node's ranks, have them sum a tensor, and check the sum.

    Args:
        ranks: processes to start, one for each GPU.
        backend: nccl (which is RCCL on AMD) or gloo.
        limit_s: seconds after which what is left is killed.
    """
    with tempfile.TemporaryDirectory(prefix="gptoss20b-doctor-") as name:
        folder, began = Path(name), time.monotonic()
        processes = [_start(rank, ranks, backend, folder, limit_s) for rank in range(ranks)]
        try:
            _wait(processes, began + limit_s)
            codes = [process.poll() for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        spent = time.monotonic() - began
        return _judge(codes, folder, f"{ranks} ranks over {backend}", spent)


def look_at_meeting_point(config: Config, place: Place) -> Finding:
    """Check that the nodes of a run can meet: on the first its port is free, from the others it can be reached.

    Args:
        config: of the run.
        place: of this node.
    """
    name, nodes = "meeting point", config.parallel.nodes
    if nodes == 1:
        return skipped(name, "one node")
    rank, address, port = place.node_rank, place.master_address, place.master_port
    if rank is None or not rank.isdecimal() or int(rank) >= nodes:
        return failed(name, f"NODE_RANK is {rank or 'not set'}, expected 0 to {nodes - 1}", "export this node's number")
    if address is None:
        return failed(name, "MASTER_ADDR is not set", "export the address of the first node, the same on all")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        return failed(
            name, f"MASTER_PORT is '{port}', expected 1 to 65535", "export a port that is free on the first node"
        )
    try:
        resolved = socket.getaddrinfo(address, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        fix = "correct it, or give the first node's IP address"
        return failed(name, f"MASTER_ADDR '{address}' cannot be resolved ({error.strerror or error})", fix)
    return _first_node(name, address, resolved) if int(rank) == 0 else _other_node(name, address, resolved)


_Resolved = Sequence[tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]]


def _first_node(name: str, address: str, resolved: _Resolved) -> Finding:
    family, _, _, _, where = resolved[0]
    place, port = str(where[0]), int(where[1])
    why = _cannot_bind(family, "", port)  # on every address, as the run's own store does
    if why is not None:
        fix = "end what listens there (a rank of an earlier run?), or set another MASTER_PORT on all nodes"
        return failed(name, f"port {port} cannot be bound: {why}", fix)
    if _cannot_bind(family, place, 0) is not None:
        found = f"MASTER_ADDR {address} is {place}, which is no address of this first node; port {port} is free"
        fix = "unless it is translated to this node's, set MASTER_ADDR to one, and NODE_RANK=0 only there"
        return warned(name, found, fix)
    return passed(name, f"{address} is this node, and port {port} is free")


def _cannot_bind(family: int, place: str, port: int) -> str | None:
    """Why a server could not listen there, None if it could; a connection that ended just now is no reason."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((place, port))
        except OSError as error:
            return str(error.strerror)
    return None


def _other_node(name: str, address: str, resolved: _Resolved) -> Finding:
    family, _, _, _, where = resolved[0]
    place, port = str(where[0]), int(where[1])
    if place.startswith("127.") or place == "::1":
        fix = "give the first node's address in the network; /etc/hosts may name it on the loop"
        return failed(name, f"MASTER_ADDR {address} is {place}, this node itself, expected the first node", fix)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_S)
        try:
            probe.connect((place, port))
        except ConnectionRefusedError:
            return passed(name, f"{place} answers; nothing listens on port {port} yet, as before a run")
        except OSError as error:
            why = f"no answer within {_CONNECT_S:g} s" if isinstance(error, TimeoutError) else str(error.strerror)
            fix = "see whether the first node is up, and open the port between the nodes (firewall, routes)"
            return failed(name, f"{address} ({place}) port {port}: {why}", fix)
    return passed(name, f"{place} port {port} can be reached, and something listens there")


def _start(rank: int, ranks: int, backend: str, folder: Path, limit_s: float) -> subprocess.Popen[bytes]:
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    command = [
        sys.executable,
        "-m",
        "gptoss20b.tools.doctor.collective",
        backend,
        str(folder / "meeting"),
        str(limit_s),
    ]
    with (folder / f"out{rank}").open("wb") as out, (folder / f"err{rank}").open("wb") as err:
        return subprocess.Popen(
            command, env=os.environ | own | {"PYTHONPATH": path}, stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )


def _wait(processes: Sequence[subprocess.Popen[bytes]], deadline: float) -> None:
    """Until all have ended, or one has failed, or the deadline."""
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if any(codes) or None not in codes:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            processes[codes.index(None)].wait(_POLL_S)


def _judge(codes: Sequence[int | None], folder: Path, what: str, spent: float) -> Finding:
    """What the exit statuses, and the files in which the ranks wrote how far they got, say together."""
    name = "collectives"
    fix = "set NCCL_DEBUG=INFO (RCCL too) or GLOO_SOCKET_IFNAME=lo, try again, and look at driver, links and /dev/shm"
    failures = [rank for rank, code in enumerate(codes) if code]
    if failures:
        rank = failures[0]
        said = (folder / f"err{rank}").read_text(errors="replace").strip().splitlines()
        why = one_line(said[-1]) if said else f"exit status {codes[rank]} and no word"
        return failed(name, f"{what}: rank {rank} failed after {spent:.1f} s: {why}", fix)
    reached = [len((folder / f"out{rank}").read_text(errors="replace").split()) for rank in range(len(codes))]
    if None in codes:
        last = min(reached)
        slowest = ", ".join(str(rank) for rank, steps in enumerate(reached) if steps == last)
        late = f"never {STEPS[last]}" if last < len(STEPS) else "did not end"
        return failed(name, f"{what}: no end within {spent:.0f} s; rank {slowest} {late}", fix)
    if set(reached) != {len(STEPS)}:
        return failed(name, f"{what}: a rank ended without a sum", fix)
    return passed(name, f"{what} summed a tensor, and the sum is right; {spent:.1f} s")
