"""A way that drops large packets and tells nobody (a path MTU black hole) stops no tunnel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.cluster import Cluster, cluster
from tests.harness.counted import count
from tests.harness.counting_upstream import counting_upstream
from tests.harness.fault_proxy import fault_proxy
from tests.harness.narrow_path import NARROW, NarrowPath, narrow_path
from tests.harness.network_namespace import BESIDE, network_namespace

pytestmark = [pytest.mark.long, pytest.mark.e2e]

LONG_TEXT = "word " * 40_000
"""200 kB: many segments of any size."""

NUMBERS = 5_000
"""Said without a pause: many tokens in a segment, on the way back."""


@contextmanager
def node_behind(widest_bytes: int, folder: Path) -> Iterator[tuple[Cluster, NarrowPath]]:
    """A node whose way to the relay carries packets of up to `widest_bytes`."""
    with (
        network_namespace() as namespace,
        narrow_path(namespace, widest_bytes) as way,
        counting_upstream(0.0) as upstream,
        cluster(folder) as running,
        fault_proxy(running.port, NARROW) as tunnel,
        fault_proxy(upstream.port, BESIDE) as near,
    ):
        running.join("box")
        options = ("--upstream", near.url, "--relay", tunnel.address)
        running.start_node("box", *options, through=namespace.command)
        running.wait_for_state("box", "ready")
        yield running, way
        running.nodes["box"].daemon.stop()


def assert_that_much_passes_both_ways(running: Cluster) -> None:
    counted = count(running, running.create_key().secret, NUMBERS, user=LONG_TEXT)
    assert counted.whole, counted


def test_packets_over_1300_bytes_vanish(tmp_path: Path) -> None:
    with node_behind(1300, tmp_path) as (running, way):
        assert_that_much_passes_both_ways(running)
        assert way.dropped == 0


@pytest.mark.parametrize("text", ["short", LONG_TEXT], ids=["to the relay", "to the node"])
def test_packets_that_every_way_should_carry_vanish(tmp_path: Path, text: str) -> None:
    with node_behind(1000, tmp_path) as (running, way):
        counted = count(running, running.create_key().secret, NUMBERS, user=text)
        assert counted.whole, counted
        assert way.dropped > 0
        running.nodes["box"].daemon.wait_for_output("large packets seem not to get through")
