"""Whether ranks can communicate: a sum over all ranks of this node, and the rendezvous of several nodes."""

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

from system_info.files import one_line

from ...config import Config
from .finding import Finding, failed, passed, skipped, warned
from .node_context import NodeContext

# Steps of a rank of `collective`, in the words that it prints.
PROGRESS = ("started", "joined", "summed")

_ROOT = Path(__file__).resolve().parents[3]
_CONNECT_S = 5.0
_POLL_S = 0.05
_RENDEZVOUS = "rendezvous"


def check_collectives(ranks: int, backend: str, limit_s: float) -> Finding:
    """Start the node's ranks, have them sum a tensor, and check the sum.

    Args:
        ranks: number of processes to start, one for each GPU.
        backend: nccl (RCCL on AMD) or gloo.
        limit_s: seconds after which the processes are killed.
    """
    with tempfile.TemporaryDirectory(prefix="gptoss20b-doctor-") as name:
        folder, began = Path(name), time.monotonic()
        processes = [_start_rank(rank, ranks, backend, folder, limit_s) for rank in range(ranks)]
        try:
            _wait_for_ranks(processes, began + limit_s)
            codes = [process.poll() for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return _judge_ranks(codes, folder, f"{ranks} ranks over {backend}", time.monotonic() - began)


def check_rendezvous(config: Config, node: NodeContext) -> Finding:
    """Check that the nodes of a run can meet: on the first the port must be free, from the others within reach.

    Args:
        config: configuration of the run.
        node: this node.
    """
    nodes, rank, address, port = config.parallel.nodes, node.node_rank, node.master_address, node.master_port
    if nodes == 1:
        return skipped(_RENDEZVOUS, "one node")
    if rank is None or not rank.isdecimal() or int(rank) >= nodes:
        found = f"NODE_RANK is {rank or 'not set'}, expected 0 to {nodes - 1}"
        return failed(_RENDEZVOUS, found, "export this node's number")
    if address is None:
        return failed(_RENDEZVOUS, "MASTER_ADDR is not set", "export the address of the first node, the same on all")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        found = f"MASTER_PORT is '{port}', expected 1 to 65535"
        return failed(_RENDEZVOUS, found, "export a port that is free on the first node")
    try:
        family, _, _, _, resolved = socket.getaddrinfo(address, int(port), type=socket.SOCK_STREAM)[0]
    except OSError as error:
        found = f"MASTER_ADDR '{address}' cannot be resolved ({error.strerror or error})"
        return failed(_RENDEZVOUS, found, "correct it, or give the first node's IP address")
    check = _check_first_node if int(rank) == 0 else _check_other_node
    return check(family, address, str(resolved[0]), int(port))


def _check_first_node(family: int, address: str, ip: str, port: int) -> Finding:
    error = _bind_error(family, "", port)  # on every address, as the run's own store binds
    if error is not None:
        fix = "end what listens there (a rank of an earlier run?), or set another MASTER_PORT on all nodes"
        return failed(_RENDEZVOUS, f"port {port} cannot be bound: {error}", fix)
    if _bind_error(family, ip, 0) is not None:
        found = f"MASTER_ADDR {address} is {ip}, which is no address of this first node; port {port} is free"
        fix = "unless it is translated to this node's, set MASTER_ADDR to one, and NODE_RANK=0 only there"
        return warned(_RENDEZVOUS, found, fix)
    return passed(_RENDEZVOUS, f"{address} is this node, and port {port} is free")


def _bind_error(family: int, ip: str, port: int) -> str | None:
    """Return why a server could not listen there, or None if it could."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # A connection that has just ended does not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
        except OSError as error:
            return str(error.strerror)
    return None


def _check_other_node(family: int, address: str, ip: str, port: int) -> Finding:
    if ip.startswith("127.") or ip == "::1":
        fix = "give the first node's address in the network; /etc/hosts may map its name to the loopback interface"
        found = f"MASTER_ADDR {address} is {ip}, this node itself, expected the first node"
        return failed(_RENDEZVOUS, found, fix)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_S)
        try:
            probe.connect((ip, port))
        except ConnectionRefusedError:
            return passed(_RENDEZVOUS, f"{ip} answers; nothing listens on port {port} yet, as before a run")
        except OSError as error:
            reason = f"no answer within {_CONNECT_S:g} s" if isinstance(error, TimeoutError) else str(error.strerror)
            fix = "check that the first node is up, and open the port between the nodes (firewall, routes)"
            return failed(_RENDEZVOUS, f"{address} ({ip}) port {port}: {reason}", fix)
    return passed(_RENDEZVOUS, f"{ip} port {port} can be reached, and something listens there")


def _start_rank(rank: int, ranks: int, backend: str, folder: Path, limit_s: float) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))),
    }
    module, store = "gptoss20b.tools.doctor.collective", str(folder / "store")
    command = [sys.executable, "-m", module, backend, store, str(limit_s)]
    with (folder / f"out{rank}").open("wb") as out, (folder / f"err{rank}").open("wb") as err:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err)


def _wait_for_ranks(processes: Sequence[subprocess.Popen[bytes]], deadline: float) -> None:
    """Wait until all ranks have ended, one has failed, or the deadline has passed."""
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if any(codes) or None not in codes:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            processes[codes.index(None)].wait(_POLL_S)


def _judge_ranks(codes: Sequence[int | None], folder: Path, what: str, spent_s: float) -> Finding:
    """Combine the exit statuses with the progress that the ranks wrote to files."""
    name = "collectives"
    fix = "set NCCL_DEBUG=INFO (RCCL too) or GLOO_SOCKET_IFNAME=lo, try again, and look at driver, links and /dev/shm"
    failures = [rank for rank, code in enumerate(codes) if code]
    if failures:
        rank = failures[0]
        lines = (folder / f"err{rank}").read_text(errors="replace").strip().splitlines()
        reason = one_line(lines[-1]) if lines else f"exit status {codes[rank]} without a message"
        return failed(name, f"{what}: rank {rank} failed after {spent_s:.1f} s: {reason}", fix)
    reached = [len((folder / f"out{rank}").read_text(errors="replace").split()) for rank in range(len(codes))]
    if None in codes:
        fewest = min(reached)
        slowest = ", ".join(str(rank) for rank, steps in enumerate(reached) if steps == fewest)
        late = f"never {PROGRESS[fewest]}" if fewest < len(PROGRESS) else "did not end"
        return failed(name, f"{what}: no end within {spent_s:.0f} s; rank {slowest} {late}", fix)
    if set(reached) != {len(PROGRESS)}:
        return failed(name, f"{what}: a rank ended without a sum", fix)
    return passed(name, f"{what} summed a tensor, and the sum is right; {spent_s:.1f} s")
