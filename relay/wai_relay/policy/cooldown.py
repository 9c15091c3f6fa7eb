"""Nodes that fail get no work for a while, and then one request to prove themselves.

A node rests after a few failures in a row, or when most of its last requests failed: first for
some seconds, then twice as long each time, up to a bound. After that one request is let through;
if it succeeds the node is back, if not it rests again. Where many requests are served meanwhile,
one of them is spent on it sooner. A node that fails now and then does not rest; the share of its
requests that fail counts in its score. Only failures that are the node's own count:
the caller of this decides. Pure: `now` is monotonic seconds.
"""

from __future__ import annotations

import math
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
# Refusals in a row with nothing served in between, from which on they count as failures do in its
# score: callers make mistakes everywhere alike, but a server may find fault with all requests. It
# does not rest for that.
REFUSALS_IN_ROW: Final = 3
# A restarted llama-server needs some seconds to load; a broken one need not be asked every second.
FIRST_REST_S: Final = 5.0
# A probe that fails costs its caller one more attempt, and a healed node that is not probed costs
# every caller its speed: so it is asked this often at least.
LONGEST_REST_S: Final = 20.0
# Or when so many requests for the model were placed since: then a probe costs few callers anything,
# and a node that has recovered is back within seconds...
PROBE_AFTER_PLACED: Final = 29
# ... but not before it had a moment to recover.
LEAST_REST_S: Final = 1.0
# The share of failures is that of what is remembered, beside so many tries that went well: one
# failure of one is not all. Half of it is forgotten in this time: it is known less then, and must
# be tried again.
PRIOR_TRIES: Final = 3.0
FORGET_HALF_S: Final = 5.0
# ... or in as many times as long as its failed tries took: one that fails after a long silence is
# dear to try again. (In the simulation 4 to 16 did alike, 2 and less did worse.)
FORGET_PER_TOOK: Final = 4.0
TOOK_STEP: Final = 0.5  # how much the last failure says of how long the next one takes
MOST_TOOK_S: Final = 30.0  # what it says at most: a node that healed must not be avoided for hours
LEAST_FAILURE_RATE: Final = 0.05  # below, it counts as none
# A probe whose end is never told (its caller went away) must not block the node for ever.
PROBE_S: Final = 30.0


class Cooldown:
    """How one node does with one model."""

    __slots__ = (
        *("_early", "_early_placed", "_faded_at", "_failures", "_in_row", "_outcomes"),
        *("_probe_until", "_proven", "_refused_in_row", "_rest_s", "_tries", "_until", "took_s"),
    )

    def __init__(self) -> None:
        self._in_row = 0.0
        self._refused_in_row = 0
        self._proven = False  # it has served something
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)
        self._rest_s = 0.0  # the current or last rest; 0.0: none since it last did well
        self._until: float | None = None
        self._probe_until = 0.0
        # From when, and how many placed requests, it may be probed before its rest is over.
        self._early = 0.0
        self._early_placed: float = math.inf
        # What is remembered of its tries, as of `_faded_at`; nothing while none failed.
        self._failures = 0.0
        self._tries = 0.0
        self._faded_at = 0.0
        self.took_s = 0.0  # how long its failed tries took of late

    def cooling(self, now: float, placed: int = 0) -> bool:
        """Whether it should get no work now: it rests, or its probe is still out. `placed`: how
        many requests for the model were placed so far, anywhere."""
        if self._until is None:
            return False
        return self._rests(now, placed) or now < self._probe_until

    def failure_rate(self, now: float) -> float:
        """The share of its last requests that it failed; 0.0 where that is next to none, and for a
        node that is to be probed: the probe tells more."""
        if not self._failures or self._until is not None:
            return 0.0
        self._fade(now)
        rate = self._failures / (self._tries + PRIOR_TRIES)
        if rate < LEAST_FAILURE_RATE:
            self._failures = self._tries = rate = 0.0
        return rate

    def _remember_failure(self, now: float) -> None:
        self._fade(now)
        self._failures += 1.0
        self._tries += 1.0

    def _fade(self, now: float) -> None:
        half_s = max(FORGET_HALF_S, FORGET_PER_TOOK * self.took_s)
        left: float = 0.5 ** ((now - self._faded_at) / half_s)
        self._failures *= left
        self._tries *= left
        self._faded_at = now

    @property
    def well(self) -> bool:
        """Whether nothing stands against it; then `cooling` needs not be asked."""
        return self._until is None

    @property
    def spotless(self) -> bool:
        """Whether it neither rests nor failed lately."""
        return self._until is None and not self._failures

    def sent(self, now: float, placed: int = 0) -> None:
        """It was given a request. After a rest that one is the probe."""
        if self._until is not None and not self._rests(now, placed):
            self._probe_until = now + PROBE_S

    def succeeded(self) -> None:
        """A request went well."""
        self._in_row = 0.0
        self._refused_in_row = 0
        if self._failures:
            self._tries += 1.0
        self._proven = True
        self._outcomes.append(True)
        if self._until is not None:
            self._until = None
            self._rest_s = 0.0
            self._failures = self._tries = 0.0
            self._outcomes.clear()

    def acquitted(self) -> None:
        """A request came to nothing by its own mistake, or may have: that says nothing of the node,
        for one that can't serve anything may still find fault. If it was the probe, the next
        request is."""
        self._probe_until = 0.0

    def refused(self, now: float) -> None:
        """A request was refused for its own mistake. See `acquitted`, but for one that does nothing
        else."""
        self.acquitted()
        self._refused_in_row += 1
        if self._refused_in_row >= REFUSALS_IN_ROW:
            self._remember_failure(now)

    def failed(self, now: float, placed: int = 0) -> None:
        """A request failed, in a way that only the node can be at fault for."""
        self._count(1.0, now, placed)

    def blamed(self, now: float, placed: int = 0, took_s: float = 0.0) -> None:
        """A request failed here after `took_s`, and another node served it."""
        self.took_s += TOOK_STEP * (min(took_s, MOST_TOOK_S) - self.took_s)
        self._count(BLAMED if self._proven else UNPROVEN, now, placed)

    def _rests(self, now: float, placed: int) -> bool:
        until = self._until
        if until is None or now >= until:
            return False
        return now < self._early or placed < self._early_placed

    def _count(self, weight: float, now: float, placed: int) -> None:
        self._in_row += weight
        self._outcomes.append(False)
        failures = self._outcomes.count(False)
        mostly = len(self._outcomes) >= WINDOW_LEAST and failures * 2 > len(self._outcomes)
        resting = self._until is not None
        self._remember_failure(now)
        probed = now < self._probe_until
        if resting and now < (self._until or 0.0) and not probed:
            return  # one that was under way when the rest began says nothing new
        if resting or self._in_row >= FAILURES_IN_ROW or mostly:
            self._rest_s = min(max(self._rest_s * 2, FIRST_REST_S), LONGEST_REST_S)
            self._until = now + self._rest_s
            self._early = now + LEAST_REST_S
            self._early_placed = placed + PROBE_AFTER_PLACED
            self._probe_until = 0.0
            self._outcomes.clear()

    def seconds_left(self, now: float) -> float:
        """How long it still rests; 0.0 if it doesn't."""
        return 0.0 if self._until is None else max(self._until - now, 0.0)
