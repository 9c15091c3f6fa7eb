"""Call functions at exact times: a heap of due times behind one timerfd.

The loop's own timers tick in whole milliseconds, which would bunch the events of many streams into
bursts and make every hop look cheaper than it is for tokens that come one by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import heapq
import itertools
import os
import time
from collections.abc import Callable
from typing import Final

_CLOCK_MONOTONIC: Final = 1
_NONBLOCK_CLOEXEC: Final = 0o4000 | 0o2000000
_ABSOLUTE: Final = 1
_NS: Final = 1_000_000_000


class _Spec(ctypes.Structure):
    """`struct itimerspec`: the interval (unused here), then the moment."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Pacer:
    """Runs callbacks at given moments of CLOCK_MONOTONIC, to about 50 µs. Linux only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._spec = _Spec()
        self._due: list[tuple[int, int, Callable[[int], None]]] = []
        self._order = itertools.count()  # keeps the heap from comparing callbacks
        self._loop = loop
        loop.add_reader(self._fd, self._fire)

    def call_at(self, due_ns: int, callback: Callable[[int], None]) -> None:
        """Call `callback(due_ns)` at `due_ns`. It can't be cancelled."""
        due = self._due
        heapq.heappush(due, (due_ns, next(self._order), callback))
        if due[0][0] == due_ns:
            self._arm(due_ns)

    def close(self) -> None:
        """Forget all callbacks and give the timer back."""
        self._due.clear()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _arm(self, due_ns: int) -> None:
        self._spec.value_s, self._spec.value_ns = divmod(max(due_ns, 1), _NS)
        self._libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(self._spec), None)

    def _fire(self) -> None:
        with contextlib.suppress(BlockingIOError):  # re-armed between the wake-up and the read
            os.read(self._fd, 8)
        due = self._due
        now_ns = time.monotonic_ns()
        while due and due[0][0] <= now_ns:
            due_ns, _, callback = heapq.heappop(due)
            callback(due_ns)
        if due:
            self._arm(due[0][0])
