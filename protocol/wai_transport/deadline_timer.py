"""One timer for all deadlines of a connection, which costs nothing where they move to later."""

from __future__ import annotations

import abc
import asyncio


class DeadlineTimer(abc.ABC):
    """What a connection inherits to have its `handle_timeout` called. Belongs to one event loop.

    It is no object of its own, since the two would keep each other alive until the garbage
    collector comes.
    """

    __slots__ = ("_loop", "_timer", "_timer_at")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    @abc.abstractmethod
    def handle_timeout(self, now: float) -> None:
        """Do what is due at `now` (the loop's clock), if anything is, and `arm` for the rest."""

    def arm(self, deadline: float) -> None:
        """Make sure that `handle_timeout` is called at `deadline` (the loop's clock) at the latest.

        A timer for an earlier time is kept: it will find nothing overdue and be set again. That is
        cheaper than a new timer for each request.
        """
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._timer_fired)

    def disarm(self) -> None:
        """Have nothing called any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _timer_fired(self) -> None:
        self._timer = None
        self.handle_timeout(self._loop.time())
