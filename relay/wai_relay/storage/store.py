"""The store's interface: transactions of plain SQL in, rows out.

One query text serves SQLite and PostgreSQL: parameters are `$1`, `$2`, …; times are seconds since
1970; JSON is text. What the rows mean is known by those who keep them (`keys`, `invites`,
`registry`), each beside its own rules; the store knows transactions and nothing else.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from wai_protocol.errors import Fault, StoreError

Value = str | bytes | int | float | None
Row = dict[str, Any]

# What may wait for the disk. At 500 rows in 0.5 ms this is 10 ms of work on a healthy disk; on a
# dead one it is where we stop eating memory.
MAX_WAITING_WRITES: Final = 10_000


class ConflictError(StoreError):
    """A transaction found another state than it was decided on, and changed nothing."""

    default_fault = Fault.BAD_REQUEST


class RefusedError(StoreError):
    """A transaction that the database will never take: a value that it has no type for."""


@dataclass(frozen=True, slots=True)
class Write:
    """One changing statement. `rows`, where given, is how many rows it must touch: with any other
    number its whole transaction is undone and raises `ConflictError`."""

    sql: str
    values: Sequence[Value] = ()
    rows: int | None = None


class Store(abc.ABC):
    """Where a relay keeps what must outlive it. Safe to call from any thread's event loop."""

    @abc.abstractmethod
    async def write(self, *writes: Write) -> None:
        """Do all of `writes` as one transaction; on return it is on disk.

        Raises `ConflictError` (nothing was done) where a `Write.rows` or a UNIQUE constraint did
        not hold, `RefusedError` where it is no use to try again, `StoreError` where the database
        failed: then it may have been done all the same, if the disk failed at its very end.
        """

    @abc.abstractmethod
    def submit(self, *writes: Write) -> None:
        """Queue a transaction and don't wait for it: for records that may be lost in a crash.

        A failure is logged. Raises `StoreError` when `MAX_WAITING_WRITES` wait already.
        """

    @abc.abstractmethod
    async def read(self, sql: str, *values: Value) -> list[Row]:
        """The rows of a query; it sees every write that was awaited before."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Finish what is queued, then let go of the database. Idempotent."""


def until_restart(done: str, error: StoreError) -> StoreError:
    """What to say where access was taken away at once, but the store could not keep that. `done` is
    a clause: "the node box is cut off"."""
    return StoreError(
        f"{done} now, but that could not be written to disk and would be undone by a restart of the"
        f" relay ({error}); free some space there and do it again",
        error.fault,
    )
