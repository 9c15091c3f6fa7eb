"""One buffer for all connections: incomplete data of one is kept while others are read."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import pytest

from tests.relay.http.fakes import FakeTransport, echo, turns
from wai_protocol.events import DataReceived, Event
from wai_protocol.limits import Limits
from wai_protocol.session import Role, Session
from wai_relay.http.edge import Edge
from wai_relay.http.h1 import H1Connection
from wai_transport.live_session import LiveSession
from wai_transport.read_buffer import READ_BUFFER

pytestmark = pytest.mark.anyio


def read(protocol: asyncio.BufferedProtocol, data: bytes) -> None:
    """As a loop reads `data` for `protocol`."""
    buffer = cast(memoryview, protocol.get_buffer(len(data)))
    buffer[: len(data)] = data
    protocol.buffer_updated(len(data))


async def test_requests_read_in_turns_do_not_mix() -> None:
    edge = Edge(echo)
    callers = [(H1Connection(edge), FakeTransport()) for _ in range(2)]
    for connection, transport in callers:
        connection.connection_made(transport.as_transport())
    requests = [
        b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody" % n for n in (1, 2)
    ]
    for at in range(len(requests[0])):
        for (connection, _), request in zip(callers, requests, strict=True):
            read(connection, request[at : at + 1])
    await turns()
    for number, (_, transport) in enumerate(callers, 1):
        assert transport.written.endswith(b"/%d:body" % number)


async def test_a_frame_cut_in_two_survives_what_is_read_between() -> None:
    relay = Session(Role.RELAY)
    relay.attach(0, 0.0, peer=Limits())
    stream = relay.open_stream("POST", "/v1/chat/completions", [], "m", end=False)
    relay.send_data(stream, b"a prompt")
    sent = relay.bytes_to_send()
    events: list[Event] = []
    ours, peer = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    transport.pause_reading()
    live = LiveSession(
        Session(Role.NODE),
        on_event=events.append,
        on_detached=lambda _: None,
        on_ended=lambda *_: None,
        ttl_s=60.0,
    )
    live.attach(transport, 0)
    protocol = cast(asyncio.BufferedProtocol, transport.get_protocol())
    cut = len(sent) - 4
    read(protocol, sent[:cut])
    READ_BUFFER[:] = bytes(len(READ_BUFFER))
    read(protocol, sent[cut:])
    assert events[-1] == DataReceived(stream, b"a prompt")
    live.close()
    transport.abort()
    peer.close()
