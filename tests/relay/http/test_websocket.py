"""A WebSocket on a caller's connection: the handshake, and bytes both ways from then on."""

from __future__ import annotations

import asyncio

import pytest

from wai_protocol.errors import LocalProtocolError
from wai_relay.http.connection import CallerConnection
from wai_relay.http.cors import CorsConfig, CrossOrigin
from wai_relay.http.edge import BODY_STALL_S, READ_AHEAD_BYTES, Edge, Handler
from wai_relay.http.exchange import Exchange
from wai_relay.http.h1 import H1Connection

from .fakes import FakeTransport, echo, turns

pytestmark = pytest.mark.anyio

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
HANDSHAKE = (
    b"GET /ws?model=m HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade"
    b"\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n%b\r\n"
)
ASK = HANDSHAKE % (KEY, b"")


async def talk(exchange: Exchange) -> None:
    """Accept what can be accepted, and answer each piece with the same in brackets."""
    if not exchange.websocket_key:
        await echo(exchange)
        return
    exchange.switch([(b"x-wai-node", b"box")])
    while data := await exchange.read():
        exchange.write(b"[" + data + b"]")
        if data == b"bye":
            exchange.end()
            return


def connect(handler: Handler = talk) -> tuple[Edge, H1Connection, FakeTransport]:
    edge, transport = Edge(handler), FakeTransport()
    connection = H1Connection(edge)
    connection.connection_made(transport.as_transport())
    return edge, connection, transport


def leave(connection: CallerConnection) -> None:
    connection.connection_lost(None)


async def test_after_the_101_bytes_go_both_ways_as_they_are() -> None:
    edge, connection, transport = connect()
    connection.data_received(ASK)
    await turns()
    head, _, rest = bytes(transport.written).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    assert b"x-wai-node: box" in head
    assert b"chunked" not in head
    assert rest == b""
    for piece in (b"GET / HTTP/1.1\r\n\r\n", b"\x81\x00"):  # which is no request any more
        connection.data_received(piece)
        await turns()
    connection.data_received(b"bye")
    await turns()
    assert transport.written.endswith(b"\r\n\r\n[GET / HTTP/1.1\r\n\r\n][\x81\x00][bye]")
    assert transport.closed
    assert not transport.aborted
    assert edge.counters.requests == 1
    leave(connection)


async def test_frames_that_come_with_the_handshake_are_not_lost() -> None:
    _, connection, transport = connect()
    connection.data_received(ASK + b"early")
    await turns()
    assert transport.written.endswith(b"[early]")
    leave(connection)


@pytest.mark.parametrize(
    "changed",
    [
        ASK.replace(b"Version: 13", b"Version: 8"),
        ASK.replace(KEY, b"c2hvcnQ="),
        ASK.replace(b"GET ", b"POST "),
        ASK.replace(b"keep-alive, Upgrade", b"keep-alive"),
        ASK.replace(b"WebSocket\r", b"h2c\r"),
    ],
    ids=["version", "key", "method", "connection", "protocol"],
)
async def test_what_is_no_handshake_is_a_plain_request(changed: bytes) -> None:
    edge, connection, transport = connect()
    connection.data_received(changed + b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
    await turns(20)
    assert b" 101 " not in transport.written
    assert transport.written.endswith(b"/next:")
    assert edge.counters.requests == 2
    leave(connection)


async def test_a_handler_that_does_not_switch_answers_as_ever() -> None:
    _, connection, transport = connect(echo)
    connection.data_received(ASK + b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
    await turns(20)
    assert transport.written.count(b"HTTP/1.1 200 OK") == 2
    leave(connection)


async def test_a_request_that_asks_for_none_gets_no_101() -> None:
    raised: list[Exception] = []

    async def handler(exchange: Exchange) -> None:
        try:
            exchange.switch([])
        except LocalProtocolError as error:
            raised.append(error)
        await echo(exchange)

    _, connection, transport = connect(handler)
    connection.data_received(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await turns()
    assert len(raised) == 1
    assert transport.written.startswith(b"HTTP/1.1 200 OK")
    leave(connection)


async def test_silence_does_not_end_a_websocket_and_neither_does_a_slow_handler() -> None:
    gate = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        exchange.switch([])
        await gate.wait()
        await exchange.read()
        await asyncio.Event().wait()

    _, connection, transport = connect(handler)
    connection.data_received(ASK)
    await turns()
    connection.handle_timeout(asyncio.get_running_loop().time() + 10 * BODY_STALL_S)
    assert not transport.closed
    connection.data_received(bytes(READ_AHEAD_BYTES + 1))
    assert not transport.reading  # nobody reads them
    gate.set()
    await turns()
    assert transport.reading
    connection.handle_timeout(asyncio.get_running_loop().time() + 10 * BODY_STALL_S)
    assert not transport.closed
    leave(connection)


async def test_a_caller_that_vanishes_ends_the_handler() -> None:
    ended = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        exchange.switch([])
        try:
            await exchange.read()
        finally:
            ended.set()

    edge, connection, _ = connect(handler)
    connection.data_received(ASK)
    await turns()
    leave(connection)
    await turns()
    assert ended.is_set()
    assert edge.counters.callers_gone == 1


@pytest.mark.parametrize(
    ("origins", "status"),
    [
        (("*",), b"101"),
        (("https://app.example",), b"101"),
        (("https://other.example",), b"403"),
        ((), b"403"),
    ],
)
async def test_a_page_opens_a_websocket_only_where_it_may_call(
    origins: tuple[str, ...], status: bytes
) -> None:
    cross_origin = CrossOrigin(talk, CorsConfig(origins))
    _, connection, transport = connect(cross_origin.handle)
    connection.data_received(HANDSHAKE % (KEY, b"Origin: https://app.example\r\n"))
    await turns()
    assert transport.written.startswith(b"HTTP/1.1 " + status)
    leave(connection)
    _, connection, transport = connect(cross_origin.handle)
    connection.data_received(ASK)  # an app sends no Origin
    await turns()
    assert transport.written.startswith(b"HTTP/1.1 101")
    leave(connection)
