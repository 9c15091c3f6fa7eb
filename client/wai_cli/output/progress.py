"""A progress line: redrawn on a terminal, printed at intervals into a file or pipe."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import Final

from .tables import plain

BAR_CHARS: Final = 20  # with its figures it fits 80 columns
LOGGED_EVERY_S: Final = 10.0
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


class ProgressLine:
    """Shows one line at a time on stderr, so that stdout stays for the result."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal = sys.stderr.isatty()
        self._clock = clock
        self._shown = ""
        self._step = ""
        self._shown_at = clock()

    def show(self, text: str, step: str = "") -> None:
        """Replace the line by `text`. `step` names what is in progress.

        Without a terminal a line is printed for each new step, and every ten seconds within it.
        """
        text = plain(text)
        if text == self._shown:
            return
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1  # a wrapped line can't be redrawn
            text = text if len(text) <= width else text[: width - 1] + "…"
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            now = self._clock()
            if step and step == self._step and now - self._shown_at < LOGGED_EVERY_S:
                return
            self._step, self._shown_at = step, now
            print(text, file=sys.stderr, flush=True)
        self._shown = text

    def end(self) -> None:
        """Keep the last line, and continue below it."""
        if self._terminal and self._shown:
            print(file=sys.stderr)
        self._shown = ""


def bar(done: int, total: int) -> str:
    """Return a bar such as `[#####     ]  42%`."""
    filled = int(_share(done, total) * BAR_CHARS)
    return f"[{'#' * filled}{' ' * (BAR_CHARS - filled)}] {_share(done, total):4.0%}"


def share_text(done: int, total: int) -> str:
    """`42%`."""
    return f"{_share(done, total):.0%}"


def _share(done: int, total: int) -> float:
    return min(1.0, done / total) if total else 0.0


def size_text(size: float) -> str:
    """Return a size in bytes as text, such as 1.5 GiB."""
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def seconds_text(seconds: float) -> str:
    """Return a duration as text: 45 s, 12 min, 3.0 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
