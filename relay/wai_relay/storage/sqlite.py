"""The embedded store: SQLite in WAL mode, with one thread for writing and one for reading.

The writer commits all waiting transactions together, because a commit needs a disk flush, while a
statement takes 4 µs. Each transaction has a savepoint of its own, so that a failing one is rolled
back alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from wai_protocol.errors import Fault, StoreError

from .migrations import Migration, load_migrations, pending
from .store import MAX_WAITING_WRITES, ConflictError, RefusedError, Row, Store, Value, Write

log = logging.getLogger("wai.storage")

MAX_BATCH: Final = 500  # transactions per commit; the first one waits a few ms at most
BUSY_TIMEOUT_S: Final = 5.0  # during an upgrade two relays use the file at the same time
FILE_MODE: Final = 0o600


class _Transaction(msgspec.Struct):
    writes: Sequence[Write]
    done: Future[None]


class SqliteStore(Store):
    """A `Store` in one SQLite file. Make it with `open`."""

    def __init__(self, path: Path, writer: sqlite3.Connection, reader: sqlite3.Connection) -> None:
        self._path = path
        self._writer = writer
        self._reader = reader
        self._waiting: queue.Queue[_Transaction | None] = queue.Queue(MAX_WAITING_WRITES)
        self._reads = ThreadPoolExecutor(1, thread_name_prefix="store-read")
        self._thread = threading.Thread(target=self._write_loop, name="store-write", daemon=True)
        self._closed = False
        self._thread.start()

    @classmethod
    def open(cls, path: Path, migrations: list[Migration] | None = None) -> SqliteStore:
        """Open or create the file (mode 0600), and apply the missing migrations.

        `migrations`: by default those of this version. Raises `StoreError` if the file cannot be
        opened, is not a database, or has a newer schema.
        """
        writer: sqlite3.Connection | None = None
        try:
            # Created here, because SQLite would use the umask; -wal and -shm files get this mode
            # too.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE))
            writer = _connect(path)
            writer.execute("PRAGMA journal_mode = WAL")
            # FULL, so that a revoked key is still revoked after a crash.
            writer.execute("PRAGMA synchronous = FULL")
            _migrate(writer, load_migrations() if migrations is None else migrations)
            reader = _connect(path)
            reader.execute("PRAGMA query_only = ON")
        except (sqlite3.Error, OSError, StoreError) as error:
            if writer is not None:
                writer.close()
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"the database {path} cannot be opened: {error}") from error
        return cls(path, writer, reader)

    async def write(self, *writes: Write) -> None:
        """Commit `writes` as one transaction. See `Store.write`."""
        await asyncio.wrap_future(self._enqueue(writes))

    def submit(self, *writes: Write) -> None:
        """Queue a transaction without waiting for it. See `Store.submit`."""
        self._enqueue(writes).add_done_callback(_log_failure)

    async def read(self, sql: str, *values: Value) -> list[Row]:
        """Return the rows of a query. See `Store.read`."""
        if self._closed:
            raise StoreError(f"the database {self._path} is closed")
        return await asyncio.wrap_future(self._reads.submit(self._select, sql, values))

    async def close(self) -> None:
        """Commit the queued transactions, then close the file."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(None, self._shut)

    def _shut(self) -> None:
        self._waiting.put(None)
        self._thread.join()
        self._reads.shutdown(wait=True)
        self._reader.close()
        self._writer.close()

    def _enqueue(self, writes: Sequence[Write]) -> Future[None]:
        if self._closed:
            raise StoreError(f"the database {self._path} is closed")
        transaction = _Transaction(writes, Future())
        try:
            self._waiting.put_nowait(transaction)
        except queue.Full:
            raise StoreError(
                f"{MAX_WAITING_WRITES} writes wait for the disk of {self._path}", Fault.OVERLOADED
            ) from None
        return transaction.done

    def _select(self, sql: str, values: Sequence[Value]) -> list[Row]:
        try:
            cursor = self._reader.execute(sql, _named(values))
            columns = [column[0] for column in cursor.description or ()]
            return [dict(zip(columns, row, strict=True)) for row in cursor]
        except sqlite3.Error as error:
            raise StoreError(f"reading {self._path} failed: {error}") from error

    # -- in the writer's thread
    def _write_loop(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, last = [first], False
            while len(batch) < MAX_BATCH and not last:
                try:
                    following = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    last = True
                else:
                    batch.append(following)
            # Transactions that were cancelled while they waited are left out.
            self._commit([t for t in batch if t.done.set_running_or_notify_cancel()])
            if last:
                return

    def _commit(self, batch: list[_Transaction]) -> None:
        outcomes: list[StoreError | None] = []
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            outcomes = [self._apply(transaction) for transaction in batch]
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                self._writer.execute("ROLLBACK")
            failure = StoreError(f"writing to {self._path} failed: {error}")
            outcomes = [failure] * len(batch)
        for transaction, outcome in zip(batch, outcomes, strict=True):
            if outcome is None:
                transaction.done.set_result(None)
            else:
                transaction.done.set_exception(outcome)

    def _apply(self, transaction: _Transaction) -> StoreError | None:
        """Run one transaction in a savepoint; return its error if it was rolled back, else None.

        Raises `sqlite3.Error` if the whole batch fails (disk full, I/O error).
        """
        self._writer.execute("SAVEPOINT one")
        failure: StoreError | None = None
        try:
            for write in transaction.writes:
                cursor = self._writer.execute(write.sql, _named(write.values))
                if write.rows is not None and cursor.rowcount != write.rows:
                    failure = ConflictError("the rows to change were changed or removed meanwhile")
                    break
        except sqlite3.IntegrityError as error:
            failure = ConflictError(str(error))
        except (sqlite3.ProgrammingError, OverflowError, ValueError) as error:
            # A value that SQLite cannot store: an integer over 64 bits, text that is not Unicode.
            failure = RefusedError(f"the database refused a statement: {error}")
        if failure is not None:
            self._writer.execute("ROLLBACK TO one")
        self._writer.execute("RELEASE one")
        return failure


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level=None: transactions are begun and ended by explicit statements.
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _migrate(connection: sqlite3.Connection, migrations: list[Migration]) -> None:
    """Apply the missing migrations, all in one transaction."""
    connection.execute("BEGIN IMMEDIATE")  # if two relays start at once, one waits here
    try:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (number INTEGER PRIMARY KEY, name TEXT)"
        )
        newest = connection.execute("SELECT max(number) FROM schema_migrations").fetchone()[0]
        for migration in pending(migrations, newest or 0):
            for statement in migration.statements():
                connection.execute(statement)
            connection.execute(
                "INSERT INTO schema_migrations (number, name) VALUES ($1, $2)",
                _named((migration.number, migration.name)),
            )
        connection.execute("COMMIT")
    except (sqlite3.Error, StoreError):
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _named(values: Sequence[Value]) -> dict[str, Value]:
    """Map values to SQLite's parameters: `$1` is a named parameter with the name "1"."""
    return {str(index): value for index, value in enumerate(values, start=1)}


def _log_failure(done: Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        log.error("a record was not written: %s", error)
