"""The relay's database in its data folder, and the check that it is the one that it should be.

A relay makes its database before it makes its key, so a key without a database's tables means that
the database was lost. Starting with an empty one would refuse every node and every API key, which
looks like an attack to their owners; so the relay does not start, and says what to do.

SQLite needs space even to open a database. A file beside it keeps that space: on a full disk it is
removed, so that the relay can start.

With PostgreSQL the folder has the relay's own key and certificate, and the database what all relays
share. An empty one is then refused as well, if the folder was in use.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
from typing import Final

from wai_protocol.errors import StoreError
from wai_transport.folder import DataFolder

from .identity import KEY_FILE
from .storage import SqliteStore, Store
from .storage.postgres_address import PostgresAddress

DATABASE_FILE: Final = "relay.db"
NEEDED_BYTES: Final = 128 * 1024  # for the log and the shared memory that SQLite makes beside it
RESERVE_FILE: Final = "relay.reserve"
RESERVE_BYTES: Final = 2 * NEEDED_BYTES  # with space to write that a key is revoked
_BUSY_S: Final = 30.0
START_WAIT_S: Final = 20.0
"""How long a starting relay waits for PostgreSQL, which may start with the same machine. A service
that ended at once again and again would be given up by systemd; the one that is to take over from a
running relay has 30 s in all."""

_log = logging.getLogger("wai.relay")


async def open_store(folder: DataFolder, address: PostgresAddress | None) -> Store:
    """Open PostgreSQL at `address`, or if it is None the database in the folder.

    Raises `StoreError`.
    """
    if address is None:
        return open_database(folder)
    try:
        from .storage.postgres import EmptyError, PostgresStore
    except ModuleNotFoundError as error:
        raise missing_package(error) from error
    used = (folder.path / KEY_FILE).exists()
    try:
        return await PostgresStore.open(address, may_be_empty=not used, wait_s=START_WAIT_S)
    except EmptyError as error:
        if _has_tables(folder):
            raise StoreError(
                f"{error}, and the relay of {folder.path} has its nodes and API keys in"
                f" {DATABASE_FILE}: move them with `wai relay import {folder.path}`, or start it"
                " without --database"
            ) from error
        raise StoreError(
            f"{error}, but {KEY_FILE} in {folder.path} says that this relay was in use: is it the"
            f" right database? To start over with this one, move {KEY_FILE} away"
        ) from error


def missing_package(error: ModuleNotFoundError) -> StoreError:
    """Return the error for a missing extra."""
    return StoreError(
        f"PostgreSQL needs the Python package {error.name}, which is not installed here:"
        " pip install 'wai[postgres]'"
    )


def open_database(folder: DataFolder) -> SqliteStore:
    """Open the folder's database, or make it in a folder that has no relay yet.

    Raises `StoreError`.
    """
    path = folder.path / DATABASE_FILE
    if (folder.path / KEY_FILE).exists() and not _has_tables(folder):
        lost = "is empty" if path.exists() else "is missing"
        raise StoreError(
            f"{path} {lost}, but {KEY_FILE} beside it says that there was a relay here: its nodes,"
            " API keys and usage are lost. If it shares PostgreSQL with others, start it with"
            " --database; else put them back with `wai restore FILE --force`, or, to start over"
            f" without them, move {KEY_FILE} and {DATABASE_FILE} away"
        )
    try:
        store = SqliteStore.open(path)
    except StoreError:
        if not _release_reserve(folder):
            raise
    else:
        _keep_reserve(folder)
        return store
    try:
        store = SqliteStore.open(path)
    except StoreError as error:
        raise StoreError(
            f"{error}; the disk of {folder.path} is full: free {RESERVE_BYTES >> 10} KiB of it and"
            " start the relay again. Nothing in the database is lost"
        ) from error
    _log.warning(
        "the disk of %s is full; the relay runs with the %d KiB that %s kept: free some space",
        *(folder.path, RESERVE_BYTES >> 10, RESERVE_FILE),
    )
    return store


def _free_bytes(folder: DataFolder) -> int:
    return shutil.disk_usage(folder.path).free


def _release_reserve(folder: DataFolder) -> bool:
    """Return whether the disk is full; then the reserve is free, if there was one."""
    if _free_bytes(folder) >= NEEDED_BYTES:
        return False
    with contextlib.suppress(OSError):  # the second try to open says what is wrong
        (folder.path / RESERVE_FILE).unlink(missing_ok=True)
    return True


def _keep_reserve(folder: DataFolder) -> None:
    """Make the reserve, if it does not exist and the disk has room for twice as much."""
    path = folder.path / RESERVE_FILE
    if path.exists() or _free_bytes(folder) < 2 * RESERVE_BYTES:
        return
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(bytes(RESERVE_BYTES))  # not sparse: it takes the space now
    except OSError as error:
        _log.warning("%s was not made: %s", path, error.strerror)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _has_tables(folder: DataFolder) -> bool:
    """Whether the database was ever used; True where that cannot be told, SQLite says more then."""
    path = folder.path / DATABASE_FILE
    if not path.exists():
        return False
    with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_S)) as connection:
        try:
            query = "SELECT 1 FROM sqlite_master WHERE name = 'schema_migrations'"
            return connection.execute(query).fetchone() is not None
        except sqlite3.Error:
            return True
