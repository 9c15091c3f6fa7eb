"""A data folder that can't be written, and a database that is locked, are seen without a write."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from wai_relay.contracts.records import UsageState
from wai_relay.health import folder_probe
from wai_relay.health.condition import RelayCondition
from wai_relay.health.folder_probe import LOCKED_LOOKS, FolderProbe


@pytest.fixture
def database(tmp_path: Path) -> Path:
    file = tmp_path / "relay.db"
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    return file


@pytest.fixture
def probe(tmp_path: Path, database: Path) -> Iterator[FolderProbe]:
    made = FolderProbe(tmp_path, database)
    yield made
    made.close()


def _look(probe: FolderProbe) -> None:
    probe.state = probe.look_now()


def _texts(probe: FolderProbe) -> list[str]:
    condition = RelayCondition(lambda: None, lambda: UsageState(0, 0, behind=False), probe)
    return [one.text for one in condition.problems(0.0)]


def test_a_good_folder_has_no_problem_and_a_look_writes_nothing(
    probe: FolderProbe, database: Path
) -> None:
    _look(probe)
    before = database.stat().st_mtime_ns, sorted(os.listdir(database.parent))
    _look(probe)
    assert _texts(probe) == []
    assert (database.stat().st_mtime_ns, sorted(os.listdir(database.parent))) == before


def test_a_database_that_another_program_locks_is_told_until_it_lets_go(
    probe: FolderProbe, database: Path
) -> None:
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    _look(probe)
    assert _texts(probe) == []  # a commit may take a moment
    for _ in range(LOCKED_LOOKS - 1):
        _look(probe)
    assert _texts(probe) == ["the database can't be written: database is locked"]
    other.execute("ROLLBACK")
    other.close()
    _look(probe)
    assert _texts(probe) == []


def test_a_database_that_is_gone_or_damaged_is_told_and_not_made_anew(
    probe: FolderProbe, database: Path
) -> None:
    database.unlink()
    _look(probe)
    assert _texts(probe) == ["the database can't be written: unable to open database file"]
    assert not database.exists()
    database.write_bytes(b"not a database" * 100)
    _look(probe)
    assert _texts(probe) == ["the database can't be written: file is not a database"]


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    probe = FolderProbe(tmp_path / "none")
    _look(probe)
    assert _texts(probe) == ["the data folder can't be used: No such file or directory"]
    probe.close()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"f_flag": os.ST_RDONLY}, "the data folder can't be used: its disk is mounted read-only"),
        ({"f_bavail": 0}, "the disk of the data folder is full"),
        ({"f_bavail": 5 << 8}, "the disk of the data folder has 5 MiB left"),
        ({"f_favail": 3}, "the disk of the data folder has room for 3 more files only"),
        ({"f_favail": 0, "f_files": 0}, None),  # btrfs has no such number
    ],
)
def test_what_the_disk_says(
    probe: FolderProbe,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, int],
    text: str | None,
) -> None:
    told = {"f_bavail": 1 << 30, "f_frsize": 4096, "f_favail": 1 << 20, "f_files": 1 << 21}
    disk = SimpleNamespace(**{**told, "f_flag": 0, **changes})
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    _look(probe)
    assert _texts(probe) == ([text] if text else [])


@pytest.mark.anyio
async def test_a_disk_that_hangs_is_told_and_stops_nobody(
    probe: FolderProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, statvfs, looks = threading.Event(), os.statvfs, []

    def hanging(path: Path) -> os.statvfs_result:
        looks.append(path)
        hangs.wait(30)
        return statvfs(path)

    monkeypatch.setattr(folder_probe, "WAIT_S", 0.01)
    monkeypatch.setattr(os, "statvfs", hanging)
    for _ in range(3):
        await probe.look()
        assert _texts(probe) == ["the data folder can't be used: its disk does not answer"]
    assert len(looks) == 1  # threads don't pile up behind it
    hangs.set()
    monkeypatch.setattr(folder_probe, "WAIT_S", 30.0)
    await probe.look()
    assert _texts(probe) == []
