"""The relay's database in its data folder, and the check that it is the one that it should be.

A relay makes its database before it makes its key, so a key without a database's tables means that
the database was lost. Starting with an empty one would refuse every node and every API key, which
looks like an attack to their owners; so the relay does not start, and says what to do.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from typing import Final

from wai_protocol.errors import StoreError
from wai_transport.folder import DataFolder

from .identity import KEY_FILE
from .storage import SqliteStore

DATABASE_FILE: Final = "relay.db"
NEEDED_BYTES: Final = 128 * 1024  # for the log and the shared memory that SQLite makes beside it
_BUSY_S: Final = 30.0


def open_database(folder: DataFolder) -> SqliteStore:
    """Open the database, or make it in a folder that has no relay yet. Raises `StoreError`."""
    path = folder.path / DATABASE_FILE
    if (folder.path / KEY_FILE).exists() and not _has_tables(folder):
        lost = "is empty" if path.exists() else "is missing"
        raise StoreError(
            f"{path} {lost}, but {KEY_FILE} beside it says that there was a relay here: its nodes,"
            " API keys and usage are lost. Put them back with `wai restore FILE --force`, or, to"
            f" start over without them, move {KEY_FILE} and {DATABASE_FILE} away"
        )
    try:
        return SqliteStore.open(path)
    except StoreError as error:
        free = shutil.disk_usage(folder.path).free
        if free >= NEEDED_BYTES:
            raise
        raise StoreError(
            f"{error}; its disk is full ({free} bytes are free, SQLite needs {NEEDED_BYTES})"
        ) from error


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
