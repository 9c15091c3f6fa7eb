"""Usage that PostgreSQL does not take for a while: kept on the relay's disk, and counted once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.postgres import PostgresServer
from wai_relay.storage import Write
from wai_relay.storage.postgres import PostgresStore
from wai_relay.storage.postgres_address import PostgresAddress
from wai_relay.usage import UsageRecorder
from wai_relay.usage.batches import Batch, Counted
from wai_relay.usage.pruning import PRUNE_INTERVAL_S, STEADY_S
from wai_relay.usage.rollups import DAY_S
from wai_transport.folder import DataFolder

from .test_recorder import NOON, Time, record

pytestmark = pytest.mark.anyio
TOKENS = 15  # of each request of `record`


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's patience and the delivery's run by the real clock."""
    monkeypatch.setattr("wai_relay.storage.postgres_connections.PATIENCE_S", 0.2)
    monkeypatch.setattr("wai_relay.usage.delivery.SPILL_AFTER_S", 0.05)
    monkeypatch.setattr("wai_relay.usage.delivery.RETRY_S", 0.05)
    monkeypatch.setattr("wai_relay.usage.delivery.CLOSE_S", 0.3)


@dataclass
class Relay:
    """What keeps the books in one folder, with others in one database."""

    folder: Path
    store: PostgresStore
    recorder: UsageRecorder

    def serve(self, requests: int, first: int = 0) -> None:
        """Finish requests, with ids that no other relay has."""
        for n in range(first, first + requests):
            self.recorder.finish(record(request_id=f"{self.folder.name}_{n}", started_at=NOON))

    def kill(self) -> None:
        """All that a killed process leaves is its files; its locks and its timers are gone."""
        mine = (self.recorder._timer, self.recorder._tick_timer, self.recorder._delivery._retry)
        for timer in filter(None, mine):
            timer.cancel()
        spill_file = self.recorder._spill_file
        assert spill_file is not None
        if spill_file._descriptor is not None:
            os.close(spill_file._descriptor)

    async def spilled(self) -> None:
        """Wait until nothing waits in memory."""
        self.recorder.flush()
        await until(lambda: not self.recorder._delivery._waiting)

    async def all_written(self) -> None:
        """Wait until the database has everything."""
        self.recorder.flush()
        await until(lambda: self.recorder.state.unwritten == 0)
        assert self.recorder.state.lost == 0


@asynccontextmanager
async def relay(url: str, folder: Path) -> AsyncIterator[Relay]:
    DataFolder.open(folder)
    store = await PostgresStore.open(PostgresAddress(url))
    recorder = await UsageRecorder.load(
        *(store, lambda: 30.0 * DAY_S, folder), writer=f"{folder.name}.", wall_clock=lambda: NOON
    )
    async with AsyncExitStack() as ending:
        ending.push_async_callback(store.close)
        ending.push_async_callback(recorder.close)
        yield Relay(folder, store, recorder)


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 -- nobody tells
        await asyncio.sleep(0.01)


def served(server: PostgresServer) -> tuple[int, int, int, int]:
    """Rows, different requests among them, and the requests and tokens of the day's sums."""
    [row] = server.execute(
        "SELECT (SELECT count(*) FROM usage_requests), (SELECT count(DISTINCT request_id)"
        " FROM usage_requests), sum(requests), sum(prompt_tokens + completion_tokens)"
        " FROM usage_rollups WHERE span = 'day'",
        "relay",
    )
    rows, different, requests, tokens = map(int, row.split("|"))
    return rows, different, requests, tokens


async def test_what_was_served_while_the_database_was_away_is_written_once(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    async with relay(own_server.url("relay"), tmp_path / "a") as running:
        running.serve(30)
        await running.all_written()
        own_server.stop()
        for n in range(3):
            running.serve(40, 30 + n * 40)
            await running.spilled()
        assert running.recorder.state.behind
        assert running.recorder._delivery.spilled
        await asyncio.to_thread(own_server.start)
        await running.all_written()
        assert served(own_server) == (150, 150, 150, 150 * TOKENS)


async def test_a_relay_that_was_killed_in_the_outage_loses_nothing_that_it_kept(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    async with relay(own_server.url("relay"), tmp_path / "a") as killed:
        killed.serve(30)
        await killed.all_written()
        own_server.kill()
        killed.serve(50, 30)
        await killed.spilled()
        killed.kill()
        await asyncio.to_thread(own_server.start)
        async with relay(own_server.url("relay"), tmp_path / "a") as next_one:
            assert next_one.recorder.months.begin(NOON)
            await next_one.all_written()
            assert served(own_server) == (80, 80, 80, 80 * TOKENS)
        killed.recorder._spill_file = None
        killed.recorder._delivery._spill_file = None
        killed.recorder._delivery._files.clear()


async def test_a_promoted_standby_gets_what_the_primary_did_not(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    own_server.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
    standby = await asyncio.to_thread(own_server.standby)
    both = own_server.url("relay").replace("/relay", f",127.0.0.1:{standby.port}/relay")
    async with relay(both, tmp_path / "a") as running:
        own_server.execute("SELECT pg_reload_conf()")
        running.serve(30)
        await running.all_written()
        own_server.kill()
        running.serve(50, 30)
        await running.spilled()
        standby.execute("ALTER SYSTEM RESET synchronous_standby_names")
        standby.execute("SELECT pg_reload_conf()")
        standby.promote()
        await running.all_written()
        assert served(standby) == (80, 80, 80, 80 * TOKENS)


async def test_batches_whose_commits_are_cut_are_counted_once(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    """Two relays write, while connections are ended at any moment, commits among them."""
    url = own_server.url("relay")
    async with relay(url, tmp_path / "a") as one, relay(url, tmp_path / "b") as other:
        cuts = asyncio.ensure_future(_cut(own_server, url, times=30))
        n = 0
        while not cuts.done():
            for running in (one, other):
                running.serve(20, n)
                running.recorder.flush()
            n += 20
            await asyncio.sleep(0.005)
        await cuts
        await one.all_written()
        await other.all_written()
        assert served(own_server) == (2 * n, 2 * n, 2 * n, 2 * n * TOKENS)


async def _cut(server: PostgresServer, url: str, times: int) -> None:
    for _ in range(times):
        await asyncio.to_thread(server.end_connections, url)
        await asyncio.sleep(0.02)


async def test_a_commit_that_was_not_confirmed_is_not_counted_twice(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    """It was stored, the relay did not hear of it and was killed; the next one finds its line."""
    counted = record(request_id="a_0", started_at=NOON)
    batch = Batch([Counted(counted, "m", counted.tokens)], "a.0123456789abcdef")
    async with relay(own_server.url("relay"), tmp_path / "a") as running:
        await running.store.write(*batch.writes)
    (tmp_path / "a" / "usage-0000.unwritten").write_bytes(batch.line())
    async with relay(own_server.url("relay"), tmp_path / "a") as running:
        await running.all_written()
    assert served(own_server) == (1, 1, 1, TOKENS)
    assert list((tmp_path / "a").glob("usage-*")) == []


async def test_each_relay_forgets_only_the_ids_of_its_own_batches(
    relay_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids of a relay that is stopped are what tells its unconfirmed batches."""
    monkeypatch.setattr("wai_relay.usage.pruning.BATCHES_KEPT", 5)
    time = Time()
    store = await PostgresStore.open(PostgresAddress(relay_database))
    keeps_house = False
    recorder = await UsageRecorder.load(
        *(store, lambda: 30.0 * DAY_S, tmp_path),
        writer="a.",
        keeps_house=lambda: keeps_house,
        wall_clock=time,
        clock=time.monotonic,
        call_later=time.call_later,
    )
    put = "INSERT INTO usage_batches (id) VALUES ($1)"
    old = "INSERT INTO usage_requests SELECT 1, 'old', 0, '', 'k', '', '', '', 200, '', ''"
    old += ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0"
    await store.write(*(Write(put, (f"{who}.{n}",)) for who in "ba" for n in range(10)))
    await store.write(Write(old))
    for _ in range(int(STEADY_S / PRUNE_INTERVAL_S) + 1):
        time.advance(PRUNE_INTERVAL_S)
    await store.write()
    rows = await store.read("SELECT id FROM usage_batches ORDER BY number")
    assert [row["id"] for row in rows] == [
        *(f"b.{n}" for n in range(10)),
        *(f"a.{n}" for n in range(5, 10)),
    ]
    assert len(await store.read("SELECT id FROM usage_requests")) == 1  # another relay's to delete
    keeps_house = True
    time.advance(PRUNE_INTERVAL_S)
    await store.write()
    assert await store.read("SELECT id FROM usage_requests") == []
    await recorder.close()
    await store.close()
