"""A relay moves from its file into PostgreSQL, and by a backup back: whole, or not at all."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.harness.postgres import PostgresServer
from wai_protocol.errors import StoreError
from wai_relay.backup import back_up, own_admin, restore
from wai_relay.database import DATABASE_FILE, open_database
from wai_relay.identity import ADMIN_TOKEN_FILE, KEY_FILE, load_admin_token, load_relay_key
from wai_relay.moving import MOVED_FILE, move
from wai_relay.storage.postgres_address import PostgresAddress
from wai_relay.storage.postgres_copy import REPLACEMENT
from wai_relay.storage.tables import KEPT_TABLES
from wai_transport.folder import DataFolder, FolderLock

REQUESTS = 12_000  # more than are copied at a time


@pytest.fixture
def old(tmp_path: Path) -> DataFolder:
    """A relay that has run, with rows in each table, and odd ones among them."""
    folder = DataFolder.open(tmp_path / "old")
    asyncio.run(open_database(folder).close())
    load_relay_key(folder)
    load_admin_token(folder)
    database = sqlite3.connect(folder.path / DATABASE_FILE)
    with database:
        for table in KEPT_TABLES:
            _put_row(database, table)
        columns = [row[1] for row in database.execute("PRAGMA table_info(usage_requests)")][1:]
        template = ", ".join(columns)
        database.execute(
            f"WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {REQUESTS})"
            f" INSERT INTO usage_requests ({template}) SELECT {template} FROM usage_requests, n"
        )
        database.execute("UPDATE audit_log SET detail = ?, id = 77", ("nul \0 and 🚀",))
        database.execute("UPDATE usage_requests SET bytes_in = ? WHERE id = 1", (1 << 62,))
        _put_row(database, "admins", name="local", token_sha256=b"token")
        _put_row(database, "sign_ins", admin="local", cookie_sha256=b"cookie")
    database.close()
    return folder


def _put_row(database: sqlite3.Connection, table: str, **given: Any) -> None:
    """A row with a value in each column, of its type, but for those that are given."""
    values: dict[str, Any] = {}
    for _, name, kind, *_ in database.execute(f"PRAGMA table_info({table})"):
        values[name] = {"TEXT": f"{name} ä", "BLOB": b"\0\xff", "INTEGER": 1, "BIGINT": 2}.get(
            kind, 1_800_000_000.125
        )
    if "span" in values:
        values["span"] = "day"
    values |= given
    places = ", ".join("?" * len(values))
    database.execute(
        f"INSERT INTO {table} ({', '.join(values)}) VALUES ({places})", list(values.values())
    )


def rows_of(file: Path) -> dict[str, list[Any]]:
    """All rows of an SQLite file."""
    database = sqlite3.connect(file)
    found = {
        table: sorted(database.execute(f"SELECT * FROM {table}").fetchall())
        for table in KEPT_TABLES
    }
    database.close()
    return found


def test_all_of_a_relay_moves_and_comes_back_by_a_backup(
    old: DataFolder, empty_database: str, tmp_path: Path, postgres: PostgresServer
) -> None:
    address = PostgresAddress(empty_database)
    before = rows_of(old.path / DATABASE_FILE)
    (old.path / "usage-0123.unwritten").write_bytes(b"{}\n")
    told: list[tuple[str, int, int]] = []
    moved = move(old.path, tmp_path / "new", address, lambda *what: told.append(what))
    assert moved.tables == {table: len(rows) for table, rows in before.items()}
    assert ("usage_requests", 10_000, REQUESTS + 1) in told
    assert rows_of(old.path / DATABASE_FILE) == before
    for name in (KEY_FILE, ADMIN_TOKEN_FILE, "usage-0123.unwritten"):
        copied = tmp_path / "new" / name
        assert copied.read_bytes() == (old.path / name).read_bytes()
        assert copied.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "new" / DATABASE_FILE).exists()
    name = empty_database.rpartition("/")[2]
    # The admin of this machine is one of several; those of other machines are no backup's.
    own = own_admin((old.path / KEY_FILE).read_bytes())
    assert sorted(postgres.execute("SELECT name FROM admins", name)) == [own, "name ä"]
    assert own in postgres.execute("SELECT admin FROM sign_ins", name)
    postgres.execute("INSERT INTO admins VALUES ('local@relay_other', 'x', 0, NULL)", name)
    # Rows that number themselves go on after the highest.
    put = "INSERT INTO audit_log (at, actor, action, subject) VALUES (0, '', '', '') RETURNING id"
    assert postgres.execute(put, name) == ["78"]
    postgres.execute("DELETE FROM audit_log WHERE id = 78", name)

    file = tmp_path / "backup"
    assert back_up(tmp_path / "new", file, address) > 0
    with file.open("rb") as opened:
        restore(opened, tmp_path / "again", force=False)
    after = rows_of(tmp_path / "again" / DATABASE_FILE)
    [entry] = before["audit_log"]
    before["audit_log"] = [(*entry[:-1], entry[-1].replace("\0", REPLACEMENT))]
    assert after == before

    other = PostgresAddress(postgres.create_database(f"{name}_other"))
    with file.open("rb") as opened:
        restore(opened, tmp_path / "third", force=False, address=other)
    assert not (tmp_path / "third" / DATABASE_FILE).exists()
    counted = postgres.execute("SELECT count(*) FROM usage_requests", f"{name}_other")
    assert counted == [str(REQUESTS + 1)]
    postgres.drop_database(f"{name}_other")


def test_a_relay_that_keeps_its_folder_has_its_file_put_aside(
    old: DataFolder, empty_database: str
) -> None:
    move(old.path, old.path, PostgresAddress(empty_database))
    assert (old.path / MOVED_FILE).exists()
    with pytest.raises(StoreError, match="is missing"):
        open_database(old)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("a relay runs", "another relay"),
        ("no relay", "there is no relay"),
        ("rows", "is in use: .* has rows"),
        ("another relay there", "there is a relay in .* already"),
        ("no database", "no such database"),
        ("a damaged row", "usage_batches has a row"),
    ],
)
def test_a_move_that_fails_changes_nothing(
    reason: str,
    said: str,
    old: DataFolder,
    empty_database: str,
    tmp_path: Path,
    postgres: PostgresServer,
) -> None:
    url, source, new = empty_database, old.path, tmp_path / "new"
    name = url.rpartition("/")[2]
    lock = None
    if reason == "a relay runs":
        lock = FolderLock.acquire(old, "relay")
    elif reason == "no relay":
        source = tmp_path / "nowhere"
    elif reason == "rows":
        move(old.path, tmp_path / "first", PostgresAddress(url))
    elif reason == "another relay there":
        load_relay_key(DataFolder.open(new))
    elif reason == "no database":
        url = f"{url}_nope"
    elif reason == "a damaged row":
        database = sqlite3.connect(old.path / DATABASE_FILE)
        with database:  # SQLite keeps any type in any column
            database.execute("UPDATE usage_batches SET id = ?", (b"bytes",))
        database.close()
    with pytest.raises(StoreError, match=said):
        move(source, new, PostgresAddress(url))
    if lock is not None:
        lock.release()
    assert (old.path / DATABASE_FILE).exists()
    left = {path.name for path in new.iterdir()} if new.exists() else set()
    kept = {KEY_FILE} if reason == "another relay there" else set()
    assert left - {"relay.lock"} == kept
    if reason == "a damaged row":
        assert postgres.execute("SELECT to_regclass('nodes')", name) == [""]  # no tables either


def test_a_move_that_was_killed_can_be_done_again(
    old: DataFolder, empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr("wai_relay.moving.fill_shared_database", lambda *_: os._exit(9))
        move(old.path, new, PostgresAddress(empty_database))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert (new / KEY_FILE).exists()
    assert list(new.glob(".wai-import-*"))
    move(old.path, new, PostgresAddress(empty_database))
    assert not list(new.glob(".wai-import-*"))
    with pytest.raises(StoreError, match="in use"):
        move(old.path, new, PostgresAddress(empty_database))
    assert (new / KEY_FILE).read_bytes() == (old.path / KEY_FILE).read_bytes()
