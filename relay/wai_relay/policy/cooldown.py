"""Nodes that fail get no work for a while, and then one request to prove themselves.

A node rests after a few failures in a row, or when most of its last requests failed: first for
some seconds, then twice as long each time, up to a bound. After that one request is let through;
if it succeeds the node is back, if not it rests again. Only failures that are the node's own count:
the caller of this decides. Pure: `now` is monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from typing import Final

# Failures in a row after which a node rests. A single broken answer happens to the best...
FAILURES_IN_ROW: Final = 3.0
# ... but a failure counts more where another node served the same request at once,
BLAMED: Final = 1.5
# and one is enough for a node that has served nothing since it came (or came back).
UNPROVEN: Final = 3.0
# Or more than half of the last ten, once there are five: a node that only mostly works.
WINDOW: Final = 10
WINDOW_LEAST: Final = 5
# A restarted llama-server needs some seconds to load; a broken one need not be asked every second.
FIRST_REST_S: Final = 5.0
# A probe that fails costs its caller one more attempt, and a healed node that is not probed costs
# every caller its speed: so it is asked this often at least.
LONGEST_REST_S: Final = 20.0
# A probe whose end is never told (its caller went away) must not block the node for ever.
PROBE_S: Final = 30.0


class Cooldown:
    """How one node does with one model."""

    __slots__ = ("_in_row", "_outcomes", "_probe_until", "_proven", "_rest_s", "_until")

    def __init__(self) -> None:
        self._in_row = 0.0
        self._proven = False  # it has served something
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)
        self._rest_s = 0.0  # the current or last rest; 0.0: none since it last did well
        self._until: float | None = None
        self._probe_until = 0.0

    def cooling(self, now: float) -> bool:
        """Whether it should get no work now: it rests, or its probe is still out."""
        if self._until is None:
            return False
        return now < self._until or now < self._probe_until

    @property
    def well(self) -> bool:
        """Whether nothing stands against it; then `cooling` needs not be asked."""
        return self._until is None

    def sent(self, now: float) -> None:
        """It was given a request. After a rest that one is the probe."""
        if self._until is not None and now >= self._until:
            self._probe_until = now + PROBE_S

    def succeeded(self) -> None:
        """A request went well."""
        self._in_row = 0.0
        self._proven = True
        self._outcomes.append(True)
        if self._until is not None:
            self._until = None
            self._rest_s = 0.0
            self._outcomes.clear()

    def failed(self, now: float) -> None:
        """A request failed, in a way that only the node can be at fault for."""
        self._count(1.0, now)

    def blamed(self, now: float) -> None:
        """A request failed here, and another node served it."""
        self._count(BLAMED if self._proven else UNPROVEN, now)

    def _count(self, weight: float, now: float) -> None:
        self._in_row += weight
        self._outcomes.append(False)
        failures = self._outcomes.count(False)
        mostly = len(self._outcomes) >= WINDOW_LEAST and failures * 2 > len(self._outcomes)
        resting = self._until is not None
        if resting and now < (self._until or 0.0):
            return  # one that was under way when the rest began says nothing new
        if resting or self._in_row >= FAILURES_IN_ROW or mostly:
            self._rest_s = min(max(self._rest_s * 2, FIRST_REST_S), LONGEST_REST_S)
            self._until = now + self._rest_s
            self._probe_until = 0.0
            self._outcomes.clear()

    def seconds_left(self, now: float) -> float:
        """How long it still rests; 0.0 if it doesn't."""
        return 0.0 if self._until is None else max(self._until - now, 0.0)
