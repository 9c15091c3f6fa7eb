"""The shell around a session: what it does to a connection that it is handed."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import pytest

from wai_protocol.errors import Fault
from wai_protocol.events import DataReceived, Event
from wai_protocol.session import Session
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
