"""One relay of several keeps house, and always one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.postgres import PostgresServer
from wai_relay.storage import Housekeeping, SqliteStore
from wai_relay.storage.postgres import PostgresStore
from wai_relay.storage.postgres_address import PostgresAddress

pytestmark = pytest.mark.anyio


async def test_a_relay_with_a_database_of_its_own_does_all_itself(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "relay.db")
    housekeeping = Housekeeping(store)
    housekeeping.start()
    assert housekeeping.ours
    await housekeeping.close()
    await store.close()


async def test_of_several_relays_one_keeps_house_and_another_one_after_it(
    postgres: PostgresServer, relay_database: str
) -> None:
    stores = [await PostgresStore.open(PostgresAddress(relay_database)) for _ in range(3)]
    relays = [Housekeeping(store) for store in stores]

    async def ours() -> list[bool]:
        for relay in relays:
            await relay.look()
        return [relay.ours for relay in relays]

    assert await ours() == [True, False, False]
    assert await ours() == [True, False, False]
    await relays[0].close()
    relays.pop(0)
    assert sum(await _soon(relays)) == 1
    # It loses its connection, and does not go on as if it held the lock.
    postgres.end_connections(relay_database)
    await stores[0].read("SELECT 1")
    assert sum(await _soon(relays)) == 1
    for relay in relays:
        await relay.close()
    for store in stores:
        await store.close()


async def _soon(relays: list[Housekeeping]) -> list[bool]:
    """Look until one has the lock, which the server gives free when it sees the connection end."""
    while True:
        for relay in relays:
            await relay.look()
        if any(found := [relay.ours for relay in relays]):
            return found
