"""Back-off: how long to wait before the next dial, and how long to wait for the relay's answer.

After a loss the waits stay short for as long as the relay keeps the session, because its open
streams can still be resumed. Later they grow, and dialling never stops. Full jitter (each wait is a
random share of a bound) spreads the nodes of a relay that comes back. A pure state machine: time
and randomness are arguments.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

FIRST_S: Final = 0.25
"""Upper bound of the second wait; the first dial after a loss starts at once."""

QUICK_S: Final = 1.0
"""Upper bound of the waits while the session can be resumed: half of the nodes dial within 0.3 s of
their relay's return. A refused dial costs one packet in each direction."""

QUICK_FOR_S: Final = 60.0
"""How long the waits stay short while no relay has said how long it keeps a session (its default).
This is the case when a node starts, perhaps before its network is up."""

LONGEST_S: Final = 10.0
"""Upper bound of all later waits: 1,000 nodes whose relay is away for a night send 200 SYNs a
second, and each dials within 10 s of its return."""

YOUNG_S: Final = 1.0
"""After a connection that lasted less than this, the next dial waits up to `FIRST_S`. Otherwise
something that ends every connection would keep both ends busy."""

PATIENCE_S: Final = 2.5
"""Initial limit for the relay's first answer in TLS or in the handshake: five round trips to the
other side of the world. A new dial is better than waiting for TCP's ever later retransmissions."""

LONGEST_PATIENCE_S: Final = 10.0
"""Largest such limit, for a slow network or a relay that all nodes reconnect to at once."""


class Backoff:
    """Compute the waits between dials. `random_share` returns numbers in [0, 1)."""

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
        """How long the relay may take to answer on an established TCP connection."""
        return float(min(LONGEST_PATIENCE_S, PATIENCE_S * 2.0 ** min(self._stalls, 8)))

    def connected(self, now: float, quick_for_s: float = QUICK_FOR_S) -> None:
        """Note a successful handshake. The relay keeps a lost session for `quick_for_s`."""
        self._connected_at = now
        self._quick_for_s = quick_for_s
        self.begin_anew()

    def lost(self, now: float) -> None:
        """Note that the connection was lost."""
        if self._connected_at is not None and now - self._connected_at < YOUNG_S:
            self._failures = 1
        self._connected_at = None

    def stalled(self) -> None:
        """Note that TCP connected, and the relay did not answer in time."""
        self._stalls += 1

    def begin_anew(self) -> None:
        """Start over: the network has changed, so earlier failures say nothing."""
        self._failures = self._rare_failures = self._stalls = 0
        self._away_since = None

    def next_wait_s(self, now: float, at_least_s: float = 0.0) -> float:
        """Return the seconds to wait before the next dial, at least `at_least_s`, which the relay
        may have asked for."""
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
