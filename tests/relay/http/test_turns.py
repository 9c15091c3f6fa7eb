"""The time for decoding is shared by all connections, and modest ones do not wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from wai_relay.http.edge import Edge
from wai_relay.http.exchange import Exchange
from wai_relay.http.h1 import H1Connection
from wai_relay.http.turns import (
    BUSY_S,
    MIN_SLICE_BYTES,
    MODEST_S,
    RECENT_S,
    SLICE_BYTES,
    SLOW_SLICE_S,
    TURN_S,
    Recent,
    Turns,
    next_slice_bytes,
)

from .fakes import FakeTransport, SteppingClock, turns

pytestmark = pytest.mark.anyio

SLICE_S = TURN_S / 2  # what each look at the clock finds to have been spent
CHUNKED = b"POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
FLOOD = b"1\r\nx\r\n" * 40_000
HOSTILE = 8


async def swallow(exchange: Exchange) -> None:
    """Read the body and answer."""
    while await exchange.read():
        pass
    exchange.start(200, [])
    exchange.end()


@pytest.fixture
def clock() -> SteppingClock:
    return SteppingClock(SLICE_S)


@pytest.fixture
async def connections(clock: SteppingClock) -> AsyncIterator[list[H1Connection]]:
    edge = Edge(swallow)
    edge.turns = Turns(clock)
    made = []
    for _ in range(HOSTILE + 1):
        connection = H1Connection(edge)
        connection.connection_made(FakeTransport().as_transport())
        connection.data_received(CHUNKED)
        made.append(connection)
    yield made
    for connection in made:
        if not connection.lost:
            connection.connection_lost(None)
    await turns()


async def test_many_floods_together_take_no_longer_turns_than_one(
    clock: SteppingClock, connections: list[H1Connection]
) -> None:
    for hostile in connections[:HOSTILE]:
        hostile.data_received(FLOOD)  # the first turn is its own
    longest_s = 0.0
    for _ in range(int(BUSY_S / TURN_S)):
        before_s = clock.now
        await asyncio.sleep(0)
        longest_s = max(longest_s, clock.now - before_s)
    assert any(hostile._queued for hostile in connections[:HOSTILE])
    assert 0 < longest_s <= 2 * TURN_S


async def test_a_caller_with_little_to_decode_does_not_wait_behind_floods(
    connections: list[H1Connection],
) -> None:
    *hostile, innocent = connections
    for one in hostile:
        one.data_received(FLOOD)
    innocent.data_received(b"1\r\nx\r\n0\r\n\r\n")
    assert not innocent._queued
    assert innocent._body is not None
    assert innocent._body.complete


async def test_a_connection_that_is_lost_in_the_queue_keeps_nobody_waiting(
    connections: list[H1Connection],
) -> None:
    first, second = connections[:2]
    first.data_received(FLOOD)
    second.data_received(FLOOD)
    first.abort()
    first.connection_lost(None)
    before = len(second._undecoded)
    await turns()
    assert len(second._undecoded) < before


class Endless:
    """A connection that always has more to decode."""

    def __init__(self, shared: Turns) -> None:
        self.turns = 0
        self._shared = shared

    def take_turn(self) -> None:
        self.turns += 1
        self._shared.spend(TURN_S)
        self._shared.wait(self)


async def test_the_queue_is_served_in_order() -> None:
    shared = Turns()
    waiting = [Endless(shared) for _ in range(4)]
    for one in waiting:
        shared.wait(one)
    await turns(len(waiting) * 3)
    counts = [one.turns for one in waiting]
    assert max(counts) - min(counts) <= 1 <= min(counts)


async def test_a_queue_that_was_busy_for_long_pauses() -> None:
    shared = Turns()
    endless = Endless(shared)
    shared.wait(endless)
    most = round(BUSY_S / TURN_S)
    await turns(most * 2)
    assert endless.turns in (most, most + 1)
    assert shared.crowded


def test_a_connection_is_modest_again_after_a_while() -> None:
    recent = Recent()
    assert recent.is_modest(0.0)
    recent.spend(MODEST_S, 5.0)
    assert not recent.is_modest(5.0 + RECENT_S / 2)
    assert recent.is_modest(5.0 + RECENT_S)


def test_slices_shrink_while_they_take_long_and_grow_again() -> None:
    size = SLICE_BYTES
    for _ in range(10):
        size = next_slice_bytes(size, 2 * SLOW_SLICE_S)
    assert size == MIN_SLICE_BYTES
    for _ in range(10):
        size = next_slice_bytes(size, 0.0)
    assert size == SLICE_BYTES
