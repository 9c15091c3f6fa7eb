"""An application that is made for the first exchange is made once, whoever else asks meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from wai_relay.http.asgi import Application, Message, asgi_handler
from wai_relay.http.edge import Edge
from wai_relay.http.h1 import H1Connection

from .fakes import FakeTransport

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


async def test_two_who_ask_at_once_and_one_who_leaves_have_it_made_once() -> None:
    made: list[int] = []
    held = threading.Event()

    def make() -> Application:
        made.append(threading.get_ident())
        assert held.wait(10)
        return application

    edge = Edge(asgi_handler(make))
    callers = [ask(edge) for _ in range(3)]
    await asyncio.sleep(0)  # each waits for it
    callers[0][0].connection_lost(None)
    held.set()
    async with asyncio.timeout(10):
        while not all(b" 204 " in to.written for _, to in callers[1:]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert len(made) == 1
    assert made != [threading.get_ident()]
    for connection, _ in callers[1:]:
        connection.connection_lost(None)
    await edge.drain(1)


async def test_one_that_could_not_be_made_is_made_at_the_next_exchange() -> None:
    made: list[str] = []

    def make() -> Application:
        made.append("once more")
        if len(made) == 1:
            raise ImportError("half of its files are another version's")
        return application

    edge = Edge(asgi_handler(make))
    for status in (b" 500 ", b" 204 "):
        connection, transport = ask(edge)
        async with asyncio.timeout(10):
            while status not in transport.written:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        connection.connection_lost(None)
    await edge.drain(1)
