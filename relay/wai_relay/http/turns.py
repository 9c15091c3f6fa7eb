"""Divide the event loop's time for decoding among the connections of callers.

The smallest frames cost 20 µs for 9 bytes, so that one read of the socket (256 KiB) could block the
loop for half a second. So received bytes are decoded in slices, and all connections together decode
for `TURN_S` in one turn of the event loop. Connections with bytes left wait in a queue. A
connection that has decoded little lately does not wait for the others: it has a turn of its own.
All times are processor times, except `RECENT_S` and pauses.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

TURN_S: Final = 0.002
"""Decoding time in one turn of the event loop. A slice of a normal caller takes 3 µs. A request of
another caller takes about ten turns."""

SLICE_BYTES: Final = 2 * 1024
"""Bytes decoded between two looks at the clock."""

MIN_SLICE_BYTES: Final = 256
"""The same of a connection whose slices take long: some 25 of the smallest frames, in 0.5 ms."""

SLOW_SLICE_S: Final = TURN_S / 4
"""A slice that takes longer makes the next one half as large."""

BUSY_S: Final = 0.1
"""After this much decoding in consecutive turns the queue pauses for as long as it was busy."""

MODEST_S: Final = 0.004
"""A connection that has decoded for less than this in `RECENT_S` does not queue. The heads of
twenty requests take as long, or a body of 2 MiB in chunks of an ordinary size."""

RECENT_S: Final = 1.0


class Waiting(Protocol):
    """A connection that has received bytes which are not decoded yet."""

    def take_turn(self) -> None:
        """Decode some bytes, within `Turns.left_s`; `Turns.wait` again if bytes are left."""


class Turns:
    """The queue of one `Edge`. `clock` returns the thread's processor time in seconds."""

    __slots__ = ("_busy_s", "_due", "_left_s", "_pausing", "_queue", "clock")

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self.clock = clock
        self._queue: deque[Waiting] = deque()
        self._left_s = TURN_S
        self._busy_s = 0.0
        self._due = False  # whether `_begin` is called in the next turn
        self._pausing = False

    @property
    def left_s(self) -> float:
        """Decoding time that is left in this turn of the event loop."""
        return self._left_s

    @property
    def crowded(self) -> bool:
        """Whether a connection with many bytes must queue."""
        return self._left_s <= 0 or bool(self._queue)

    def spend(self, spent_s: float) -> None:
        """Count decoding in this turn."""
        self._left_s -= spent_s
        self._busy_s += spent_s
        self._call_soon()

    def wait(self, connection: Waiting) -> None:
        """Call `connection.take_turn` in a later turn of the event loop."""
        self._queue.append(connection)
        self._call_soon()

    def _call_soon(self) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        """Begin a turn: let the queue decode, unless it has been busy for long."""
        self._due = False
        self._left_s = TURN_S
        if self._pausing:
            return
        if not self._queue:
            self._busy_s = 0.0
            return
        if self._busy_s >= BUSY_S:
            self._pausing = True
            asyncio.get_running_loop().call_later(self._busy_s, self._resume)
            return
        for _ in range(len(self._queue)):
            if self._left_s <= 0:
                break
            self._queue.popleft().take_turn()
        if self._queue:
            self._call_soon()

    def _resume(self) -> None:
        self._pausing = False
        self._busy_s = 0.0
        self._call_soon()


def next_slice_bytes(size: int, took_s: float) -> int:
    """Return the size of the slice after one of at most `size` bytes that took `took_s`."""
    if took_s > SLOW_SLICE_S:
        return max(MIN_SLICE_BYTES, size // 2)
    if took_s < SLOW_SLICE_S / 4:
        return min(SLICE_BYTES, size * 2)
    return size


class Recent:
    """How long one connection has decoded lately."""

    __slots__ = ("_since", "_spent_s")

    def __init__(self) -> None:
        self._since = 0.0
        self._spent_s = 0.0

    def is_modest(self, now: float) -> bool:
        """Return whether it decoded so little that it need not queue. `now`: the loop's clock."""
        return self._spent_s < MODEST_S or now - self._since >= RECENT_S

    def spend(self, spent_s: float, now: float) -> None:
        """Count decoding."""
        if now - self._since >= RECENT_S:
            self._since, self._spent_s = now, 0.0
        self._spent_s += spent_s
