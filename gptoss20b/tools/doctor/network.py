"""Whether ranks can communicate: a sum over all ranks of this node, and the rendezvous of several nodes."""

from __future__ import annotations

import socket

from ...config import Config
from .finding import Finding, failed, passed, skipped, warned
from .node_context import NodeContext
from .ranks import judge_ranks, run_ranks

_CONNECT_S = 5.0
_RENDEZVOUS = "rendezvous"


def check_collectives(config: Config, backend: str, limit_s: float) -> list[Finding]:
    """Start the node's ranks, have them sum a tensor over nccl (RCCL on AMD) or gloo, and check the sum."""
    return [judge_ranks(run_ranks(config.parallel.gpus_per_node, backend, limit_s))]


def check_rendezvous(config: Config, node: NodeContext) -> Finding:
    """Check that the nodes of a run can meet: on the leader the port must be free, from the workers within reach."""
    nodes, rank, address, port = config.parallel.nodes, node.node_rank, node.master_address, node.master_port
    if nodes == 1:
        return skipped(_RENDEZVOUS, "one node")
    fix = "export this node's number, and the address and a free port of the leader (node 0), which are the same on all"
    if rank is None or not rank.isdecimal() or int(rank) >= nodes:
        return failed(_RENDEZVOUS, f"NODE_RANK is {rank or 'not set'}, expected 0 to {nodes - 1}", fix)
    if address is None:
        return failed(_RENDEZVOUS, "MASTER_ADDR is not set", fix)
    if not port.isdecimal() or not 0 < int(port) < 65536:
        return failed(_RENDEZVOUS, f"MASTER_PORT is '{port}', expected 1 to 65535", fix)
    try:
        family, _, _, _, resolved = socket.getaddrinfo(address, int(port), type=socket.SOCK_STREAM)[0]
    except OSError as error:
        return failed(_RENDEZVOUS, f"MASTER_ADDR '{address}' cannot be resolved ({error})", fix)
    check = _check_leader if int(rank) == 0 else _check_worker
    return check(family, address, str(resolved[0]), int(port))


def _check_leader(family: int, address: str, ip: str, port: int) -> Finding:
    try:
        _try_bind(family, "", port)  # on every address, as the run's own store binds
    except OSError as error:
        fix = "end what listens there (a rank of an earlier run?), or set another MASTER_PORT on all nodes"
        return failed(_RENDEZVOUS, f"port {port} cannot be bound: {error.strerror}", fix)
    try:
        _try_bind(family, ip, 0)
    except OSError:
        found = f"MASTER_ADDR {address} is {ip}, which is no address of this leader; port {port} is free"
        fix = "unless it is translated to this node's, set MASTER_ADDR to one, and NODE_RANK=0 only there"
        return warned(_RENDEZVOUS, found, fix)
    return passed(_RENDEZVOUS, f"{address} is this node, and port {port} is free")


def _try_bind(family: int, ip: str, port: int) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # A connection that has just ended does not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((ip, port))


def _check_worker(family: int, address: str, ip: str, port: int) -> Finding:
    if ip.startswith("127.") or ip == "::1":
        fix = "give the leader's address in the network; /etc/hosts may map its name to the loopback interface"
        found = f"MASTER_ADDR {address} is {ip}, this node itself, expected the leader"
        return failed(_RENDEZVOUS, found, fix)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_S)
        try:
            probe.connect((ip, port))
        except ConnectionRefusedError:
            return passed(_RENDEZVOUS, f"{ip} answers; nothing listens on port {port} yet, as before a run")
        except OSError as error:
            fix = "check that the leader is up, and open the port between the nodes (firewall, routes)"
            return failed(_RENDEZVOUS, f"{address} ({ip}) port {port} within {_CONNECT_S:g} s: {error}", fix)
    return passed(_RENDEZVOUS, f"{ip} port {port} can be reached, and something listens there")
