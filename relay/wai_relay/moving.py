"""Move a relay from the SQLite file in its data folder into PostgreSQL, all of it or nothing.

The relay keeps its key and its certificate, so that nodes and callers notice nothing: they are
copied to the new folder, if that is another one. In the old folder the database stays, under
another name if the folder is the new one as well: a relay that were started with it by mistake
would know nothing of what happened since.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from wai_protocol.errors import StoreError
from wai_transport.folder import PUBLIC_MODE, SECRET_MODE, DataFolder, FolderLock
from wai_transport.owner import as_owner, read_own

from .backup import (
    LOCK_OWNER,
    PUBLIC_FILES,
    check_database,
    copy_database,
    fill_shared_database,
    read_kept,
    scratch_folder,
)
from .database import DATABASE_FILE
from .identity import KEY_FILE
from .storage.postgres_address import PostgresAddress
from .usage.spill_file import MAX_BYTES, PREFIX, SUFFIX

MOVED_FILE: Final = f"{DATABASE_FILE}.imported"
"""What the database is called that is no longer used."""
UNWRITTEN: Final = f"{PREFIX}*{SUFFIX}"
"""Usage that a killed relay had not written to its database: the next one does."""


class Moved(msgspec.Struct, frozen=True):
    """What was moved: the number of rows of each table, and the names of copied files."""

    tables: dict[str, int]
    files: list[str]


def move(
    source: Path,
    data: Path,
    address: PostgresAddress,
    told: Callable[[str, int, int], None] = lambda table, done, total: None,
) -> Moved:
    """Move the stopped relay in `source` into the empty database at `address`.

    `data`: the folder of the relay that will use it; it may be `source`. `told`: see
    `storage.postgres_copy`. Raises `StoreError`, and has changed nothing then.
    """
    with as_owner(source):
        check_database(source)
    kept = read_kept(source)
    if (key := kept[KEY_FILE]) is None:
        raise StoreError(f"there is no relay in {source}: it has no {KEY_FILE}")
    with ExitStack() as ending:
        same = data.resolve() == source.resolve()
        with as_owner(data):
            folder = DataFolder.open(data)
            ending.callback(FolderLock.acquire(folder, LOCK_OWNER).release)
        if not same:
            with as_owner(source):
                ending.callback(FolderLock.acquire(DataFolder(source), LOCK_OWNER).release)
            # With the same key it is what a move that was killed has left.
            if read_kept(data)[KEY_FILE] not in (None, key):
                raise StoreError(
                    f"there is a relay in {data} already: name another folder with --data, in which"
                    " the moved relay will have its key"
                )
        with scratch_folder(data, ".wai-import-") as scratch:
            copy = scratch / DATABASE_FILE
            copy_database(source, copy)
            files = {} if same else {**kept, **_unwritten(source)}
            copied = [name for name, content in files.items() if content is not None]
            made = [name for name in copied if not (data / name).exists()]
            try:
                with as_owner(data):
                    for name in copied:
                        mode = PUBLIC_MODE if name in PUBLIC_FILES else SECRET_MODE
                        folder.write(name, files[name] or b"", mode)
                tables = fill_shared_database(copy, key, address, told)
            except BaseException:
                with as_owner(data):
                    for name in made:
                        folder.remove(name)
                raise
        if same:
            with as_owner(data):
                _put_aside(data)
    return Moved(tables, copied)


def _unwritten(source: Path) -> dict[str, bytes | None]:
    """Read the usage that is not in the database yet."""
    with as_owner(source):
        return {path.name: read_own(path, MAX_BYTES) for path in sorted(source.glob(UNWRITTEN))}


def _put_aside(data: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        if (data / (DATABASE_FILE + suffix)).exists():
            (data / (DATABASE_FILE + suffix)).replace(data / (MOVED_FILE + suffix))
