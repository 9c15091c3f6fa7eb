"""The port with real sockets and TLS: ALPN, plain sniffing, curl, limits, visible cuts, ASGI."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from wai_relay.http.asgi import Message, asgi_handler
from wai_relay.http.connection import peer_key, peer_name
from wai_relay.http.edge import Edge, Handler
from wai_relay.http.exchange import Exchange
from wai_relay.http.listener import Listener
from wai_relay.http.served_certificate import ServedCertificate, load_pair

from .fakes import echo

pytestmark = pytest.mark.anyio

REQUEST = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"


@asynccontextmanager
async def serving(
    handler: Handler, tls: ssl.SSLContext | None = None, **limits: int
) -> AsyncIterator[tuple[Edge, Listener, int]]:
    edge = Edge(handler)
    listener = Listener(edge, **limits)
    await listener.open(host="127.0.0.1", port=0, tls=tls)
    try:
        yield edge, listener, listener.addresses[0][1]
    finally:
        await listener.close()
        await edge.drain(0.1)


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext, Path]:
    """Server context, client context, and the CA's file."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return server, client, tmp_path / "ca.pem"


async def ask(port: int, request: bytes, context: ssl.SSLContext | None = None) -> bytes:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost" if context else None
    )
    try:
        writer.write(request)
        return await reader.read()
    finally:
        writer.transport.abort()


async def curl(*arguments: str) -> tuple[int, bytes]:
    program = shutil.which("curl")
    assert program is not None, "curl is a required part of these tests"
    process = await asyncio.create_subprocess_exec(
        program,
        "-sS",
        "--max-time",
        "20",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out


@pytest.mark.parametrize("version", ["--http2", "--http1.1", "--http1.0"])
async def test_curl_is_answered_over_tls(
    version: str, tls: tuple[ssl.SSLContext, ssl.SSLContext, Path]
) -> None:
    server, _, authority = tls
    async with serving(echo, server) as (_, _, port):
        url = f"https://localhost:{port}/p"
        code, out = await curl(
            version, "--cacert", str(authority), "-d", "hello", "-w", "|%{http_version}", url
        )
    assert code == 0
    spoken = b"2" if version == "--http2" else b"1.1"  # a 1.0 caller is told what we could speak
    assert out == b"/p:hello|" + spoken


@pytest.mark.parametrize("version", ["--http2-prior-knowledge", "--http1.1"])
async def test_a_plain_port_tells_the_versions_apart(version: str) -> None:
    async with serving(echo) as (_, _, port):
        assert await curl(version, "-d", "hello", f"http://localhost:{port}/p") == (0, b"/p:hello")


async def test_the_first_bytes_may_come_one_by_one() -> None:
    async with serving(echo) as (_, _, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for byte in REQUEST:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await reader.read()).endswith(b"/p:hello")
        writer.close()


@pytest.mark.parametrize("version", ["--http2", "--http1.1", "--http1.0"])
async def test_curl_sees_a_cut_response(
    version: str, tls: tuple[ssl.SSLContext, ssl.SSLContext, Path]
) -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [])
        exchange.write(b"half")
        await asyncio.sleep(0.01)
        exchange.abort()

    server, _, authority = tls
    async with serving(handler, server) as (edge, _, port):
        code, _ = await curl(version, "--cacert", str(authority), f"https://localhost:{port}/")
        assert code != 0
        assert edge.counters.cut == 1


async def test_a_new_certificate_shows_without_a_restart_and_a_bad_one_changes_nothing(
    tmp_path: Path,
) -> None:
    own = trustme.CA()
    own.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "old"))
    client = ssl.create_default_context()
    own.configure_trust(client)
    served = ServedCertificate(load_pair(tmp_path / "old", tmp_path / "old"))
    other = trustme.CA()
    pair = other.issue_cert("localhost")
    pair.cert_chain_pems[0].write_to_path(str(tmp_path / "new.crt"))
    pair.private_key_pem.write_to_path(str(tmp_path / "new.key"))
    trusting_other = ssl.create_default_context()
    other.configure_trust(trusting_other)
    async with serving(echo, served.context) as (_, _, port):
        with pytest.raises(ssl.SSLError):
            served.show(load_pair(tmp_path / "old", tmp_path / "new.key"))
        assert b"hello" in await ask(port, REQUEST, client)
        served.show(load_pair(tmp_path / "new.crt", tmp_path / "new.key"))
        assert b"hello" in await ask(port, REQUEST, trusting_other)


async def test_connections_over_the_limit_are_refused_and_freed_places_count_again() -> None:
    async with serving(echo, max_connections=1) as (edge, _, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        while not edge.connections:
            writer.write(b"G")
            await asyncio.sleep(0.01)
        try:
            refused = await ask(port, REQUEST)
        except ConnectionError:  # a reset says the same as an end without an answer
            refused = b""
        assert refused == b""
        assert edge.counters.connections_refused == 1
        writer.transport.abort()
        while edge.connections:  # noqa: ASYNC110  # the edge tells nobody that one has gone
            await asyncio.sleep(0.01)
        assert b"hello" in await ask(port, REQUEST)


def test_peers_are_counted_by_address_or_household() -> None:
    assert peer_key("192.0.2.7") == "192.0.2.7"
    assert peer_key("::ffff:192.0.2.7") == "192.0.2.7"
    assert peer_key("2001:db8::1") == peer_key("2001:db8::ffff") == "2001:db8::/64"
    assert peer_key("127.0.0.1") == peer_key("::1") == peer_key("") == ""


class _From(asyncio.Transport):
    def __init__(self, *peer: object) -> None:
        super().__init__({"peername": peer})


def test_an_ipv4_caller_has_one_name_on_a_socket_for_both() -> None:
    assert peer_name(_From("::ffff:192.0.2.7", 5, 0, 0)) == "192.0.2.7"
    assert peer_name(_From("192.0.2.7", 5)) == "192.0.2.7"
    assert peer_name(_From("2001:db8::1", 5, 0, 0)) == "2001:db8::1"


async def test_an_asgi_application_streams() -> None:
    async def app(scope: Message, receive: object, send: object) -> None:
        assert callable(receive)
        assert callable(send)
        message = await receive()
        await send({"type": "http.response.start", "status": 201, "headers": [(b"X", b"1")]})
        for piece in (scope["path"].encode(), b" ", message["body"]):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    async with serving(asgi_handler(lambda: app)) as (_, _, port):
        answer = await ask(port, REQUEST.replace(b"/p", b"/p%20q?x=1"))
    assert answer.startswith(b"HTTP/1.1 201 Created\r\nx: 1\r\n")
    assert b"4\r\n/p q\r\n1\r\n \r\n5\r\nhello\r\n0\r\n\r\n" in answer


async def test_a_port_that_is_bound_takes_nobody_until_it_is_started() -> None:
    edge = Edge(echo)
    listener = Listener(edge)
    await listener.bind(host="127.0.0.1", tls=None)
    try:
        (address,) = listener.addresses
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
        await listener.start()
        assert (await ask(address[1], REQUEST)).endswith(b"/p:hello")
    finally:
        await listener.close()
        await edge.drain(0.1)


async def test_a_port_that_waits_keeps_whoever_came_before_it_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:  # as a service manager opens it
        edge = Edge(echo)
        listener = Listener(edge)
        await listener.bind(tls=None, socks=[passed])
        try:
            (address,) = listener.addresses
            asking = asyncio.create_task(ask(address[1], REQUEST))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not asking.done()
            await listener.start()
            assert (await asking).endswith(b"/p:hello")
        finally:
            await listener.close()
            await edge.drain(0.1)
