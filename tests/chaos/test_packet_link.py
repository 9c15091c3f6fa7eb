"""The link of `make chaos` does to packets what its weather says, and TCP makes up for it."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from typing import Final

import pytest

from tests.chaos.needs import Need, missing
from tests.harness.network_namespace import Namespace, dial_from, network_namespace
from tests.harness.packet_link import GOOD, HERE, NOTHING_PASSES, PacketLink, Weather, packet_link
from tests.harness.processes import wait_until

DATA: Final = random.Random(1).randbytes(200_000)


@pytest.fixture
def linked() -> Iterator[tuple[PacketLink, Namespace]]:
    if why := missing(Need.TUN):
        pytest.skip(why)
    with network_namespace() as namespace, packet_link(namespace, random.Random(1)) as link:
        yield link, namespace


def across(namespace: Namespace) -> tuple[socket.socket, socket.socket]:
    """A connection over the link: its end in the namespace, and its end here."""
    with socket.create_server((HERE, 0)) as server:
        there = dial_from(namespace, (HERE, server.getsockname()[1]))
        here, _ = server.accept()
        return there, here


def received(there: socket.socket, here: socket.socket) -> bytes:
    """What comes of `DATA` at the other end."""

    def send() -> None:
        there.sendall(DATA)
        there.close()

    sending = threading.Thread(target=send)
    sending.start()
    data = b""
    while piece := here.recv(1 << 16):
        data += piece
    sending.join()
    here.close()
    return data


@pytest.mark.parametrize(
    "weather",
    [
        GOOD,
        Weather(loss=0.03),
        Weather(delay_s=0.02, jitter_s=0.01),
        Weather(reordered=0.1, delay_s=0.005),
        Weather(bytes_per_s=400e3),
    ],
    ids=["good", "loss", "delay", "reordering", "low rate"],
)
def test_bytes_arrive_whole_in_any_weather(
    linked: tuple[PacketLink, Namespace], weather: Weather
) -> None:
    link, namespace = linked
    link.weather = weather
    assert received(*across(namespace)) == DATA
    assert link.passed > 0
    if weather.loss:
        assert link.dropped > 0


def test_packets_that_are_too_long_vanish_and_short_ones_pass(
    linked: tuple[PacketLink, Namespace],
) -> None:
    link, namespace = linked
    there, here = across(namespace)
    link.weather = Weather(largest_bytes=1300)
    with there, here:
        there.sendall(b"short")
        assert here.recv(100) == b"short"
        dropped = link.dropped
        there.sendall(DATA[:5000])
        wait_until(lambda: link.dropped > dropped, "no packet was dropped")


def test_a_peer_behind_a_dead_link_is_not_heard_and_not_seen_to_end(
    linked: tuple[PacketLink, Namespace],
) -> None:
    link, namespace = linked
    there, here = across(namespace)
    link.weather = NOTHING_PASSES
    dropped = link.dropped
    there.close()
    wait_until(lambda: link.dropped > dropped, "the FIN was not dropped")
    here.setblocking(False)
    with here, pytest.raises(BlockingIOError):
        here.recv(1)
