"""A server's log on the disk: two files of limited size; the older is replaced when one is full."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import deque
from pathlib import Path
from typing import Final

from .served_lines import ServedLines

log = logging.getLogger("wai.node.managed")

FILE_BYTES: Final = 4 << 20  # holds many starts of a model
TAIL_LINES: Final = 1000  # kept in memory; loading a tiny model prints 172
LINE_CHARS: Final = 2000
LINE_BYTES: Final = 8000  # longer lines are split
# llama-server prints this at each poll of its slots, that is, every two seconds.
_NOISE: Final = b"update_slots: all slots are idle"
_KEY_LINE: Final = b"api_keys:"  # it shows the last characters of the inference key


class LogFile:
    """Stores a server's output. After `serving` only lines without any part of a request are kept.

    Writes are small and block for the page cache alone. Errors of the disk are logged once and
    never raised, so that a full disk does not end the server; `tail` has the lines all the same.
    """

    def __init__(self, path: Path, *, file_bytes: int = FILE_BYTES) -> None:
        self.path = path
        self._old = _parts(path)[0]
        self._limit = file_bytes
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._rest = b""
        self._file: io.FileIO | None = None
        self._size = 0
        self._failed = False
        self._served: ServedLines | None = None
        self.idle = False  # whether llama-server has said that it polls its slots: it has started

    def serving(self) -> None:
        """Note that the server gets requests from now on."""
        self._served = ServedLines()

    def write(self, data: bytes) -> list[str]:
        """Store `data`; return the whole lines that it completed."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > LINE_BYTES:
            whole.append(self._rest[:LINE_BYTES])
            self._rest = self._rest[LINE_BYTES:]
        kept = [kept for line in whole if (kept := self._kept(line)) is not None]
        self._keep(b"".join(line + b"\n" for line in kept))
        lines = [_text(line) for line in kept]
        self._tail.extend(lines)
        return lines

    def _kept(self, line: bytes) -> bytes | None:
        if _NOISE in line:
            self.idle = True
            return None
        if _KEY_LINE in line:
            return None
        if self._served is None:
            return line
        shown = self._served.kept(_text(line))
        return None if shown is None else shown.encode()

    def _take_rest(self) -> None:
        """Store the last line, which has no newline."""
        rest = self._kept(self._rest) if self._rest else None
        self._rest = b""
        if rest is not None:
            self._keep(rest)
            self._tail.append(_text(rest))

    def _keep(self, data: bytes) -> None:
        try:
            self._append(data)
        except OSError as error:
            if not self._failed:
                log.warning("%s can't be written: %s", self.path, error.strerror)
            self._failed = True

    def _append(self, data: bytes) -> None:
        if not data:
            return
        if self._file is not None and self._size + len(data) > self._limit:
            self._close_file()
            with contextlib.suppress(FileNotFoundError):  # another generation renamed it
                self.path.replace(self._old)
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
            self._size = self.path.stat().st_size
        self._size += self._file.write(data)

    def tail(self, count: int = TAIL_LINES) -> tuple[str, ...]:
        """Return the last lines of this run."""
        rest = [_text(self._rest)] if self._rest and self._served is None else []
        lines = [*self._tail, *rest]
        return tuple(lines[-count:]) if count > 0 else ()

    def close(self) -> None:
        """Store the rest and close the file."""
        self._take_rest()
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def delete_log(path: Path) -> None:
    """Delete both files of a log. Raises `OSError`."""
    for part in _parts(path):
        part.unlink(missing_ok=True)


def _parts(path: Path) -> tuple[Path, Path]:
    """Return the two files of a log, older first."""
    return path.with_name(path.name + ".1"), path


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")[:LINE_CHARS]


def read_tail(path: Path, count: int) -> list[str]:
    """Return the last `count` lines on the disk, for a server that does not run now."""
    lines: deque[str] = deque(maxlen=max(1, count))
    for part in _parts(path):
        if part.exists():
            with part.open(errors="replace") as file:
                lines.extend(line.rstrip("\n")[:LINE_CHARS] for line in file)
    return list(lines)
