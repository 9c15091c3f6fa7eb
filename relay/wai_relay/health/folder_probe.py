"""Looks at the data folder's disk and at the database, without writing to either.

A disk that hangs stops the thread that looks, and neither the event loop nor a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

WAIT_S: Final = 4.0
"""A look takes a millisecond. A disk that is waited for so long is a problem by itself."""

LOCKED_LOOKS: Final = 2
"""So many looks in a row must find the database locked: a long commit locks it for a moment."""


class FolderState(msgspec.Struct, frozen=True):
    """What a look found. `trouble`: why the folder can't be used; `database`: why relay.db can't be
    written; "" where nothing is wrong. None: not known."""

    free_bytes: int | None = None
    free_inodes: int | None = None
    trouble: str = ""
    database: str = ""


class FolderProbe:
    """Keeps in `state` what the last look found. Belongs to one loop; `close` it.

    `database`: the SQLite file; None if the store is elsewhere.
    """

    def __init__(self, path: Path, database: Path | None = None) -> None:
        self.path = path
        self.database = database
        self.state = FolderState()
        self._locked = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="health")
        self._looking: asyncio.Future[FolderState] | None = None

    async def look(self) -> None:
        """Look, and wait for it for `WAIT_S` at most; the next call goes on to wait for a look that
        hangs."""
        if self._looking is None:
            loop = asyncio.get_running_loop()
            self._looking = loop.run_in_executor(self._thread, self.look_now)
        done, _ = await asyncio.wait((self._looking,), timeout=WAIT_S)
        if done:
            self.state, self._looking = self._looking.result(), None
        else:
            self.state = FolderState(trouble="its disk does not answer")

    def close(self) -> None:
        """Look no more. A look that hangs is left alone."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def look_now(self) -> FolderState:
        """Return what is found, blocking."""
        try:
            disk = os.statvfs(self.path)
        except OSError as error:
            return FolderState(trouble=error.strerror or str(error))
        free = disk.f_bavail * disk.f_frsize
        inodes = disk.f_favail if disk.f_files else None  # 0 where there is no such number
        if disk.f_flag & os.ST_RDONLY:
            return FolderState(free, inodes, "its disk is mounted read-only")
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            return FolderState(free, inodes, "the relay's user may not write in it")
        return FolderState(free, inodes, database=self._look_at_database())

    def _look_at_database(self) -> str:
        """Take the lock for writing, and give it back."""
        if self.database is None:
            return ""
        try:
            # `rw`: a file that is missing is not made
            address = f"{self.database.absolute().as_uri()}?mode=rw"
            with contextlib.closing(
                sqlite3.connect(address, timeout=0.1, isolation_level=None, uri=True)
            ) as database:
                database.execute("BEGIN IMMEDIATE")
                database.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._locked += 1
            locked = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            return str(error) if self._locked >= LOCKED_LOOKS or not locked else ""
        self._locked = 0
        return ""
