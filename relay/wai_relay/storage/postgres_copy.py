"""Copy what a relay knows between PostgreSQL and an SQLite file, all of one moment.

Both ends must have the schema of this version. The SQLite file belongs to the caller alone.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg

from wai_protocol.errors import StoreError

from .migrations import load_migrations
from .postgres_address import LOCK_TIMEOUT_S, PostgresAddress, connect
from .postgres_schema import is_empty, migrate
from .sqlite import SqliteStore
from .tables import KEPT_TABLES

# For all rows of a table: ten million rows of usage take some minutes.
COPY_TIMEOUT_S: Final = 3600
ROWS_AT_A_TIME: Final = 5000
# A NUL in a text, which SQLite stores and PostgreSQL does not: Unicode's sign for a lost character.
REPLACEMENT: Final = "\ufffd"

Told = Callable[[str, int, int], None]
"""Called with a table, how many of its rows are copied, and how many it has."""


async def copy_out(address: PostgresAddress, file: Path) -> dict[str, int]:
    """Copy a database to the new SQLite file `file`; return the number of rows of each table.

    Relays may write meanwhile: what is copied is of one moment. Raises `StoreError`.
    """
    await SqliteStore.open(file).close()
    connection = await connect(address, "backup")
    try:
        with _failing(f"reading {address}"), _sqlite(file) as target:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                await _take_time(connection)
                await _check_schema(connection, address)
                return {table: await _table_out(connection, target, table) for table in KEPT_TABLES}
    finally:
        connection.terminate()


async def copy_in(
    file: Path, address: PostgresAddress, told: Told = lambda table, done, total: None
) -> dict[str, int]:
    """Copy an SQLite file, which may have an older schema, to an empty database.

    It is one transaction: after an error the database is as before. Returns the number of rows of
    each table. Raises `StoreError`, also if there are rows in the database.
    """
    await SqliteStore.open(file).close()  # this version's schema
    connection = await connect(address, "import")
    try:
        with _failing(f"writing to {address}"), _sqlite(file) as source:
            # The tables too: a relay takes a database that has them for one that is in use.
            async with connection.transaction():
                await migrate(connection, load_migrations("postgres"))
                await _take_time(connection)
                await _check_schema(connection, address)
                await _check_unused(connection, address)
                return {
                    table: await _table_in(source, connection, table, told) for table in KEPT_TABLES
                }
    finally:
        connection.terminate()


async def _take_time(connection: asyncpg.Connection) -> None:
    """Let the transaction last as long as a copy may, with pauses in which the file is read."""
    await connection.execute(
        f"SET LOCAL statement_timeout = '{COPY_TIMEOUT_S}s';"
        f" SET LOCAL idle_in_transaction_session_timeout = '{COPY_TIMEOUT_S}s';"
        f" SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"
    )


async def _check_schema(connection: asyncpg.Connection, address: PostgresAddress) -> None:
    if await is_empty(connection):
        raise StoreError(f"the database {address} has no tables of a relay")
    rows = await connection.fetch("SELECT number FROM schema_migrations ORDER BY number")
    if [row["number"] for row in rows] != [one.number for one in load_migrations("postgres")]:
        raise StoreError(
            f"the database {address} has the schema of another version of wai: use that version"
        )


async def _check_unused(connection: asyncpg.Connection, address: PostgresAddress) -> None:
    """See that no relay has used the database, and that none does until the transaction ends."""
    await connection.execute(f"LOCK TABLE {', '.join(KEPT_TABLES)} IN ACCESS EXCLUSIVE MODE")
    for table in KEPT_TABLES:
        if await connection.fetchval(f"SELECT EXISTS (SELECT 1 FROM {table})"):  # noqa: S608
            raise StoreError(
                f"the database {address} is in use: {table} has rows. Make an empty one with"
                " CREATE DATABASE … ENCODING 'UTF8'; nothing was changed"
            )


async def _table_out(connection: asyncpg.Connection, target: sqlite3.Connection, table: str) -> int:
    columns = _columns(target, table)
    places = ", ".join("?" * len(columns))
    put = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})"  # noqa: S608 - constants
    done = 0
    cursor = await connection.cursor(f"SELECT {', '.join(columns)} FROM {table}")  # noqa: S608
    while rows := await cursor.fetch(ROWS_AT_A_TIME):
        target.executemany(put, [tuple(row) for row in rows])
        done += len(rows)
    return done


async def _table_in(
    source: sqlite3.Connection, connection: asyncpg.Connection, table: str, told: Told
) -> int:
    columns = _columns(source, table)
    total = int(source.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608
    told(table, 0, total)
    rows = source.execute(f"SELECT {', '.join(columns)} FROM {table}")  # noqa: S608 - constants
    done = 0
    while piece := rows.fetchmany(ROWS_AT_A_TIME):
        try:
            await connection.copy_records_to_table(
                table,
                records=[tuple(map(_storable, row)) for row in piece],
                columns=columns,
                timeout=COPY_TIMEOUT_S,
            )
        except (TypeError, ValueError, OverflowError) as error:  # SQLite takes anything anywhere
            raise StoreError(f"{table} has a row that PostgreSQL does not take: {error}") from error
        done += len(piece)
        told(table, done, total)
        await asyncio.sleep(0)
    for column in columns:
        await _go_on_numbering(connection, table, column)
    return done


async def _go_on_numbering(connection: asyncpg.Connection, table: str, column: str) -> None:
    """Number further rows from the highest number on, if the column numbers the rows by itself."""
    sequence = await connection.fetchval("SELECT pg_get_serial_sequence($1, $2)", table, column)
    if sequence is not None:
        highest = await connection.fetchval(f"SELECT max({column}) FROM {table}")  # noqa: S608
        if highest is not None:
            await connection.execute("SELECT setval($1::text::regclass, $2)", sequence, highest)


def _columns(database: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in database.execute(f"PRAGMA table_info({table})")]


def _storable(value: Any) -> Any:
    return value.replace("\0", REPLACEMENT) if isinstance(value, str) else value


@contextmanager
def _sqlite(file: Path) -> Iterator[sqlite3.Connection]:
    """Open a file that nobody else uses; what was written is committed at the end."""
    with closing(sqlite3.connect(file)) as connection:
        connection.text_factory = lambda text: text.decode("utf-8", "replace")
        connection.execute("PRAGMA synchronous = OFF")  # whoever keeps the file flushes it
        with connection:
            yield connection


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Raise `StoreError` for what the databases raise."""
    try:
        yield
    except asyncpg.LockNotAvailableError as error:
        raise StoreError(f"{what} failed: a relay uses it now; stop it first") from error
    except (
        *(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError),
        *(sqlite3.Error, OSError),
    ) as error:
        raise StoreError(f"{what} failed: {error}") from error
