"""The few connections of a store to PostgreSQL: lent for a moment, and made anew when lost.

A connection that is lost, or whose server takes no writes any more (SQLSTATE 25006: it is not the
primary now), is closed with all others, and a new one is made from the address, whose names are
resolved again. While that fails it is tried again, at most `LONGEST_PAUSE_S` apart, for ever.

Who needs a connection meanwhile waits for it, but only in the first `PATIENCE_S` of the outage: a
restart or a fail-over passes in that time. Later it is told at once that the database is away.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from wai_protocol.errors import StoreError

from .store import Away

if TYPE_CHECKING:
    import asyncpg

PATIENCE_S: Final = 10.0
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
_CLOSE_TIMEOUT_S: Final = 2.0

log = logging.getLogger("wai.storage")


class AwayError(StoreError):
    """The database cannot be reached now."""


class Connections:
    """Connections made by `connect`. Belongs to one event loop; end it with `close`.

    How many there are at a time is bounded by how many are taken at a time.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        first: asyncpg.Connection,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._connect = connect
        self._wall_clock = wall_clock
        self._idle: list[asyncpg.Connection] = []
        self._good: set[asyncpg.Connection] = set()
        """All that are not lost: idle and lent ones."""
        self._recovery: asyncio.Task[None] | None = None
        self._away: Away | None = None
        self._since = 0.0  # of the outage, by the loop's clock
        self._closed = False
        self._keep(first)

    @property
    def away(self) -> Away | None:
        """The outage, if there is one now."""
        return self._away

    async def take(self) -> asyncpg.Connection:
        """Return a connection, to be given back. Raises `AwayError`."""
        while True:
            while self._idle:
                connection = self._idle.pop()
                if not connection.is_closed():
                    return connection
            if self._closed:
                raise AwayError("the database is closed")
            if self._recovery is None:
                try:
                    connection = await self._connect()
                except StoreError as error:
                    if self._recovery is None:  # else it was begun meanwhile
                        self._begin_recovery(error)
                else:
                    self._watch(connection)
                    return connection
            else:
                await self._wait(self._recovery)

    def give_back(self, connection: asyncpg.Connection) -> None:
        """Take back a connection in order."""
        if connection not in self._good or self._closed:
            connection.terminate()
        elif not connection.is_closed():
            self._idle.append(connection)

    def drop(self, connection: asyncpg.Connection) -> None:
        """Take back a connection whose state is not known, and close it. Others stay."""
        self._good.discard(connection)
        connection.terminate()

    def lose(self, connection: asyncpg.Connection) -> None:
        """Take back a connection that was lost, or whose server is not the right one any more."""
        if connection in self._good:  # else all of its time are gone already
            self._lose_all()
        connection.terminate()

    async def close(self) -> None:
        """Close all connections; those that are lent are ended."""
        self._closed = True
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.wait((self._recovery,))
        good, self._good = self._good, set()
        for connection in good:
            if connection in self._idle:
                try:
                    await connection.close(timeout=_CLOSE_TIMEOUT_S)
                except Exception as error:  # of many kinds, and it is closed after all of them
                    log.debug("a connection was not closed in order: %s", error)
            connection.terminate()
        self._idle.clear()

    def _keep(self, connection: asyncpg.Connection) -> None:
        self._watch(connection)
        self._idle.append(connection)

    def _watch(self, connection: asyncpg.Connection) -> None:
        self._good.add(connection)
        connection.add_termination_listener(self._on_termination)

    def _on_termination(self, connection: asyncpg.Connection) -> None:
        if connection in self._good and not self._closed:  # not by us: the server went away
            self._lose_all()

    def _lose_all(self) -> None:
        lost, self._good = self._good, set()
        for connection in self._idle:
            connection.terminate()
        self._idle.clear()
        if lost and self._recovery is None and not self._closed:
            self._begin_recovery(None)

    def _begin_recovery(self, error: StoreError | None) -> None:
        loop = asyncio.get_running_loop()
        self._since = loop.time()
        self._recovery = loop.create_task(self._recover(error))

    async def _recover(self, error: StoreError | None) -> None:
        """Connect again; `error`: why an attempt failed just now."""
        began, pause_s = self._wall_clock(), FIRST_PAUSE_S
        while True:
            if error is not None:
                if self._away is None:
                    log.error("the database is away: %s", error)
                self._away = Away(began, str(error))
                # Jittered, so that several relays do not come back in one moment.
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            try:
                connection = await self._connect()
            except StoreError as failed:
                error = failed
            except Exception as failed:  # a fault of ours: whoever waits here must not wait for it
                log.exception("connecting to the database failed")
                error = StoreError(str(failed))
            else:
                break
        if self._away is not None:
            log.warning("the database is back after %.1f s", self._wall_clock() - began)
        self._away = None
        self._recovery = None
        self._keep(connection)

    async def _wait(self, recovery: asyncio.Task[None]) -> None:
        """Wait for the end of an outage that is young. Raises `AwayError`."""
        loop = asyncio.get_running_loop()
        left_s = self._since + PATIENCE_S - loop.time()
        if left_s > 0:
            await asyncio.wait((recovery,), timeout=left_s)
        if not recovery.done():
            why = self._away.why if self._away is not None else "its connections were lost"
            raise AwayError(f"the database is away: {why}")
