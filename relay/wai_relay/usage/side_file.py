"""The file in the data folder that keeps what the database did not take: one line a batch.

Each relay process has its own and holds a lock on it, so that two which share the folder during an
upgrade don't meet, and the file of one that was killed is found by the next. Some room is taken
from the disk beforehand: on a full disk the first lines still fit. Behind the last line there are
only NUL bytes. All of it blocks: call it from a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PREFIX: Final = "usage-"
SUFFIX: Final = ".unwritten"
FILE_MODE: Final = 0o600
# Taken beforehand: the lines of some 2,000 requests, which is minutes of a busy relay.
RESERVED_BYTES: Final = 1 << 20
# Some 500,000 requests: more than an hour of a relay that serves a hundred a second.
MAX_BYTES: Final = 256 << 20
READ_BYTES: Final = 256 * 1024  # of a line that is looked for; a batch of a hundred has 50 KiB


class SideFile:
    """Lines in a file, appended at its end and read from its begin. Made when first needed."""

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        self.path = path
        self._descriptor = descriptor
        self._read = 0  # bytes of lines that were taken
        self._end = 0  # bytes of all lines

    @classmethod
    def of_process(cls, folder: Path) -> SideFile:
        """A new one for this process; nothing is on disk yet."""
        return cls(folder / f"{PREFIX}{secrets.token_hex(4)}{SUFFIX}")

    @classmethod
    def left_behind(cls, folder: Path) -> list[SideFile]:
        """Those whose process has ended, ours from now on. Raises `OSError`."""
        found = []
        for path in sorted(folder.glob(f"{PREFIX}*{SUFFIX}")):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            side = cls(path, descriptor)
            side._end = sum(len(line) for line in side.lines())
            found.append(side)
        return found

    @property
    def empty(self) -> bool:
        """Whether all lines were taken."""
        return self._read == self._end

    def prepare(self) -> None:
        """Make the file, and take its room from the disk. Raises `OSError`."""
        descriptor = self._open()
        with contextlib.suppress(AttributeError):  # macOS has none
            os.posix_fallocate(descriptor, 0, RESERVED_BYTES)

    def append(self, lines: list[bytes]) -> None:
        """Add `lines`; on return they are on disk. Raises `OSError`, and then has added none."""
        data = b"".join(lines)
        if self._end + len(data) > MAX_BYTES:
            raise OSError(errno.EFBIG, "the file of unwritten usage is full")
        descriptor = self._open()
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], self._end + written)
            os.fsync(descriptor)
        except OSError:
            # What is there of them must not be read. This needs no room: it was written just now.
            with contextlib.suppress(OSError):
                os.pwrite(descriptor, bytes(written), self._end)
            raise
        self._end += len(data)

    def first(self) -> bytes | None:
        """The first line that was not taken yet."""
        return None if self.empty else next(self.lines(), None)

    def lines(self) -> Iterator[bytes]:
        """The lines that were not taken, as far as they are whole."""
        at, data = self._read, b""
        while piece := os.pread(self._open(), READ_BYTES, at + len(data)):
            data += piece
            *whole, rest = data.split(b"\n")
            for line in whole:
                if line[:1] == b"\0":
                    return
                yield line + b"\n"
            at += len(data) - len(rest)
            data = rest
            if data[:1] == b"\0":
                return

    def take(self, line: bytes) -> None:
        """`line`, which is the first, is not needed any more. Raises `OSError`."""
        self._read += len(line)
        if self.empty:
            self._clear()

    def close(self) -> None:
        """Remove it if nothing is left in it; else it is there for the next process."""
        if self._descriptor is None:
            return
        if self.empty:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

    def _clear(self) -> None:
        """Nothing is in it: give back what is more than the reserve, and keep that."""
        descriptor, end = self._open(), self._end
        self._read = self._end = 0
        if end > RESERVED_BYTES:
            os.ftruncate(descriptor, RESERVED_BYTES)
        os.pwrite(descriptor, bytes(min(end, RESERVED_BYTES)), 0)

    def _open(self) -> int:
        if self._descriptor is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(self.path, flags, FILE_MODE)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._descriptor = descriptor
        return self._descriptor
