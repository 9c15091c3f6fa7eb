"""A server's log on disk, bounded: two files of equal size, the older dropped when one is full."""

from __future__ import annotations

import contextlib
from collections import deque
from pathlib import Path
from typing import Final

FILE_BYTES: Final = 4 << 20  # many starts of a model; a log that matters is read within days
TAIL_LINES: Final = 1000  # kept in memory; loading a tiny model printed 172
LINE_CHARS: Final = 2000


class LogFile:
    """Takes a server's output as it comes. Small blocking writes: to the page cache."""

    def __init__(self, path: Path, *, file_bytes: int = FILE_BYTES) -> None:
        self.path = path
        self._old = path.with_name(path.name + ".1")
        self._limit = file_bytes
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._rest = ""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._size = path.stat().st_size

    def write(self, data: bytes) -> list[str]:
        """Keep `data`; the whole lines that it completed."""
        if self._size + len(data) > self._limit:
            self._file.close()
            with contextlib.suppress(FileNotFoundError):  # a generation beside us did it
                self.path.replace(self._old)
            self._file = self.path.open("ab")
            self._size = 0
        self._file.write(data)
        self._file.flush()
        self._size += len(data)
        *lines, self._rest = (self._rest + data.decode("utf-8", "replace")).split("\n")
        self._rest = self._rest[-LINE_CHARS:]
        lines = [line[:LINE_CHARS] for line in lines]
        self._tail.extend(lines)
        return lines

    def tail(self, count: int = TAIL_LINES) -> tuple[str, ...]:
        """The last lines of this run."""
        lines = [*self._tail, *([self._rest] if self._rest else [])]
        return tuple(lines[-count:]) if count > 0 else ()

    def close(self) -> None:
        """No more is written."""
        self._file.close()


def read_tail(path: Path, count: int) -> list[str]:
    """The last `count` lines on disk, over both files; for a server that does not run now."""
    lines: deque[str] = deque(maxlen=max(1, count))
    for part in (path.with_name(path.name + ".1"), path):
        if part.exists():
            with part.open(errors="replace") as file:
                lines.extend(line.rstrip("\n")[:LINE_CHARS] for line in file)
    return list(lines)
