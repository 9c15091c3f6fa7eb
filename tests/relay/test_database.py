"""A relay that has lost its database does not start as if it were a new one."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.harness.real import require_real
from wai_protocol.errors import StoreError
from wai_relay.database import DATABASE_FILE, RESERVE_FILE, open_database, open_store
from wai_relay.identity import load_relay_key
from wai_relay.storage import Write
from wai_relay.storage.postgres_address import PostgresAddress
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


async def test_an_empty_shared_database_is_not_taken_for_the_one_of_a_relay_in_use(
    folder: DataFolder, empty_database: str, tmp_path: Path
) -> None:
    address = PostgresAddress(empty_database)
    with pytest.raises(StoreError, match=r"is empty, and .*has its nodes and API keys in relay.db"):
        await open_store(folder, address)
    for file in folder.path.glob(f"{DATABASE_FILE}*"):
        file.unlink()
    with pytest.raises(StoreError, match=r"is empty, but relay.key .*right database"):
        await open_store(folder, address)
    new = DataFolder.open(tmp_path / "new")
    await (await open_store(new, address)).close()
    load_relay_key(new)
    for relay in (new, folder):  # the second one was used with the same database, say
        await (await open_store(relay, address)).close()


async def test_the_package_that_is_missing_is_named(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith("wai_relay.storage.postgres")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(StoreError, match=r"pip install 'wai\[postgres\]'"):
        await open_store(folder, PostgresAddress("postgresql://wai@127.0.0.1:1/wai"))


async def test_what_is_no_database_is_said_to_be_none(folder: DataFolder) -> None:
    for file in folder.path.glob(f"{DATABASE_FILE}*"):
        file.unlink()
    (folder.path / DATABASE_FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match="not a database"):
        open_database(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    require_real("root")
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path) -> None:
    """Leave no free byte."""
    with suppress(OSError), (disk / "filling").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert not shutil.disk_usage(disk).free


async def test_a_relay_starts_on_a_full_disk_from_what_it_kept_in_reserve(small_disk: Path) -> None:
    folder = DataFolder.open(small_disk / "relay")
    await open_database(folder).close()
    load_relay_key(folder)
    assert (folder.path / RESERVE_FILE).stat().st_mode & 0o777 == 0o600
    fill(small_disk)
    store = open_database(folder)
    await store.write(Write("CREATE TABLE more (id INTEGER)"))
    await store.close()
    assert not (folder.path / RESERVE_FILE).exists()
    (small_disk / "filling").unlink()
    await open_database(folder).close()
    assert (folder.path / RESERVE_FILE).exists()


async def test_a_relay_without_a_reserve_says_what_to_do_on_a_full_disk(small_disk: Path) -> None:
    folder = DataFolder.open(small_disk / "relay")
    await open_database(folder).close()
    (folder.path / RESERVE_FILE).unlink()
    fill(small_disk)
    with pytest.raises(StoreError, match="free 256 KiB of it and start the relay again"):
        open_database(folder)
    (small_disk / "filling").unlink()
    await open_database(folder).close()
