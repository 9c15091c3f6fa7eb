"""Two machines with one copied data folder: the first one serves on, and the second one is told."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.cluster import CommandError, cluster, wai
from tests.harness.counted import count
from tests.harness.counting_upstream import counting_upstream

pytestmark = pytest.mark.e2e


def test_the_first_machine_loses_no_stream_and_everybody_is_told(tmp_path: Path) -> None:
    with counting_upstream() as upstream, cluster(tmp_path) as running:
        first = running.add_node("box", upstream.url)
        shutil.copytree(first.data, tmp_path / "copy", ignore=shutil.ignore_patterns("*.lock"))
        secret = running.create_key().secret
        with ThreadPoolExecutor(4) as pool:
            counting = [pool.submit(count, running, secret, 150) for _ in range(4)]
            copy = running.start_node("copy", "--upstream", upstream.url)
            copy.daemon.wait_for_output("join with a new invite")
            assert all(counted.result(60).whole for counted in counting)
        running.relay.wait_for_output("a second machine with its identity was refused")
        (node,) = running.list_nodes()
        assert (node["state"], node["copied"]) == ("ready", True)
        with pytest.raises(CommandError) as doctor:
            wai("doctor", "--data", running.data, "--node-data", tmp_path / "none")
        assert "box: a second machine uses its identity" in doctor.value.output
        with pytest.raises(CommandError) as on_the_copy:
            wai("doctor", "--relay", running.url, "--ca", running.ca, "--node-data", copy.data)
        assert "its data folder was copied" in on_the_copy.value.output


def test_a_node_that_is_killed_and_started_again_is_back_at_once(tmp_path: Path) -> None:
    with counting_upstream() as upstream, cluster(tmp_path) as running:
        node = running.add_node("box", upstream.url)
        for _ in range(3):
            node.daemon.kill()
            node = running.run_node("box", "--upstream", upstream.url)
        (listed,) = running.list_nodes()
        assert not listed["copied"]
