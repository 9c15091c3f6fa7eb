"""Hostile programs on the ports where a node looks: its streams go on all the same."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness.cluster import cluster
from tests.harness.counted import count
from tests.harness.counting_upstream import counting_upstream
from tests.harness.hostile_server import HostileServer, hostile_server
from tests.harness.network_namespace import own_network

pytestmark = [pytest.mark.long, pytest.mark.e2e]

NUMBERS = 700  # of 20 ms each: longer than it takes until a node looks around again
ROUND = (
    *("not-utf-8", "deep-list", "deep-object", "huge-int", "int-beyond-the-status"),
    *("wrong-types", "endless-body", "slow-trickle", "no-http"),
)


def test_a_stream_goes_on_while_other_servers_turn_hostile(tmp_path: Path) -> None:
    with own_network(), ExitStack() as ending:
        hostile = [ending.enter_context(hostile_server(port=p)) for p in (8080, 11434, 1234)]
        ending.enter_context(counting_upstream(port=8000))
        running = ending.enter_context(cluster(tmp_path))
        running.join("box")
        node = running.run_node("box", models=2)
        secret = running.create_key().secret
        begun = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            counting = pool.submit(
                count, running, secret, NUMBERS, on_number=lambda number: begun.set()
            )
            assert begun.wait(30)
            for at in range(0, len(ROUND), len(hostile)):
                turn(hostile, ROUND[at : at + len(hostile)])
            counted = counting.result(60)
        assert counted.whole, counted
        assert count(running, secret, 3).whole
        assert "Traceback" not in node.daemon.log.read_text()


def turn(servers: list[HostileServer], modes: tuple[str, ...]) -> None:
    """Have each behave badly in its own way, until it was asked."""
    for server, mode in zip(servers, modes, strict=True):
        server.mode = mode
    asked = threading.Event()
    for server in servers:
        for _ in range(1500):
            if server.asked:
                break
            asked.wait(0.01)
        else:
            raise AssertionError(f"nobody asked the server on port {server.port}: {server.mode}")
