"""The shared store: PostgreSQL, used by several relays at the same time.

It has at most `MAX_CONNECTIONS` connections: one for writing and `MAX_READS` for reading. The
writer commits transactions that wait together, each in a savepoint of its own, so that a failing
one is rolled back alone. A transaction that surely was not committed, because its connection was
lost before that or its server is no primary any more, is applied again on a new connection; one
whose commit was not confirmed is not.

Needs the extra `postgres`: import this module only where PostgreSQL is used.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Final

import asyncpg
import msgspec

from wai_protocol.errors import Fault, StoreError

from .migrations import Migration, load_migrations
from .postgres_address import PostgresAddress, UnreachableError, connect
from .postgres_connections import LONGEST_PAUSE_S, Connections
from .postgres_schema import is_empty, migrate
from .store import (
    MAX_WAITING_WRITES,
    Away,
    ConflictError,
    RefusedError,
    Row,
    Store,
    Value,
    Write,
)

MAX_READS: Final = 2  # at a time: a report of some hundred ms must not delay all others
MAX_CONNECTIONS: Final = 1 + MAX_READS
MAX_BATCH: Final = 100  # transactions per commit; each takes some round trips
# For a read with all its waiting; two statements that take as long as they may.
READ_TIMEOUT_S: Final = 25.0
# How often a statement is tried whose connection was lost, or that met another relay's locks: a
# fail-over that cuts each of so many new connections is none that passes soon.
MAX_TRIES: Final = 5
CLOSE_TIMEOUT_S: Final = 10.0

# What asyncpg raises. ConnectionError and gaierror are OSErrors, TimeoutError too.
_FAILURES: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

log = logging.getLogger("wai.storage")


class _Transaction(msgspec.Struct):
    writes: Sequence[Write]
    done: asyncio.Future[None]


class _NotCommittedError(Exception):
    """The transactions of a batch were surely not committed, and may be tried again."""


class _MetOthersError(_NotCommittedError):
    """They waited for each other's locks, or another relay's (deadlock)."""


class PostgresStore(Store):
    """A `Store` in a database of PostgreSQL. Make it with `open`, in the loop that uses it."""

    shared: ClassVar[bool] = True

    def __init__(self, address: PostgresAddress, first: asyncpg.Connection) -> None:
        self.address = address
        self._connections = Connections(lambda: connect(address), first)
        self._waiting: deque[_Transaction] = deque()
        self._more = asyncio.Event()
        self._reading = asyncio.Semaphore(MAX_READS)
        self._closed = False
        self._writer = asyncio.get_running_loop().create_task(self._write_loop())

    @classmethod
    async def open(
        cls,
        address: PostgresAddress,
        migrations: list[Migration] | None = None,
        *,
        may_be_empty: bool = True,
        wait_s: float = 0.0,
    ) -> PostgresStore:
        """Connect, and apply the missing migrations.

        `migrations`: by default those of this version. `wait_s`: how long to try again while
        nothing answers. Raises `StoreError` if there is no connection, the schema is newer, or the
        database is empty and must not be.
        """
        first = await _connect_within(address, wait_s)
        try:
            if not may_be_empty and await is_empty(first):
                raise EmptyError(f"the database {address} is empty")
            await migrate(first, load_migrations("postgres") if migrations is None else migrations)
        except BaseException as error:
            first.terminate()
            if isinstance(error, asyncpg.InsufficientPrivilegeError):
                raise StoreError(
                    f"the relay's role may not make tables in {address} ({error}): make it the"
                    " owner with ALTER DATABASE … OWNER TO …"
                ) from error
            if isinstance(error, (*_FAILURES, OSError)):
                raise StoreError(f"the database {address} cannot be opened: {error}") from error
            raise
        return cls(address, first)

    @property
    def away(self) -> Away | None:
        """The outage, if the database cannot be reached now."""
        return self._connections.away

    async def connect(self, purpose: str) -> asyncpg.Connection:
        """Open one more connection, with the same settings and timeouts, which the caller closes.

        For what must hold one for long: `LISTEN`, an advisory lock. `purpose`: see `connect` in
        `postgres_address`. A lost one is not replaced. Raises `StoreError`.
        """
        return await connect(self.address, purpose)

    async def write(self, *writes: Write) -> None:
        """Commit `writes` as one transaction. See `Store.write`."""
        await self._enqueue(writes)

    def submit(self, *writes: Write) -> None:
        """Queue a transaction without waiting for it. See `Store.submit`."""
        self._enqueue(writes).add_done_callback(_log_failure)

    async def read(self, sql: str, *values: Value) -> list[Row]:
        """Return the rows of a query. See `Store.read`."""
        if self._closed:
            raise StoreError(f"the database {self.address} is closed")
        try:
            async with asyncio.timeout(READ_TIMEOUT_S), self._reading:
                return await self._select(sql, values)
        except TimeoutError:
            raise StoreError(f"reading {self.address} took more than {READ_TIMEOUT_S} s") from None

    async def close(self) -> None:
        """Commit the queued transactions, for a while; then close the connections."""
        if self._closed:
            return
        self._closed = True
        self._more.set()
        await asyncio.wait((self._writer,), timeout=CLOSE_TIMEOUT_S)
        self._writer.cancel()
        await asyncio.wait((self._writer,))
        _settle(self._waiting, StoreError(f"the database {self.address} was closed"))
        await self._connections.close()

    def _enqueue(self, writes: Sequence[Write]) -> asyncio.Future[None]:
        if self._closed:
            raise StoreError(f"the database {self.address} is closed")
        if len(self._waiting) >= MAX_WAITING_WRITES:
            raise StoreError(
                f"{MAX_WAITING_WRITES} writes wait for {self.address}", Fault.OVERLOADED
            )
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(_Transaction(writes, done))
        self._more.set()
        return done

    # -- reading
    async def _select(self, sql: str, values: Sequence[Value]) -> list[Row]:
        for tries in itertools.count(1):
            connection = await self._connections.take()
            try:
                rows = await connection.fetch(sql, *values)
            except (*_FAILURES, OSError) as error:
                if _is_lost(connection, error):
                    self._connections.lose(connection)
                    if tries < MAX_TRIES:
                        await asyncio.sleep(_pause_s(tries))
                        continue
                else:
                    self._connections.give_back(connection)
                raise _failure(error, f"reading {self.address} failed") from error
            except BaseException:  # cancelled: the server may be at work on it still
                self._connections.drop(connection)
                raise
            self._connections.give_back(connection)
            return [dict(row) for row in rows]
        raise AssertionError("never reached")

    # -- writing
    async def _write_loop(self) -> None:
        while not (self._closed and not self._waiting):
            if not self._waiting:
                self._more.clear()
                await self._more.wait()
                continue
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
            # Transactions that were cancelled while they waited are left out.
            batch = [transaction for transaction in taken if not transaction.done.done()]
            try:
                await self._commit(batch)
            except Exception as error:
                log.exception("a batch of writes failed")
                _settle(batch, StoreError(f"writing to {self.address} failed: {error}"))
            except asyncio.CancelledError:
                _settle(batch, StoreError(f"the database {self.address} was closed"))
                raise

    async def _commit(self, batch: list[_Transaction]) -> None:
        """Commit a batch; together at first, and each alone if one of them meets a lock."""
        outcomes: list[StoreError | None] = []
        for tries in itertools.count(1):
            if not batch:
                return
            try:
                outcomes = await self._try(batch)
            except _NotCommittedError as error:
                if isinstance(error, _MetOthersError) and len(batch) > 1:
                    for transaction in batch:
                        await self._commit([transaction])
                    return
                if tries < MAX_TRIES:
                    await asyncio.sleep(_pause_s(tries))
                    continue
                failure = StoreError(f"writing to {self.address} failed {tries} times: {error}")
                outcomes = [failure] * len(batch)
            except StoreError as error:
                outcomes = [error] * len(batch)
            break
        for transaction, outcome in zip(batch, outcomes, strict=True):
            if transaction.done.done():
                continue
            if outcome is None:
                transaction.done.set_result(None)
            else:
                transaction.done.set_exception(outcome)

    async def _try(self, batch: list[_Transaction]) -> list[StoreError | None]:
        """Commit a batch once, and return the error of each transaction, None for none.

        Raises `_NotCommittedError`, and `StoreError` if it is not known whether it was committed.
        """
        connection = await self._connections.take()
        committing = False
        try:
            await connection.execute("BEGIN; SAVEPOINT one")
            outcomes = [await self._apply(connection, transaction) for transaction in batch]
            committing = True
            await connection.execute("COMMIT")
        except (*_FAILURES, OSError) as error:
            if not _is_lost(connection, error):
                # It comes here from COMMIT, or as a lock that was not free.
                try:
                    await connection.execute("ROLLBACK")
                except (*_FAILURES, OSError):
                    self._connections.lose(connection)
                else:
                    self._connections.give_back(connection)
                if _meets_others(error):
                    raise _MetOthersError(str(error)) from error
                raise _failure(error, f"writing to {self.address} failed") from error
            self._connections.lose(connection)
            if committing:
                raise StoreError(
                    f"the connection to {self.address} was lost while a change was committed, so"
                    " that it may be stored or not; look, and do it again if it is not"
                ) from error
            raise _NotCommittedError(str(error)) from error
        except BaseException:
            self._connections.drop(connection)
            raise
        self._connections.give_back(connection)
        return outcomes

    async def _apply(
        self, connection: asyncpg.Connection, transaction: _Transaction
    ) -> StoreError | None:
        """Run one transaction after the savepoint; return its error if it was rolled back, or None.

        Raises asyncpg's error if the whole batch fails: connection lost, deadlock.
        """
        failure: StoreError | None = None
        try:
            for run in _runs(transaction.writes):
                if not await _execute(connection, run):
                    failure = ConflictError("the rows to change were changed or removed meanwhile")
                    break
        except (*_FAILURES, OSError) as error:
            if _is_lost(connection, error) or _meets_others(error):
                raise
            failure = _failure(error, f"writing to {self.address} failed")
        undo = "ROLLBACK TO SAVEPOINT one; " if failure is not None else ""
        await connection.execute(f"{undo}RELEASE SAVEPOINT one; SAVEPOINT one")
        return failure


async def _connect_within(address: PostgresAddress, wait_s: float) -> asyncpg.Connection:
    """Connect; for `wait_s` try again if the database may come back by itself."""
    loop = asyncio.get_running_loop()
    until, told = loop.time() + wait_s, False
    while True:
        try:
            return await connect(address)
        except UnreachableError as error:
            if loop.time() >= until:
                raise
            if not told:
                log.warning("waiting for the database, for %.0f s at most: %s", wait_s, error)
                told = True
        await asyncio.sleep(LONGEST_PAUSE_S)


class EmptyError(StoreError):
    """The database has no tables of a relay."""


def _runs(writes: Sequence[Write]) -> Iterator[list[Write]]:
    """Part writes into runs of the same statement, which take one round trip together."""
    for (_, counted), run in itertools.groupby(writes, _statement):
        if counted:
            yield from ([write] for write in run)
        else:
            yield list(run)


def _statement(write: Write) -> tuple[str, bool]:
    return write.sql, write.rows is not None


async def _execute(connection: asyncpg.Connection, run: list[Write]) -> bool:
    """Execute a run; whether it changed as many rows as it must."""
    first = run[0]
    if len(run) > 1:
        await connection.executemany(first.sql, [write.values for write in run])
        return True
    tag = await connection.execute(first.sql, *first.values)  # such as "UPDATE 1", "INSERT 0 1"
    return first.rows is None or int(tag.rpartition(" ")[2]) == first.rows


def _is_lost(connection: asyncpg.Connection, error: BaseException) -> bool:
    """Whether the connection is of no use any more, or does not lead to a primary."""
    if connection.is_closed() or isinstance(error, OSError | asyncpg.InternalClientError):
        return True
    state = getattr(error, "sqlstate", None) or ""
    # 08: connection; 57P01 to 57P05: the server ends it; 25006: it takes no writes.
    return state.startswith(("08", "57P")) or state == "25006"


def _meets_others(error: BaseException) -> bool:
    return getattr(error, "sqlstate", None) in ("40001", "40P01")


def _failure(error: Exception, what: str) -> StoreError:
    """Return what the store raises for a statement that failed."""
    state = getattr(error, "sqlstate", None) or ""
    if state.startswith("23"):  # a constraint: UNIQUE, NOT NULL, CHECK
        return ConflictError(str(error))
    if state.startswith("22") or (
        isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)
    ):
        # A value that PostgreSQL cannot store, or that asyncpg cannot send: an integer over 64
        # bits, text that is not Unicode or has a NUL.
        return RefusedError(f"the database refused a statement: {error}")
    return StoreError(f"{what}: {error}")


def _pause_s(tries: int) -> float:
    """Up to 10, 20, 40, 80 ms; by chance, so that two relays do not meet again."""
    return random.uniform(0.0, 0.005 * 2**tries)  # noqa: S311


def _settle(batch: Iterable[_Transaction], error: StoreError) -> None:
    for transaction in batch:
        if not transaction.done.done():
            transaction.done.set_exception(error)


def _log_failure(done: asyncio.Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        log.error("a record was not written: %s", error)
