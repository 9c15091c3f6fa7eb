"""A relay that has lost its database does not start as if it were a new one."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from wai_protocol.errors import StoreError
from wai_relay.database import DATABASE_FILE, open_database
from wai_relay.identity import load_relay_key
from wai_transport.folder import DataFolder

pytestmark = pytest.mark.anyio


@pytest.fixture
async def folder(tmp_path: Path) -> DataFolder:
    """Of a relay that has run."""
    folder = DataFolder.open(tmp_path / "relay")
    await open_database(folder).close()
    load_relay_key(folder)
    return folder


async def test_a_first_start_and_the_next_ones_open_it(folder: DataFolder) -> None:
    await open_database(folder).close()


async def test_a_start_that_failed_before_there_was_a_key_is_tried_again(tmp_path: Path) -> None:
    folder = DataFolder.open(tmp_path / "relay")
    (folder.path / DATABASE_FILE).touch()
    await open_database(folder).close()


async def test_an_empty_or_missing_database_beside_a_key_is_refused(folder: DataFolder) -> None:
    for file in folder.path.glob(f"{DATABASE_FILE}*"):
        file.unlink()
    with pytest.raises(StoreError, match=r"is missing.*wai restore"):
        open_database(folder)
    assert not (folder.path / DATABASE_FILE).exists()
    (folder.path / DATABASE_FILE).touch()
    with pytest.raises(StoreError, match=r"is empty.*wai restore"):
        open_database(folder)


async def test_a_database_without_tables_beside_a_key_is_refused(folder: DataFolder) -> None:
    for file in folder.path.glob(f"{DATABASE_FILE}*"):
        file.unlink()
    connection = sqlite3.connect(folder.path / DATABASE_FILE)
    connection.execute("VACUUM")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    with pytest.raises(StoreError, match="is empty"):
        open_database(folder)


async def test_what_is_no_database_is_said_to_be_none(folder: DataFolder) -> None:
    for file in folder.path.glob(f"{DATABASE_FILE}*"):
        file.unlink()
    (folder.path / DATABASE_FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match="not a database"):
        open_database(folder)
