"""The doctor's findings on the rendezvous of nodes: real sockets, real names."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from gptoss20b.config import resolve
from gptoss20b.tools.doctor.finding import Finding, Verdict
from gptoss20b.tools.doctor.network import check_rendezvous
from gptoss20b.tools.doctor.node_context import NodeContext
from tests.support.findings import assert_finding

NOWHERE = "198.51.100.1"  # of a block that is for documentation and no machine's (RFC 5737)


def rendezvous(node_rank: str | None, address: str | None, port: str | int = 29500, nodes: int = 2) -> Finding:
    config = resolve({"DGXNNODES": str(nodes), "GLOBAL_BATCH_SIZE": "64"})
    return check_rendezvous(config, NodeContext(node_rank, address, str(port)))


@pytest.fixture
def own_address() -> str:
    """Return this machine's address in its network, which a process reaches as another node would."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((NOWHERE, 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but its loop's")
        return str(probe.getsockname()[0])


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen(0)
        yield server


@pytest.mark.parametrize(
    ("rank", "address", "port", "key"),
    [
        (None, "localhost", 29500, "NODE_RANK is not set"),
        ("2", "localhost", 29500, "NODE_RANK is 2, expected 0 to 1"),
        ("x", "localhost", 29500, "NODE_RANK is x"),
        ("0", None, 29500, "MASTER_ADDR is not set"),
        ("0", "localhost", "http", "MASTER_PORT is 'http'"),
        ("0", "localhost", 65536, "MASTER_PORT is '65536'"),
        ("0", "no-such-host.invalid", 29500, "'no-such-host.invalid' cannot be resolved"),
        ("1", "127.0.0.1", 29500, "expected the leader"),
    ],
)
def test_an_impossible_rendezvous_fails(rank: str | None, address: str | None, port: str | int, key: str) -> None:
    assert_finding(rendezvous(rank, address, port), Verdict.FAIL, key)


def test_on_the_first_node_the_port_is_free_and_the_address_its_own() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.2", 0))  # one of this node's addresses is enough: a run's store listens on all
        other.listen()
        port = other.getsockname()[1]
        taken = rendezvous("0", "127.0.0.1", port)
    assert_finding(taken, Verdict.FAIL, f"port {port}", "Address already in use", fix="MASTER_PORT")
    assert_finding(rendezvous("0", "127.0.0.1", port), Verdict.PASS, f"port {port} is free")
    assert_finding(rendezvous("0", NOWHERE, port), Verdict.WARN, NOWHERE, fix="MASTER_ADDR")
    assert rendezvous(None, None, nodes=1).verdict is Verdict.SKIPPED


def test_from_another_node_it_is_reached_or_not_yet_listening(own_address: str, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    assert_finding(rendezvous("1", own_address, port), Verdict.PASS, "something listens there")
    listener.close()
    assert_finding(rendezvous("1", own_address, port), Verdict.PASS, "nothing listens")


def test_a_first_node_that_does_not_answer_fails(
    own_address: str, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptoss20b.tools.doctor.network._CONNECT_S", 0.5)
    port = listener.getsockname()[1]
    with ExitStack() as stack:
        for client in [stack.enter_context(socket.socket()) for _ in range(4)]:
            # A queue that nobody empties: further connections are dropped, as a firewall does.
            client.setblocking(False)
            client.connect_ex((own_address, port))
        found = rendezvous("1", own_address, port)
    assert_finding(found, Verdict.FAIL, "0.5 s", fix="firewall")
