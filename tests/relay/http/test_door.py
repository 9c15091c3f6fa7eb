"""What comes before TLS and HTTP on a connection: PROXY headers, plain HTTP, silence."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme

from wai_relay.http import door, h1
from wai_relay.http.edge import Edge, TunnelProtocol
from wai_relay.http.exchange import Exchange
from wai_relay.http.listener import Listener
from wai_relay.http.trusted_proxies import TrustedProxies

from .test_proxy_header import binary, text

pytestmark = pytest.mark.anyio

GET = b"GET /p HTTP/1.1\r\nHost: relay.example:8443\r\nConnection: close\r\n\r\n"
HEADERS = (binary("192.0.2.1", extra=b"\x04\x00\x01a"), text("TCP4 192.0.2.1 198.51.100.1 1 2"))


async def tell_peer(exchange: Exchange) -> None:
    """Answer with the caller's address, and whether it spoke TLS."""
    answer = f"{exchange.request.peer} {exchange.request.scheme}".encode()
    exchange.start(200, [(b"content-length", b"%d" % len(answer))])
    exchange.write(answer)
    exchange.end()


@asynccontextmanager
async def serving(
    tls: ssl.SSLContext | None = None, *, trusted: str = "127.0.0.1", per_peer: int = 1000
) -> AsyncIterator[tuple[Edge, int]]:
    edge = Edge(tell_peer)
    edge.proxies = TrustedProxies([trusted])
    listener = Listener(edge, max_per_peer=per_peer)
    await listener.open(host="127.0.0.1", port=0, tls=tls)
    try:
        yield edge, listener.addresses[0][1]
    finally:
        await listener.abandon()
        await edge.drain(0.1)


@pytest.fixture(autouse=True)
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused caller here leaves its connection open, and waits for the relay to close it."""
    monkeypatch.setattr(h1, "LINGER_S", 0.1)


@pytest.fixture
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the caller's."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


async def ask(port: int, *pieces: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    """Send `pieces` one by one, then a request, by TLS if `tls` is given; return the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if tls is not None:
            await writer.start_tls(tls, server_hostname="localhost")
        writer.write(GET)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("header", HEADERS)
async def test_a_trusted_proxy_names_the_caller_before_tls(
    header: bytes, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    server, client = contexts
    async with serving(server) as (_, port):
        assert (await ask(port, header, tls=client)).endswith(b"192.0.2.1 https")
        pieces = [header[i : i + 1] for i in range(len(header))]
        assert (await ask(port, *pieces, tls=client)).endswith(b"192.0.2.1 https")
        assert (await ask(port, tls=client)).endswith(b"127.0.0.1 https")  # its own connection


@pytest.mark.parametrize("header", HEADERS)
async def test_a_trusted_proxy_names_the_caller_on_a_plain_port(header: bytes) -> None:
    async with serving() as (_, port):
        assert (await ask(port, header)).endswith(b"192.0.2.1 http")
        assert (await ask(port)).endswith(b"127.0.0.1 http")
        post = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"  # begins like PROXY
        assert b"127.0.0.1 http" in await ask(port, post[:1], post[1:])


@pytest.mark.parametrize("header", HEADERS)
async def test_nobody_else_can_name_an_address(
    header: bytes, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    async with serving(trusted="192.0.2.77") as (_, port):
        assert (await ask(port, header)).startswith(b"HTTP/1.1 400 ")
    async with serving(contexts[0], trusted="192.0.2.77") as (_, port):
        assert b"HTTP/1.1 200" not in await ask(port, header)
    async with serving() as (_, port):  # a caller behind the proxy sends one more
        assert (await ask(port, header, header)).startswith(b"HTTP/1.1 400 ")


async def test_a_malformed_header_ends_the_connection() -> None:
    async with serving() as (_, port):
        assert await ask(port, text("TCP4 192.0.2.1 198.51.100.1 1")) == b""
        assert await ask(port, binary("192.0.2.1", command=0x31)) == b""


async def test_connections_are_counted_for_the_address_that_the_proxy_names() -> None:
    async with serving(per_peer=1) as (edge, port):
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        for number, (reader, writer) in enumerate(opened):
            writer.write(binary("192.0.2.1" if number < 2 else f"192.0.2.{number}"))
            writer.write(GET.replace(b"Connection: close\r\n", b""))
            if number == 1:
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await reader.readexactly(9)
            else:
                assert await reader.readexactly(9) == b"HTTP/1.1 "
        assert edge.counters.connections_refused == 1
        for _, writer in opened:
            writer.transport.abort()


async def test_plain_http_on_a_port_with_tls_is_told_to_use_https(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with serving(contexts[0]) as (edge, port):
        answer = await ask(port)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"use https://relay.example:8443" in answer
        assert (await ask(port, HEADERS[0])).startswith(b"HTTP/1.1 400 ")
        assert edge.counters.requests == 0


async def test_a_node_gets_no_tunnel_in_plain_text_on_a_port_with_tls(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    upgrade = b"GET /wai HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: wai/1\r\n\r\n"
    async with serving(contexts[0]) as (edge, port):
        edge.tunnel_factory = TunnelProtocol
        assert (await ask(port, upgrade)).startswith(b"HTTP/1.1 400 ")


async def test_bytes_that_are_neither_tls_nor_http_get_no_answer(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with serving(contexts[0]) as (_, port):
        assert await ask(port, b"\x00\x01") == b""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()


async def test_a_node_behind_a_proxy_is_known_by_its_own_address() -> None:
    made: list[TunnelProtocol] = []

    def make() -> TunnelProtocol:
        made.append(TunnelProtocol())
        return made[-1]

    async with serving() as (edge, port):
        edge.tunnel_factory = make
        for header, fields in ((HEADERS[0], b""), (b"", b"X-Forwarded-For: 192.0.2.1\r\n")):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = b"GET /wai HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: wai/1\r\n"
            writer.write(header + head + fields + b"\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            writer.transport.abort()
    assert [tunnel.peer for tunnel in made] == ["192.0.2.1", "192.0.2.1"]


async def test_the_oldest_silent_connection_makes_room(
    monkeypatch: pytest.MonkeyPatch, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    monkeypatch.setattr(door, "MAX_SILENT", 2)
    server, client = contexts
    async with serving(server) as (_, port):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert await silent[0][0].read() == b""
        assert (await ask(port, tls=client)).endswith(b"127.0.0.1 https")
        for _, writer in silent:
            writer.transport.abort()


async def test_a_silent_connection_is_closed_in_time(
    monkeypatch: pytest.MonkeyPatch, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    monkeypatch.setattr(door, "HANDSHAKE_TIMEOUT_S", 0.01)
    async with serving(contexts[0]) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()


async def test_tokens_are_not_delayed_by_nagle() -> None:
    seen: list[int] = []

    async def look(exchange: Exchange) -> None:
        for connection in edge.connections:
            sock = connection.transport.get_extra_info("socket")  # type: ignore[attr-defined]
            seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await tell_peer(exchange)

    async with serving() as (edge, port):
        edge.handler = look
        await ask(port)
    assert seen == [1]


class Exhausted(socket.socket):
    """A listening socket of a process that has no file descriptor left, at first."""

    failures = 1

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_connections_are_accepted_again_after_descriptors_ran_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(door, "RETRY_S", 0.001)
    listening = Exhausted()
    listening.bind(("127.0.0.1", 0))
    listener = Listener(Edge(tell_peer))
    await listener.open(tls=None, socks=[listening])
    try:
        answer = await ask(listener.addresses[0][1])
        assert answer.endswith(b"127.0.0.1 http")
        assert "no connection can be accepted" in caplog.text
    finally:
        await listener.abandon()


HALF = b"\x16\x03\x01\x02\x00\x01"  # the beginning of a ClientHello


@asynccontextmanager
async def half_handshakes(
    port: int, count: int, before: bytes = b""
) -> AsyncIterator[list[socket.socket]]:
    """Begin TLS `count` times, one after the other, and say no more."""
    begun = []
    try:
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setblocking(False)
            begun.append(sock)
            sock.send(before + HALF)
            await asyncio.sleep(0.02)
        yield begun
    finally:
        for sock in begun:
            sock.close()


async def is_ended(sock: socket.socket) -> bool:
    """Wait until the relay has ended the connection."""
    async with asyncio.timeout(30):
        try:
            while await asyncio.get_running_loop().sock_recv(sock, 1024):
                pass
        except ConnectionError:
            pass
    return True


def is_open(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1))
    except BlockingIOError:
        return True


async def test_handshakes_that_never_end_lock_nobody_out(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = contexts
    monkeypatch.setattr(door, "MAX_HANDSHAKES", 3)
    async with serving(server) as (edge, port), half_handshakes(port, 5) as begun:
        assert await is_ended(begun[0])
        assert await is_ended(begun[1])
        assert (await ask(port, tls=client)).startswith(b"HTTP/1.1 200 ")
        assert await is_ended(begun[2])  # it made room for that one
        assert is_open(begun[4])
        assert edge.counters.connections_refused == 3


async def test_handshakes_of_one_address_make_room_for_its_own(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = contexts
    monkeypatch.setattr(door, "MAX_HANDSHAKES_PER_PEER", 2)
    header, other_header = text("TCP4 192.0.2.1 1.1.1.1 1 2"), text("TCP4 192.0.2.2 1.1.1.1 1 2")
    async with (
        serving(server) as (edge, port),
        half_handshakes(port, 1, other_header) as other,
        half_handshakes(port, 3, header) as begun,
    ):
        assert await is_ended(begun[0])
        assert (await ask(port, tls=client)).startswith(b"HTTP/1.1 200 ")
        assert is_open(other[0])
        assert is_open(begun[1])
        assert edge.counters.connections_refused == 1
