"""SIGTERM: no new streams, the ones in flight end by themselves, and then the process is gone."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness.caller import chat, events, request
from tests.harness.cluster import Cluster, cluster
from tests.harness.fault_proxy import fault_proxy
from tests.harness.odd_upstream import MODELS, OddUpstream, odd_upstream
from tests.harness.processes import wait_until

pytestmark = pytest.mark.e2e

ENDED_S: Final = 2.0
"""By then a node that waits for its upstream alone has ended."""


@pytest.fixture
def odd() -> Iterator[OddUpstream]:
    with odd_upstream() as upstream:
        yield upstream


@pytest.fixture
def own(tmp_path: Path, odd: OddUpstream) -> Iterator[Cluster]:
    with cluster(tmp_path) as running:
        running.add_node("box", odd.url, models=len(MODELS))
        yield running


def test_a_relay_ends_after_its_streams(own: Cluster, odd: OddUpstream) -> None:
    headers = {"Authorization": f"Bearer {own.create_key().secret}"}
    body = chat("waits", stream=True)
    with request(own, "/v1/chat/completions", body, headers) as response:
        arriving = events(response)
        assert "first" in next(arriving)
        own.relay.send(signal.SIGTERM)
        own.relay.wait_for_output("stopping")
        assert own.relay.exit_code is None
        odd.seen.release.set()
        assert "second" in next(arriving)
        assert next(arriving) == "[DONE]"
    assert own.relay.wait() == 0


def test_a_node_ends_after_its_streams(own: Cluster, odd: OddUpstream) -> None:
    headers = {"Authorization": f"Bearer {own.create_key().secret}"}
    node = own.nodes["box"].daemon
    with request(own, "/v1/chat/completions", chat("waits", stream=True), headers) as response:
        arriving = events(response)
        assert "first" in next(arriving)
        node.send(signal.SIGTERM)
        wait_until(lambda: own.state_of("box") != "ready", "the node still takes requests")
        with request(own, "/v1/chat/completions", chat("answers"), headers) as refused:
            assert refused.status == 503
            assert refused.headers["Retry-After"]
        odd.seen.release.set()
        assert "second" in next(arriving)
        assert next(arriving) == "[DONE]"
    assert node.wait() == 0


@pytest.mark.parametrize("fault", ["stalled", "reset later", "refused"])
def test_a_node_does_not_end_before_its_relay_has_the_whole_answers(
    tmp_path: Path, odd: OddUpstream, fault: str
) -> None:
    with cluster(tmp_path) as running, fault_proxy(running.port) as network:
        running.join("box")
        options = ("--upstream", odd.url, "--relay", network.address)
        node = running.run_node("box", *options, models=len(MODELS)).daemon
        headers = {"Authorization": f"Bearer {running.create_key().secret}"}
        body = chat("waits", stream=True)
        with request(running, "/v1/chat/completions", body, headers) as response:
            arriving = events(response)
            assert "first" in next(arriving)
            node.send(signal.SIGTERM)
            wait_until(lambda: running.state_of("box") != "ready", "the node still takes requests")
            if fault == "refused":
                network.refuse()
            else:
                network.stall()
            odd.seen.release.set()
            time.sleep(ENDED_S)
            if fault == "reset later":
                network.reset()
            network.clear()
            assert "second" in next(arriving)
            assert next(arriving) == "[DONE]"
        assert node.wait() == 0


def test_a_stream_that_outlives_the_drain_ends_with_an_error_event(
    tmp_path: Path, odd: OddUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAI_RELAY_DRAIN_TIMEOUT_S", "0.3")
    with cluster(tmp_path) as running:
        running.add_node("box", odd.url, models=len(MODELS))
        headers = {"Authorization": f"Bearer {running.create_key().secret}"}
        body = chat("waits", stream=True)
        with request(running, "/v1/chat/completions", body, headers) as response:
            arriving = events(response)
            assert "first" in next(arriving)
            running.relay.send(signal.SIGTERM)
            last = list(arriving)
        assert len(last) == 1
        assert "error" in last[0]
        assert running.relay.wait() == 0


def test_an_idle_relay_and_node_end_at_once(own: Cluster) -> None:
    assert own.nodes["box"].daemon.stop() == 0
    assert own.relay.stop() == 0
