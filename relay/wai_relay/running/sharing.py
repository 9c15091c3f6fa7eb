"""What a relay does where others share its store: it registers itself, and follows their changes.

One task writes a heartbeat every few seconds, another one reads what the change feed names. A
database that is away stops neither, and callers do not notice: what a request needs is in memory.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import platform
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

from wai_protocol.errors import StoreError
from wai_protocol.identity import relay_id
from wai_relay.acme.shared import SharedCertificate, read_cluster_key
from wai_relay.config import RelayConfig
from wai_relay.fleet.relays import HEARTBEAT_S, RelayRecord, Relays
from wai_relay.identity import load_relay_key
from wai_relay.port_tls import PortTls
from wai_relay.storage import Store
from wai_relay.storage.feed import Change, ChangeFeed, Listening
from wai_transport.folder import DataFolder
from wai_transport.version import VERSION

from .parts import Parts
from .stored import Stored

EVERYTHING: Final = ""
"""The key of a change that may concern any row of a table."""

RELAYS: Final = "relays"
"""The table of relays."""

COPIED_AFTER: Final = 3
"""Heartbeats in a row that found another process registered as this relay. An upgrade has one."""

CLOCK_EVERY: Final = 10
"""Heartbeats between two looks at the database's clock: half a minute after this one is set."""

LEAVE_S: Final = 2.0
"""A relay that stops waits no longer for a database that is away."""

AGAIN_S: Final = 1.0
"""After a change could not be read."""

Follower = Callable[[str | None], Awaitable[None]]
"""Takes over what the store has of the row with this key, or of all of a table's (None)."""

_log = logging.getLogger("wai.relay")


class Sharing:
    """Keeps one relay in step with the others. `start` it; `close` it; belongs to one loop.

    `own` gives what this relay's row says. `followers`: who follows each table.
    """

    def __init__(
        self,
        relays: Relays,
        own: Callable[[], RelayRecord],
        connect: Callable[[], Awaitable[Listening]],
        followers: Mapping[str, Follower],
    ) -> None:
        self._relays = relays
        self._own = own
        self._followers = followers
        self._pending: dict[Change, None] = {}
        self._news = asyncio.Event()
        self.feed = ChangeFeed(connect, self._changed, self._all_changed)
        relays.deaf_s = self.feed.deaf_s
        self._tasks: list[asyncio.Task[None]] = []
        self._silent = False

    async def start(self, *, succeeds: bool) -> None:
        """Register this relay, and go on with that. `succeeds`: see `Relays.begin`. Raises
        `StoreError`."""
        await self._followers[RELAYS](None)  # their names, of which this one's must differ
        await self._relays.begin(self._own(), succeeds=succeeds)
        await self._relays.compare_clocks()
        await self._followers[RELAYS](None)
        loop = asyncio.get_running_loop()
        for work in (self._beat(), self.feed.run(), self._follow()):
            self._tasks.append(loop.create_task(work))

    async def close(self, *, succeeded: bool) -> None:
        """Stop, and take this relay out of the list, unless a successor goes on as it."""
        if not self._tasks:
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._tasks.clear()
        if not succeeded:
            try:
                async with asyncio.timeout(LEAVE_S):
                    await self._relays.leave()
            except (StoreError, TimeoutError) as error:
                _log.warning("the other relays will find out that this one has ended: %s", error)

    async def _beat(self) -> None:
        others = 0
        for beats in itertools.count(1):
            await asyncio.sleep(HEARTBEAT_S)
            others = others + 1 if self._relays.taken else 0
            self._relays.copied = others >= COPIED_AFTER
            try:
                await self._relays.beat(self._own())
                self._silent = False
                if beats % CLOCK_EVERY == 0:
                    await self._relays.compare_clocks()
            except StoreError as error:
                if not self._silent:
                    _log.warning("the other relays do not hear that this one lives: %s", error)
                self._silent = True

    def _changed(self, change: Change) -> None:
        if change.table in self._followers:
            self._pending[change] = None
            self._news.set()

    def _all_changed(self) -> None:
        for table in self._followers:
            self._changed(Change(table, EVERYTHING))

    async def _follow(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._pending:
                change = next(iter(self._pending))
                del self._pending[change]  # told again while it is read: read again
                if not await self._read(change):
                    self._changed(Change(change.table, EVERYTHING))
                    await asyncio.sleep(AGAIN_S)

    async def _read(self, change: Change) -> bool:
        try:
            await self._followers[change.table](change.key or None)
        except StoreError as error:
            _log.debug("what another relay changed in %s is not known: %s", change.table, error)
            return False
        except Exception:  # a bug in one follower must not keep the others from following
            _log.exception("what another relay changed in %s can't be used", change.table)
        return True


async def shared_certificate(
    config: RelayConfig, store: Store, folder: DataFolder
) -> SharedCertificate | None:
    """Return what is shared of an authority's certificate, with its newest version in `folder`;
    None where nothing is. Raises `StoreError`."""
    if config.cluster_key_file is None or config.domain is None or not store.shared:
        return None
    key = read_cluster_key(config.cluster_key_file)
    own_id = relay_id(load_relay_key(folder).public)
    shared = SharedCertificate(store, own_id, config.domain, key, folder)
    await shared.fetch()
    return shared


def sharing_of(
    store: Store, stored: Stored, parts: Parts, tls: PortTls | None, *, port: int
) -> Sharing | None:
    """Return what keeps this relay in step with the others; None where its store is its own.

    `port`: where it listens, which tells relays on one host apart.
    """
    if not store.shared:
        return None
    from wai_relay.storage.postgres import PostgresStore  # its driver is an extra

    assert isinstance(store, PostgresStore)
    relays, fleet = stored.relays, parts.fleet

    def own() -> RelayRecord:
        address = parts.context.node_address
        name = relays.distinct_name(platform.node(), port)
        return RelayRecord(
            *(relays.own_id, name, address.relay, address.url, address.pin),
            *(VERSION, relays.started_at),
            dial=address.dial,
            shown_pin=tls.pin if tls is not None else None,
        )

    async def follow_relays(_: str | None) -> None:
        await relays.follow()
        fleet.tell_relays(relays.list)

    followers: dict[str, Follower] = {
        RELAYS: follow_relays,
        "api_keys": stored.keys.follow,
        "api_key_labels": stored.keys.follow,
        "api_key_secrets": stored.keys.follow,
        "nodes": fleet.follow,
        "admins": _whole(stored.admins.follow),
        "sign_ins": _whole(stored.sign_ins.follow),
        "settings": _whole(stored.settings.follow),
    }
    if tls is not None and tls.shared is not None:
        followers["shared_files"] = _whole(tls.follow_files)
        followers["acme_challenges"] = _whole(tls.follow_challenges)
    return Sharing(relays, own, partial(store.connect, "changes"), followers)


def _whole(follow: Callable[[], Awaitable[None]]) -> Follower:
    """Return a follower that reads all of its table anew, whichever row changed."""

    async def follow_table(_: str | None) -> None:
        await follow()

    return follow_table
