"""One stream: an HTTP exchange in a session, and the credit of both directions (SPEC section 5).

Each direction is open until END; RESET ends both. The sender may have as many bytes of DATA on
their way as the receiver gave credit for. The receiver gives credit back in small parts of a
window, and more than was used where the window proves too small for the rate and the distance: then
it grows to what they need, or at once to what an earlier stream of the session grew to. While the
session has other streams it needs less, and gives back less until its window is that small.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from .errors import Fault, LocalProtocolError, RemoteProtocolError
from .limits import CREDIT_EVERY_BYTES, MAX_DATA_BYTES, MAX_STREAM_WINDOW_BYTES

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

WHOLE_RECORD_BYTES: Final = MAX_DATA_BYTES - 16
"""What a long write is cut into: with its frame's head, at most 13 bytes, it fills one TLS record.
16 KiB would take a second record for the last bytes."""

LONG_PIECE_BYTES: Final = 4 * 1024
"""A piece that is not joined with the next: a frame's own cost is paid four times at most."""


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


class Stream:
    """The state of one stream at one end."""

    __slots__ = (
        "_credit_every",
        "_first_window",
        "_measured_at",
        "_tried_bps",
        "_tried_window",
        "_unreported",
        "_used",
        "credit_in",
        "credit_out",
        "end_queued",
        "head_done",
        "id",
        "local_ended",
        "longer_way",
        "may_send",
        "pending",
        "pending_bytes",
        "remote_ended",
        "scheduled",
        "stopped",
        "window",
    )

    def __init__(self, stream_id: int, *, window_in: int, window_out: int, now: float) -> None:
        self.id = stream_id
        self.pending: deque[bytes | memoryview] = deque()
        self.pending_bytes = 0
        self.credit_out = window_out
        """Bytes of DATA that the peer takes."""
        self.credit_in = window_in
        """Bytes of DATA that the peer may still send."""
        self.window = window_in
        self.head_done = False
        self.may_send = True
        """Whether DATA and END may go: not on an answer before its head."""
        self.end_queued = False
        self.local_ended = False
        self.remote_ended = False
        self.scheduled = False
        """Whether the session has it in its list of streams with something to send."""
        self.stopped = False
        """Whether `send_data` said stop, so that a `Writable` is owed."""
        self._first_window = window_in
        self._unreported = 0  # bytes used, for which no credit was given back
        self._credit_every = _credit_every(window_in)
        self._used = 0  # bytes credited since `_measured_at`
        self._measured_at = now
        self._tried_bps = 0.0  # what came per second before the last trial; 0: there was none
        self._tried_window = 0  # what it made of the window
        self.longer_way = False
        """Whether the last `consume` has found that the round trips became longer because the way
        did: a larger window brought more."""

    # -- sending

    def queue(self, data: bytes) -> None:
        """Add body bytes to what waits for credit and its turn."""
        size = len(data)
        self.pending_bytes += size
        if size <= MAX_DATA_BYTES:
            self.pending.append(data)
        else:
            view, step = memoryview(data), WHOLE_RECORD_BYTES
            self.pending.extend(view[at : at + step] for at in range(0, size, step))

    def take(self, limit: int) -> bytes | memoryview:
        """Up to `limit` bytes within the peer's credit; b"" if there are none to be had.

        A long piece goes as it is: filling each frame to the brim would copy every byte once more.
        """
        if limit > self.credit_out:
            limit = self.credit_out
        pending = self.pending
        if limit <= 0 or not pending:
            return b""
        data = pending.popleft()
        if len(data) > limit:
            view = memoryview(data)
            pending.appendleft(view[limit:])
            data = view[:limit]
        elif pending and len(data) < LONG_PIECE_BYTES:
            data = self._join(data, limit)
        size = len(data)
        self.pending_bytes -= size
        self.credit_out -= size
        return data

    def _join(self, first: bytes | memoryview, limit: int) -> bytes:
        """`first` and what comes after it, up to `limit` bytes."""
        parts, left = [first], limit - len(first)
        pending = self.pending
        while pending and left > 0:
            part = pending.popleft()
            if len(part) > left:
                view = memoryview(part)
                pending.appendleft(view[left:])
                part = view[:left]
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    @property
    def sendable(self) -> bool:
        """Whether DATA or END could be sent now."""
        if self.pending_bytes:
            return self.credit_out > 0
        return self.end_queued and not self.local_ended

    # -- receiving

    def receive(self, size: int) -> None:
        """Count received DATA against its credit. Raises `RemoteProtocolError` on too much."""
        if self.remote_ended:
            raise RemoteProtocolError(f"DATA on stream {self.id} after its END")
        if size > self.credit_in:
            raise RemoteProtocolError(
                f"stream {self.id} sent more than its credit", Fault.FLOW_CONTROL
            )
        self.credit_in -= size

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
        if self.credit_in + self._unreported > self.window:
            raise LocalProtocolError(f"stream {self.id} used bytes that never came")
        if self._unreported < self._credit_every or self.remote_ended:
            return 0
        increment = self._unreported
        self._unreported = 0
        self._used += increment
        if self._used * 2 >= self.window:
            elapsed_s = now - self._measured_at
            if rtt_s is not None and (rtt_s >= TIMED_S or elapsed_s >= TIMED_S):
                headroom = HEADROOM if alone else SHARED_HEADROOM
                needed = headroom * rtt_s * self._used
                if needed > self.window * elapsed_s:
                    increment += self._grow(needed, elapsed_s, budget, alone=alone)
                elif growth := self._try(recent_rtt_s, elapsed_s, budget):
                    increment += growth
                elif not alone:
                    increment -= self._shrink(int(needed / elapsed_s), increment, budget)
                self.measure_from(now)
        self.credit_in += increment
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
            self._tried_bps, self._tried_window = 0.0, 0
        if recent_rtt_s * rate_bps * 2 < self.window:
            return 0
        if rate_bps < self._tried_bps * PAID or self.window < self._tried_window:
            return 0
        growth = self._widen(self.window * TRIAL_FACTOR, budget)
        self.longer_way = self._tried_bps > 0
        self._tried_bps, self._tried_window = rate_bps, self.window
        return growth

    def _grow(self, needed: float, elapsed_s: float, budget: GrowthBudget, *, alone: bool) -> int:
        """By how much the window grows, where `needed / elapsed_s` bytes are more than it has."""
        wanted = self.window * GROWTH_FACTOR
        if needed < wanted * elapsed_s:
            wanted = int(needed / elapsed_s)
        if alone:
            wanted = max(wanted, budget.proven_bytes)
        growth = self._widen(wanted, budget)
        if growth:
            budget.proven_bytes = max(budget.proven_bytes, self.window)
        return growth

    def _widen(self, wanted: int, budget: GrowthBudget) -> int:
        growth = min(min(wanted, MAX_STREAM_WINDOW_BYTES) - self.window, budget.share)
        if growth <= 0 or not budget.take(growth):
            return 0
        self.window += growth
        self._credit_every = _credit_every(self.window)
        return growth

    def _shrink(self, wanted: int, increment: int, budget: GrowthBudget) -> int:
        """How much of `increment` is kept back for a window of `wanted` bytes."""
        least = max(wanted, SHARED_WINDOW_BYTES, self._first_window)
        kept = min(increment, self.window - least)
        if kept <= 0:
            return 0
        budget.give_back(kept)
        self.window -= kept
        self._credit_every = _credit_every(self.window)
        return kept

    def close(self, budget: GrowthBudget) -> None:
        """Drop what waits, and return what the window grew by."""
        self.pending.clear()
        self.pending_bytes = 0
        if self.window > self._first_window:
            budget.give_back(self.window - self._first_window)
            self.window = self._first_window
            self._credit_every = _credit_every(self.window)


def _credit_every(window: int) -> int:
    return min((window + 1) // 2, CREDIT_EVERY_BYTES)
