"""The shell around a session: what it does to a connection that it is handed."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trustme

from wai_protocol.errors import Fault
from wai_protocol.events import DataReceived, Event, NodeEvent
from wai_protocol.frames import pack
from wai_protocol.limits import TURN_COST
from wai_protocol.session import Role, Session
from wai_transport.live_session import Ended, LiveSession

pytestmark = pytest.mark.anyio


class SilentCore:
    """Stands in for a session that has nothing to say; keeps the bytes in the order they came."""

    def __init__(self) -> None:
        self.received = b""
        self.enough = asyncio.Event()

    def attach(self, peer_received: int, now: float, *, peer: object = None) -> None:
        pass

    def detach(self) -> None:
        pass

    def receive_data(self, data: bytes, now: float) -> list[Event]:
        self.received += data
        if len(self.received) >= len(b"leftover, then what follows"):
            self.enough.set()
        return []

    has_bytes_to_send = False

    def bytes_to_send(self) -> bytes:
        return b""

    def next_deadline(self) -> float | None:
        return None

    def take_events(self) -> list[Event]:
        return []

    def fail_streams(self, *why: Any) -> list[Event]:
        return []


class TalkingCore(SilentCore):
    """Finds two streams' bytes in each read."""

    def __init__(self) -> None:
        super().__init__()
        self.resets: list[tuple[int, Fault]] = []

    def receive_data(self, data: bytes, now: float) -> list[Event]:
        super().receive_data(data, now)
        return [DataReceived(1, data), DataReceived(3, data)]

    def reset_stream(self, stream: int, fault: Fault, reason: str = "") -> None:
        self.resets.append((stream, fault))


async def test_bytes_of_a_new_connection_do_not_overtake_what_the_handshake_read_too_far() -> None:
    ours, peer = socket.socketpair()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    transport.pause_reading()
    core = SilentCore()
    ended: list[Ended] = []
    session = LiveSession(
        cast("Session", core),
        on_event=lambda event: None,
        on_detached=lambda session: None,
        on_ended=lambda session, why: ended.append(why),
        ttl_s=60.0,
    )
    with peer:
        peer.sendall(b" then what follows")  # it lies in the kernel before the session has a turn
        session.attach(transport, 0, b"leftover,")
        await core.enough.wait()
        assert core.received == b"leftover, then what follows"
        session.close()
        assert ended == [Ended.CLOSED]
        assert await loop.run_in_executor(None, peer.recv, 1) == b""


async def test_a_handler_that_fails_costs_its_own_stream_and_not_the_rest_of_the_read() -> None:
    ours, peer = socket.socketpair()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    transport.pause_reading()
    core = TalkingCore()
    heard: list[Event] = []
    told = asyncio.Event()

    def on_event(event: Event) -> None:
        if event == DataReceived(1, b"x"):
            raise RuntimeError("a bug")
        heard.append(event)
        told.set()

    session = LiveSession(
        cast("Session", core),
        on_event=on_event,
        on_detached=lambda session: None,
        on_ended=lambda session, why: None,
        ttl_s=60.0,
    )
    with peer:
        session.attach(transport, 0, b"x")
        await told.wait()
        assert heard == [DataReceived(3, b"x")]
        assert core.resets == [(1, Fault.INTERNAL)]
        session.close()


class Flooded:
    """A relay's session with a connection over which a node sends `count` EVENTs, and goes."""

    def __init__(self, count: int) -> None:
        self.heard: list[Event] = []
        self.detached_after: list[int] = []
        self.begun = asyncio.Event()
        self.detached = asyncio.Event()
        self.flood = b"".join(pack((25, 0, "x", n)) for n in range(count))
        self.session = LiveSession(
            Session(Role.RELAY, turn_cost=TURN_COST),
            on_event=self._on_event,
            on_detached=self._on_detached,
            on_ended=lambda session, why: None,
            ttl_s=60.0,
        )

    def _on_event(self, event: Event) -> None:
        self.heard.append(event)
        self.begun.set()

    def _on_detached(self, session: LiveSession) -> None:
        self.detached_after.append(len(self.heard))
        self.detached.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        ours, peer = socket.socketpair()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        transport.pause_reading()
        with peer:
            peer.sendall(self.flood)
            peer.shutdown(socket.SHUT_WR)
            self.session.attach(transport, 0)
            yield
            self.session.close()


async def test_all_of_a_flood_is_taken_before_its_connection_counts_as_lost() -> None:
    flooded = Flooded(1000)
    async with flooded.running():
        await flooded.detached.wait()
        values = [event.value for event in flooded.heard if isinstance(event, NodeEvent)]
        assert values == list(range(1000))
        assert flooded.detached_after == [1000]


async def test_others_have_their_turn_while_a_flood_is_taken() -> None:
    flooded = Flooded(1000)
    parts = [0]
    async with flooded.running():
        while not flooded.detached.is_set():
            parts.append(len(flooded.heard))
            await asyncio.sleep(0)
        steps = [after - before for before, after in itertools.pairwise([*parts, 1000])]
        assert len(flooded.heard) == 1000
        assert max(steps) <= TURN_COST


async def test_a_connection_that_is_dropped_in_the_middle_of_a_flood_brings_no_more() -> None:
    flooded = Flooded(1000)
    async with flooded.running():
        await flooded.begun.wait()
        flooded.session.drop_connection()
        heard = len(flooded.heard)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(flooded.heard) == heard < 1000


@pytest.mark.usefixtures("no_collection")
async def test_a_lost_tls_connection_leaves_nothing_to_the_garbage_collector() -> None:
    authority = trustme.CA()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("relay.test").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=theirs)
    session = LiveSession(
        Session(Role.NODE),
        on_event=lambda event: None,
        on_detached=lambda session: None,
        on_ended=lambda session, why: None,
        ttl_s=60.0,
    )
    try:
        transport, _ = await loop.create_connection(
            asyncio.Protocol,
            *server.sockets[0].getsockname(),
            ssl=ours,
            server_hostname="relay.test",
        )
        transport.pause_reading()
        session.attach(transport, 0)
        secured = weakref.ref(transport.get_extra_info("ssl_object"))
        del transport, _
        await asyncio.sleep(0)
        session.drop_connection()
        async with asyncio.timeout(10):
            while secured() is not None:  # noqa: ASYNC110 - a few turns of the loop
                await asyncio.sleep(0.01)
    finally:
        session.close()
        server.close()
