"""What the store says of the relays that share it."""

from __future__ import annotations

import time

import pytest

from wai_relay.fleet.relays import RelayRecord, Relays
from wai_relay.storage import Store
from wai_relay.storage.postgres import PostgresStore
from wai_relay.storage.postgres_address import PostgresAddress

pytestmark = pytest.mark.anyio


def _own(store: Store) -> tuple[Relays, RelayRecord]:
    """A process of the one relay that there is."""
    relays = Relays(store, "relay_one")
    url = "https://relay.example"
    return relays, RelayRecord("relay_one", "one", b"k" * 32, url, None, "1", relays.started_at)


@pytest.mark.parametrize("succeeds", [False, True])
async def test_a_drain_ends_with_a_process_that_was_killed_and_not_with_an_upgrade(
    relay_database: str, succeeds: bool
) -> None:
    store = await PostgresStore.open(PostgresAddress(relay_database))
    relays, record = _own(store)
    await relays.begin(record, succeeds=False)
    await relays.drain("relay_one", drained=True)
    await relays.beat(record)
    await relays.follow()
    assert relays.drained

    relays, record = _own(store)  # the next process, and nobody took the row away
    await relays.begin(record, succeeds=succeeds)
    await relays.follow()
    assert relays.drained is succeeds
    await store.close()


async def test_a_clock_that_is_wrong_is_compared_with_that_of_the_database(
    relay_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await PostgresStore.open(PostgresAddress(relay_database))
    relays, _ = _own(store)
    right = time.time
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: right() + 300.0)
        await relays.compare_clocks()
        assert abs(relays.clock_ahead_s + 300.0) < 1.0
        assert abs(relays.fleet_time() - right()) < 1.0
    await relays.compare_clocks()
    assert abs(relays.clock_ahead_s) < 1.0
    await store.close()
