"""Who needs a connection in an outage, and who looks for one; without a server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from wai_protocol.errors import StoreError
from wai_relay.storage.postgres_connections import AwayError, Connections

pytestmark = pytest.mark.anyio


class FakeConnection:
    """What `Connections` asks of a connection."""

    def __init__(self) -> None:
        self.closed = False

    def add_termination_listener(self, listener: Any) -> None:
        pass

    def is_closed(self) -> bool:
        return self.closed

    def terminate(self) -> None:
        self.closed = True

    async def close(self, **_: float) -> None:
        self.closed = True


class FakeServer:
    """Makes connections, unless it is `down`."""

    def __init__(self) -> None:
        self.down = False
        self.made: list[FakeConnection] = []

    async def connect(self) -> Any:
        await asyncio.sleep(0)
        if self.down:
            raise StoreError("nobody answers")
        self.made.append(FakeConnection())
        return self.made[-1]


def looking() -> int:
    """How many tasks look for the database."""
    return sum("_recover" in repr(task.get_coro()) for task in asyncio.all_tasks())


async def test_one_task_looks_for_the_database_however_many_miss_it() -> None:
    """A second one would be forgotten, and leave a connection open at the end."""
    server = FakeServer()
    connections = Connections(server.connect, await server.connect())
    lent = await connections.take()
    server.down = True
    waiting = [asyncio.ensure_future(connections.take()) for _ in range(3)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert looking() == 1
    assert connections.away is not None
    server.down = False
    found = await asyncio.gather(*waiting)
    assert connections.away is None
    for connection in (*found, lent):
        connections.give_back(connection)
    await connections.close()
    assert looking() == 0
    assert all(connection.closed for connection in server.made)


async def test_a_lost_connection_takes_those_of_its_time_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wai_relay.storage.postgres_connections.PATIENCE_S", 0.0)
    server = FakeServer()
    connections = Connections(server.connect, await server.connect())
    first, second = await connections.take(), await connections.take()
    connections.give_back(second)
    server.down = True
    connections.lose(first)
    assert server.made[1].closed
    with pytest.raises(AwayError):
        await connections.take()
    connections.lose(first)  # of an earlier time: those that are made now are not its
    server.down = False
    while looking():  # noqa: ASYNC110 -- nobody tells
        await asyncio.sleep(0)
    third = await connections.take()
    connections.lose(first)
    assert not third.is_closed()
    connections.give_back(third)
    await connections.close()
    with pytest.raises(AwayError):
        await connections.take()
