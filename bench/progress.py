"""Show a run's progress in one line that is redrawn on a terminal; nothing if stderr is a file."""

from __future__ import annotations

import sys
import time
from typing import Final

_BAR_CHARS: Final = 24


class Progress:
    """Counts the measurements of a run, and estimates when it ends."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._began_s = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def now(self, what: str) -> None:
        """Show that `what` is measured now."""
        if not self._terminal:
            return
        took_s = time.monotonic() - self._began_s
        share = self._done / self._total if self._total else 0.0
        left = f", about {_clock(took_s / share - took_s)} left" if self._done else ""
        filled = "#" * int(share * _BAR_CHARS)
        line = (
            f"[{filled:<{_BAR_CHARS}}] {self._done}/{self._total}, {_clock(took_s)}{left}: {what}"
        )
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def step(self) -> None:
        """Count one measurement as done."""
        self._done = min(self._done + 1, self._total)
        self.clear()

    def clear(self) -> None:
        """Clear the line, before other text is printed."""
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
