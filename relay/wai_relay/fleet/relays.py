"""The relays that share one store: this one's row in it, kept alive, and the list of all.

A relay is in the list while its heartbeats come, by the database's clock. One that stops takes
itself out; one that dies is found lost by the next heartbeat of any other. Where a store is this
relay's alone (SQLite), there is no list.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

from wai_protocol.known_relay import KnownRelay
from wai_protocol.relay_list import MAX_RELAYS, RelayList
from wai_relay.storage import Row, Store, Write

HEARTBEAT_S: Final = 3.0
GONE_S: Final = 15.0
"""Without a heartbeat for so long a relay counts as dead. After a restart of the database all have
so long anew, since none could have written."""

CLOCK_READ_S: Final = 2.0
"""A clock that took longer to read is not compared."""

TOLD_S: Final = 86_400.0
"""For so long it is told that a relay is lost: then it was taken away for good."""

_BEAT: Final = """\
INSERT INTO relays
(id, name, public_key, url, pin, dial, shown_pin, version, started_at, heartbeat_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, wai_now())
ON CONFLICT (id) DO UPDATE SET name = excluded.name, public_key = excluded.public_key,
url = excluded.url, pin = excluded.pin, dial = excluded.dial, shown_pin = excluded.shown_pin,
version = excluded.version, started_at = excluded.started_at,
heartbeat_at = excluded.heartbeat_at, lost = 0"""
_FIND_LOST: Final = """\
UPDATE relays SET lost = 1 WHERE lost = 0 AND heartbeat_at < wai_now() - $1
AND extract(epoch FROM pg_postmaster_start_time()) < wai_now() - $1"""
_FORGET: Final = "DELETE FROM relays WHERE heartbeat_at < wai_now() - $1"
_LIST: Final = """\
SELECT relays.*, (SELECT version FROM relay_list) AS list_version, wai_now() AS at
FROM relays ORDER BY lost, name, id LIMIT $1"""


class RelayRecord(msgspec.Struct, frozen=True):
    """One relay. `url` is where nodes reach it, `pin` what its certificate is known by to them,
    `dial` as in `KnownRelay`; `shown_pin` is of the certificate that it shows now, by which other
    relays know it. `started_at` is seconds since 1970, `silent_s` since its last heartbeat.
    `drained`: an admin said that callers shall go elsewhere. `lost`: its heartbeats ended without
    a word."""

    id: str
    name: str
    public_key: bytes
    url: str
    pin: bytes | None
    version: str
    started_at: float
    drained: bool = False
    silent_s: float = 0.0
    lost: bool = False
    dial: str = ""
    shown_pin: bytes | None = None

    @property
    def known(self) -> KnownRelay:
        """What nodes are told of it."""
        return KnownRelay(self.url, self.public_key, self.pin, self.dial)


class Relays:
    """The relays that share a store, as they were read last. `own_id`: this relay's."""

    def __init__(self, store: Store, own_id: str) -> None:
        self._store = store
        self.own_id = own_id
        self.all: tuple[RelayRecord, ...] = ()
        self.lost: tuple[RelayRecord, ...] = ()
        """Those that died lately."""
        self.copied = False
        """Whether another process than this one is registered as this relay, again and again."""
        self.list = RelayList()
        """What nodes are told."""
        self.started_at = time.time()
        self.clock_ahead_s = 0.0
        """How far the database's clock is ahead of this machine's, as it was read last."""
        self._with_port = False
        self.deaf_s: Callable[[], float] = lambda: 0.0
        """For how long changes of other relays are not heard, in seconds."""

    @property
    def own_name(self) -> str:
        """What this relay is called in lists; "" where there are no others."""
        return self.name_of(self.own_id) if len(self.all) > 1 else ""

    def name_of(self, relay_id: str) -> str:
        """What a relay is called; its id if it is gone."""
        found = self.find(relay_id)
        return relay_id if found is None else found.name

    def distinct_name(self, host: str, port: int) -> str:
        """A name for this relay that no other one has: its host's, with its port where another one
        on that host was first. Once a name has the port, it keeps it."""
        taken = {one.name for one in self.others}
        self._with_port = self._with_port or host in taken
        return f"{host}-{port}" if self._with_port else host

    @property
    def shared(self) -> bool:
        """Whether there can be others."""
        return self._store.shared

    @property
    def drained(self) -> bool:
        """Whether callers shall go to another relay than this one."""
        return any(one.drained for one in self.all if one.id == self.own_id)

    async def begin(self, own: RelayRecord, *, succeeds: bool) -> None:
        """Say that this relay has begun. A drain was for the process before, which may have been
        killed, unless this one `succeeds` it without a gap. Raises `StoreError`."""
        await self.beat(own)
        if not succeeds:
            await self.drain(self.own_id, drained=False)

    async def beat(self, own: RelayRecord) -> None:
        """Say that this relay lives, and find those that do not. Raises `StoreError`."""
        values = (
            *(own.id, own.name, own.public_key, own.url, own.pin, own.dial, own.shown_pin),
            *(own.version, own.started_at),
        )
        await self._store.write(
            Write(_BEAT, values), Write(_FIND_LOST, (GONE_S,)), Write(_FORGET, (TOLD_S,))
        )

    async def follow(self) -> None:
        """Read who is there. Raises `StoreError`."""
        rows = await self._store.read(_LIST, MAX_RELAYS)
        found = tuple(map(_record_of, rows))
        self.all = tuple(one for one in found if not one.lost)
        self.lost = tuple(one for one in found if one.lost)
        if self.all:
            known = tuple(one.known for one in self.all)
            self.list = RelayList(rows[0]["list_version"], known)

    async def compare_clocks(self) -> None:
        """Read the database's clock. Raises `StoreError`."""
        before, since = time.time(), time.monotonic()
        rows = await self._store.read("SELECT wai_now() AS at")
        lasted_s = time.monotonic() - since
        if lasted_s < CLOCK_READ_S:  # else nothing is known of when it was read
            self.clock_ahead_s = rows[0]["at"] - before - lasted_s / 2

    def fleet_time(self) -> float:
        """Seconds since 1970 by the clock that all relays have, the database's."""
        return time.time() + self.clock_ahead_s

    @property
    def taken(self) -> bool:
        """Whether what was read last is of another process that runs as this relay."""
        return any(one.id == self.own_id and one.started_at != self.started_at for one in self.all)

    @property
    def others(self) -> tuple[RelayRecord, ...]:
        """All but this one; none where this one is alone."""
        return tuple(one for one in self.all if one.id != self.own_id)

    def find(self, name_or_id: str) -> RelayRecord | None:
        """The relay that a person means."""
        known = (*self.all, *self.lost)
        by_id = next((one for one in known if one.id == name_or_id), None)
        return by_id or next((one for one in known if one.name == name_or_id), None)

    async def drain(self, relay_id: str, *, drained: bool) -> None:
        """Say whether callers shall go elsewhere, until that relay's process ends. Raises
        `StoreError`."""
        write = Write("UPDATE relays SET drained = $1 WHERE id = $2", (int(drained), relay_id))
        await self._store.write(write)

    async def leave(self) -> None:
        """Take this relay out of the list: it is stopping. Raises `StoreError`."""
        await self._store.write(Write("DELETE FROM relays WHERE id = $1", (self.own_id,)))


def _record_of(row: Row) -> RelayRecord:
    return RelayRecord(
        id=row["id"],
        name=row["name"],
        public_key=row["public_key"],
        url=row["url"],
        pin=row["pin"],
        dial=row["dial"],
        shown_pin=row["shown_pin"],
        version=row["version"],
        started_at=row["started_at"],
        drained=bool(row["drained"]),
        lost=bool(row["lost"]),
        silent_s=max(row["at"] - row["heartbeat_at"], 0.0),
    )
