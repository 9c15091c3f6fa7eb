"""A host of which one address is dead is reached by the other, with an event loop and without."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from wai_cli.client.connecting import connect as connect_blocking
from wai_transport.address_race import Address, AddressRace, open_socket
from wai_transport.connecting import connect, create_connection, first_connected
from wai_transport.http_client import HttpClient
from wai_transport.origin import Origin

pytestmark = pytest.mark.anyio

NAME = "two-addresses.test"
SILENT = "127.0.0.2"
LIVE = "127.0.0.1"


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A port on which `SILENT` leaves every SYN unanswered, its backlog being full, while `LIVE`
    takes connections."""
    with ExitStack() as ending:
        live = ending.enter_context(socket.create_server((LIVE, 0), backlog=16))
        number: int = live.getsockname()[1]
        silent = ending.enter_context(socket.socket())
        silent.bind((SILENT, number))
        silent.listen(0)
        for _ in range(3):
            filler = ending.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((SILENT, number))
        yield live


@pytest.fixture
def port(listening: socket.socket) -> int:
    """The number of that port."""
    number: int = listening.getsockname()[1]
    return number


@pytest.fixture(autouse=True)
def resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name whose first address is the silent one."""
    real = socket.getaddrinfo

    def found(host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if host != NAME:
            return real(host, port, *args, **kwargs)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in (SILENT, LIVE)]

    async def found_by_the_loop(host: str, port: int, **kwargs: Any) -> list[Any]:
        return found(host, port)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    monkeypatch.setattr("wai_transport.connecting.lookup", found_by_the_loop)


async def test_a_silent_address_does_not_hide_the_other(port: int) -> None:
    sock = await connect(NAME, port, limit_s=30)
    with sock:
        assert sock.getpeername() == (LIVE, port)


async def test_a_request_reaches_an_origin_with_a_silent_address(listening: socket.socket) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        writer.close()

    async with await asyncio.start_server(answer, sock=listening.dup()):
        client = HttpClient(Origin("http", NAME, listening.getsockname()[1]))
        status, _, body = await client.fetch("GET", "/", limit_bytes=10, timeout_s=30)
        assert (status, body) == (200, b"hi")
        await client.aclose()


def test_a_command_reaches_a_relay_with_a_silent_address(port: int) -> None:
    with connect_blocking(NAME, port, 30) as sock:
        assert sock.getpeername() == (LIVE, port)
        assert sock.gettimeout() == 30


async def test_the_error_names_each_address_that_did_not_answer(port: int) -> None:
    with pytest.raises(TimeoutError, match=f"{SILENT}|no answer"):
        await connect(SILENT, port, limit_s=0.2)
    with pytest.raises(TimeoutError, match="no answer"):
        connect_blocking(SILENT, port, 0.2)


async def test_a_port_that_nobody_has_is_refused_at_once() -> None:
    with socket.socket() as unused:
        unused.bind((LIVE, 0))
        number = unused.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            await connect(LIVE, number, limit_s=30)
        with pytest.raises(ConnectionRefusedError):
            connect_blocking(LIVE, number, 30)


async def test_losers_are_closed_even_if_they_connect_too() -> None:
    addresses = [Address(socket.AF_INET, (f"192.0.2.{n}", 1)) for n in range(2)]
    opened: list[socket.socket] = []
    both_under_way = asyncio.Event()

    async def dial(address: Address) -> socket.socket:
        opened.append(socket.socket())
        mine = opened[-1]
        if len(opened) == 2:
            both_under_way.set()
        await both_under_way.wait()  # both connect in the same turn
        return mine

    winner = await first_connected(AddressRace(addresses, 0.0), dial)
    assert [sock.fileno() >= 0 for sock in opened].count(True) == 1
    winner.close()


async def test_an_attempt_that_is_given_up_leaves_no_socket(port: int) -> None:
    attempt = asyncio.ensure_future(connect(SILENT, port, limit_s=30, redial_s=0.01))
    await asyncio.sleep(0.05)
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt


async def test_a_peer_that_takes_the_connection_and_is_silent_in_tls_is_given_up(
    port: int,
) -> None:
    with pytest.raises(TimeoutError, match="no answer"):
        await create_connection(
            asyncio.Protocol, LIVE, port, limit_s=0.3, tls=ssl.create_default_context()
        )


async def test_a_resolver_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(host: str, port: int) -> list[Any]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("wai_transport.connecting.lookup", hang)
    with pytest.raises(TimeoutError, match="was not resolved"):
        await connect(NAME, 1, limit_s=0.05)


async def test_a_resolver_that_is_down_does_not_hide_an_address_that_is_known(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(host: str, port: int) -> list[Any]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr("wai_transport.connecting.lookup", fail)
    known = [Address(socket.AF_INET, listening.getsockname())]
    with await connect(NAME, known[0].sockaddr[1], limit_s=30, known=known) as sock:
        assert sock.getpeername() == known[0].sockaddr
    with pytest.raises(socket.gaierror):
        await connect(NAME, 1, limit_s=30)


async def test_a_peer_that_resets_at_once_leaves_no_socket_with_a_number_that_is_not_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[socket.socket] = []

    def keep(address: Address) -> socket.socket:
        opened.append(open_socket(address))
        return opened[-1]

    def hang_up() -> None:
        with suppress(OSError):  # the test is over
            while True:
                sock, _ = server.accept()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()

    monkeypatch.setattr("wai_transport.connecting.open_socket", keep)
    context = ssl.create_default_context()
    with socket.create_server((LIVE, 0)) as server:
        number = server.getsockname()[1]
        other = threading.Thread(target=hang_up)
        other.start()
        for tls in (context, None) * 100:
            with suppress(OSError):
                transport, _ = await create_connection(
                    asyncio.Protocol, LIVE, number, limit_s=30, tls=tls, redial_s=1.0
                )
                transport.abort()
            await asyncio.sleep(0)
        server.shutdown(socket.SHUT_RDWR)
        other.join()
    assert [sock.fileno() for sock in opened] == [-1] * 200
