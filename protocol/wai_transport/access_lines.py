"""The lines of the access log, which are written a few at a time.

To make a log record of each request, to format it, and to flush it to stderr takes a twelfth of
what a small request costs. So lines wait for up to `FLUSH_S`. Those that wait then become one
record with `entries`, and a formatter that knows of them makes a line of each.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import lru_cache
from typing import Any, Final, Protocol

FLUSH_S: Final = 0.1
"""How late a line may be. A `kill -9` loses those that wait."""

MAX_WAITING: Final = 256
"""Lines that are written at once, without a wait for the timer."""

MAX_SHOWN_CHARS: Final = 128
"""Of a path or a model's name, which may be a caller's whole page."""

REMEMBERED: Final = 512  # paths, models and addresses whose escaped form is kept

log = logging.getLogger("wai.access")


class Entry(Protocol):
    """A request that is over. Both methods are called once, when the line is written."""

    def text(self) -> str:
        """The line, without time and level; it has no control characters."""

    def fields(self) -> dict[str, Any]:
        """The same for a log in JSON."""


class AccessLines:
    """Lines that wait to be written. Belongs to one event loop; `close` writes the rest."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, Entry]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, entry: Entry) -> None:
        """Write a line for `entry` soon; at once where no event loop runs."""
        if not log.isEnabledFor(logging.INFO):
            return
        self._waiting.append((time.time(), entry))
        if len(self._waiting) >= MAX_WAITING:
            self.close()
        elif self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.close)
            except RuntimeError:
                self.close()

    def close(self) -> None:
        """Write what waits. More may be added afterwards."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        entries, self._waiting = self._waiting, []
        if not entries:
            return
        # Without `info`'s search for the calling line, which nobody shows.
        record = log.makeRecord(
            *(log.name, logging.INFO, "", 0, "%s", (_Joined(entries),), None),
            extra={"entries": entries},
        )
        log.handle(record)


class _Joined:
    """The message of a record with `entries`, for a formatter that does not know of them."""

    def __init__(self, entries: list[tuple[float, Entry]]) -> None:
        self._entries = entries

    def __str__(self) -> str:
        return "\n".join(entry.text() for _, entry in self._entries)


@lru_cache(REMEMBERED)
def shown(text: str) -> str:
    """Return `text` on one line, without spaces, in ASCII, so that it can't forge a field."""
    return ascii(text[:MAX_SHOWN_CHARS])[1:-1].replace(" ", r"\x20")
