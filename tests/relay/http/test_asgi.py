"""An application that is made for the first exchange is made once, whoever else asks meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from wai_relay.http.asgi import Application, Message, asgi_handler
from wai_relay.http.edge import Edge
from wai_relay.http.exchange import Exchange
from wai_relay.http.h1 import H1Connection

from .fakes import FakeTransport, turns

pytestmark = pytest.mark.anyio


async def application(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


def ask(edge: Edge) -> tuple[H1Connection, FakeTransport]:
    transport = FakeTransport()
    connection = H1Connection(edge)
    connection.connection_made(transport.as_transport())
    connection.data_received(b"GET /dashboard/ HTTP/1.1\r\nHost: a\r\n\r\n")
    return connection, transport


class Counted:
    """A handler that passes on, and tells each time that one is through with an exchange."""

    def __init__(self, make: Callable[[], Application]) -> None:
        self._handler = asgi_handler(make)
        self._over = asyncio.Semaphore(0)

    async def __call__(self, exchange: Exchange) -> None:
        try:
            await self._handler(exchange)
        finally:
            self._over.release()

    async def over(self, count: int) -> None:
        async with asyncio.timeout(10):
            for _ in range(count):
                await self._over.acquire()
        await turns()


async def test_two_who_ask_at_once_and_one_who_leaves_have_it_made_once() -> None:
    made: list[int] = []
    held = threading.Event()

    def make() -> Application:
        made.append(threading.get_ident())
        assert held.wait(10)
        return application

    handler = Counted(make)
    edge = Edge(handler)
    callers = [ask(edge) for _ in range(3)]
    await asyncio.sleep(0)  # each waits for it
    callers[0][0].connection_lost(None)
    held.set()
    await handler.over(len(callers))
    assert all(b" 204 " in transport.written for _, transport in callers[1:])
    assert len(made) == 1
    assert made != [threading.get_ident()]
    for connection, _ in callers[1:]:
        connection.connection_lost(None)


async def test_one_that_could_not_be_made_is_made_at_the_next_exchange() -> None:
    made: list[str] = []

    def make() -> Application:
        made.append("once more")
        if len(made) == 1:
            raise ImportError("half of its files are another version's")
        return application

    handler = Counted(make)
    edge = Edge(handler)
    for status in (b" 500 ", b" 204 "):
        connection, transport = ask(edge)
        await handler.over(1)
        assert status in transport.written
        connection.connection_lost(None)
