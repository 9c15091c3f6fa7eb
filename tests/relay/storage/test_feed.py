"""What another relay writes is heard; what may have been missed counts as changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from tests.harness.postgres import PostgresServer
from wai_relay.storage import Write, feed
from wai_relay.storage.feed import Change, ChangeFeed, Listening
from wai_relay.storage.postgres import PostgresStore
from wai_relay.storage.postgres_address import PostgresAddress

pytestmark = pytest.mark.anyio

INSERT = (
    "INSERT INTO admins (name, token_sha256, created_at) VALUES ($1, $2, 1.0)"
    " ON CONFLICT (name) DO UPDATE SET token_sha256 = excluded.token_sha256"
)


class Told:
    """What a feed told, in order; a gap as None."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Change | None] = asyncio.Queue()

    async def next(self) -> Change | None:
        async with asyncio.timeout(20):
            return await self.queue.get()


@pytest.fixture
async def store(relay_database: str) -> AsyncIterator[PostgresStore]:
    opened = await PostgresStore.open(PostgresAddress(relay_database))
    yield opened
    await opened.close()


@asynccontextmanager
async def listening(connect: Any) -> AsyncIterator[tuple[ChangeFeed, Told]]:
    told = Told()
    heard = ChangeFeed(connect, told.queue.put_nowait, lambda: told.queue.put_nowait(None))
    task = asyncio.create_task(heard.run())
    try:
        yield heard, told
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def test_a_change_is_told_with_its_row_and_a_heartbeat_is_none(store: PostgresStore) -> None:
    async with listening(partial(store.connect, "test")) as (_, told):
        assert await told.next() is None
        await store.write(Write(INSERT, ("alice", b"1" * 32)))
        assert await told.next() == Change("admins", "alice")
        row = ("relay_1", "vps", b"1" * 32, "https://a", "0", 1.0)
        await store.write(
            Write(
                "INSERT INTO relays (id, name, public_key, url, version, started_at, heartbeat_at)"
                " VALUES ($1, $2, $3, $4, $5, $6, wai_now())",
                row,
            )
        )
        assert await told.next() == Change("relays", "")
        await store.write(Write("UPDATE relays SET heartbeat_at = wai_now()"))
        await store.write(Write("DELETE FROM admins"))
        assert await told.next() == Change("admins", "alice")


async def test_after_a_lost_connection_everything_counts_as_changed(
    store: PostgresStore, postgres: PostgresServer, relay_database: str
) -> None:
    async with listening(partial(store.connect, "test")) as (heard, told):
        assert await told.next() is None
        postgres.end_connections(relay_database)
        assert await told.next() is None
        assert heard.deaf_s() == 0.0
        await store.write(Write(INSERT, ("bob", b"2" * 32)))
        assert await told.next() == Change("admins", "bob")


async def test_a_pooler_that_takes_listen_and_brings_nothing_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "ANSWER_S", 0.01)
    tries = asyncio.Event()

    class Pooled:
        async def add_listener(self, channel: str, callback: Any) -> None: ...

        def add_termination_listener(self, callback: Any) -> None: ...

        async def execute(self, query: str, *, timeout: float | None = None) -> str:  # noqa: ASYNC109
            return "NOTIFY"

        def terminate(self) -> None:
            tries.set()

    async def connect() -> Listening:
        return Pooled()

    async with listening(connect) as (heard, told):
        await tries.wait()
        assert heard.lost_at is not None
        assert told.queue.empty()
