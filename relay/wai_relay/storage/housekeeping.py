"""Which of the relays that share a database does what only one of them should do.

It is the one that holds an advisory lock, on a connection of its own; when that ends, because the
relay stopped, died or lost the database, another one gets the lock within `LOOK_S`. A relay with
a database of its own does everything itself.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any, Final, Protocol

from wai_protocol.errors import StoreError

from .advisory import AdvisoryLock
from .store import Store

if TYPE_CHECKING:
    import asyncpg

# What is done by one relay can wait for a minute: old usage is deleted once a minute anyway.
LOOK_S: Final = 30.0
PURPOSE: Final = "housekeeping"

log = logging.getLogger("wai.storage")


class _Shared(Protocol):
    """What is asked of a store that relays share."""

    async def connect(self, purpose: str) -> asyncpg.Connection: ...


class Housekeeping:
    """Knows whether this relay keeps house now. Belongs to one event loop; end it with `close`."""

    def __init__(self, store: Store) -> None:
        self._alone = not store.shared
        self._store: Any = store
        self._held: asyncpg.Connection | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def ours(self) -> bool:
        """Whether it is for this relay to delete what is old, and to renew what is shared."""
        return self._alone or (self._held is not None and not self._held.is_closed())

    async def look(self) -> None:
        """Try to become the one that keeps house, unless this is it already."""
        if self.ours:
            return
        shared: _Shared = self._store
        try:
            connection = await shared.connect(PURPOSE)
        except StoreError as error:
            log.debug("no connection for housekeeping: %s", error)
            return
        try:
            got = await connection.fetchval(
                "SELECT pg_try_advisory_lock($1)", AdvisoryLock.HOUSEKEEPING
            )
        except Exception as error:  # of many kinds; the next look is soon
            log.debug("no lock for housekeeping: %s", error)
            got = False
        if got:
            self._held = connection
            log.info("this relay deletes old usage now, and renews what all relays share")
        else:
            connection.terminate()

    def start(self) -> None:
        """Look from now on."""
        if not self._alone:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Leave it to another relay."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        if self._held is not None:
            self._held.terminate()

    async def _run(self) -> None:
        while True:
            await self.look()
            # By chance, so that relays that start at once do not connect at once each time.
            await asyncio.sleep(LOOK_S * random.uniform(0.7, 1.0))  # noqa: S311
