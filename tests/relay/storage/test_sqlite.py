"""What is SQLite's own; what every `Store` keeps is in `test_store`."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from wai_protocol.errors import StoreError
from wai_relay.storage import SqliteStore, Write
from wai_relay.storage.migrations import Migration, load_migrations

pytestmark = pytest.mark.anyio


def _setting(name: str, value: str = "1") -> Write:
    return Write(
        "INSERT INTO settings (name, value, changed_at) VALUES ($1, $2, $3)", (name, value, 0.0)
    )


def _modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


async def test_nobody_else_can_read_the_files(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "db")
    await store.write(_setting("a"))
    modes = _modes(tmp_path)
    await store.close()
    assert modes == {0o600}


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(b"this is somebody's letter, not a database" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        SqliteStore.open(path)
    assert path.read_bytes().startswith(b"this is somebody's letter")


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    newer = Migration(len(load_migrations()) + 1, "later", "CREATE TABLE later (x INTEGER);\n")
    await SqliteStore.open(tmp_path / "db", [*load_migrations(), newer]).close()
    with pytest.raises(StoreError, match="newer wai"):
        SqliteStore.open(tmp_path / "db")
    await SqliteStore.open(tmp_path / "db", [*load_migrations(), newer]).close()


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    await SqliteStore.open(tmp_path / "db").close()
    number = len(load_migrations()) + 1
    bad = Migration(
        number, "bad", "CREATE TABLE half (x INTEGER);\nINSERT INTO nowhere VALUES (1);\n"
    )
    with pytest.raises(StoreError):
        SqliteStore.open(tmp_path / "db", [*load_migrations(), bad])
    with sqlite3.connect(tmp_path / "db") as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'half'").fetchall()
    connection.close()
    assert tables == []
    await SqliteStore.open(tmp_path / "db").close()


async def test_a_later_migration_keeps_what_is_there(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "db")
    await store.write(_setting("a"))
    await store.close()
    later = Migration(
        len(load_migrations()) + 1, "later", "ALTER TABLE settings ADD COLUMN who TEXT;\n"
    )
    store = SqliteStore.open(tmp_path / "db", [*load_migrations(), later])
    assert await store.read("SELECT name, who FROM settings") == [{"name": "a", "who": None}]
    await store.close()
