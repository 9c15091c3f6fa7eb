"""A node whose address changes, as a laptop's does between two networks, goes on where it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.cluster import Cluster, cluster
from tests.harness.counted import count
from tests.harness.counting_upstream import counting_upstream
from tests.harness.fault_proxy import fault_proxy
from tests.harness.network_namespace import BESIDE, OUTSIDE, Namespace, network_namespace

pytestmark = pytest.mark.e2e

NUMBERS = 200


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[tuple[Cluster, Namespace]]:
    with (
        network_namespace() as namespace,
        counting_upstream() as upstream,
        cluster(tmp_path) as running,
        fault_proxy(running.port, OUTSIDE) as tunnel,
        fault_proxy(upstream.port, BESIDE) as near,
    ):
        running.join("box")
        options = ("--upstream", near.url, "--relay", tunnel.address)
        running.start_node("box", *options, through=namespace.command)
        running.wait_for_state("box", "ready")
        yield running, namespace


def test_a_stream_goes_on_from_another_address(moving: tuple[Cluster, Namespace]) -> None:
    # Keepalive is the default here: 25 s of silence, longer than this stream takes.
    running, namespace = moving
    secret = running.create_key().secret
    begun = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        counting = pool.submit(
            count,
            running,
            secret,
            NUMBERS,
            on_number=lambda number: begun.set() if number == NUMBERS // 4 else None,
        )
        assert begun.wait(30)
        namespace.move("198.18.7.77")
        counted = counting.result(60)
    assert counted.whole
    running.nodes["box"].daemon.wait_for_output(
        "our address changed from 198.18.7.2 to 198.18.7.77"
    )
