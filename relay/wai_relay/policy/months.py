"""Tokens per key in the current calendar month (UTC), in memory: what budgets are held against.

The one place that counts them: the recorder of usage adds what is over, `admission` reads. It is
right at once, before the database is; after a crash it is what the database knows. Pure.
"""

from __future__ import annotations

import calendar
import time
from collections import defaultdict


def month_of(seconds: float) -> tuple[int, int]:
    """Begin and end of the month (UTC) that holds `seconds` since 1970."""
    at = time.gmtime(seconds)
    year, month = (at.tm_year + 1, 1) if at.tm_mon == 12 else (at.tm_year, at.tm_mon + 1)
    return (
        calendar.timegm((at.tm_year, at.tm_mon, 1, 0, 0, 0)),
        calendar.timegm((year, month, 1, 0, 0, 0)),
    )


class MonthTokens:
    """Counts tokens by key id; starts again from nothing when a month begins."""

    def __init__(self, now: float) -> None:
        self._tokens: defaultdict[str, int] = defaultdict(int)
        self.begin, self._end = month_of(now)

    @property
    def name(self) -> str:
        """The month that is counted, as "2026-11"."""
        return time.strftime("%Y-%m", time.gmtime(self.begin))

    def add(self, key_id: str, started_at: float, tokens: int) -> None:
        """A request that began at `started_at` took `tokens`; it counts where it began."""
        self._turn(started_at)
        if started_at >= self.begin:
            self._tokens[key_id] += tokens

    def of(self, key_id: str, now: float) -> int:
        """What `key_id` took this month."""
        self._turn(now)
        return self._tokens.get(key_id, 0)

    def all(self, now: float) -> dict[str, int]:
        """What every key took this month."""
        self._turn(now)
        return dict(self._tokens)

    def _turn(self, now: float) -> None:
        if now >= self._end:
            self.begin, self._end = month_of(now)
            self._tokens.clear()
