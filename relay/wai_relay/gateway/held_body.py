"""A long request body, held until its answer begins: in memory while there is room, else on disk.

The file has no name from its first moment on (`O_TMPFILE`, or unlinked), so nothing of it outlives
the process. All that touches it runs in a few threads of its own: a slow disk delays those requests
whose bodies lie there, and nobody else.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import tempfile
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from wai_protocol.errors import Fault, WaiError

from .body_budget import BodyBudget, overloaded

MEMORY_SHARE: Final = 0.5
"""Of the memory for bodies that long ones may take. The other half is for short ones, which need
no disk."""
FILE_PIECE_BYTES: Final = 128 * 1024  # written or read at once: a thread's turn costs 0.1 ms
LEAST_FREE_BYTES: Final = 256 * 1024 * 1024
"""What is left free on the disk: the relay's database may be on the same one."""
MAX_THREADS: Final = 4

_T = TypeVar("_T")

log = logging.getLogger("wai.gateway")


class Spool:
    """Where bodies lie on disk. `folder`: for the files; None: the system's temporary folder."""

    def __init__(self, folder: Path | None, limit_bytes: int) -> None:
        self.budget = BodyBudget(limit_bytes, " on its disk")
        self._folder = folder
        self._threads: ThreadPoolExecutor | None = None

    def run(self, call: Callable[[], _T]) -> asyncio.Future[_T]:
        """Have a thread do something with a file."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="bodies")
        return asyncio.get_running_loop().run_in_executor(self._threads, call)

    def open(self) -> int:
        """A new file without a name, for a thread. Raises `OSError`."""
        folder = None if self._folder is None else str(self._folder)
        with tempfile.TemporaryFile(buffering=0, dir=folder) as file:
            return os.dup(file.fileno())


class HeldBody:
    """See the module. `close` gives back all that it holds: always call it."""

    def __init__(self, key_id: str, memory: BodyBudget, spool: Spool) -> None:
        self.size = 0
        """Bytes that were added."""
        self._key_id = key_id
        self._memory = memory
        self._spool = spool
        self._pieces: list[bytes] = []
        self._ends: list[int] = []  # of the pieces, in bytes from the body's first
        self._in_memory = 0
        self._on_disk = 0  # taken of the budget
        self._file: int | None = None
        self._written = 0
        self._work: asyncio.Future[Any] | None = None  # what a thread does with the file
        self._closed = False

    async def add(self, data: bytes) -> None:
        """Hold the next bytes. Raises `WaiError` (OVERLOADED) where there is no room."""
        if self._file is None and self._work is None:
            try:
                self._memory.take(self._key_id, len(data), share=MEMORY_SHARE)
            except WaiError:
                pass
            else:
                self._in_memory += len(data)
                self._append(data)
                return
        more = self.size + len(data) - self._on_disk
        self._spool.budget.take(self._key_id, more)
        self._on_disk += more
        self._append(data)
        if self._file is None or self._ends[-1] - self._written >= FILE_PIECE_BYTES:
            await self._write()

    async def pieces(self, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` to `end`, in order. Raises `WaiError`."""
        if self._file is not None or self._work is not None:
            await self._write()
        while start < end:
            if self._closed:
                raise WaiError("The request's body is not held any more.", Fault.INTERNAL)
            if self._file is None:
                index = bisect_right(self._ends, start)
                piece = self._pieces[index]
                begin = self._ends[index] - len(piece)
                stop = min(end, self._ends[index])
                yield piece[start - begin : stop - begin]
            else:
                stop = min(end, start + FILE_PIECE_BYTES)
                yield await self._read(start, stop)
            start = stop

    async def whole(self) -> bytes:
        """All of it."""
        return b"".join([piece async for piece in self.pieces(0, self.size)])

    def close(self) -> None:
        """Hold nothing any more. Idempotent."""
        self._closed = True
        self._pieces, self._ends = [], []
        if self._in_memory:
            self._memory.give(self._key_id, self._in_memory)
            self._in_memory = 0
        if self._work is not None and not self._work.done():
            self._work.add_done_callback(self._work_over)
        else:
            self._close_file()

    # -- inside

    def _append(self, data: bytes) -> None:
        self._pieces.append(data)
        self.size += len(data)
        self._ends.append(self.size)

    async def _write(self) -> None:
        """Bring to disk what is not there yet. Who calls this may be cancelled; the work goes on,
        and the next call waits for it."""
        while self._work is not None or self._ends:
            if self._work is None:
                self._work = self._spool.run(self._write_pieces(self._pieces))
                self._pieces, self._ends = [], []
            try:
                await asyncio.shield(self._work)
            except OSError as error:
                log.warning("a request's body can't be held on disk: %s", error)
                raise _no_room(error) from error
            self._work = None
            if self._in_memory:
                self._memory.give(self._key_id, self._in_memory)
                self._in_memory = 0

    def _write_pieces(self, pieces: list[bytes]) -> Callable[[], None]:
        def write() -> None:
            if self._file is None:
                self._file = self._spool.open()
            size = sum(map(len, pieces))
            room = os.fstatvfs(self._file)
            if room.f_bavail * room.f_frsize - size < LEAST_FREE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for piece in pieces:
                left = memoryview(piece)
                while left:
                    taken = os.pwrite(self._file, left, self._written)
                    self._written += taken
                    left = left[taken:]

        return write

    async def _read(self, start: int, end: int) -> bytes:
        file = self._file
        assert file is not None
        reading = self._work = self._spool.run(lambda: os.pread(file, end - start, start))
        try:
            data: bytes = await asyncio.shield(reading)
        except OSError as error:
            log.warning("a request's body can't be read from disk: %s", error)
            raise _no_room(error) from error
        self._work = None
        if len(data) != end - start and not self._closed:
            raise _no_room(OSError(errno.EIO, os.strerror(errno.EIO)))
        return data

    def _work_over(self, work: asyncio.Future[Any]) -> None:
        if not work.cancelled():
            work.exception()  # which nobody wants to know any more
        self._close_file()

    def _close_file(self) -> None:
        if self._on_disk:
            self._spool.budget.give(self._key_id, self._on_disk)
            self._on_disk = 0
        file, self._file = self._file, None
        if file is not None:  # a long file takes a while to be given back
            self._spool.run(lambda: os.close(file))


def _no_room(error: OSError) -> WaiError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return overloaded("The relay's disk is too full to hold this request's body")
    return overloaded(f"The relay's disk can't hold this request's body ({error.strerror})")
