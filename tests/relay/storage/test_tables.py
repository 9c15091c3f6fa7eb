"""Each table of the schema is either kept by a backup, or tells what goes on now."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.harness.postgres import PostgresServer
from wai_relay.storage import SqliteStore
from wai_relay.storage.tables import KEPT_TABLES, PASSING_TABLES

pytestmark = pytest.mark.anyio


async def test_no_table_is_forgotten_by_a_backup(
    tmp_path: Path, postgres: PostgresServer, relay_database: str
) -> None:
    await SqliteStore.open(tmp_path / "relay.db").close()
    database = sqlite3.connect(tmp_path / "relay.db")
    found = {
        row[0]
        for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        if not row[0].startswith("sqlite_")
    }
    database.close()
    assert set(KEPT_TABLES) <= found  # they can be moved to either
    listed = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    found |= set(postgres.execute(listed, relay_database.rpartition("/")[2]))
    assert found - {*KEPT_TABLES, *PASSING_TABLES} == set()
