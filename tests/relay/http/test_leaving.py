"""A connection whose caller has left is freed at once, without a garbage collection."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable

import pytest

from wai_relay.http.edge import Edge
from wai_relay.http.exchange import Exchange
from wai_relay.http.h1 import H1Connection

from .fakes import FakeTransport, turns

pytestmark = pytest.mark.anyio


@pytest.mark.usefixtures("no_collection")
async def test_a_connection_whose_caller_left_in_mid_answer_is_gone_without_a_collection() -> None:
    left: list[Callable[[], object]] = []

    async def handler(exchange: Exchange) -> None:
        left.append(weakref.ref(exchange))
        task = asyncio.current_task()  # a frame that knows its task, as the gateway's does
        exchange.start(200, [])
        await asyncio.Event().wait()
        assert task is not None

    connection, transport = H1Connection(Edge(handler)), FakeTransport()
    transport.set_protocol(connection)  # uvloop's TLS transport never lets go of it
    connection.connection_made(transport.as_transport())
    connection.data_received(b"GET /g HTTP/1.1\r\nHost: a\r\n\r\n")
    await turns()
    left.append(weakref.ref(connection))
    connection.connection_lost(None)
    await turns()
    del connection, transport
    assert len(left) == 2
    assert [ref() for ref in left] == [None, None]
