"""One fault each, in the middle of a stream of known content: what the caller sees of it.

Real processes and a proxy between them. Where a fault is found by silence, what is silent counts as
dead within seconds; where it is not, after so long that no busy machine is taken for silence.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.cluster import Cluster, cluster
from tests.harness.counted import Counted, count
from tests.harness.counting_upstream import CountingUpstream, counting_upstream
from tests.harness.fault_proxy import BOTH_WAYS, FaultProxy, Way, fault_proxy
from tests.harness.processes import Daemon, wait_until

pytestmark = [pytest.mark.long, pytest.mark.e2e]

NUMBERS = 150  # at one every 20 ms: three seconds
IN_THE_MIDDLE = 40
DEAD_S = 1.5


@dataclass(frozen=True, slots=True)
class Times:
    """Settings of relay and node."""

    dead_s: float = DEAD_S
    session_ttl_s: float = 20.0

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write the settings files of the relay and its nodes."""
        keepalive = f"ping_s = {self.dead_s / 3}\ndead_s = {self.dead_s}\n"
        relay, node = folder / "relay.toml", folder / "node.toml"
        relay.write_text(f"{keepalive}session_ttl_s = {self.session_ttl_s}\n")
        node.write_text(keepalive)
        return relay, node


patient = pytest.mark.parametrize("path", [Times(dead_s=15.0)], indirect=True, ids=["patient"])
hasty = pytest.mark.parametrize("path", [Times(session_ttl_s=3.0)], indirect=True, ids=["hasty"])


@dataclass(frozen=True, slots=True)
class OneNode:
    """A relay and one node; the tunnel goes through `tunnel`, the node's upstream is `upstream`."""

    cluster: Cluster
    tunnel: FaultProxy
    upstream: CountingUpstream
    secret: str

    @property
    def node(self) -> Daemon:
        """The node's process."""
        return self.cluster.nodes["box"].daemon

    def count_through(self, fault: Callable[[], object]) -> Counted:
        """One counted answer, in the middle of which `fault` strikes."""
        struck = threading.Event()

        def on_number(number: int) -> None:
            if number == IN_THE_MIDDLE:
                struck.set()

        with ThreadPoolExecutor(1) as pool:
            counting = pool.submit(count, self.cluster, self.secret, NUMBERS, on_number=on_number)
            assert struck.wait(30), counting.result(0) if counting.done() else "nothing comes"
            fault()
            return counting.result(60)


@pytest.fixture
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[OneNode]:
    times: Times = getattr(request, "param", Times())
    relay_settings, node_settings = times.write(tmp_path)
    with (
        counting_upstream() as upstream,
        cluster(tmp_path, "--config", str(relay_settings)) as running,
        fault_proxy(running.port) as tunnel,
    ):
        options = ("--config", str(node_settings), "--relay", tunnel.address)
        running.add_node("box", upstream.url, options=options)
        yield OneNode(running, tunnel, upstream, running.create_key().secret)


@patient
def test_a_reset(path: OneNode) -> None:
    assert path.count_through(path.tunnel.reset).whole
    assert path.tunnel.connections == 2


@patient
def test_a_connection_closed_by_something_between(path: OneNode) -> None:
    assert path.count_through(path.tunnel.cut).whole
    assert path.tunnel.connections == 2


@patient
def test_a_reset_in_the_middle_of_a_frame(path: OneNode) -> None:
    assert path.count_through(lambda: path.tunnel.reset_after(7)).whole
    assert path.tunnel.resets == 1


@pytest.mark.parametrize("ways", [BOTH_WAYS, {Way.TO_TARGET}, {Way.TO_DIALLER}])
def test_a_half_open_connection(path: OneNode, ways: set[Way]) -> None:
    counted = path.count_through(lambda: path.tunnel.abandon(frozenset(ways)))
    assert counted.whole
    assert path.tunnel.connections >= 2


@patient
def test_packets_vanish_for_less_than_the_deadline(path: OneNode) -> None:
    def stall_for_a_moment() -> None:
        path.tunnel.stall()
        threading.Timer(DEAD_S / 3, path.tunnel.clear).start()

    assert path.count_through(stall_for_a_moment).whole
    assert path.tunnel.connections == 1


def test_packets_vanish_for_longer_than_the_deadline(path: OneNode) -> None:
    def stall() -> None:
        path.tunnel.stall()
        threading.Timer(2 * DEAD_S, path.tunnel.clear).start()

    assert path.count_through(stall).whole
    assert path.tunnel.connections >= 2


@patient
def test_tiny_pieces_on_a_slow_way(path: OneNode) -> None:
    def worsen() -> None:
        path.tunnel.delay(0.1)
        path.tunnel.limit_rate(40_000)
        path.tunnel.split(64)

    assert path.count_through(worsen).whole
    assert path.tunnel.connections == 1


def test_a_node_that_stands_still_and_goes_on(path: OneNode) -> None:
    def stop_for_a_while() -> None:
        path.node.pause()
        threading.Timer(2 * DEAD_S, path.node.resume).start()

    assert path.count_through(stop_for_a_while).whole


def test_a_relay_that_stands_still_and_goes_on(path: OneNode) -> None:
    def stop_for_a_while() -> None:
        path.cluster.relay.pause()
        threading.Timer(2 * DEAD_S, path.cluster.relay.resume).start()

    assert path.count_through(stop_for_a_while).whole


@hasty
def test_a_node_that_is_killed_ends_its_stream_with_an_error(path: OneNode) -> None:
    counted = path.count_through(path.node.kill)
    assert counted.error == "node_lost"
    assert counted.numbers == list(range(len(counted.numbers)))
    assert not counted.finished
    wait_until(lambda: path.upstream.seen.running == 0, "the upstream still answers nobody")


def test_a_relay_that_is_killed_ends_the_stream_visibly(path: OneNode) -> None:
    counted = path.count_through(lambda: path.cluster.relay.send(signal.SIGKILL))
    assert counted.broken
    assert not counted.finished
    path.cluster.relay.wait()


def test_a_request_waits_for_a_node_that_is_about_to_be_back(path: OneNode) -> None:
    path.tunnel.stall()
    path.tunnel.reset()
    wait_until(lambda: path.cluster.state_of("box") == "reconnecting", "the loss is not seen")
    threading.Timer(1.0, path.tunnel.clear).start()
    assert count(path.cluster, path.secret, 10).whole
