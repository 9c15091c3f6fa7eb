"""The interface of the store: it takes transactions of SQL and returns rows.

The SQL is valid for SQLite and PostgreSQL, and the tests of the modules that write it (`keys`,
`invites`, `registry`, …) run on both: parameters are `$1`, `$2`, …; times are seconds since 1970;
JSON is stored as text; what is true or false is 0 or 1, in columns that PostgreSQL makes BIGINT
(`postgres_schema`).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import msgspec

from wai_protocol.errors import Fault, StoreError

Value = str | bytes | int | float | None
Row = dict[str, Any]

# Transactions that may wait for the disk. At 500 in 0.5 ms this is 10 ms of work for a healthy
# disk; it bounds the memory if the disk hangs.
MAX_WAITING_WRITES: Final = 10_000


class ConflictError(StoreError):
    """A transaction did not find the expected rows, and changed nothing."""

    default_fault = Fault.BAD_REQUEST


class RefusedError(StoreError):
    """The database cannot store a value of this transaction, so that another try is of no use."""


class Write(msgspec.Struct, frozen=True):
    """One statement that changes rows.

    `rows`: how many rows it must change. With any other number the whole transaction is rolled back
    and raises `ConflictError`. None: any number.
    """

    sql: str
    values: Sequence[Value] = ()
    rows: int | None = None


class Away(msgspec.Struct, frozen=True):
    """An outage of the database: since when (seconds since 1970), and why, in a sentence."""

    since: float
    why: str


class Store(abc.ABC):
    """The persistent data of a relay. Belongs to one event loop, in which it is used and closed."""

    shared: ClassVar[bool] = False
    """Whether other relays may use the same data at the same time."""

    @property
    def away(self) -> Away | None:
        """The outage, if the database cannot be reached now."""
        return None

    @abc.abstractmethod
    async def write(self, *writes: Write) -> None:
        """Commit `writes` as one transaction; when this returns, it is on disk.

        Raises `ConflictError` if `Write.rows` or a UNIQUE constraint was violated, and
        `RefusedError` for a value that cannot be stored; nothing was changed then. Raises
        `StoreError` if the database failed; the transaction may nevertheless be stored, if the disk
        or the connection failed at the end.
        """

    @abc.abstractmethod
    def submit(self, *writes: Write) -> None:
        """Queue a transaction without waiting for it: for records that may be lost in a crash.

        A failure is logged. Raises `StoreError` if `MAX_WAITING_WRITES` transactions wait already.
        """

    @abc.abstractmethod
    async def read(self, sql: str, *values: Value) -> list[Row]:
        """Return the rows of a query, which sees every write that was awaited before."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Commit the queued transactions, then close the database. Idempotent."""


def undone_by_restart(done: str, error: StoreError, store: Store) -> StoreError:
    """Return the error for a revocation that is in effect, but could not be stored.

    `done`: a clause that says what is in effect, such as "the node box is disconnected". `error`:
    the store's error.
    """
    then = (
        "the other relays do not know it, and this one tries again once the database is back"
        if store.shared
        else "see to that, then do it again"
    )
    return StoreError(
        f"{done} now, but that could not be stored and would be undone by a restart of the relay"
        f" ({error}); {then}",
        error.fault,
    )
