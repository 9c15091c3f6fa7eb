"""A file in the data folder for batches that could not be written to the database, one per line.

Each relay process has its own file and holds a lock on it. So two processes that share the folder
during an upgrade do not use the same file, and the file of a process that was killed can be
recognized. Disk space is reserved beforehand, so that the first lines fit even when the disk is
full. After the last line there are only NUL bytes. All methods block: call them from a thread.
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
# Reserved size: the lines of about 2,000 requests, some minutes of a busy relay.
RESERVED_BYTES: Final = 1 << 20
# About 500,000 requests: more than an hour of a relay that serves a hundred per second.
MAX_BYTES: Final = 256 << 20
READ_BYTES: Final = 256 * 1024  # size of one read; a batch of a hundred requests has 50 KiB


class SpillFile:
    """A queue of lines in a file, which is created when it is first needed."""

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        self.path = path
        self._descriptor = descriptor
        self._read = 0  # offset after the lines that were dropped
        self._end = 0  # offset after the last line

    @classmethod
    def of_process(cls, folder: Path) -> SpillFile:
        """Return a new file for this process, which does not exist on disk yet."""
        return cls(folder / f"{PREFIX}{secrets.token_hex(4)}{SUFFIX}")

    @classmethod
    def take_abandoned(cls, folder: Path) -> list[SpillFile]:
        """Lock and return the files of processes that have ended. Raises `OSError`."""
        found = []
        for path in sorted(folder.glob(f"{PREFIX}*{SUFFIX}")):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            spill_file = cls(path, descriptor)
            spill_file._end = sum(len(line) for line in spill_file.lines())
            found.append(spill_file)
        return found

    @property
    def empty(self) -> bool:
        """Whether no line is left."""
        return self._read == self._end

    def prepare(self) -> None:
        """Create the file and reserve its disk space. Raises `OSError`."""
        descriptor = self._open()
        with contextlib.suppress(AttributeError):  # macOS does not have this function
            os.posix_fallocate(descriptor, 0, RESERVED_BYTES)

    def append(self, lines: list[bytes]) -> None:
        """Append `lines`; when this returns, they are on disk.

        Raises `OSError`, and has appended none then.
        """
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
            # Overwrite the part that was written, so that it is not read. This needs no new space.
            with contextlib.suppress(OSError):
                os.pwrite(descriptor, bytes(written), self._end)
            raise
        self._end += len(data)

    def first(self) -> bytes | None:
        """Return the first line, None if there is none."""
        return None if self.empty else next(self.lines(), None)

    def lines(self) -> Iterator[bytes]:
        """Yield all complete lines."""
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

    def drop_first(self, line: bytes) -> None:
        """Drop `line`, which must be the first one. Raises `OSError`."""
        self._read += len(line)
        if self.empty:
            self._clear()

    def close(self) -> None:
        """Close the file. Remove it if it is empty; else the next process will find it."""
        if self._descriptor is None:
            return
        if self.empty:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

    def _clear(self) -> None:
        """Reset the empty file to its reserved size."""
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
