"""A server's log on disk, bounded: two files of equal size, the older dropped when one is full."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import deque
from pathlib import Path
from typing import Final

log = logging.getLogger("wai.node.managed")

FILE_BYTES: Final = 4 << 20  # many starts of a model; a log that matters is read within days
TAIL_LINES: Final = 1000  # kept in memory; loading a tiny model printed 172
LINE_CHARS: Final = 2000


class LogFile:
    """Takes a server's output as it comes. Small blocking writes: to the page cache.

    It never raises: a server does not end because its log has no room. What the disk does not take
    is missing there, and is in `tail` all the same.
    """

    def __init__(self, path: Path, *, file_bytes: int = FILE_BYTES) -> None:
        self.path = path
        self._old = path.with_name(path.name + ".1")
        self._limit = file_bytes
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._rest = ""
        self._file: io.FileIO | None = None
        self._size = 0
        self._failed = False

    def write(self, data: bytes) -> list[str]:
        """Keep `data`; the whole lines that it completed."""
        try:
            self._keep(data)
        except OSError as error:
            if not self._failed:
                log.warning("%s can't be written: %s", self.path, error.strerror)
            self._failed = True
        *lines, self._rest = (self._rest + data.decode("utf-8", "replace")).split("\n")
        self._rest = self._rest[-LINE_CHARS:]
        lines = [line[:LINE_CHARS] for line in lines]
        self._tail.extend(lines)
        return lines

    def _keep(self, data: bytes) -> None:
        if self._file is not None and self._size + len(data) > self._limit:
            self.close()
            with contextlib.suppress(FileNotFoundError):  # a generation beside us did it
                self.path.replace(self._old)
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
            self._size = self.path.stat().st_size
        self._size += self._file.write(data)

    def tail(self, count: int = TAIL_LINES) -> tuple[str, ...]:
        """The last lines of this run."""
        lines = [*self._tail, *([self._rest] if self._rest else [])]
        return tuple(lines[-count:]) if count > 0 else ()

    def close(self) -> None:
        """No more is written."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_tail(path: Path, count: int) -> list[str]:
    """The last `count` lines on disk, over both files; for a server that does not run now."""
    lines: deque[str] = deque(maxlen=max(1, count))
    for part in (path.with_name(path.name + ".1"), path):
        if part.exists():
            with part.open(errors="replace") as file:
                lines.extend(line.rstrip("\n")[:LINE_CHARS] for line in file)
    return list(lines)
