"""A node with two tunnels: streams are spread over them, and losing one loses none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.cluster import Cluster, cluster
from tests.harness.counted import count
from tests.harness.counting_upstream import counting_upstream
from tests.harness.fault_proxy import FaultProxy, fault_proxy
from tests.harness.processes import wait_until

pytestmark = pytest.mark.e2e

STREAMS = 4
NUMBERS = 150
# Of the numbers that one stream brings in a second; a tunnel without a stream has far less.
BUSY_BYTES = 4000


@pytest.fixture
def twofold(tmp_path: Path) -> Iterator[tuple[Cluster, FaultProxy]]:
    settings = tmp_path / "node.toml"
    settings.write_text("tunnels = 2\n")
    with (
        counting_upstream() as upstream,
        cluster(tmp_path) as running,
        fault_proxy(running.port) as tunnels,
    ):
        options = ("--config", str(settings), "--relay", tunnels.address)
        running.add_node("box", upstream.url, options=options)
        wait_until(lambda: len(tunnels.bytes_by_connection) == 2, "there are not two tunnels")
        yield running, tunnels


def test_streams_are_spread_and_survive_the_loss_of_one(
    twofold: tuple[Cluster, FaultProxy],
) -> None:
    running, tunnels = twofold
    secret = running.create_key().secret
    begun = threading.Barrier(STREAMS + 1, timeout=30)

    def on_number(number: int) -> None:
        if number == 1:
            begun.wait()

    def read(_: int) -> bool:
        return count(running, secret, NUMBERS, on_number=on_number).whole

    with ThreadPoolExecutor(STREAMS) as pool:
        streams = pool.map(read, range(STREAMS))
        begun.wait()
        at_first = tunnels.bytes_by_connection
        wait_until(
            lambda: all(
                now - before > BUSY_BYTES
                for now, before in zip(tunnels.bytes_by_connection, at_first, strict=True)
            ),
            "only one tunnel has streams",
        )
        tunnels.reset_one()
        assert all(streams)
    assert tunnels.connections == 3
