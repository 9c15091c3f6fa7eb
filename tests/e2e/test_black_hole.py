"""A way on which every packet vanishes for a while, with the session's and the dials' packets."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.cluster import cluster
from tests.harness.counted import count
from tests.harness.counting_upstream import counting_upstream
from tests.harness.fault_proxy import fault_proxy
from tests.harness.narrow_path import NARROW, narrow_path
from tests.harness.network_namespace import BESIDE, network_namespace

pytestmark = pytest.mark.e2e

USUAL_MTU = 1500
GONE_S = 6.0
"""Longer than the keepalive's deadline and the first repetitions of a SYN by the kernel."""


def test_a_stream_goes_on_after_an_outage_in_which_even_dials_got_no_answer(
    tmp_path: Path,
) -> None:
    settings = tmp_path / "short.toml"
    settings.write_text("ping_s = 0.5\ndead_s = 1.5\n")
    with (
        network_namespace() as namespace,
        narrow_path(namespace, USUAL_MTU) as way,
        counting_upstream() as upstream,
        cluster(tmp_path, "--config", str(settings)) as running,
        fault_proxy(running.port, NARROW) as tunnel,
        fault_proxy(upstream.port, BESIDE) as near,
        ThreadPoolExecutor(1) as pool,
    ):
        running.join("box")
        options = ("--upstream", near.url, "--relay", tunnel.address, "--config", str(settings))
        running.start_node("box", *options, through=namespace.command)
        running.wait_for_state("box", "ready")
        begun = threading.Event()
        secret = running.create_key().secret
        counting = pool.submit(count, running, secret, 150, on_number=lambda _: begun.set())
        assert begun.wait(30)
        way.widest_bytes = 0
        time.sleep(GONE_S)
        way.widest_bytes = USUAL_MTU
        counted = counting.result(60)
        assert counted.whole, counted
        print(f"the longest pause was {counted.longest_pause_s:.2f} s for an outage of {GONE_S} s")
        running.nodes["box"].daemon.stop()
