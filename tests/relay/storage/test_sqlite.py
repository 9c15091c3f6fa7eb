"""The store: the contract that every `Store` keeps, and what is SQLite's own."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from pathlib import Path

import pytest

from wai_protocol.errors import StoreError
from wai_relay.storage import ConflictError, SqliteStore, Write
from wai_relay.storage.migrations import Migration, load_migrations

pytestmark = pytest.mark.anyio


def _setting(name: str, value: str = "1") -> Write:
    return Write(
        "INSERT INTO settings (name, value, changed_at) VALUES ($1, $2, $3)", (name, value, 0.0)
    )


def _modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


async def _names(store: SqliteStore) -> list[str]:
    rows = await store.read("SELECT name FROM settings ORDER BY name")
    return [row["name"] for row in rows]


async def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "db")
    await store.write(_setting("a"), _setting("b"))
    await store.close()
    again = SqliteStore.open(tmp_path / "db")
    assert await _names(again) == ["a", "b"]
    await again.close()


async def test_a_transaction_whose_second_half_fails_leaves_nothing(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "db")
    with pytest.raises(ConflictError):
        await store.write(_setting("a"), _setting("a"))
    with pytest.raises(ConflictError):
        await store.write(_setting("b"), Write("DELETE FROM settings WHERE name = 'x'", (), rows=1))
    assert await _names(store) == []
    await store.close()


async def test_a_failed_transaction_takes_no_other_of_its_batch_with_it(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "db")
    await store.write(_setting("a"))
    outcomes = await asyncio.gather(
        *(store.write(_setting(name)) for name in ("b", "a", "c", "a", "d")),
        return_exceptions=True,
    )
    assert [isinstance(outcome, ConflictError) for outcome in outcomes] == [
        *(False, True, False, True, False)
    ]
    assert await _names(store) == ["a", "b", "c", "d"]
    await store.close()


@pytest.mark.parametrize("value", [1 << 70, "\ud800"])
async def test_a_value_that_sqlite_cannot_take_does_not_stop_the_writer(
    tmp_path: Path, value: int | str
) -> None:
    store = SqliteStore.open(tmp_path / "db")
    with pytest.raises(StoreError):
        await store.write(Write("INSERT INTO settings VALUES ('a', $1, 0)", (value,)))
    with pytest.raises(StoreError):
        await store.write(Write("INSERT INTO nowhere VALUES (1)"))
    await store.write(_setting("b"))
    assert await _names(store) == ["b"]
    await store.close()


async def test_what_was_submitted_is_written_before_the_store_closes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteStore.open(tmp_path / "db")
    for number in range(700):
        store.submit(_setting(f"{number:03}"))
    store.submit(_setting("000"))
    await store.close()
    assert "was not written" in caplog.text
    again = SqliteStore.open(tmp_path / "db")
    assert len(await _names(again)) == 700
    await again.close()


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "db")
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.write(_setting("a"))
    with pytest.raises(StoreError, match="closed"):
        await store.read("SELECT 1")


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
