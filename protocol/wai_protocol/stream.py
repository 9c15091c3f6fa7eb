"""One stream: an HTTP exchange in a session, and the credit of both directions (SPEC section 5).

Each direction is open until END; RESET ends both. The sender may have as many bytes of DATA on
their way as the receiver gave credit for: `Stream` holds the sending half, and `ReceiveWindow`, as
its `inbound`, the receiving one.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from .limits import MAX_DATA_BYTES
from .window import GrowthBudget, ReceiveWindow

WHOLE_RECORD_BYTES: Final = MAX_DATA_BYTES - 16
"""What a long write is cut into: with its frame's head, at most 13 bytes, it fills one TLS record.
16 KiB would take a second record for the last bytes."""

LONG_PIECE_BYTES: Final = 4 * 1024
"""A piece that is not joined with the next: a frame's own cost is paid four times at most."""


class Stream:
    """The state of one stream at one end."""

    __slots__ = (
        "credit_out",
        "end_queued",
        "head_done",
        "id",
        "inbound",
        "local_ended",
        "may_send",
        "pending",
        "pending_bytes",
        "scheduled",
        "stopped",
    )

    def __init__(self, stream_id: int, *, window_in: int, window_out: int, now: float) -> None:
        self.id = stream_id
        self.pending: deque[bytes | memoryview] = deque()
        self.pending_bytes = 0
        self.credit_out = window_out
        """Bytes of DATA that the peer takes."""
        self.inbound = ReceiveWindow(stream_id, window_in, now)
        self.head_done = False
        self.may_send = True
        """Whether DATA and END may go: not on an answer before its head."""
        self.end_queued = False
        self.local_ended = False
        self.scheduled = False
        """Whether the session has it in its list of streams with something to send."""
        self.stopped = False
        """Whether `send_data` said stop, so that a `Writable` is owed."""

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

    def close(self, budget: GrowthBudget) -> None:
        """Drop what waits, and return what the window grew by. Nothing goes or comes any more."""
        self.pending.clear()
        self.pending_bytes = 0
        self.inbound.close(budget)
        self.end_queued = self.local_ended = self.inbound.ended = True
