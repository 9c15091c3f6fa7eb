"""Asks the database's function `limit_exchange`, and says what a failure means.

The rules are the function's (`storage/migrations/0009_limit_grants.postgres.sql`). This asks on one
connection of its own, that no other statement can be in the way; whoever uses it asks once at a
time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import msgspec

from wai_relay.policy.grants import Ask, Reply

# For one statement, the wait for other relays' locks included: each holds them for milliseconds.
# Less than the two seconds of grace that `limit_exchange` gives a lease.
STATEMENT_S: Final = 1.5
CONNECT_S: Final = 3.0  # another host of the URL may have to be tried
# A server that says so, or nobody at its port: it is down for all relays, and not only from here.
_DOWN_STATES: Final = frozenset({"57P01", "57P02", "57P03"})

_EXCHANGE: Final = "SELECT limit_exchange($1, $2::jsonb, $3)"
_TIDY: Final = "SELECT limit_tidy()"


class Connection(Protocol):
    """What is used of a connection (`asyncpg.Connection`)."""

    async def fetchval(self, query: str, *args: object) -> Any:
        """The first value of the first row."""

    async def execute(self, query: str) -> str:
        """Run a statement."""

    def is_closed(self) -> bool:
        """Whether it can't be used any more."""

    def terminate(self) -> None:
        """Close it without a word."""


class Judge:
    """The limits' function in the database. Close it. Belongs to one loop.

    `connect`: opens a connection. `holder`: the name of this process, that no other has.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], holder: str) -> None:
        self._connect = connect
        self._holder = holder
        self._connection: Connection | None = None
        self.round_trips = 0

    async def ready(self) -> None:
        """Connect, if there is no connection. Raises whatever the driver raises."""
        if self._connection is None or self._connection.is_closed():
            async with asyncio.timeout(CONNECT_S):
                self._connection = await self._open()

    async def exchange(self, asks: list[Ask], *, beat: bool) -> Reply:
        """Tell it `asks`. `beat`: hear of keys that were not asked for too.

        Raises whatever the driver raises; then nobody knows whether it was heard, and the
        connection is made anew.
        """
        text = msgspec.json.encode(asks).decode()
        answer = await self._run(_EXCHANGE, self._holder, text, beat)
        return msgspec.json.decode(answer, type=Reply)

    async def tidy(self) -> None:
        """Have it forget what nobody asks for any more."""
        await self._run(_TIDY)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _run(self, statement: str, *values: object) -> Any:
        await self.ready()
        connection = self._connection
        assert connection is not None
        try:
            self.round_trips += 1
            async with asyncio.timeout(STATEMENT_S):
                return await connection.fetchval(statement, *values)
        except BaseException:  # cancelled too: an answer may be on its way still
            self.close()
            raise

    async def _open(self) -> Connection:
        connection = await self._connect()
        try:
            # It must end before this relay's lease may be taken for over: see `limit_renew`.
            limit_ms = int(STATEMENT_S * 1000)
            await connection.execute(f"SET statement_timeout = {limit_ms}")
        except BaseException:
            with contextlib.suppress(Exception):
                connection.terminate()
            raise
        return connection


def says_that_it_is_down(error: BaseException) -> bool:
    """Whether the database is down for every relay: its server says so, or nobody is there.

    A network that is cut says nothing, and may be cut for this relay alone.
    """
    reason: BaseException | None = error
    while reason is not None:
        if isinstance(reason, ConnectionRefusedError | FileNotFoundError):
            return True
        if getattr(reason, "sqlstate", None) in _DOWN_STATES:
            return True
        if isinstance(reason, OSError) and reason.errno is None and _all_refused(str(reason)):
            return True
        reason = reason.__cause__
    return False


def _all_refused(text: str) -> bool:
    """Whether `text`, by which asyncio tells of the failures of a name's addresses, tells of no
    other failure."""
    refused = text.count(f"[Errno {errno.ECONNREFUSED}]")
    return refused > 0 and refused == text.count("[Errno ")
