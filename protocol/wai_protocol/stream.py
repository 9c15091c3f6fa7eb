"""One stream: an HTTP exchange in a session, and the credit of both directions (SPEC section 5).

Each direction is open until END; RESET ends both. The sender may have as many bytes of DATA on
their way as the receiver gave credit for. The receiver gives credit back when half a window was
used, and more than was used where the window proves too small for the distance: then it doubles.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from .errors import Fault, LocalProtocolError, RemoteProtocolError
from .limits import MAX_DATA_BYTES, MAX_STREAM_WINDOW_BYTES

GROWTH_ROUND_TRIPS: Final = 4
"""Half a window used within this many round trips: the window, not the reader, is the brake."""


class GrowthBudget:
    """By how many bytes windows may outgrow their first size; one may stand above another."""

    __slots__ = ("_above", "_left")

    def __init__(self, limit_bytes: int, above: GrowthBudget | None = None) -> None:
        self._left = limit_bytes
        self._above = above

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
        "_credited_at",
        "_first_window",
        "_unreported",
        "credit_in",
        "credit_out",
        "end_queued",
        "head_done",
        "id",
        "local_ended",
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
        self.pending: deque[bytes] = deque()
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
        self._unreported = 0
        self._credited_at = now

    # -- sending

    def queue(self, data: bytes) -> None:
        """Add body bytes to what waits for credit and its turn."""
        size = len(data)
        self.pending_bytes += size
        if size <= MAX_DATA_BYTES:
            self.pending.append(data)
        else:  # cut once: cutting each frame off the rest would copy the rest each time
            step = MAX_DATA_BYTES
            self.pending.extend(data[at : at + step] for at in range(0, size, step))

    def take(self, limit: int) -> bytes:
        """Up to `limit` bytes within the peer's credit; b"" if there are none to be had."""
        limit = min(limit, self.credit_out)
        pending = self.pending
        if limit <= 0 or not pending:
            return b""
        if self.pending_bytes <= limit:
            data = pending[0] if len(pending) == 1 else b"".join(pending)
            pending.clear()
        else:
            data = self._cut(limit)
        size = len(data)
        self.pending_bytes -= size
        self.credit_out -= size
        return data

    def _cut(self, limit: int) -> bytes:
        parts = []
        while limit > 0:
            part = self.pending.popleft()
            if len(part) > limit:
                self.pending.appendleft(part[limit:])
                part = part[:limit]
            parts.append(part)
            limit -= len(part)
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
        self.credit_in -= size
        if self.credit_in < 0:
            raise RemoteProtocolError(
                f"stream {self.id} sent more than its credit", Fault.FLOW_CONTROL
            )

    def consume(self, size: int, rtt_s: float | None, budget: GrowthBudget, now: float) -> int:
        """Count `size` received bytes as used; the credit to give back now, 0 if it can wait."""
        self._unreported += size
        if self.credit_in + self._unreported > self.window:
            raise LocalProtocolError(f"stream {self.id} used bytes that never came")
        if self._unreported * 2 < self.window or self.remote_ended:
            return 0
        increment = self._unreported
        self._unreported = 0
        if rtt_s is not None and now - self._credited_at < GROWTH_ROUND_TRIPS * rtt_s:
            growth = min(self.window, MAX_STREAM_WINDOW_BYTES - self.window)
            if growth > 0 and budget.take(growth):
                self.window += growth
                increment += growth
        self._credited_at = now
        self.credit_in += increment
        return increment

    def close(self, budget: GrowthBudget) -> None:
        """Drop what waits, and return what the window grew by."""
        self.pending.clear()
        self.pending_bytes = 0
        if self.window > self._first_window:
            budget.give_back(self.window - self._first_window)
            self.window = self._first_window
