"""What other relays change in a shared store, told by PostgreSQL's NOTIFY.

Triggers of the schema name the table and the row of each change that relays keep in memory. They
are on no request's path: usage and grants of limits have none. A connection of its own listens.
When it is lost, changes may have been missed: after the next connect everything counts as changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol

from wai_protocol.errors import StoreError

CHANNEL: Final = "wai_changes"

LOOK_EVERY_S: Final = 5.0
"""How often a silent connection is asked whether it lives: a network that is gone says nothing."""

ANSWER_S: Final = 5.0
ECHO: Final = "?"
"""What a relay tells itself, and others too, to see that it hears."""
FIRST_WAIT_S: Final = 0.25
LONGEST_WAIT_S: Final = 5.0

_log = logging.getLogger("wai.storage")


class Change(NamedTuple):
    """A row that another relay, or this one, has changed; `key` as its table's trigger names it."""

    table: str
    key: str


class Listening(Protocol):
    """What is asked of a connection (`asyncpg.Connection`)."""

    async def add_listener(self, channel: str, callback: Callable[..., Any]) -> None:
        """Have `callback` called with what is told on a channel."""

    def add_termination_listener(self, callback: Callable[..., Any]) -> None:
        """Have `callback` called when the connection is lost."""

    async def execute(self, query: str, *, timeout: float | None = None) -> str:  # noqa: ASYNC109
        """Run a statement."""

    def terminate(self) -> None:
        """Close it at once."""


class ChangeFeed:
    """Tells of changes while it runs. `on_change` gets each; `on_gap` is called when any may have
    been missed, at the beginning too."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Listening]],
        on_change: Callable[[Change], None],
        on_gap: Callable[[], None],
    ) -> None:
        self._connect = connect
        self._on_change = on_change
        self._on_gap = on_gap
        self._echo = asyncio.Event()
        self.lost_at: float | None = None
        """Since when nothing is heard, by the loop's clock; None while it listens."""

    async def run(self) -> None:
        """Listen until cancelled; connect again, without end, when the connection is lost."""
        loop = asyncio.get_running_loop()
        wait_s = FIRST_WAIT_S
        self.lost_at = loop.time()
        while True:
            try:
                connection = await self._connect()
            except StoreError as error:
                _log.debug("changes of other relays are not heard: %s", error)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                continue
            if self.lost_at is not None:
                self.lost_at = loop.time()  # while there was no connection, that was the problem
            try:
                await self._listen(connection)
            finally:
                connection.terminate()
                if self.lost_at is None:
                    self.lost_at = loop.time()
            wait_s = FIRST_WAIT_S
            await asyncio.sleep(wait_s)

    async def _listen(self, connection: Listening) -> None:
        """Return when the connection is lost."""
        over = asyncio.Event()
        connection.add_termination_listener(lambda _: over.set())
        try:
            await connection.add_listener(CHANNEL, self._heard)
            await self._hear_ourselves(connection)
            self.lost_at = None
            self._on_gap()
            while not over.is_set():
                try:
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await over.wait()
                except TimeoutError:
                    await connection.execute("SELECT 1", timeout=ANSWER_S)
        except Exception as error:  # a driver's own kinds; the next connect tells what is wrong
            _log.debug("the connection that hears of other relays' changes was lost: %s", error)

    async def _hear_ourselves(self, connection: Listening) -> None:
        """Raise `TimeoutError` where LISTEN is taken and nothing comes: a pooler may give each
        statement another connection."""
        self._echo = asyncio.Event()
        await connection.execute(f"NOTIFY {CHANNEL}, '{ECHO}'", timeout=ANSWER_S)
        async with asyncio.timeout(ANSWER_S):
            await self._echo.wait()

    def deaf_s(self) -> float:
        """For how long nothing is heard, in seconds; 0 while it listens."""
        return 0.0 if self.lost_at is None else asyncio.get_running_loop().time() - self.lost_at

    def _heard(self, connection: object, pid: int, channel: str, payload: str) -> None:
        if payload == ECHO:
            self._echo.set()
            return
        table, _, key = payload.partition(" ")
        self._on_change(Change(table, key))
