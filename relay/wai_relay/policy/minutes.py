"""What was used in the last sixty seconds, whenever one looks, and how OpenAI writes durations.

Pure: `now` is monotonic seconds.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

MINUTE_S: Final = 60.0
# Amounts of the same tenth of a second are kept as one: at most 601 of them, whatever the rate.
GRAIN_S: Final = 0.1


class MinuteWindow:
    """How much was used in the last sixty seconds."""

    __slots__ = ("_amounts", "used")

    def __init__(self) -> None:
        self._amounts: deque[list[float]] = deque()  # [second, amount], oldest first
        self.used = 0.0

    def add(self, amount: float, now: float) -> None:
        """Use `amount`."""
        if self._amounts and self._amounts[-1][0] >= now:  # it is in the last one's grain
            self._amounts[-1][1] += amount
        else:
            self._amounts.append([_grain(now), amount])
        self.used += amount

    def take_back(self, amount: float, at: float) -> None:
        """Of what was used at `at`, `amount` was not used after all. What is forgotten already
        stays forgotten, so that this makes no room that was never taken."""
        grain = _grain(at)
        for entry in self._amounts:
            if entry[0] >= grain:
                back = min(amount, entry[1]) if entry[0] == grain else 0.0
                entry[1] -= back
                self.used -= back
                return

    def expire(self, now: float) -> None:
        """Forget what is older than a minute."""
        while self._amounts and self._amounts[0][0] <= now - MINUTE_S:
            self.used -= self._amounts.popleft()[1]
        if not self._amounts:
            self.used = 0.0  # what rounding left

    def wait_s(self, amount: float, limit: float, now: float) -> float:
        """How long until `amount` fits under `limit`; a whole minute if it never does."""
        over = self.used + amount - limit
        for at, freed in self._amounts:
            if over <= 0:
                break
            over -= freed
            if over <= 0:
                return max(at + MINUTE_S - now, 0.0)
        return 0.0 if over <= 0 else MINUTE_S

    def reset_s(self, now: float) -> float:
        """How long until nothing counts any more."""
        return max(self._amounts[-1][0] + MINUTE_S - now, 0.0) if self._amounts else 0.0


def format_reset(seconds: float) -> str:
    """A duration as OpenAI writes it: "0s", "120ms", "1s", "8.5s", "6m0s"."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{minutes}m{text}" if minutes else text


def _grain(now: float) -> float:
    return math.ceil(now / GRAIN_S) * GRAIN_S  # rather a little later than too early
