"""How long to wait before the next try to reach the relay: short at first, and for ever.

Full jitter (a random share of a bound that doubles), so that a fleet that lost its relay does not
come back in one moment. A pure state machine: it is told the time and given its randomness.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

FIRST_S: Final = 0.25
"""Bound of the second wait; the first try after a loss goes out at once."""

LONGEST_S: Final = 30.0
"""A relay that was away all night is found again half a minute after it is back."""

STEADY_S: Final = 1.0
"""A connection that lived this long was a good one: the next loss starts from the beginning."""


class Backoff:
    """Waits between tries. `random_share` gives numbers in [0, 1)."""

    def __init__(self, random_share: Callable[[], float] = random.random) -> None:
        self._random_share = random_share
        self._failures = 0
        self._connected_at: float | None = None

    def connected(self, now: float) -> None:
        """A handshake succeeded."""
        self._connected_at = now

    def lost(self, now: float) -> None:
        """The connection died; whether it counts as a failure depends on how long it lived."""
        if self._connected_at is not None and now - self._connected_at >= STEADY_S:
            self._failures = 0
        self._connected_at = None

    def next_wait_s(self, at_least_s: float = 0.0) -> float:
        """Seconds to wait before the next try. `at_least_s`: what the relay asked for."""
        bound = 0.0
        if self._failures:
            bound = min(LONGEST_S, FIRST_S * 2.0 ** min(self._failures - 1, 16))
        self._failures += 1
        return at_least_s + bound * self._random_share()
