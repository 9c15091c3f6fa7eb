"""A relay in one file: its database as of one moment, and the keys that it is known by.

The database is an SQLite file there. It is copied by SQLite's own backup, which is consistent while
a relay writes, or from PostgreSQL in one transaction; and it can be restored into either, whichever
it came from. The file is a tar with mode 0600: whoever has it can be this relay. Restoring needs
the relay to be stopped.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, Final

from wai_protocol.errors import AuthError, StoreError
from wai_protocol.identity import RelayKey, relay_id
from wai_transport.folder import MAX_FILE_BYTES, PUBLIC_MODE, SECRET_MODE, DataFolder, FolderLock
from wai_transport.owner import as_owner, check_own, read_own

from .access.admins import LOCAL_ADMIN, local_admin_of
from .acme.renewal import ACCOUNT_FILE
from .acme.renewal import CERTIFICATE_FILE as ACME_FILE
from .database import DATABASE_FILE, missing_package
from .identity import (
    ADMIN_TOKEN_FILE,
    AUTHORITY_FILE,
    AUTHORITY_KEY_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    TLS_KEY_FILE,
)
from .storage.postgres_address import PostgresAddress

LOCK_OWNER: Final = "relay"
KEPT_FILES: Final = (
    *(KEY_FILE, TLS_KEY_FILE, CERTIFICATE_FILE, ADMIN_TOKEN_FILE),
    *(AUTHORITY_KEY_FILE, AUTHORITY_FILE, ACCOUNT_FILE, ACME_FILE),
)
PUBLIC_FILES: Final = (CERTIFICATE_FILE, AUTHORITY_FILE)
MAX_DATABASE_BYTES: Final = 64 << 30  # a year of a busy relay's usage is 2 GB
_ADMIN_COLUMNS: Final = (("admins", "name"), ("sign_ins", "admin"))
_LOCAL_ADMINS: Final = tuple(
    f"UPDATE {table} SET {column} = ? WHERE {column} = ?"  # noqa: S608 - the constants above
    for table, column in _ADMIN_COLUMNS
)
_COPIED_PAGES: Final = -1  # all in one step: a relay that writes meanwhile would restart the copy
_BUSY_S: Final = 30.0


def back_up(data: Path, file: Path, address: PostgresAddress | None = None) -> int:
    """Write everything that the relay in `data` is to `file`; its size in bytes.

    `address`: where its database is, if that is not in `data`. As root it reads as the user whom
    `data` belongs to. Raises `StoreError`: there is no relay, a file in it is a link or not its
    owner's, `file` is there already, the disk is full, or the database can't be read.
    """
    if address is None:
        with as_owner(data):
            check_database(data)
    kept = read_kept(data)
    if kept[KEY_FILE] is None and address is not None:
        raise StoreError(f"there is no relay in {data}: it has no {KEY_FILE}")
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SECRET_MODE)
    except OSError as error:
        raise StoreError(f"{file} cannot be made: {error.strerror}") from error
    try:
        with (
            open(descriptor, "wb") as out,
            tempfile.TemporaryDirectory(dir=file.parent, prefix=".wai-backup-") as scratch,
        ):
            copy = Path(scratch) / DATABASE_FILE
            if address is None:
                copy_database(data, copy)
            else:
                asyncio.run(_with_asyncpg().copy_out(address, copy))
                _for_one_relay(copy, own_admin(kept[KEY_FILE] or b""))
            with tarfile.open(fileobj=out, mode="w") as tar:
                tar.add(copy, DATABASE_FILE, filter=_private)
                for name, content in kept.items():
                    if content is not None:
                        member = tarfile.TarInfo(name)
                        member.size, member.mode, member.mtime = len(content), 0o600, time.time()
                        tar.addfile(member, io.BytesIO(content))
            out.flush()
            os.fsync(out.fileno())
            return out.tell()
    except (OSError, sqlite3.Error, tarfile.TarError) as error:
        file.unlink(missing_ok=True)
        raise StoreError(f"the backup failed: {error}") from error
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def check_database(data: Path) -> None:
    """Raise `StoreError` unless `data` has a database in files of its owner's."""
    if check_own(data / DATABASE_FILE) is None:
        raise StoreError(
            f"there is no relay in {data}: it has no {DATABASE_FILE}. If its database is"
            " PostgreSQL, say so with --database or --config"
        )
    for suffix in ("-wal", "-shm"):
        check_own(data / (DATABASE_FILE + suffix))


def read_kept(data: Path) -> dict[str, bytes | None]:
    """Read the files by which the relay in `data` is known; None for one that it does not have."""
    with as_owner(data):
        return {name: read_own(data / name, MAX_FILE_BYTES) for name in KEPT_FILES}


def restore(
    file: BinaryIO, data: Path, *, force: bool, address: PostgresAddress | None = None
) -> list[str]:
    """Put what `back_up` wrote into `data`; the names of the files. They are the caller's: whoever
    the folder belongs to restores it.

    `address`: an empty database to restore into, instead of a file in `data`. Raises `StoreError`:
    a relay runs there, one is there already (without `force`), `file` is no backup, or the database
    is not empty. Then nothing has changed.
    """
    folder = DataFolder.open(data)
    lock = FolderLock.acquire(folder, LOCK_OWNER)
    try:
        if not force and any((data / name).exists() for name in (DATABASE_FILE, *KEPT_FILES)):
            raise StoreError(f"there is a relay in {data} already; --force replaces it")
        with scratch_folder(data, ".wai-restore-") as scratch:
            names = _unpack(file, scratch)
            _check_database(scratch / DATABASE_FILE, file.name)
            if address is not None:
                key = (scratch / KEY_FILE).read_bytes()
                fill_shared_database(scratch / DATABASE_FILE, key, address)
                names.remove(DATABASE_FILE)
            # A log of the old database, replayed into the new one, would ruin it.
            for name in (DATABASE_FILE, f"{DATABASE_FILE}-wal", f"{DATABASE_FILE}-shm"):
                folder.remove(name)
            for name in KEPT_FILES:
                folder.remove(name)
            for name in names:
                (scratch / name).replace(data / name)
    except OSError as error:
        about = error.filename or data
        raise StoreError(f"the backup can't be restored: {about}: {error.strerror}") from error
    finally:
        lock.release()
    return names


@contextmanager
def scratch_folder(data: Path, prefix: str) -> Iterator[Path]:
    """Yield a folder in `data` that is removed in the end, as are those of commands that were
    killed. Whoever calls holds the lock."""
    for left in data.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=data, prefix=prefix) as scratch:
        yield Path(scratch)


def _private(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nobody but its owner reads it where it is unpacked, and no user's name is told."""
    member.mode, member.uid, member.gid, member.uname, member.gname = 0o600, 0, 0, "", ""
    return member


def fill_shared_database(
    source: Path,
    key: bytes,
    address: PostgresAddress,
    told: Callable[[str, int, int], None] = lambda table, done, total: None,
) -> dict[str, int]:
    """Copy the SQLite file `source`, which is changed by it, to an empty PostgreSQL.

    `key`: the content of the relay's key file. Returns how many rows each table has.
    """
    with closing(sqlite3.connect(source)) as database, database:
        for change in _LOCAL_ADMINS:
            database.execute(change, (own_admin(key), LOCAL_ADMIN))
    copied: dict[str, int] = asyncio.run(_with_asyncpg().copy_in(source, address, told))
    return copied


def _for_one_relay(copy: Path, admin: str) -> None:
    """Make `admin`, that of one relay's machine, `local`, and leave out those of other machines."""
    with closing(sqlite3.connect(copy)) as database, database:
        for table, column in _ADMIN_COLUMNS:
            others = f"DELETE FROM {table} WHERE {column} LIKE ? AND {column} <> ?"  # noqa: S608
            database.execute(others, (local_admin_of("%"), admin))
        for change in _LOCAL_ADMINS:
            database.execute(change, (LOCAL_ADMIN, admin))


def own_admin(key: bytes) -> str:
    """The name of the admin of a relay's machine where relays share a database."""
    try:
        return local_admin_of(relay_id(RelayKey.from_bytes(key).public))
    except AuthError as error:
        raise StoreError(f"{KEY_FILE} is damaged: {error}") from error


def _with_asyncpg() -> ModuleType:
    try:
        return importlib.import_module("wai_relay.storage.postgres_copy")
    except ModuleNotFoundError as error:
        raise missing_package(error) from error


def copy_database(data: Path, target: Path) -> None:
    """Copy the database in `data` to `target`, which may lie where the owner of `data` has no way:
    so that is opened first, and needs no journal beside it."""
    with closing(sqlite3.connect(target)) as writing:
        writing.execute("PRAGMA journal_mode = OFF")
        writing.execute("CREATE TABLE opened (at)")
        writing.commit()
        with as_owner(data):
            source = f"{(data / DATABASE_FILE).resolve().as_uri()}?mode=ro"
            with closing(sqlite3.connect(source, uri=True, timeout=_BUSY_S)) as reading:
                reading.backup(writing, pages=_COPIED_PAGES)


def _unpack(file: BinaryIO, into: Path) -> list[str]:
    """The files of a backup, by the names that we know; all others are refused."""
    names = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                limit = MAX_DATABASE_BYTES if member.name == DATABASE_FILE else 1 << 20
                known = member.name in (DATABASE_FILE, *KEPT_FILES)
                content = tar.extractfile(member) if member.isreg() and known else None
                if content is None or member.size > limit or member.name in names:
                    raise StoreError(
                        f"{file.name} is not a backup of a relay: it has {member.name!r}"
                    )
                mode = PUBLIC_MODE if member.name in PUBLIC_FILES else SECRET_MODE
                descriptor = os.open(into / member.name, os.O_WRONLY | os.O_CREAT, mode)
                with open(descriptor, "wb") as out:
                    while piece := content.read(1 << 20):
                        out.write(piece)
                    out.flush()
                    os.fsync(out.fileno())
                names.append(member.name)
    except tarfile.TarError as error:
        raise StoreError(f"{file.name} is not a backup of a relay: {error}") from error
    if DATABASE_FILE not in names or KEY_FILE not in names:
        raise StoreError(f"{file.name} is not a whole backup of a relay")
    return names


def _check_database(copy: Path, name: str) -> None:
    database = sqlite3.connect(f"file:{copy}?mode=ro", uri=True)
    try:
        found = database.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.Error as error:
        raise StoreError(f"the database in {name} is damaged: {error}") from error
    finally:
        database.close()
    if found != "ok":
        raise StoreError(f"the database in {name} is damaged: {found}")
