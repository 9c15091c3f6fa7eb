"""The receiving half of a stream: the credit that its peer has, and how large its window is.

The receiver gives credit back in small parts of a window, and more than was used where the window
proves too small for the rate and the distance: then it grows to what they need, or at once to what
an earlier stream of the session grew to. While the session has other streams it needs less, and
gives back less until its window is that small (SPEC section 5).
"""

from __future__ import annotations

from typing import Final

from .errors import Fault, LocalProtocolError, RemoteProtocolError
from .limits import CREDIT_EVERY_BYTES, MAX_STREAM_WINDOW_BYTES

HEADROOM: Final = 4
"""How many round trips' worth of what its reader takes a window holds. At one it is itself the
brake; what is beyond lies in queues on the way, where another stream's token waits behind it. Two
would do for a steady flow; but each growth is a doubling then, and busy loops add to the way."""

TRIAL_FACTOR: Final = 2
"""What a window grows by to find out whether it is the brake, where round trips became longer. If
they did because of a full queue, so much more waits in it, once."""

PAID: Final = 1.15
"""How many times as much must have come after that, so that it was not for nothing."""

GROWTH_FACTOR: Final = 8
"""What a window grows by at most: from 64 KiB to 8 MiB in three round trips. Doubling takes seven,
and at 200 ms a body of 60 MiB then came at half of what one TCP connection carries."""

TIMED_S: Final = 0.02
"""For how long at least a reader is timed whose way is shorter: turns of a busy loop are uneven,
and a window keeps what one of them let it grow to."""

SHARED_HEADROOM: Final = 2
"""The same while the session has other streams, whose tokens lie behind what is on its way: they
wait for a round trip of it at most. With less than two each look would find less still."""

SHARED_WINDOW_BYTES: Final = 128 * 1024
"""What a window does not shrink below then: on loopback half of the rate that there is alone."""


class GrowthBudget:
    """By how many bytes windows may outgrow their first size; one may stand above another."""

    __slots__ = ("_above", "_left", "proven_bytes")

    def __init__(self, limit_bytes: int, above: GrowthBudget | None = None) -> None:
        self.proven_bytes = 0
        """The largest window that was the brake until it grew to this: the next stream over the
        same way need not find it out again."""
        self._left = limit_bytes
        self._above = above

    @property
    def share(self) -> int:
        """What one window may claim: half of what is left, so that the next finds some too."""
        left = self._left if self._above is None else min(self._left, self._above._left)
        return left // 2

    def take(self, size: int) -> bool:
        """Claim `size` bytes, here and above; False, and nothing claimed, if there are too few."""
        if size > self._left or (self._above is not None and not self._above.take(size)):
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        """Return what `take` claimed."""
        self._left += size
        if self._above is not None:
            self._above.give_back(size)


class ReceiveWindow:
    """What the peer of stream `stream_id` may send, and when it is told that it may send more.

    `credit`: bytes of DATA that the peer may still send. `size`: the most that `credit` can be.
    `ended`: the peer has sent its END.
    """

    __slots__ = (
        "_credit_every",
        "_first_size",
        "_measured_at",
        "_stream_id",
        "_tried_bps",
        "_tried_size",
        "_unreported",
        "_used",
        "credit",
        "ended",
        "longer_way",
        "size",
    )

    def __init__(self, stream_id: int, size: int, now: float) -> None:
        self.credit = self.size = self._first_size = size
        self.ended = False
        self._stream_id = stream_id
        self._unreported = 0  # bytes used, for which no credit was given back
        self._credit_every = _credit_every(size)
        self._used = 0  # bytes credited since `_measured_at`
        self._measured_at = now
        self._tried_bps = 0.0  # what came per second before the last trial; 0: there was none
        self._tried_size = 0  # what it made of the window
        self.longer_way = False
        """Whether the last `consume` has found that the round trips became longer because the way
        did: a larger window brought more."""

    def receive(self, size: int) -> None:
        """Count received DATA against its credit. Raises `RemoteProtocolError` on too much."""
        if self.ended:
            raise RemoteProtocolError(f"DATA on stream {self._stream_id} after its END")
        if size > self.credit:
            raise RemoteProtocolError(
                f"stream {self._stream_id} sent more than its credit", Fault.FLOW_CONTROL
            )
        self.credit -= size

    def consume(
        self,
        size: int,
        rtt_s: float | None,
        budget: GrowthBudget,
        now: float,
        *,
        alone: bool = True,
        recent_rtt_s: float | None = None,
    ) -> int:
        """Count `size` received bytes as used at `now`; the credit to give back, 0 if it can wait.

        `alone`: no other stream of the session has a token to wait behind this one's bytes.
        `rtt_s`: the way there and back; `recent_rtt_s`: what the last round trips took, which may
        be more because of queues, or because the way became longer.
        """
        self._unreported += size
        if self.credit + self._unreported > self.size:
            raise LocalProtocolError(f"stream {self._stream_id} used bytes that never came")
        if self._unreported < self._credit_every or self.ended:
            return 0
        increment = self._unreported
        self._unreported = 0
        self._used += increment
        if self._used * 2 >= self.size:
            elapsed_s = now - self._measured_at
            if rtt_s is not None and (rtt_s >= TIMED_S or elapsed_s >= TIMED_S):
                headroom = HEADROOM if alone else SHARED_HEADROOM
                needed = headroom * rtt_s * self._used
                if needed > self.size * elapsed_s:
                    increment += self._grow(needed, elapsed_s, budget, alone=alone)
                elif growth := self._try(recent_rtt_s, elapsed_s, budget):
                    increment += growth
                elif not alone:
                    increment -= self._shrink(int(needed / elapsed_s), increment, budget)
                self.measure_from(now)
        self.credit += increment
        return increment

    def measure_from(self, now: float) -> None:
        """Time the reader from here, not from when the answer was not there."""
        self._used = 0
        self._measured_at = now

    def _try(self, recent_rtt_s: float | None, elapsed_s: float, budget: GrowthBudget) -> int:
        """By how much the window grows on trial, where it is the brake if the last round trips were
        as long as the way. They may be so because our own bytes queue up on it: then a larger
        window brings no more, and does not grow again."""
        if recent_rtt_s is None or recent_rtt_s < TIMED_S:
            return 0
        rate_bps = self._used / elapsed_s
        if rate_bps * 2 < self._tried_bps:  # another way, or another reader: the trial says nothing
            self._tried_bps, self._tried_size = 0.0, 0
        if recent_rtt_s * rate_bps * 2 < self.size:
            return 0
        if rate_bps < self._tried_bps * PAID or self.size < self._tried_size:
            return 0
        growth = self._widen(self.size * TRIAL_FACTOR, budget)
        self.longer_way = self._tried_bps > 0
        self._tried_bps, self._tried_size = rate_bps, self.size
        return growth

    def _grow(self, needed: float, elapsed_s: float, budget: GrowthBudget, *, alone: bool) -> int:
        """By how much the window grows, where `needed / elapsed_s` bytes are more than it has."""
        wanted = self.size * GROWTH_FACTOR
        if needed < wanted * elapsed_s:
            wanted = int(needed / elapsed_s)
        if alone:
            wanted = max(wanted, budget.proven_bytes)
        growth = self._widen(wanted, budget)
        if growth:
            budget.proven_bytes = max(budget.proven_bytes, self.size)
        return growth

    def _widen(self, wanted: int, budget: GrowthBudget) -> int:
        growth = min(min(wanted, MAX_STREAM_WINDOW_BYTES) - self.size, budget.share)
        if growth <= 0 or not budget.take(growth):
            return 0
        self.size += growth
        self._credit_every = _credit_every(self.size)
        return growth

    def _shrink(self, wanted: int, increment: int, budget: GrowthBudget) -> int:
        """How much of `increment` is kept back for a window of `wanted` bytes."""
        least = max(wanted, SHARED_WINDOW_BYTES, self._first_size)
        kept = min(increment, self.size - least)
        if kept <= 0:
            return 0
        budget.give_back(kept)
        self.size -= kept
        self._credit_every = _credit_every(self.size)
        return kept

    def close(self, budget: GrowthBudget) -> None:
        """Return what the window grew by. Idempotent."""
        if self.size > self._first_size:
            budget.give_back(self.size - self._first_size)
            self.size = self._first_size
            self._credit_every = _credit_every(self.size)


def _credit_every(window: int) -> int:
    return min((window + 1) // 2, CREDIT_EVERY_BYTES)
