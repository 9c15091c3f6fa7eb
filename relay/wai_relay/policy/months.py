"""Tokens per key and calendar month (UTC), in memory: what budgets are held against.

The one place that counts them: the recorder of usage adds what is over, `admission` reads. It is
right at once, before the database is; after a crash it is what the database knows.

The wall clock may jump, and come back: so a month that is over is kept for a while, and one that
was never asked for is looked up (`on_unknown`). Until then a month that lies before a known one
counts as much as the fullest of those: a clock that goes back frees nothing. Pure.
"""

from __future__ import annotations

import calendar
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

# The month before (requests that began in it still end), this one, and those that a clock was in by
# mistake. The longest unused goes first; it is looked up again if it is wanted.
MAX_MONTHS: Final = 24


def month_of(seconds: float) -> tuple[int, int]:
    """Begin and end of the month (UTC) that holds `seconds` since 1970."""
    at = time.gmtime(seconds)
    year, month = (at.tm_year + 1, 1) if at.tm_mon == 12 else (at.tm_year, at.tm_mon + 1)
    return (
        calendar.timegm((at.tm_year, at.tm_mon, 1, 0, 0, 0)),
        calendar.timegm((year, month, 1, 0, 0, 0)),
    )


class MonthTokens:
    """Counts tokens by month and key id. `on_unknown` is called with the begin of a month that is
    asked for and was not marked `known`; once for each time that the clock comes into one."""

    def __init__(self, now: float, on_unknown: Callable[[int], None] = lambda begin: None) -> None:
        self.on_unknown = on_unknown
        self._months: OrderedDict[int, Counter[str]] = OrderedDict()
        self._known: set[int] = set()
        self._begin, self._end = month_of(now)
        self._here = self._counts(self._begin)  # of the month that the clock is in
        self.know(self._begin)

    def name(self, now: float) -> str:
        """The month that holds `now`, as "2026-11"."""
        return time.strftime("%Y-%m", time.gmtime(now))

    def begin(self, now: float) -> int:
        """When the month that holds `now` began."""
        self._turn(now)
        return self._begin

    def left_s(self, now: float) -> float:
        """How long until the next month begins."""
        self._turn(now)
        return self._end - now

    def know(self, begin: int) -> None:
        """What is counted for the month that began at `begin` is all that there is."""
        self._known.add(begin)
        self._counts(begin)

    def knows(self, now: float) -> bool:
        """Whether the month that holds `now` is known."""
        return self.begin(now) in self._known

    def add(self, key_id: str, started_at: float, tokens: int) -> None:
        """A request that began at `started_at` took `tokens`; it counts where it began."""
        counts = self._here
        if not self._begin <= started_at < self._end:
            counts = self._counts(month_of(started_at)[0])
        counts[key_id] += tokens

    def of(self, key_id: str, now: float) -> int:
        """What `key_id` took in the month that holds `now`."""
        self._turn(now)
        tokens = self._here[key_id]
        if self._begin in self._known or self._begin > max(self._known, default=0):
            return tokens
        return max(tokens, *(self._months[begin][key_id] for begin in self._known))

    def all(self, begin: int) -> dict[str, int]:
        """What every key took in the month that began at `begin`."""
        return dict(self._months.get(begin, {}))

    def _turn(self, now: float) -> None:
        if not self._begin <= now < self._end:
            self._begin, self._end = month_of(now)
            self._here = self._counts(self._begin)
            if self._begin not in self._known:
                self.on_unknown(self._begin)

    def _counts(self, begin: int) -> Counter[str]:
        counts = self._months.get(begin)
        if counts is not None:
            self._months.move_to_end(begin)
        else:
            counts = self._months[begin] = Counter()
            for other in list(self._months):
                if len(self._months) <= MAX_MONTHS:
                    break
                if other not in (begin, self._begin):
                    del self._months[other]
                    self._known.discard(other)
        return counts
