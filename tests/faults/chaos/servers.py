"""The Redis of the fleet: one server, or a cluster of two nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from example.redis_server import RedisServer, free_port

from .bounds import NODE_TIMEOUT

JOIN_TIMEOUT: Final = 20.0  # seconds
SLOTS: Final = 16384


@contextmanager
def servers(kind: str) -> Iterator[Sequence[RedisServer]]:
    """Servers that pass on what is published at one of them.

    :param kind: ``"single"`` or ``"cluster"``.
    """
    if kind == "single":
        with RedisServer() as server:
            yield [server]
        return
    with ExitStack() as stack:
        ports = [free_port(), free_port()]
        nodes = [stack.enter_context(RedisServer(*_options(port))) for port in ports]
        with nodes[0].client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[1].port, ports[1])
        deadline = time.monotonic() + JOIN_TIMEOUT
        while not all(map(_has_joined, nodes)):
            if time.monotonic() > deadline:
                raise RuntimeError("the nodes of the Redis Cluster do not meet")
            time.sleep(0.05)
        yield nodes


def _options(bus_port: int) -> list[tuple[str, str]]:
    return [
        ("cluster-enabled", "yes"),
        ("cluster-port", str(bus_port)),
        ("cluster-node-timeout", f"{NODE_TIMEOUT * 1000:.0f}"),
    ]


def _has_joined(node: RedisServer) -> bool:
    with node.client() as client:
        info = str(client.execute_command("CLUSTER", "INFO"))
    return "cluster_state:ok" in info and "cluster_known_nodes:2" in info
