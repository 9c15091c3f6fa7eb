"""How long to wait before the next try to reach the relay, and how long to wait for its answer.

After a loss the tries come quickly for as long as the relay keeps the session, since what is open
in it can still be saved; later they grow rarer, and never stop. Full jitter (a random share of a
bound), so that a fleet that lost its relay does not come back in one moment. A pure state machine:
it is told the time and given its randomness.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

FIRST_S: Final = 0.25
"""Bound of the second wait; the first try after a loss goes out at once."""

QUICK_S: Final = 1.0
"""Bound of the waits while the session can be resumed: half of the nodes try again within 0.3 s of
their relay's return. A try that is refused costs a packet each way."""

QUICK_FOR_S: Final = 60.0
"""How long the tries stay quick where no relay has told how long it keeps a session (its default):
at the start of a node, whose network may not be there yet."""

LONGEST_S: Final = 10.0
"""Bound of the waits in the end: 1,000 nodes whose relay is away all night send 200 SYNs a second,
and each is back within 10 s of its return."""

YOUNG_S: Final = 1.0
"""A connection that was lost sooner than this is not replaced at once, but after a wait of up to
`FIRST_S`: something that ends every connection would otherwise keep both ends busy."""

PATIENCE_S: Final = 2.5
"""How long the relay's first answer in TLS or in the handshake may take at first: five round trips
to the other side of the world. If packets vanish, TCP's own repetitions come ever later."""

LONGEST_PATIENCE_S: Final = 10.0
"""The same in the end, for a slow way or a relay that is busy with the return of all its nodes."""


class Backoff:
    """Waits between tries. `random_share` gives numbers in [0, 1)."""

    def __init__(self, random_share: Callable[[], float] = random.random) -> None:
        self._random_share = random_share
        self._failures = 0
        self._rare_failures = 0
        self._stalls = 0
        self._quick_for_s = QUICK_FOR_S
        self._away_since: float | None = None
        self._connected_at: float | None = None

    @property
    def patience_s(self) -> float:
        """How long the relay may take to answer on a connection that stands."""
        return float(min(LONGEST_PATIENCE_S, PATIENCE_S * 2.0 ** min(self._stalls, 8)))

    def connected(self, now: float, quick_for_s: float = QUICK_FOR_S) -> None:
        """A handshake succeeded. The relay keeps the session for `quick_for_s` after a loss."""
        self._connected_at = now
        self._quick_for_s = quick_for_s
        self.begin_anew()

    def lost(self, now: float) -> None:
        """The connection died."""
        if self._connected_at is not None and now - self._connected_at < YOUNG_S:
            self._failures = 1
        self._connected_at = None

    def stalled(self) -> None:
        """A connection stood, and the relay did not answer on it."""
        self._stalls += 1

    def begin_anew(self) -> None:
        """What was tried before says nothing any more, since the network has changed."""
        self._failures = self._rare_failures = self._stalls = 0
        self._away_since = None

    def next_wait_s(self, now: float, at_least_s: float = 0.0) -> float:
        """Seconds to wait before the next try. `at_least_s`: what the relay asked for."""
        if self._away_since is None:
            self._away_since = now
        bound = 0.0
        if now - self._away_since >= self._quick_for_s:
            self._rare_failures += 1
            bound = min(LONGEST_S, QUICK_S * 2.0 ** min(self._rare_failures, 16))
        elif self._failures:
            bound = min(QUICK_S, FIRST_S * 2.0 ** min(self._failures - 1, 16))
        self._failures += 1
        return at_least_s + bound * self._random_share()
