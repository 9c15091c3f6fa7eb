"""What is PostgreSQL's own: lost connections, fail-over, several relays; on a real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.harness.postgres import PostgresServer
from wai_protocol.errors import Fault, StoreError
from wai_relay.storage import ConflictError, RefusedError, Write
from wai_relay.storage.advisory import AdvisoryLock
from wai_relay.storage.migrations import Migration, load_migrations
from wai_relay.storage.postgres import MAX_CONNECTIONS, EmptyError, PostgresStore
from wai_relay.storage.postgres_address import PostgresAddress, connect

from .test_store import names, setting

pytestmark = pytest.mark.anyio
SLEEP = Write("SELECT pg_sleep(30)")


@asynccontextmanager
async def opened(
    url: str, migrations: list[Migration] | None = None
) -> AsyncIterator[PostgresStore]:
    store = await PostgresStore.open(PostgresAddress(url), migrations)
    try:
        yield store
    finally:
        await store.close()


# -- connections that are lost


async def test_a_connection_that_the_server_ended_is_replaced(
    postgres: PostgresServer, relay_database: str
) -> None:
    async with opened(relay_database) as store:
        await store.write(setting("a"))
        for name in ("b", "c"):
            postgres.end_connections(relay_database)
            await store.write(setting(name))
            postgres.end_connections(relay_database)
            assert name in await names(store)
        assert store.away is None


async def test_a_transaction_that_was_cut_before_its_commit_is_applied_once(
    postgres: PostgresServer, relay_database: str
) -> None:
    lock = await connect(PostgresAddress(relay_database))
    await lock.execute("BEGIN; LOCK TABLE admins")
    async with opened(relay_database) as store:
        # The second statement waits for the lock, when its connection is ended.
        writing = asyncio.ensure_future(
            store.write(setting("a"), Write("DELETE FROM admins"), setting("b"))
        )
        await _until_waiting(postgres, relay_database)
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        )
        await lock.execute("COMMIT")
        await writing
        assert await names(store) == ["a", "b"]
    await lock.close()


async def test_a_restart_costs_no_write_and_no_read(own_server: PostgresServer) -> None:
    async with opened(own_server.url("relay")) as store:
        await store.write(setting("a"))
        own_server.stop()
        writing = asyncio.ensure_future(store.write(setting("b")))
        reading = asyncio.ensure_future(names(store))
        await until(lambda: store.away is not None)
        assert store.away is not None
        assert "cannot be reached" in store.away.why
        await asyncio.to_thread(own_server.start)
        await writing
        assert "a" in await reading
        assert await names(store) == ["a", "b"]
        assert store.away is None


async def test_a_relay_that_starts_before_its_database_waits_for_it(
    own_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_server.stop()
    opening = asyncio.ensure_future(
        PostgresStore.open(PostgresAddress(own_server.url("relay")), wait_s=60.0)
    )
    await until(lambda: "waiting for the database" in caplog.text)
    await asyncio.to_thread(own_server.start)
    await (await opening).close()
    with pytest.raises(StoreError, match="no such database"):  # that will not pass
        await PostgresStore.open(PostgresAddress(own_server.url("nope")), wait_s=60.0)


async def test_who_comes_late_in_an_outage_is_told_at_once(
    own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wai_relay.storage.postgres_connections.PATIENCE_S", 0.0)
    async with opened(own_server.url("relay")) as store:
        own_server.kill()
        for _ in range(2):
            with pytest.raises(StoreError, match="away"):
                await store.write(setting("a"))
            with pytest.raises(StoreError, match="away"):
                await store.read("SELECT 1")
        await asyncio.to_thread(own_server.start)
        await until(lambda: store.away is None)
        await store.write(setting("b"))
        assert await names(store) == ["b"]


async def test_a_primary_that_became_read_only_is_left_for_the_next_one(
    own_server: PostgresServer,
) -> None:
    """SQLSTATE 25006: connected as before, reads work, and every write fails."""
    standby = await asyncio.to_thread(own_server.standby)
    both = own_server.url("relay").replace(
        f"127.0.0.1:{own_server.port}", f"127.0.0.1:{own_server.port},127.0.0.1:{standby.port}"
    )
    async with opened(both) as store:
        await store.write(setting("a"))
        own_server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        own_server.execute("SELECT pg_reload_conf()")
        standby.promote()
        await store.write(setting("b"))
        assert await names(store) == ["a", "b"]
        assert standby.execute("SELECT name FROM settings ORDER BY name", "relay") == ["a", "b"]


async def test_the_first_host_may_be_the_standby_or_dead(own_server: PostgresServer) -> None:
    standby = await asyncio.to_thread(own_server.standby)
    address = own_server.url("relay").replace(
        f"127.0.0.1:{own_server.port}",
        f"127.0.0.1:1,127.0.0.1:{standby.port},127.0.0.1:{own_server.port}",
    )
    async with opened(address) as store:
        await store.write(setting("a"))


async def test_a_statement_that_takes_too_long_is_ended_and_takes_no_other_with_it(
    relay_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wai_relay.storage.postgres_address.STATEMENT_TIMEOUT_S", 1)
    async with opened(relay_database) as store:
        slow, good = await asyncio.gather(
            store.write(SLEEP), store.write(setting("a")), return_exceptions=True
        )
        assert isinstance(slow, StoreError)
        assert "timeout" in str(slow)
        assert good is None
        with pytest.raises(StoreError, match="timeout"):
            await store.read("SELECT pg_sleep(30)")
        assert await names(store) == ["a"]


async def test_a_server_that_does_not_answer_is_given_up(
    own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wai_relay.storage.postgres_address.ANSWER_TIMEOUT_S", 0.3)
    monkeypatch.setattr("wai_relay.storage.postgres_address.CONNECT_TIMEOUT_S", 0.3)
    async with opened(own_server.url("relay")) as store:
        own_server.pause()
        writing = asyncio.ensure_future(store.write(setting("a")))
        await until(lambda: store.away is not None)
        own_server.resume()
        await writing
        assert await names(store) == ["a"]


async def test_a_cancelled_read_does_not_answer_the_next_one(relay_database: str) -> None:
    async with opened(relay_database) as store:
        reading = asyncio.ensure_future(store.read("SELECT 'wrong' AS x, pg_sleep(0.2)"))
        await asyncio.sleep(0.05)
        reading.cancel()
        await asyncio.wait((reading,))
        for _ in range(5):
            assert await store.read("SELECT 'right' AS x") == [{"x": "right"}]


# -- several relays


async def test_relays_that_meet_in_opposite_orders_both_get_their_writes(
    relay_database: str,
) -> None:
    """Deadlocks: one of the two is tried again."""
    add = (
        "INSERT INTO settings (name, value, changed_at) VALUES ($1, '1', 1) ON CONFLICT (name)"
        " DO UPDATE SET changed_at = settings.changed_at + 1"
    )
    async with opened(relay_database) as one, opened(relay_database) as other:
        rounds = 5
        for _ in range(rounds):
            await asyncio.gather(
                one.write(Write(add, ("a",)), Write("SELECT pg_sleep(0.01)"), Write(add, ("b",))),
                other.write(Write(add, ("b",)), Write("SELECT pg_sleep(0.01)"), Write(add, ("a",))),
            )
        rows = await one.read("SELECT changed_at FROM settings")
        assert [row["changed_at"] for row in rows] == [2.0 * rounds, 2.0 * rounds]


async def test_a_relay_has_few_connections_whatever_it_is_asked(
    postgres: PostgresServer, relay_database: str
) -> None:
    name = relay_database.rpartition("/")[2]
    counted = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'"
    async with opened(relay_database) as store:
        asked = [store.read("SELECT pg_sleep(0.02)") for _ in range(20)]
        done = asyncio.gather(*asked, *(store.write(setting(f"{n}")) for n in range(20)))
        most = 0
        while not done.done():
            [count] = await asyncio.to_thread(postgres.execute, counted)
            most = max(most, int(count))
        await done
        assert 1 < most <= MAX_CONNECTIONS


async def test_one_more_connection_has_the_same_timeouts(relay_database: str) -> None:
    async with opened(relay_database) as store:
        connection = await store.connect("feed")
        assert await connection.fetchval("SHOW application_name") == "wai relay: feed"
        assert await connection.fetchval("SHOW statement_timeout") == "10s"
        await connection.close()


async def test_relays_that_start_at_once_build_the_schema_once(empty_database: str) -> None:
    stores = await asyncio.gather(
        *(PostgresStore.open(PostgresAddress(empty_database)) for _ in range(4))
    )
    rows = await stores[0].read("SELECT number FROM schema_migrations ORDER BY number")
    assert [row["number"] for row in rows] == [m.number for m in load_migrations("postgres")]
    for store in stores:
        await store.close()


# -- the schema


def _later(sql: str, own_sql: str = "") -> list[Migration]:
    known = load_migrations("postgres")
    return [*known, Migration(len(known) + 1, "later", sql, own_sql)]


async def test_a_relay_waits_for_another_one_that_changes_the_schema_for_long(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wai_relay.storage.postgres_address.ANSWER_TIMEOUT_S", 0.3)
    address = PostgresAddress(empty_database)
    first = await connect(address)
    await first.fetchval("SELECT pg_advisory_lock($1)", AdvisoryLock.SCHEMA)
    second = asyncio.create_task(PostgresStore.open(address))
    await asyncio.sleep(0.8)
    assert not second.done()
    await first.close()
    await (await second).close()


async def test_an_older_relay_goes_on_with_a_schema_that_has_more(empty_database: str) -> None:
    later = _later(
        "ALTER TABLE settings ADD COLUMN who TEXT;",
        "CREATE FUNCTION twice(x BIGINT) RETURNS BIGINT LANGUAGE sql AS $$ SELECT 2 * x; $$;",
    )
    async with opened(empty_database, later) as newer, opened(empty_database) as older:
        await older.write(setting("a"))
        assert await newer.read("SELECT who, twice(2) AS n FROM settings") == [
            {"who": None, "n": 4}
        ]


async def test_a_relay_meets_a_column_that_another_added_while_it_runs(empty_database: str) -> None:
    async with opened(empty_database) as older:
        await older.write(setting("a"))
        assert len(await older.read("SELECT * FROM settings")) == 1
        async with opened(empty_database, _later("ALTER TABLE settings ADD COLUMN who TEXT;")):
            assert len(await older.read("SELECT * FROM settings")) == 1
            await older.write(setting("b"))


async def test_a_schema_that_took_something_away_is_refused(empty_database: str) -> None:
    number = len(load_migrations("postgres")) + 1
    later = _later(f"-- It is of no use any more.\n-- usable from: {number}\nDROP TABLE admins;")
    async with opened(empty_database, later):
        pass
    with pytest.raises(StoreError, match="newer wai"):
        await PostgresStore.open(PostgresAddress(empty_database))
    async with opened(empty_database, later):
        pass


async def test_a_migration_that_fails_changes_nothing(empty_database: str) -> None:
    bad = _later("CREATE TABLE half (x INTEGER);\nINSERT INTO nowhere VALUES (1);")
    with pytest.raises(StoreError, match="nowhere"):
        await PostgresStore.open(PostgresAddress(empty_database), bad)
    async with opened(empty_database) as store:
        assert await store.read("SELECT to_regclass('half') AS half") == [{"half": None}]


async def test_an_empty_database_is_told_from_one_in_use(empty_database: str) -> None:
    address = PostgresAddress(empty_database)
    with pytest.raises(EmptyError):
        await PostgresStore.open(address, may_be_empty=False)
    await (await PostgresStore.open(address)).close()
    await (await PostgresStore.open(address, may_be_empty=False)).close()


async def test_a_role_that_owns_nothing_can_use_a_schema_that_is_there(
    postgres: PostgresServer, relay_database: str
) -> None:
    name = relay_database.rpartition("/")[2]
    role = f"clerk_{name}"
    postgres.execute(f"CREATE ROLE {role} LOGIN")
    postgres.execute(f"GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO {role}", name)
    async with opened(postgres.url(name, role)) as store:
        await store.write(setting("a"))
    with pytest.raises(StoreError, match="OWNER"):
        await PostgresStore.open(
            PostgresAddress(postgres.url(name, role)), _later("CREATE TABLE x (x TEXT);")
        )


# -- values


async def test_text_with_a_nul_is_refused(relay_database: str) -> None:
    async with opened(relay_database) as store:
        with pytest.raises(RefusedError):
            await store.write(setting("a\0b"))
        with pytest.raises(ConflictError):
            await store.write(Write("INSERT INTO settings (name) VALUES ('x')"))
        await store.write(setting("a"))


async def test_as_many_writes_wait_as_memory_shall_have(
    relay_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wai_relay.storage.postgres.MAX_WAITING_WRITES", 5)
    async with opened(relay_database) as store:
        for number in range(5):
            store.submit(setting(f"{number}"))
        with pytest.raises(StoreError) as caught:
            store.submit(setting("one too many"))
        assert caught.value.fault is Fault.OVERLOADED


async def _until_waiting(postgres: PostgresServer, url: str) -> None:
    name = url.rpartition("/")[2]
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        f" WHERE wait_event_type = 'Lock' AND datname = '{name}'"
    )
    while await asyncio.to_thread(postgres.execute, waiting) != ["1"]:  # noqa: ASYNC110 -- no event
        await asyncio.sleep(0.01)


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 -- the store tells no event
        await asyncio.sleep(0.01)
